"""The `KeyVault` port in memory: the reference double. It can be told not to gate its keys with the PIN.

`MemoryCard` is the double of a `VerifyingVault`: the same keys, behind a PIN that the vault wants itself.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.ports import PinEntry
from keyvouch_agent.authenticator.vault import (
    INITIAL_LARGE_BLOBS,
    Attestation,
    AuthenticatorSettings,
    Credential,
    CredentialSecrets,
    KeyRequest,
    PinState,
    User,
    UvState,
    VaultProperties,
)

CURVES = {Algorithm.ES256: (ec.SECP256R1(), hashes.SHA256()), Algorithm.ES384: (ec.SECP384R1(), hashes.SHA384())}


@dataclass(frozen=True)
class _Key:
    credential: Credential
    private: ec.EllipticCurvePrivateKey | Ed25519PrivateKey
    secrets: CredentialSecrets


class MemoryVault:
    """Keeps the contract of `KeyVault` and nothing else. `fail_next` makes the next call of that name raise."""

    def __init__(self, *, pin_gated: bool = True, max_keys: int = 16, max_large_blobs: int = 4096) -> None:
        self.properties = VaultProperties(
            aaguid=b"memory vault 001",
            protection="software",
            algorithms=(-7, -8, -35),
            pin_gated=pin_gated,
            attestation_formats=("packed",),
            max_large_blobs=max_large_blobs,
        )
        self.fail_next: dict[str, DeviceError] = {}
        self._max_keys = max_keys
        self._serial = 0
        self._forget()

    def _forget(self) -> None:
        self._keys: dict[bytes, _Key] = {}
        self._made: _Key | None = None
        self._pin_hash: bytes | None = None
        self._code_points = 0
        self._retries = 8
        self._unlocked = False
        self._settings = AuthenticatorSettings()
        self._large_blobs = INITIAL_LARGE_BLOBS

    @property
    def snapshot(self) -> object:
        """Everything that must not change when a command fails. Wrong PINs are counted, so their count is left out."""
        secret = [
            (key.secrets.with_uv, key.secrets.without_uv, key.secrets.large_blob_key, key.secrets.cred_blob)
            for key in self._keys.values()
        ]
        public = [key.credential for key in self._keys.values()]
        private = [id(key.private) for key in self._keys.values()]
        return (self._pin_hash, self._code_points, self._settings, self._large_blobs, public, private, secret)

    @property
    def is_unlocked(self) -> bool:
        return self._unlocked

    @property
    def settings(self) -> AuthenticatorSettings:
        return self._settings

    def store_settings(self, settings: AuthenticatorSettings) -> None:
        self._check("store_settings")
        self._settings = settings

    def pin_state(self) -> PinState:
        return PinState(self._pin_hash is not None, self._retries, self._code_points)

    def set_pin(self, pin: bytes) -> None:
        self._check("set_pin")
        if self._pin_hash is not None:
            raise DeviceError(Reason.PIN_POLICY, "A PIN is set already.")
        self._store_pin(pin)
        self.lock()

    def change_pin(self, pin: bytes) -> None:
        self._check("change_pin")
        if not self._unlocked:
            raise DeviceError(Reason.PIN_REQUIRED, "Locked.")
        self._store_pin(pin)

    def _store_pin(self, pin: bytes) -> None:
        self._pin_hash = hashlib.sha256(pin).digest()[:16]
        self._code_points = len(pin.decode())
        self._retries = 8
        self._settings = replace(self._settings, force_pin_change=False)

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
        self._made = None

    def create_key(self, request: KeyRequest) -> Credential:
        self._check("create_key")
        if self.properties.pin_gated and not self._has_pin():
            raise DeviceError(Reason.PIN_NOT_SET, "No PIN.")
        self._require_unlocked()
        if request.algorithm not in self.properties.algorithms:
            raise DeviceError(Reason.UNSUPPORTED, "No such keys.")
        private = _generate(Algorithm(request.algorithm))
        public_key = bytes(CoseKey.from_public_key(private.public_key()))
        credential = request.as_made(CredentialId(secrets.token_bytes(20)), public_key, self._serial + 1)
        self._make_room(credential)
        self._made = _Key(credential, private, _draw(request))
        return credential

    def attest(self, credential: CredentialId, authenticator_data: bytes, client_data_hash: bytes) -> Attestation:
        self._check("attest")
        signature = self.sign(credential, authenticator_data + client_data_hash)
        return Attestation("packed", {"alg": self._known(credential).credential.algorithm, "sig": signature})

    def keep(self, credential: CredentialId) -> None:
        self._check("keep")
        made = self._made
        if made is None or made.credential.id != credential:
            raise DeviceError(Reason.KEY_NOT_FOUND, "No such key.")
        self._keys = {**self._make_room(made.credential), credential: made}
        self._serial, self._made = made.credential.created, None

    def find(self, rp_id_hash: bytes, credential: bytes) -> Credential | None:
        key = self._keys.get(credential)
        return key.credential if key and key.credential.rp_id_hash == rp_id_hash else None

    def discoverable(self, rp_id_hash: bytes | None = None) -> Sequence[Credential]:
        found = [key.credential for key in self._keys.values() if key.credential.discoverable]
        return [c for c in reversed(found) if rp_id_hash in (None, c.rp_id_hash)]

    def room(self) -> int:
        return self._max_keys - len(self._keys)

    def advance_sign_count(self, credential: CredentialId) -> int:
        self._check("advance_sign_count")
        key = self._key(credential)
        count = key.credential.sign_count + 1
        self._keys[credential] = replace(key, credential=replace(key.credential, sign_count=count))
        return count

    def sign(self, credential: CredentialId, message: bytes) -> bytes:
        self._check("sign")
        key = self._known(credential)
        self._require_unlocked()
        if isinstance(key.private, Ed25519PrivateKey):
            return key.private.sign(message)
        return key.private.sign(message, ec.ECDSA(CURVES[Algorithm(key.credential.algorithm)][1]))

    def secrets(self, credential: CredentialId) -> CredentialSecrets:
        self._check("secrets")
        key = self._known(credential)
        self._require_unlocked()
        return key.secrets

    def update_user(self, credential: CredentialId, user: User) -> None:
        self._check("update_user")
        key = self._key(credential)
        named = replace(key.credential, user=replace(user, id=key.credential.user.id))
        self._keys[credential] = replace(key, credential=named)

    def delete(self, credential: CredentialId) -> None:
        self._check("delete")
        del self._keys[self._key(credential).credential.id]

    def large_blobs(self) -> bytes:
        return self._large_blobs

    def store_large_blobs(self, array: bytes) -> None:
        self._check("store_large_blobs")
        if len(array) > self.properties.max_large_blobs:
            raise DeviceError(Reason.KEY_STORE_FULL, "Too long.")
        self._large_blobs = array

    def reset(self) -> None:
        self._check("reset")
        self._forget()

    def _make_room(self, new: Credential) -> dict[bytes, _Key]:
        """The keys that stay beside a new one."""
        account = (new.rp_id_hash, new.user.id)
        kept = {
            key: value
            for key, value in self._keys.items()
            if not (new.discoverable and value.credential.discoverable)
            or (value.credential.rp_id_hash, value.credential.user.id) != account
        }
        if len(kept) >= self._max_keys:
            raise DeviceError(Reason.KEY_STORE_FULL, "Full.")
        return kept

    def _key(self, credential: CredentialId) -> _Key:
        if credential not in self._keys:
            raise DeviceError(Reason.KEY_NOT_FOUND, "No such key.")
        return self._keys[credential]

    def _known(self, credential: CredentialId) -> _Key:
        if self._made is not None and self._made.credential.id == credential:
            return self._made
        return self._key(credential)

    def _has_pin(self) -> bool:
        return self._pin_hash is not None

    def _require_unlocked(self) -> None:
        if self.properties.pin_gated and not self._unlocked:
            raise DeviceError(Reason.PIN_REQUIRED, "Locked.")

    def _check(self, name: str) -> None:
        if name in self.fail_next:
            raise self.fail_next.pop(name)


class MemoryCard(MemoryVault):
    """A card: three tries, and a PIN that is set before and is none of CTAP's. A reset leaves the PIN alone.

    With `on_pad` the PIN is typed on the reader, as `typed` says; None for nobody who types. `tells` is whether the
    card knows how many tries are left.
    """

    def __init__(
        self,
        pin: str | None = "123456",
        *,
        pin_gated: bool = True,
        keeps_secrets: bool = True,
        on_pad: bool = False,
        tells: bool = True,
    ) -> None:
        super().__init__(pin_gated=pin_gated)
        self.properties = replace(
            self.properties, protection="smartcard", verifies_itself=True, keeps_secrets=keeps_secrets
        )
        self.pin, self.retries, self.on_pad, self.tells = pin, 3, on_pad, tells
        self.typed: str | None = pin
        self.while_typing: Callable[[], object] = lambda: None
        self.locks = 0

    def lock(self) -> None:
        super().lock()
        self.locks += 1

    def uv_state(self) -> UvState:
        self._check("uv_state")
        return UvState(self.pin is not None, self.retries if self.tells else None, self.on_pad)

    def verify_user(self, entry: PinEntry) -> None:
        assert not self._unlocked  # the engine's part of the contract
        self._check("verify_user")
        if self.pin is None:
            raise DeviceError(Reason.PIN_NOT_SET, "No PIN.")
        if self.retries == 0:
            raise DeviceError(Reason.PIN_BLOCKED, "Blocked.", retries_left=0, fix="Use the PUK.")
        typed = self._typed(entry)
        self.while_typing()
        self.retries -= 1
        left = self.retries if self.tells else None
        if typed != self.pin:
            reason = Reason.PIN_WRONG if self.retries else Reason.PIN_BLOCKED
            raise DeviceError(reason, "The card says no.", retries_left=left, fix="Type the card's PIN.")
        self.retries, self._unlocked = 3, True

    def _typed(self, entry: PinEntry) -> str:
        left = self.retries if self.tells else None
        if self.on_pad:
            entry.on_pad(left)
            if self.typed is None:
                raise DeviceError(Reason.USER_TIMEOUT, "Nobody typed on the pad.", fix="Type the PIN.")
            return self.typed
        typed = entry.ask(left)
        if typed is None:
            raise DeviceError(Reason.USER_CANCELLED, "Nobody typed a PIN.", fix="Type the PIN.")
        return typed

    def pin_state(self) -> PinState:
        return PinState(is_set=False, retries_left=0)

    def set_pin(self, pin: bytes) -> None:
        raise DeviceError(Reason.UNSUPPORTED, "A card has its own PIN.")

    def change_pin(self, pin: bytes) -> None:
        raise DeviceError(Reason.UNSUPPORTED, "A card has its own PIN.")

    def verify_pin(self, pin_hash: bytes) -> None:
        raise DeviceError(Reason.UNSUPPORTED, "A card has its own PIN.")

    def secrets(self, credential: CredentialId) -> CredentialSecrets:
        assert self.properties.keeps_secrets  # the engine's part of the contract
        return super().secrets(credential)

    def _has_pin(self) -> bool:
        return self.pin is not None


def _generate(algorithm: Algorithm) -> ec.EllipticCurvePrivateKey | Ed25519PrivateKey:
    if algorithm is Algorithm.EDDSA:
        return Ed25519PrivateKey.generate()
    return ec.generate_private_key(CURVES[algorithm][0])


def _draw(request: KeyRequest) -> CredentialSecrets:
    return CredentialSecrets(
        with_uv=secrets.token_bytes(32) if request.hmac_secret else b"",
        without_uv=secrets.token_bytes(32) if request.hmac_secret else b"",
        large_blob_key=secrets.token_bytes(32) if request.large_blob_key else b"",
        cred_blob=request.cred_blob or b"",
    )
