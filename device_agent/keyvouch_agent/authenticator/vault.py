"""The `KeyVault` port: whatever holds keys and guards them with a PIN. A TPM, a card, or a sealed file.

The contract every vault keeps:

* Keys are made inside and never leave. No method returns private key material.
* `verify_pin` counts the attempt durably *before* it compares, and resets the count after a success.
  The vault, where possible its hardware, enforces the retry limit; the engine only adds the limit per
  power cycle.
* CTAP shows an authenticator the PIN itself only when it is set or changed. When it is verified there
  are just the left 16 bytes of its SHA-256 (section 6.5.5), so a vault protects its keys with those.
* With `pin_gated` properties, `create_key`, `attest` and `sign` work only between `verify_pin` and `lock`.
* A method that raises has changed nothing, apart from the retry counter of `verify_pin`.

Every failure is a `DeviceError` with the reason named at the method; besides those any method may raise
`DEVICE_FAILED`, `VAULT_CORRUPT` or `KEY_STORE_FULL`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from keyvouch.ids import CredentialId

__all__ = ["Attestation", "Credential", "KeyRequest", "KeyVault", "PinState", "User", "VaultProperties"]

PIN_HASH_LENGTH = 16
"""Bytes of SHA-256(PIN) that CTAP hands over at verification."""


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


@dataclass(frozen=True, slots=True)
class PinState:
    """Whether a PIN is set, and how many wrong ones it still takes to block it."""

    is_set: bool
    retries_left: int


@dataclass(frozen=True, slots=True)
class User:
    """The account at the relying party. `id` is 1 to 64 bytes, the user handle."""

    id: bytes
    name: str = ""
    display_name: str = ""


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What to make a key for."""

    rp_id: str
    user: User
    algorithm: int
    discoverable: bool


@dataclass(frozen=True, slots=True)
class Credential:
    """The public side of a stored key."""

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

    def pin_state(self) -> PinState:
        """Read the PIN's state without using up an attempt."""

    def set_pin(self, pin: bytes) -> None:
        """Set the first PIN (UTF-8). Raises `PIN_POLICY` when one is set already. Leaves the vault locked."""

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
        """Make and store a key with sign count 0. Raises `PIN_REQUIRED`, `PIN_NOT_SET`, `KEY_STORE_FULL`."""

    def attest(self, credential: CredentialId, authenticator_data: bytes, client_data_hash: bytes) -> Attestation:
        """Vouch for a key that has just been made. Raises `KEY_NOT_FOUND`, `PIN_REQUIRED`."""

    def find(self, rp_id: str, credential: bytes) -> Credential | None:
        """Return the credential of that relying party with that id, discoverable or not."""

    def discoverable(self, rp_id: str) -> Sequence[Credential]:
        """Return the discoverable credentials of a relying party, the newest first."""

    def advance_sign_count(self, credential: CredentialId) -> int:
        """Add one to the sign count, store it durably, and return it. Raises `KEY_NOT_FOUND`."""

    def sign(self, credential: CredentialId, message: bytes) -> bytes:
        """Sign with the key's algorithm (ECDSA: DER). Raises `KEY_NOT_FOUND`, `PIN_REQUIRED`."""

    def delete(self, credential: CredentialId) -> None:
        """Destroy a key. Raises `KEY_NOT_FOUND`."""

    def reset(self) -> None:
        """Destroy every key and the PIN. Works when locked and when the PIN is blocked."""
