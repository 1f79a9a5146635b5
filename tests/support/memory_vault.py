"""The `KeyVault` port in memory: the reference double. It can be told not to gate its keys with the PIN."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import Attestation, Credential, KeyRequest, PinState, VaultProperties

HASHES = {Algorithm.ES256: (ec.SECP256R1(), hashes.SHA256()), Algorithm.ES384: (ec.SECP384R1(), hashes.SHA384())}


@dataclass(frozen=True)
class _Key:
    credential: Credential
    private: ec.EllipticCurvePrivateKey


class MemoryVault:
    """Keeps the contract of `KeyVault` and nothing else. `fail_next` makes the next call of that name raise."""

    def __init__(self, *, pin_gated: bool = True, max_keys: int = 16) -> None:
        self.properties = VaultProperties(
            aaguid=b"memory vault 001",
            protection="software",
            algorithms=(-7, -35),
            pin_gated=pin_gated,
            attestation_formats=("packed",),
        )
        self.fail_next: dict[str, DeviceError] = {}
        self._max_keys = max_keys
        self._serial = 0
        self._forget()

    def _forget(self) -> None:
        self._keys: dict[bytes, _Key] = {}
        self._pin_hash: bytes | None = None
        self._retries = 8
        self._unlocked = False

    @property
    def snapshot(self) -> object:
        """Everything that must not change when a command fails."""
        return (self._pin_hash, {key: value.credential for key, value in self._keys.items()})

    @property
    def is_unlocked(self) -> bool:
        return self._unlocked

    def pin_state(self) -> PinState:
        return PinState(self._pin_hash is not None, self._retries)

    def set_pin(self, pin: bytes) -> None:
        if self._pin_hash is not None:
            raise DeviceError(Reason.PIN_POLICY, "A PIN is set already.")
        self._store_pin(pin)
        self._unlocked = False

    def change_pin(self, pin: bytes) -> None:
        if not self._unlocked:
            raise DeviceError(Reason.PIN_REQUIRED, "Locked.")
        self._store_pin(pin)

    def _store_pin(self, pin: bytes) -> None:
        self._pin_hash = hashlib.sha256(pin).digest()[:16]
        self._retries = 8

    def verify_pin(self, pin_hash: bytes) -> None:
        if self._pin_hash is None:
            raise DeviceError(Reason.PIN_NOT_SET, "No PIN.")
        if self._retries == 0:
            raise DeviceError(Reason.PIN_BLOCKED, "Blocked.", retries_left=0)
        self._retries -= 1
        if pin_hash != self._pin_hash:
            reason = Reason.PIN_WRONG if self._retries else Reason.PIN_BLOCKED
            raise DeviceError(reason, "Wrong.", retries_left=self._retries, fix="Try another one.")
        self._retries = 8
        self._unlocked = True

    def lock(self) -> None:
        self._unlocked = False

    def create_key(self, request: KeyRequest) -> Credential:
        self._check("create_key")
        if self.properties.pin_gated and self._pin_hash is None:
            raise DeviceError(Reason.PIN_NOT_SET, "No PIN.")
        self._require_unlocked()
        if len(self._keys) >= self._max_keys:
            raise DeviceError(Reason.KEY_STORE_FULL, "Full.")
        private = ec.generate_private_key(HASHES[Algorithm(request.algorithm)][0])
        self._serial += 1
        credential = Credential(
            id=CredentialId(secrets.token_bytes(20)),
            rp_id=request.rp_id,
            user=request.user,
            algorithm=request.algorithm,
            discoverable=request.discoverable,
            public_key=bytes(CoseKey.from_public_key(private.public_key())),
            created=self._serial,
            sign_count=0,
        )
        self._keys[credential.id] = _Key(credential, private)
        return credential

    def attest(self, credential: CredentialId, authenticator_data: bytes, client_data_hash: bytes) -> Attestation:
        self._check("attest")
        signature = self.sign(credential, authenticator_data + client_data_hash)
        return Attestation("packed", {"alg": self._key(credential).credential.algorithm, "sig": signature})

    def find(self, rp_id: str, credential: bytes) -> Credential | None:
        key = self._keys.get(credential)
        return key.credential if key and key.credential.rp_id == rp_id else None

    def discoverable(self, rp_id: str) -> Sequence[Credential]:
        found = [key.credential for key in self._keys.values()]
        return [c for c in reversed(found) if c.rp_id == rp_id and c.discoverable]

    def advance_sign_count(self, credential: CredentialId) -> int:
        key = self._key(credential)
        count = key.credential.sign_count + 1
        self._keys[credential] = replace(key, credential=replace(key.credential, sign_count=count))
        return count

    def sign(self, credential: CredentialId, message: bytes) -> bytes:
        self._check("sign")
        key = self._key(credential)
        self._require_unlocked()
        return key.private.sign(message, ec.ECDSA(HASHES[Algorithm(key.credential.algorithm)][1]))

    def delete(self, credential: CredentialId) -> None:
        del self._keys[self._key(credential).credential.id]

    def reset(self) -> None:
        self._check("reset")
        self._forget()

    def _key(self, credential: CredentialId) -> _Key:
        if credential not in self._keys:
            raise DeviceError(Reason.KEY_NOT_FOUND, "No such key.")
        return self._keys[credential]

    def _require_unlocked(self) -> None:
        if self.properties.pin_gated and not self._unlocked:
            raise DeviceError(Reason.PIN_REQUIRED, "Locked.")

    def _check(self, name: str) -> None:
        if name in self.fail_next:
            raise self.fail_next.pop(name)
