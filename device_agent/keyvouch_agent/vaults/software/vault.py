"""The software vault: the `KeyVault` port over one sealed file.

What is on the disk is the truth. Every change goes there first, durably, in one replacement of the file, and only then
into memory; after a failed write the file is read again.

There are two kinds. Where the PIN gates, every key is sealed under a master key that the PIN wraps. Where it does not,
as in any security key, the file holds a second master key as it is, and whoever can read the file has the keys under
it; only those that require user verification (credProtect, section 12.1) are under the PIN, if it was set when they
were made. A file is of the one kind or the other for good.

What is *not* here: the file's format (`vault_file`), its protection in the file system (`private_directory`), the
cryptography of the PIN (`master_key`), of the keys (`key_pairs`), and of their seals (`sealed_key`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidTag

from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.authenticator.vault import (
    PIN_HASH_LENGTH,
    SOFTWARE_AAGUID,
    Attestation,
    AuthenticatorSettings,
    Credential,
    CredentialSecrets,
    CredProtect,
    KeyRequest,
    PinState,
    User,
    VaultProperties,
)
from keyvouch_agent.vaults.private_directory import FileSteps, PrivateDirectory
from keyvouch_agent.vaults.software import key_pairs, refusals, vault_file
from keyvouch_agent.vaults.software.master_key import KEY_LENGTH, KdfParameters, unwrap, wrap
from keyvouch_agent.vaults.software.sealed_key import (
    KeyContents,
    SealedKey,
    SealedUnder,
    draw_secrets,
    open_key,
    seal_key,
)
from keyvouch_agent.vaults.software.vault_file import PinRecord, VaultState

__all__ = ["SOFTWARE_AAGUID", "SoftwareVault"]

FILE_NAME: Final = "vault.cbor"
MAX_KEYS: Final = 256
MAX_LARGE_BLOBS: Final = 4096
CREDENTIAL_ID_LENGTH: Final = 32
_MAX_SIGN_COUNT: Final = (1 << 32) - 1

_PROPERTIES: Final = VaultProperties(
    aaguid=SOFTWARE_AAGUID,
    protection="software",
    algorithms=tuple(int(algorithm) for algorithm in key_pairs.ALGORITHMS),
    pin_gated=True,
    attestation_formats=("packed",),
    max_large_blobs=MAX_LARGE_BLOBS,
)


class SoftwareVault:
    """Keys sealed in a file. Make one with `open`, and `close` it to release the lock."""

    def __init__(
        self, directory: PrivateDirectory, entropy: Entropy, kdf: KdfParameters, *, pin_gated: bool = True
    ) -> None:
        self._directory = directory
        self._entropy = entropy
        self._kdf = kdf
        self._properties = replace(_PROPERTIES, pin_gated=pin_gated)
        self._master: bytearray | None = None
        self._made: SealedKey | None = None
        self._first_master = None if pin_gated else entropy.token(KEY_LENGTH)
        self._state = self._load()
        if pin_gated is not (self._state.open_master is None):
            raise refusals.of_the_other_kind(pin_gated)

    @classmethod
    def open(
        cls,
        path: Path,
        entropy: Entropy,
        *,
        kdf: KdfParameters | None = None,
        steps: FileSteps | None = None,
        pin_gated: bool = True,
    ) -> Self:
        """Open the vault in directory `path`, which is created if it is not there.

        `kdf` is the cost for PINs set from now on. With `pin_gated` False keys work without the PIN. Raises
        `DeviceError`: `VAULT_PERMISSIONS`, `VAULT_BUSY`, `VAULT_CORRUPT`, `DEVICE_FAILED`, and `UNSUPPORTED` for a
        newer file and for one of the other kind.
        """
        directory = PrivateDirectory(path, steps or FileSteps())
        try:
            return cls(directory, entropy, kdf or KdfParameters(), pin_gated=pin_gated)
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
        return self._properties

    @property
    def settings(self) -> AuthenticatorSettings:
        """What was set last."""
        return self._state.settings

    def store_settings(self, settings: AuthenticatorSettings) -> None:
        """Put other settings into the file."""
        self._store(replace(self._state, settings=settings))

    # The PIN

    def pin_state(self) -> PinState:
        """Read the PIN's state."""
        pin = self._state.pin
        if pin is None:
            return PinState(is_set=False, retries_left=_PROPERTIES.max_pin_retries)
        return PinState(is_set=True, retries_left=pin.retries_left, code_points=pin.code_points)

    def set_pin(self, pin: bytes) -> None:
        """Set the first PIN and draw the master key."""
        if self._state.pin is not None:
            raise refusals.pin_is_set()
        self._wrap(self._entropy.token(KEY_LENGTH), pin)
        self.lock()

    def change_pin(self, pin: bytes) -> None:
        """Wrap the same master key under another PIN."""
        self._wrap(self._unlocked(), pin)

    def verify_pin(self, pin_hash: bytes) -> None:
        """Count the attempt on the disk, then try to unwrap the master key."""
        record = self._state.pin
        if record is None:
            raise refusals.pin_not_set()
        if record.retries_left == 0:
            raise refusals.pin_blocked()
        left = record.retries_left - 1
        self._store(self._state.with_retries(left))
        try:
            master = unwrap(record.wrapped, pin_hash)
        except InvalidTag:
            raise refusals.pin_wrong(left) from None
        self._store(self._state.with_retries(_PROPERTIES.max_pin_retries))
        self.lock()
        self._master = bytearray(master)

    def lock(self) -> None:
        """Overwrite the master key. Copies inside the cryptography library cannot be reached."""
        self._made = None
        if self._master is not None:
            self._master[:] = bytes(len(self._master))
            self._master = None

    # The keys

    def create_key(self, request: KeyRequest) -> Credential:
        """Generate a key pair, draw its secrets, and have them sealed. The file does not change yet."""
        if self._properties.pin_gated and self._state.pin is None:
            raise refusals.pin_not_set()
        under = self._seal_for(request)
        master = self._master_of(under)
        private = key_pairs.generate(request.algorithm)
        credential = request.as_made(
            CredentialId(self._entropy.token(CREDENTIAL_ID_LENGTH)),
            bytes(CoseKey.from_public_key(private.public_key())),
            self._state.serial + 1,
        )
        if len(self._beside(credential)) >= MAX_KEYS:
            raise refusals.no_room_for_keys(MAX_KEYS)
        contents = KeyContents(key_pairs.to_bytes(private), draw_secrets(request, self._entropy))
        self._made = seal_key(SealedKey(credential, under), contents, master, self._entropy)
        return credential

    def attest(self, credential: CredentialId, authenticator_data: bytes, client_data_hash: bytes) -> Attestation:
        """Packed self attestation: the new key signs for itself (WebAuthn section 8.2)."""
        signature = self.sign(credential, authenticator_data + client_data_hash)
        return Attestation("packed", {"alg": self._known(credential).credential.algorithm, "sig": signature})

    def keep(self, credential: CredentialId) -> None:
        """Put the new key into the file, and leave out those it replaces."""
        made = self._made
        if made is None or made.credential.id != credential:
            raise refusals.no_such_key()
        keys = (*self._beside(made.credential), made)
        self._store(replace(self._state, serial=made.credential.created, keys=keys))
        self._made = None

    def find(self, rp_id_hash: bytes, credential: bytes) -> Credential | None:
        """Look a credential up by relying party and id."""
        for key in self._state.keys:
            if key.credential.id == credential and key.credential.rp_id_hash == rp_id_hash:
                return key.credential
        return None

    def discoverable(self, rp_id_hash: bytes | None = None) -> Sequence[Credential]:
        """Discoverable credentials, the newest first."""
        found = [key.credential for key in self._state.keys if key.credential.discoverable]
        return [c for c in reversed(found) if rp_id_hash in (None, c.rp_id_hash)]

    def room(self) -> int:
        """Keys until it is full."""
        return max(0, MAX_KEYS - len(self._state.keys))

    def advance_sign_count(self, credential: CredentialId) -> int:
        """Count up on the disk."""
        key = self._key(credential)
        count = key.credential.sign_count + 1
        if count > _MAX_SIGN_COUNT:
            raise refusals.counter_used_up()
        self._store(self._state.with_key(replace(key, credential=replace(key.credential, sign_count=count))))
        return count

    def sign(self, credential: CredentialId, message: bytes) -> bytes:
        """Open the key's record for one signature."""
        algorithm = self._known(credential).credential.algorithm
        return key_pairs.sign(key_pairs.restore(algorithm, self._contents(credential).private), algorithm, message)

    def secrets(self, credential: CredentialId) -> CredentialSecrets:
        """Open the key's record for what is beside the private key."""
        return self._contents(credential).secrets

    def update_user(self, credential: CredentialId, user: User) -> None:
        """Seal the key anew with other names, for the seal binds them. Raises `PIN_REQUIRED` where that is locked."""
        key = self._key(credential)
        renamed, contents = key.renamed(user), self._contents(credential)
        self._store(self._state.with_key(seal_key(renamed, contents, self._master_of(renamed.under), self._entropy)))

    def delete(self, credential: CredentialId) -> None:
        """Drop the key's record."""
        key = self._key(credential)
        self._store(replace(self._state, keys=tuple(k for k in self._state.keys if k is not key)))

    # Large blobs, and the end of everything

    def large_blobs(self) -> bytes:
        """The array in the file."""
        return self._state.large_blobs

    def store_large_blobs(self, array: bytes) -> None:
        """Put another array into the file."""
        if len(array) > MAX_LARGE_BLOBS:
            raise refusals.no_room_for_blobs(len(array), MAX_LARGE_BLOBS)
        self._store(replace(self._state, large_blobs=array))

    def reset(self) -> None:
        """Replace everything with an empty vault of the same kind."""
        self._store(VaultState(open_master=None if self._properties.pin_gated else self._entropy.token(KEY_LENGTH)))
        self.lock()

    def _wrap(self, master: bytes, pin: bytes) -> None:
        pin_hash = hashlib.sha256(pin).digest()[:PIN_HASH_LENGTH]
        wrapped = wrap(master, pin_hash, self._kdf, self._entropy)
        record = PinRecord(wrapped, _PROPERTIES.max_pin_retries, len(pin.decode()))
        settings = replace(self._state.settings, force_pin_change=False)
        self._store(replace(self._state, pin=record, settings=settings))

    def _beside(self, new: Credential) -> tuple[SealedKey, ...]:
        """The keys that stay when `new` is stored: all but the discoverable ones of its account, if it is one itself.

        Itself too, where a write that failed at its very end has stored it.
        """

        def stays(old: Credential) -> bool:
            same_account = (old.rp_id_hash, old.user.id) == (new.rp_id_hash, new.user.id)
            return old.id != new.id and not (same_account and old.discoverable and new.discoverable)

        return tuple(key for key in self._state.keys if stays(key.credential))

    def _seal_for(self, request: KeyRequest) -> SealedUnder:
        """Without the gate only the PIN's own master key makes sure that a key really needs the PIN."""
        needs_pin = request.protect is CredProtect.UV_REQUIRED and self._state.pin is not None
        return SealedUnder.PIN if self._properties.pin_gated or needs_pin else SealedUnder.FILE

    def _contents(self, credential: CredentialId) -> KeyContents:
        key = self._known(credential)
        return open_key(key, self._master_of(key.under))

    def _master_of(self, under: SealedUnder) -> bytes:
        if under is not SealedUnder.FILE:
            return self._unlocked()
        assert self._state.open_master is not None
        return self._state.open_master

    def _key(self, credential: CredentialId) -> SealedKey:
        for key in self._state.keys:
            if key.credential.id == credential:
                return key
        raise refusals.no_such_key()

    def _known(self, credential: CredentialId) -> SealedKey:
        """A stored key, or the one that was just made."""
        if self._made is not None and self._made.credential.id == credential:
            return self._made
        return self._key(credential)

    def _unlocked(self) -> bytes:
        if self._master is None:
            raise refusals.locked()
        return bytes(self._master)

    def _load(self) -> VaultState:
        content = self._directory.read(FILE_NAME)
        return VaultState(open_master=self._first_master) if content is None else vault_file.decode(content)

    def _store(self, state: VaultState) -> None:
        try:
            self._directory.replace(FILE_NAME, vault_file.encode(state))
        except DeviceError:
            self._state = self._load()
            raise
        self._state = state
