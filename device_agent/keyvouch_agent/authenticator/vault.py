"""The `KeyVault` port: whatever holds keys and guards them with a PIN. A TPM, a card, or a sealed file.

The contract every vault keeps:

* Keys are made inside and never leave. No method returns private key material.
* `verify_pin` counts the attempt durably *before* it compares, and resets the count after a success.
  The vault, where possible its hardware, enforces the retry limit; the engine only adds the limit per
  power cycle.
* CTAP shows an authenticator the PIN itself only when it is set or changed. When it is verified there
  are just the left 16 bytes of its SHA-256 (section 6.5.5), so a vault protects its keys with those.
* With `pin_gated` properties, `create_key`, `attest`, `sign` and `secrets` work only between `verify_pin`
  and `lock`.
* A method that raises has changed nothing, apart from the retry counter of `verify_pin`. What one method
  writes is there as a whole or not at all, also after a power cut.

Every failure is a `DeviceError` with the reason named at the method; besides those any method may raise
`DEVICE_FAILED`, `VAULT_CORRUPT` or `KEY_STORE_FULL`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, unique
from typing import Final, Protocol

from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.ports import PinEntry

__all__ = [
    "SOFTWARE_AAGUID",
    "Attestation",
    "AuthenticatorSettings",
    "CredProtect",
    "Credential",
    "CredentialSecrets",
    "KeyRequest",
    "KeyVault",
    "PinState",
    "User",
    "UvState",
    "VaultProperties",
    "VerifyingVault",
    "hash_of",
]

PIN_HASH_LENGTH = 16
"""Bytes of SHA-256(PIN) that CTAP hands over at verification."""

SOFTWARE_AAGUID: Final = bytes.fromhex("f9c589359e1745d1bf8698d773afe2ee")
"""Names the software vault in every attestation. It says nothing about who runs it."""

MAX_CRED_BLOB = 32
"""Bytes of a credBlob (section 12.2 asks for at least 32)."""

INITIAL_LARGE_BLOBS = bytes.fromhex("8076be8b528d0075f7aae98d6fa57a6d3c")
"""The serialized large-blob array of an authenticator that was reset (section 6.10)."""


def hash_of(rp_id: str) -> bytes:
    """SHA-256 of a relying party id, by which vaults and authenticator data name it."""
    return hashlib.sha256(rp_id.encode()).digest()


@dataclass(frozen=True, slots=True)
class VaultProperties:
    """What a vault is, known without touching a key or asking anybody."""

    aaguid: bytes
    """16 bytes naming the model of authenticator."""
    protection: str
    """What holds the keys, as in the assurance: `software`, `tpm`, `smartcard`."""
    algorithms: tuple[int, ...]
    """COSE algorithm identifiers it can make keys for, the preferred one first."""
    pin_gated: bool
    """True when no key can be made or used without the PIN."""
    attestation_formats: tuple[str, ...]
    """What `attest` makes, the preferred one first. `none` needs no vault and is not listed."""
    min_pin_length: int = 4
    """Unicode code points; CTAP's own minimum is 4."""
    max_pin_retries: int = 8
    """Wrong PINs in a row until the PIN is blocked for good."""
    max_large_blobs: int = 0
    """Bytes of the serialized large-blob array it has room for; 0 for a vault that keeps none."""
    firmware_version: int = 0
    """What getInfo says of its version; 0 for nothing to say."""
    verifies_itself: bool = False
    """True for a `VerifyingVault`, which wants the PIN itself and not a hash of it."""
    keeps_secrets: bool = True
    """False for one that keeps nothing beside a key: its keys are asked for without credBlob, hmac-secret and
    largeBlobKey, and `secrets` is not called."""


@dataclass(frozen=True, slots=True)
class PinState:
    """Whether a PIN is set, how many wrong ones it still takes to block it, and its length.

    `code_points` is 0 where the vault does not know it: the PIN was set before it took note.
    """

    is_set: bool
    retries_left: int
    code_points: int = 0


@dataclass(frozen=True, slots=True)
class UvState:
    """Whether a `VerifyingVault` can verify its user, and how many tries are left; None where it does not tell.

    `on_pad`: the PIN is typed on the reader, so that nobody needs to ask for it.
    """

    is_configured: bool
    retries_left: int | None
    on_pad: bool = False


@unique
class CredProtect(IntEnum):
    """Section 12.1: what it takes to use, and to find, a credential."""

    UV_OPTIONAL = 1
    UV_OPTIONAL_WITH_CREDENTIAL_ID_LIST = 2
    UV_REQUIRED = 3


@dataclass(frozen=True, slots=True)
class AuthenticatorSettings:
    """What authenticatorConfig sets (section 6.11). A reset puts the defaults back.

    `min_pin_length` of 0 is the vault's own; `always_uv` means nothing for a vault whose keys the PIN gates.
    """

    min_pin_length: int = 0
    min_pin_length_rp_ids: tuple[str, ...] = ()
    force_pin_change: bool = False
    always_uv: bool = False


@dataclass(frozen=True, slots=True)
class User:
    """The account at the relying party. `id` is 1 to 64 bytes, the user handle."""

    id: bytes
    name: str = ""
    display_name: str = ""


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What to make a key for. `rp_id_hash` is its hash; CTAP1/U2F knows no more, then `rp_id` is empty."""

    rp_id: str
    user: User
    algorithm: int
    discoverable: bool
    rp_id_hash: bytes = b""
    protect: CredProtect = CredProtect.UV_OPTIONAL
    cred_blob: bytes | None = field(default=None, repr=False)
    """Up to `MAX_CRED_BLOB` bytes to keep with the key (section 12.2)."""
    hmac_secret: bool = False
    """Whether the key has the two secrets of section 12.5."""
    large_blob_key: bool = False
    """Whether the key has a largeBlobKey (section 12.3)."""

    def __post_init__(self) -> None:
        """Fill in the hash."""
        if not self.rp_id_hash:
            object.__setattr__(self, "rp_id_hash", hash_of(self.rp_id))

    def as_made(self, credential: CredentialId, public_key: bytes, created: int) -> Credential:
        """What the key is that was made as asked for here: `public_key` is its COSE_Key, `created` counts keys made."""
        return Credential(
            id=credential,
            rp_id=self.rp_id,
            user=self.user,
            algorithm=self.algorithm,
            discoverable=self.discoverable,
            public_key=public_key,
            created=created,
            sign_count=0,
            rp_id_hash=self.rp_id_hash,
            protect=self.protect,
            has_cred_blob=self.cred_blob is not None,
            has_hmac_secret=self.hmac_secret,
            has_large_blob_key=self.large_blob_key,
        )


@dataclass(frozen=True, slots=True)
class Credential:
    """The public side of a stored key. `rp_id` is empty for one made by CTAP1/U2F."""

    id: CredentialId
    rp_id: str
    user: User
    algorithm: int
    discoverable: bool
    public_key: bytes
    """COSE_Key in canonical CBOR."""
    created: int
    """Grows with every key made: a higher one is newer."""
    sign_count: int
    rp_id_hash: bytes = b""
    """SHA-256 of the relying party id; made of `rp_id` where it is left out."""
    protect: CredProtect = CredProtect.UV_OPTIONAL
    has_cred_blob: bool = False
    has_hmac_secret: bool = False
    has_large_blob_key: bool = False

    def __post_init__(self) -> None:
        """Fill in the hash."""
        if not self.rp_id_hash:
            object.__setattr__(self, "rp_id_hash", hash_of(self.rp_id))


@dataclass(frozen=True, slots=True)
class CredentialSecrets:
    """What a vault keeps beside a private key, each empty where the key was made without it.

    `with_uv` and `without_uv` are CredRandomWithUV and CredRandomWithoutUV (section 12.5), 32 bytes each.
    """

    with_uv: bytes = b""
    without_uv: bytes = b""
    large_blob_key: bytes = b""
    cred_blob: bytes = b""

    def __repr__(self) -> str:
        return "CredentialSecrets(...)"


@dataclass(frozen=True, slots=True)
class Attestation:
    """An attestation statement and the name of its format (WebAuthn section 6.5)."""

    format: str
    statement: Mapping[str, object]


class KeyVault(Protocol):
    """Keys, their accounts, and the PIN that guards them. See the module for the contract."""

    @property
    def properties(self) -> VaultProperties:
        """What this vault is and can do."""

    @property
    def settings(self) -> AuthenticatorSettings:
        """What was set last."""

    def store_settings(self, settings: AuthenticatorSettings) -> None:
        """Keep other settings."""

    def pin_state(self) -> PinState:
        """Read the PIN's state without using up an attempt."""

    def set_pin(self, pin: bytes) -> None:
        """Set the first PIN (UTF-8). Raises `PIN_POLICY` when one is set already. Leaves the vault locked.

        The same write takes `force_pin_change` out of the settings, here and in `change_pin`.
        """

    def change_pin(self, pin: bytes) -> None:
        """Put a new PIN (UTF-8) in place of the one just verified. Raises `PIN_REQUIRED` when locked.

        A vault whose hardware wants the old authorization value keeps it from `verify_pin` to `lock`.
        """

    def verify_pin(self, pin_hash: bytes) -> None:
        """Unlock with the left 16 bytes of SHA-256(PIN).

        Raises `PIN_WRONG` with the retries left, `PIN_BLOCKED` when there are none (left), `PIN_NOT_SET`.
        """

    def lock(self) -> None:
        """Forget what `verify_pin` unlocked. Never fails."""

    def create_key(self, request: KeyRequest) -> Credential:
        """Make a key with sign count 0. Raises `PIN_REQUIRED`, `PIN_NOT_SET`, `KEY_STORE_FULL`.

        It is not stored yet: `attest`, `sign` and `secrets` know it, nothing else does. It is gone with the next one,
        and with `lock`. A key that `keep` would replace takes no room.
        """

    def attest(self, credential: CredentialId, authenticator_data: bytes, client_data_hash: bytes) -> Attestation:
        """Vouch for a key that has just been made. Raises `KEY_NOT_FOUND`, `PIN_REQUIRED`."""

    def keep(self, credential: CredentialId) -> None:
        """Store the key that was just made. Raises `KEY_NOT_FOUND`, `KEY_STORE_FULL`.

        If it is discoverable, the discoverable ones of the same relying party and user id go in the same write (section
        6.1.2 step 17).
        """

    def find(self, rp_id_hash: bytes, credential: bytes) -> Credential | None:
        """Return the credential of that relying party with that id, discoverable or not."""

    def discoverable(self, rp_id_hash: bytes | None = None) -> Sequence[Credential]:
        """Return the discoverable credentials of a relying party, or of all of them, the newest first."""

    def room(self) -> int:
        """How many more keys it takes, as far as it can tell."""

    def advance_sign_count(self, credential: CredentialId) -> int:
        """Add one to the sign count, store it durably, and return it. Raises `KEY_NOT_FOUND`."""

    def sign(self, credential: CredentialId, message: bytes) -> bytes:
        """Sign with the key's algorithm (ECDSA: DER). Raises `KEY_NOT_FOUND`, `PIN_REQUIRED`."""

    def secrets(self, credential: CredentialId) -> CredentialSecrets:
        """Return what is kept beside the key. Raises `KEY_NOT_FOUND`, `PIN_REQUIRED`."""

    def update_user(self, credential: CredentialId, user: User) -> None:
        """Put other names in the place of a key's (section 6.8.6); the user id stays.

        Raises `KEY_NOT_FOUND`, and `PIN_REQUIRED` when locked, where the names are sealed with a key behind the PIN.
        """

    def delete(self, credential: CredentialId) -> None:
        """Destroy a key. Raises `KEY_NOT_FOUND`."""

    def large_blobs(self) -> bytes:
        """The serialized large-blob array as it was stored last; `INITIAL_LARGE_BLOBS` before that."""

    def store_large_blobs(self, array: bytes) -> None:
        """Put another array in its place. Raises `KEY_STORE_FULL`."""

    def reset(self) -> None:
        """Destroy every key, PIN, large blobs and settings. Works when locked and when the PIN is blocked."""


class VerifyingVault(KeyVault, Protocol):
    """A vault that verifies its user by itself, as a smartcard does: built-in user verification in the words of CTAP.

    It is given the PIN as it was typed, or takes it on a PIN pad of its own. `pin_state` says that no PIN is set, for
    CTAP's PIN is none of it, and `set_pin`, `change_pin` and `verify_pin` raise `UNSUPPORTED`. What the contract says
    of `verify_pin` goes for `verify_user`.
    """

    def uv_state(self) -> UvState:
        """Read how it stands without using up a try.

        Raises `AUTHENTICATOR_NOT_CONNECTED`, `_REMOVED`, `_OTHER` or `READER_UNAVAILABLE` where no card is there.
        """

    def verify_user(self, entry: PinEntry) -> None:
        """Unlock, with a PIN that is asked for once, and never with the last try unless the user was told.

        It is locked before, and a failure leaves it locked. Nothing is asked where no PIN can succeed.

        Raises `PIN_WRONG` (with the retries left where they are known), `PIN_BLOCKED`, `PIN_NOT_SET`, `USER_CANCELLED`,
        `USER_TIMEOUT`.
        """
