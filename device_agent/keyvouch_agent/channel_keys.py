"""The device channel's key: it opens the channel to the server and signs denials; it can approve nothing.

    keys = ...                      the `ChannelKeys` of this device, put together in `bootstrap`
    key = keys.make()               a fresh one; blocks
    key = keys.load(key.stored)     the same one, out of the ledger; asks nothing of its holder
    key.sign(message)               blocks: a TPM takes milliseconds to a second

Where the private half lives is told by `protection`, in words for people, and by the form of what is stored. Here
is the software kind, sealed by the file permissions of the ledger and nothing else. Not here: where stored keys
are kept (`ledger`), certificates (`channel_identity`), TLS (`rpc`), keys that approve (`providers`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import DeviceError, Reason
from keyvouch.proofs import spki_of
from keyvouch.statement import Purpose, signed_message

__all__ = [
    "ChannelKey",
    "ChannelKeys",
    "FirstThatWorks",
    "SealedChannelKey",
    "SealedChannelKeys",
    "UnusableChannelKey",
    "is_tpm_key",
    "protection_of",
    "prove",
]

SEALED: Final = "in software, sealed by file permissions only"
"""The honest label of a key whose only seal is the mode of the file it is in."""

IN_TPM: Final = "in the TPM"
"""The label of a key that the TPM made and keeps."""

_TPM_KEY: Final = re.compile(rb"\x30(?:[\x00-\x7f]|\x81.|\x82..)\x06\x06\x67\x81\x05\x0a\x01\x03", re.DOTALL)
_ES256: Final = ec.ECDSA(hashes.SHA256())


class ChannelKey(Protocol):
    """One P-256 key pair. Only `sign` may block; any thread may call it, several at once."""

    @property
    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo of the public half."""

    @property
    def stored(self) -> bytes:
        """What the ledger keeps of it, at most 1024 bytes. Its kind can be told from its first bytes."""

    @property
    def protection(self) -> str:
        """Where the private half lives and what keeps it there, in a few honest words."""

    def sign(self, message: bytes) -> bytes:
        """Sign with ECDSA and SHA-256; the signature in DER.

        Raises `DeviceError`: VAULT_BUSY where a later try may succeed, KEY_NOT_FOUND where none will, DEVICE_FAILED,
        LEDGER_CORRUPT.
        """


class ChannelKeys(Protocol):
    """Makes channel keys of one kind, and knows them again."""

    def make(self) -> ChannelKey:
        """Make a fresh key; blocks. Raises `DeviceError`: UNSUPPORTED where its holder can make none."""

    def knows(self, stored: bytes) -> bool:
        """Whether `stored` has the form of this kind."""

    def load(self, stored: bytes) -> ChannelKey:
        """The key that was stored. Asks nothing of its holder: what is wrong with it is told when it signs."""


def prove(key: ChannelKey, purpose: Purpose, statement: bytes) -> bytes:
    """DER ECDSA signature over a statement's signed message. Blocks and raises as `ChannelKey.sign` does."""
    return key.sign(signed_message(purpose, statement))


def protection_of(stored: bytes) -> str:
    """The label of a stored key, told by its form alone."""
    return IN_TPM if is_tpm_key(stored) else SEALED


def is_tpm_key(stored: bytes) -> bool:
    """Whether this is a `TSS2 PRIVATE KEY` in DER: a SEQUENCE that begins with the OID 2.23.133.10.1.3."""
    return _TPM_KEY.match(stored) is not None


@dataclass(frozen=True, slots=True)
class SealedChannelKey:
    """A P-256 private key as PKCS#8 DER, which is also its stored form. Its repr shows nothing."""

    pkcs8: bytes = field(repr=False)

    @property
    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo of the public half. Raises `DeviceError(LEDGER_CORRUPT)`."""
        return spki_of(self._load().public_key())

    @property
    def stored(self) -> bytes:
        """The PKCS#8 DER."""
        return self.pkcs8

    @property
    def protection(self) -> str:
        """`SEALED`."""
        return SEALED

    @property
    def pem(self) -> bytes:
        """The private key in PEM, for the TLS library. Raises `DeviceError(LEDGER_CORRUPT)`."""
        return self._load().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, message: bytes) -> bytes:
        """Sign, in microseconds. Raises `DeviceError(LEDGER_CORRUPT)`."""
        return self._load().sign(message, _ES256)

    def _load(self) -> ec.EllipticCurvePrivateKey:
        try:
            key = serialization.load_der_private_key(self.pkcs8, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise DeviceError(
                Reason.LEDGER_CORRUPT,
                "The channel key in the enrolment record is not a P-256 key.",
                fix="Remove the enrolment with `keyvouch-agent unregister`, then enrol again.",
            )
        return key


class SealedChannelKeys:
    """`ChannelKeys` in software: works everywhere, and promises no more than its label says."""

    def make(self) -> SealedChannelKey:
        """Make a fresh key; the entropy is the cryptographic library's."""
        key = ec.generate_private_key(ec.SECP256R1())
        der = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return SealedChannelKey(der)

    def knows(self, stored: bytes) -> bool:
        """Everything but the keys of a TPM, so that damage is told when the key is used."""
        return not is_tpm_key(stored)

    def load(self, stored: bytes) -> SealedChannelKey:
        """The key that was stored."""
        return SealedChannelKey(stored)


_PASSING: Final = frozenset(
    {Reason.VAULT_BUSY, Reason.TPM_BUSY, Reason.TPM_MEMORY, Reason.TPM_LOCKOUT, Reason.TPM_UNAVAILABLE}
)


class FirstThatWorks:
    """`ChannelKeys` of several kinds, the best one first; the last one should work everywhere."""

    def __init__(self, kinds: Sequence[ChannelKeys]) -> None:
        self._kinds = tuple(kinds)

    def make(self) -> ChannelKey:
        """A key of the first kind that can make one; its label says which it became.

        A holder with a trouble that passes is not passed over for a weaker one. Raises `DeviceError`: VAULT_BUSY,
        TPM_BUSY, TPM_MEMORY, TPM_LOCKOUT, TPM_UNAVAILABLE, or what the last kind raised.
        """
        for kind in self._kinds[:-1]:
            try:
                return kind.make()
            except DeviceError as error:
                if error.reason in _PASSING:
                    raise
        return self._kinds[-1].make()

    def knows(self, stored: bytes) -> bool:
        """Whether one of them knows it."""
        return any(kind.knows(stored) for kind in self._kinds)

    def load(self, stored: bytes) -> ChannelKey:
        """The key that was stored, by its own kind; where that is missing, one that raises UNSUPPORTED when used."""
        for kind in self._kinds:
            if kind.knows(stored):
                return kind.load(stored)
        return UnusableChannelKey(stored, _foreign())


@dataclass(frozen=True, slots=True)
class UnusableChannelKey:
    """A key whose holder this agent cannot use now, and why. The other enrolments of the ledger go on without it."""

    stored: bytes = field(repr=False)
    why: DeviceError = field(repr=False)
    protection: str = "in a holder that this agent cannot use"

    @property
    def spki(self) -> bytes:
        """Raises `why`."""
        raise self.why

    def sign(self, message: bytes) -> bytes:  # noqa: ARG002
        """Raises `why`."""
        raise self.why


def _foreign() -> DeviceError:
    return DeviceError(
        Reason.UNSUPPORTED,
        "The channel key of this enrolment is of a kind that this agent cannot use.",
        fix="Run `keyvouch-agent doctor`; it says what is missing for it.",
    )
