"""What the server's rules need from the world: a store, a clock, entropy, a way to reach open streams.

Each port fits on this screen; `bootstrap` plugs in the real ones. The store knows nothing of sign-ins or
devices: it keeps records, and offers the one primitive all state machines here rest on, the conditional
update, inside transactions that are durable before they are acknowledged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cryptography import x509

from keyvouch.attestation import TrustStore
from keyvouch.attestation.card_certificate import CardAuthority
from keyvouch.attestation.tpm_public import TpmPublicKey
from keyvouch.ids import DeviceId, TenantId
from keyvouch.statement import Purpose
from keyvouch.tokens import AccessTokenClaims
from keyvouch_server.domain.model import Prompt, SignIn

R = TypeVar("R")
"""A record class of `domain.model`."""
T = TypeVar("T")


class Duplicate(Exception):  # noqa: N818 - a fact about the store, not an error of the product
    """A record with the same key, or the same value of a unique column, exists already."""


@dataclass(frozen=True, slots=True)
class Above:
    """Condition: the column is greater than `value`."""

    value: int | str


@dataclass(frozen=True, slots=True)
class Below:
    """Condition: the column is less than `value`."""

    value: int | str


@dataclass(frozen=True, slots=True)
class AtMost:
    """Condition: the column is at most `value`."""

    value: int


@dataclass(frozen=True, slots=True)
class OneOf:
    """Condition: the column equals one of `values` (never empty)."""

    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Plus:
    """Change: add `value` to the column."""

    value: int


Where = Mapping[str, Any]
"""Column name to the value it must equal, or to a condition. Never empty for updates and deletes."""
Changes = Mapping[str, Any]
"""Column name to the new value, or to `Plus`."""


class Snapshot(Protocol):
    """Reads inside one transaction."""

    async def get(self, table: type[R], **key: object) -> R | None:
        """The one record whose columns equal `key`, or None."""
        ...

    async def find(
        self, table: type[R], where: Where, *, order: str = "", descending: bool = False, limit: int = 1000
    ) -> list[R]:
        """Up to `limit` records that meet `where`, ordered by the column `order` when given."""
        ...

    async def count(self, table: type[Any], where: Where) -> int:
        """How many records meet `where`."""
        ...


class Transaction(Snapshot, Protocol):
    """Reads and writes inside one transaction."""

    async def insert(self, record: object) -> None:
        """Add a record. Raises `Duplicate`; the transaction stays usable after it."""
        ...

    async def update(self, table: type[R], where: Where, changes: Changes) -> list[R]:
        """Change every record that meets `where` in one statement; return them as they are afterwards.

        This is how a state moves: the old state stands in `where`, and an empty list means somebody else
        was first, or time is up.
        """
        ...

    async def delete(self, table: type[R], where: Where) -> list[R]:
        """Delete every record that meets `where`; return them as they were."""
        ...


class Store(Protocol):
    """Durable records.

    `work` may be run again from the start after a conflict, so it must not have effects outside the
    transaction. An exception from it undoes the whole transaction and is passed on.
    """

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """Run `work` on one consistent snapshot of what is durable. Raises `UnavailableError`."""
        ...

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `work` in one transaction; return once it is durable. Raises `UnavailableError`."""
        ...

    async def close(self) -> None:
        """Finish what is under way and let go of the files."""
        ...


class Clock(Protocol):
    """The server's clock."""

    def now(self) -> int:
        """Seconds since the epoch."""
        ...


class Entropy(Protocol):
    """Random bytes fit for secrets."""

    def token(self, size: int) -> bytes:
        """`size` random bytes."""
        ...


@dataclass(frozen=True, slots=True)
class EkTrust:
    """Who may vouch for endorsement keys: roots, and the certificates between them and those of the keys.

    `manufacturers` are makers, `id:XXXXXXXX`, that nobody registered and that are believed all the same.
    """

    anchors: TrustStore
    intermediates: tuple[x509.Certificate, ...] = ()
    manufacturers: frozenset[str] = frozenset()


@dataclass(slots=True)
class CardTrust:
    """Who certifies keys on smartcards, each with the canonical name of the one tenant it is for, empty for all.

    Contents are replaced as a whole when revocation lists were read again.
    """

    authorities: tuple[tuple[str, CardAuthority], ...] = ()

    def of_tenant(self, name_key: str) -> tuple[CardAuthority, ...]:
        """Those that certify keys of users of the tenant with this canonical name."""
        return tuple(authority for tenant, authority in self.authorities if tenant in ("", name_key))

    def named(self, name: str) -> CardAuthority | None:
        """The one that policies and assurances call so."""
        return next((authority for _, authority in self.authorities if authority.name == name), None)


@dataclass(frozen=True, slots=True)
class EndorsedTpm:
    """A TPM as its endorsement key certificate names it, and the anchor that certificate leads to.

    `manufacturer` is `id:` and eight hexadecimal digits (TCG EK Credential Profile section 3.1.2).
    """

    manufacturer: str
    model: str
    version: str
    anchor: str


class Keys(Protocol):
    """The server's secret keys, which only ever leave as results."""

    def mac(self, purpose: str, data: bytes) -> bytes:
        """HMAC-SHA-256 of `data` under a key derived for `purpose`, 32 bytes."""
        ...

    def access_token(self, claims: AccessTokenClaims) -> str:
        """A signed access token."""
        ...

    def device_certificate(self, device: DeviceId, tenant: TenantId, channel_key: bytes) -> tuple[bytes, ...]:
        """DER chain for a device's channel key: its certificate, then the authority's."""
        ...

    def attestation_certificate(self, key: TpmPublicKey, tpm: EndorsedTpm) -> bytes:
        """A certificate (DER) for the attestation key of a TPM. It leaves the server sealed for that TPM."""
        ...

    def sign_identity(self, purpose: Purpose, statement: bytes) -> bytes:
        """The server's own signature under what it says itself: `AUDIT_CHECKPOINT` and `RECEIPT`, no other purpose."""
        ...

    @property
    def identity_key(self) -> bytes:
        """The public key for those (DER SubjectPublicKeyInfo), whose SHA-256 is the server's id."""
        ...

    @property
    def attestation_root(self) -> x509.Certificate:
        """The certificate of the authority that issues those."""
        ...


@dataclass(frozen=True, slots=True)
class NumberAsked:
    """What the person has to give: a number of so many digits, or, in the legacy choice, one of three numbers."""

    digits: int
    choices: tuple[str, ...] = ()


class Announcer(Protocol):
    """Tells open streams what has become durable. Losing an announcement loses nothing: state is rows."""

    def prompt(self, prompt: Prompt, asked: NumberAsked) -> None:
        """A prompt waits for its device; `asked` is what the person has to give."""
        ...

    def sign_in(self, sign_in: SignIn, prompts: Sequence[Prompt]) -> None:
        """A sign-in changed; `prompts` are its prompts, withdrawn when it is decided."""
        ...

    def device_removed(self, device: DeviceId) -> None:
        """A device is no longer registered: its streams end now."""
        ...


@dataclass(frozen=True, slots=True)
class KeyPair:
    """PEM private key and PEM certificate chain."""

    key: bytes
    chain: bytes


class CertificateSource(Protocol):
    """Where a listener has its certificate from."""

    def load(self) -> KeyPair:
        """The certificate to begin with. Raises `KeyvouchError(CONFIGURATION)`."""
        ...

    def renewed(self) -> KeyPair | None:
        """A new certificate if there is one since the last call of either method, else None. Never raises."""
        ...
