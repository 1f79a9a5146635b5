"""The software vault: the `KeyVault` port over one sealed file.

What is on the disk is the truth. Every change goes there first, durably, and only then into memory; after a
failed write the file is read again. What is *not* here: the file's format (`vault_file`), its protection in
the file system (`private_directory`), the cryptography of the PIN (`master_key`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.authenticator.vault import (
    PIN_HASH_LENGTH,
    Attestation,
    Credential,
    KeyRequest,
    PinState,
    VaultProperties,
)
from keyvouch_agent.vaults.private_directory import FileSteps, PrivateDirectory
from keyvouch_agent.vaults.software import vault_file
from keyvouch_agent.vaults.software.master_key import KEY_LENGTH, KdfParameters, open_sealed, seal, unwrap, wrap
from keyvouch_agent.vaults.software.vault_file import PinRecord, SealedKey, VaultState

__all__ = ["SOFTWARE_AAGUID", "SoftwareVault"]

SOFTWARE_AAGUID: Final = bytes.fromhex("f9c589359e1745d1bf8698d773afe2ee")
"""Names the software vault in every attestation. It says nothing about who runs it."""

FILE_NAME: Final = "vault.cbor"
MAX_KEYS: Final = 256
CREDENTIAL_ID_LENGTH: Final = 32
_MAX_SIGN_COUNT: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class _Scheme:
    curve: ec.EllipticCurve
    hash: hashes.HashAlgorithm


_SCHEMES: Final = {
    Algorithm.ES256: _Scheme(ec.SECP256R1(), hashes.SHA256()),
    Algorithm.ES384: _Scheme(ec.SECP384R1(), hashes.SHA384()),
}

_PROPERTIES: Final = VaultProperties(
    aaguid=SOFTWARE_AAGUID,
    protection="software",
    algorithms=tuple(int(algorithm) for algorithm in _SCHEMES),
    pin_gated=True,
    attestation_formats=("packed",),
)


class SoftwareVault:
    """Keys sealed in a file. Make one with `open`, and `close` it to release the lock."""

    def __init__(self, directory: PrivateDirectory, entropy: Entropy, kdf: KdfParameters) -> None:
        self._directory = directory
        self._entropy = entropy
        self._kdf = kdf
        self._master: bytearray | None = None
        self._state = self._load()

    @classmethod
    def open(
        cls, path: Path, entropy: Entropy, *, kdf: KdfParameters | None = None, steps: FileSteps | None = None
    ) -> Self:
        """Open the vault in directory `path`, which is created if it is not there.

        `kdf` is the cost for PINs set from now on. Raises `DeviceError`: `VAULT_PERMISSIONS`, `VAULT_BUSY`,
        `VAULT_CORRUPT`, `UNSUPPORTED`, `DEVICE_FAILED`.
        """
        directory = PrivateDirectory(path, steps or FileSteps())
        try:
            return cls(directory, entropy, kdf or KdfParameters())
        except BaseException:
            directory.close()
            raise

    def close(self) -> None:
        """Lock the vault and let another process open it."""
        self.lock()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SoftwareVault({len(self._state.keys)} keys)"

    @property
    def properties(self) -> VaultProperties:
        """What this vault is."""
        return _PROPERTIES

    def pin_state(self) -> PinState:
        """Read the PIN's state."""
        pin = self._state.pin
        return PinState(pin is not None, pin.retries_left if pin else _PROPERTIES.max_pin_retries)

    def set_pin(self, pin: bytes) -> None:
        """Set the first PIN and draw the master key."""
        if self._state.pin is not None:
            raise DeviceError(
                Reason.PIN_POLICY, "A PIN is set already.", fix="Change it, or reset the vault and register again."
            )
        self._wrap(self._entropy.token(KEY_LENGTH), pin)
        self.lock()

    def change_pin(self, pin: bytes) -> None:
        """Wrap the same master key under another PIN."""
        self._wrap(self._unlocked(), pin)

    def verify_pin(self, pin_hash: bytes) -> None:
        """Count the attempt on the disk, then try to unwrap the master key."""
        record = self._state.pin
        if record is None:
            raise _pin_not_set()
        if record.retries_left == 0:
            raise _pin_blocked()
        left = record.retries_left - 1
        self._store(self._state.with_retries(left))
        try:
            master = unwrap(record.wrapped, pin_hash)
        except InvalidTag:
            raise _pin_wrong(left) from None
        self._store(self._state.with_retries(_PROPERTIES.max_pin_retries))
        self.lock()
        self._master = bytearray(master)

    def lock(self) -> None:
        """Overwrite the master key. Copies inside the cryptography library cannot be reached."""
        if self._master is not None:
            self._master[:] = bytes(len(self._master))
            self._master = None

    def create_key(self, request: KeyRequest) -> Credential:
        """Generate a key pair, seal the private key, store both."""
        if self._state.pin is None:
            raise _pin_not_set()
        master = self._unlocked()
        if len(self._state.keys) >= MAX_KEYS:
            raise DeviceError(
                Reason.KEY_STORE_FULL, f"The key vault holds {MAX_KEYS} keys, which is all it takes.", fix="Remove one."
            )
        private = ec.generate_private_key(_scheme(request.algorithm).curve)
        key = self._seal(request, private, master)
        self._store(replace(self._state, serial=key.credential.created, keys=(*self._state.keys, key)))
        return key.credential

    def attest(self, credential: CredentialId, authenticator_data: bytes, client_data_hash: bytes) -> Attestation:
        """Packed self attestation: the new key signs for itself (WebAuthn section 8.2)."""
        signature = self.sign(credential, authenticator_data + client_data_hash)
        return Attestation("packed", {"alg": self._key(credential).credential.algorithm, "sig": signature})

    def find(self, rp_id: str, credential: bytes) -> Credential | None:
        """Look a credential up by relying party and id."""
        for key in self._state.keys:
            if key.credential.id == credential and key.credential.rp_id == rp_id:
                return key.credential
        return None

    def discoverable(self, rp_id: str) -> Sequence[Credential]:
        """Discoverable credentials, the newest first."""
        found = [key.credential for key in self._state.keys]
        return [c for c in reversed(found) if c.discoverable and c.rp_id == rp_id]

    def advance_sign_count(self, credential: CredentialId) -> int:
        """Count up on the disk."""
        key = self._key(credential)
        count = key.credential.sign_count + 1
        if count > _MAX_SIGN_COUNT:
            raise DeviceError(Reason.DEVICE_FAILED, "This key's counter is used up.", fix="Register this device again.")
        advanced = replace(key, credential=replace(key.credential, sign_count=count))
        self._store(replace(self._state, keys=tuple(advanced if k is key else k for k in self._state.keys)))
        return count

    def sign(self, credential: CredentialId, message: bytes) -> bytes:
        """Unseal the private key for one signature."""
        key = self._key(credential)
        scheme = _scheme(key.credential.algorithm)
        try:
            scalar = open_sealed(self._unlocked(), key.sealed, key.purpose())
        except InvalidTag:
            raise DeviceError(
                Reason.VAULT_CORRUPT,
                "This key's record does not fit its seal: the vault's file was changed.",
                fix="Restore vault.cbor from a backup, or register this device again.",
            ) from None
        private = ec.derive_private_key(int.from_bytes(scalar, "big"), scheme.curve)
        return private.sign(message, ec.ECDSA(scheme.hash))

    def delete(self, credential: CredentialId) -> None:
        """Drop the key's record."""
        key = self._key(credential)
        self._store(replace(self._state, keys=tuple(k for k in self._state.keys if k is not key)))

    def reset(self) -> None:
        """Replace everything with an empty vault."""
        self._store(VaultState())
        self.lock()

    def _wrap(self, master: bytes, pin: bytes) -> None:
        pin_hash = hashlib.sha256(pin).digest()[:PIN_HASH_LENGTH]
        wrapped = wrap(master, pin_hash, self._kdf, self._entropy)
        self._store(replace(self._state, pin=PinRecord(wrapped, _PROPERTIES.max_pin_retries)))

    def _seal(self, request: KeyRequest, private: ec.EllipticCurvePrivateKey, master: bytes) -> SealedKey:
        credential = Credential(
            id=CredentialId(self._entropy.token(CREDENTIAL_ID_LENGTH)),
            rp_id=request.rp_id,
            user=request.user,
            algorithm=request.algorithm,
            discoverable=request.discoverable,
            public_key=bytes(CoseKey.from_public_key(private.public_key())),
            created=self._state.serial + 1,
            sign_count=0,
        )
        scalar = private.private_numbers().private_value.to_bytes((private.key_size + 7) // 8, "big")
        unsealed = SealedKey(credential, b"")
        return replace(unsealed, sealed=seal(master, scalar, unsealed.purpose(), self._entropy))

    def _key(self, credential: CredentialId) -> SealedKey:
        for key in self._state.keys:
            if key.credential.id == credential:
                return key
        raise DeviceError(
            Reason.KEY_NOT_FOUND, "The vault has no such key.", fix="Register this device again with the server."
        )

    def _unlocked(self) -> bytes:
        if self._master is None:
            raise DeviceError(Reason.PIN_REQUIRED, "The vault is locked.", fix="Enter the PIN first.")
        return bytes(self._master)

    def _load(self) -> VaultState:
        content = self._directory.read(FILE_NAME)
        return VaultState() if content is None else vault_file.decode(content)

    def _store(self, state: VaultState) -> None:
        try:
            self._directory.replace(FILE_NAME, vault_file.encode(state))
        except DeviceError:
            self._state = self._load()
            raise
        self._state = state


def _scheme(algorithm: int) -> _Scheme:
    try:
        return _SCHEMES[Algorithm(algorithm)]
    except (KeyError, ValueError):
        raise DeviceError(
            Reason.UNSUPPORTED, f"The software vault makes no keys for COSE algorithm {algorithm}.", fix="Use ES256."
        ) from None


def _pin_not_set() -> DeviceError:
    return DeviceError(Reason.PIN_NOT_SET, "No PIN is set.", fix="Set a PIN first.")


def _pin_wrong(retries_left: int) -> DeviceError:
    if retries_left == 0:
        return _pin_blocked()
    return DeviceError(
        Reason.PIN_WRONG, "The PIN is wrong.", retries_left=retries_left, fix=f"{retries_left} attempts are left."
    )


def _pin_blocked() -> DeviceError:
    return DeviceError(
        Reason.PIN_BLOCKED,
        "The PIN was entered wrong too often and is blocked.",
        retries_left=0,
        fix="Reset the vault, which destroys its keys, and register this device again.",
    )
