"""One account in a TPM: its record on the disk, its key files, and a connection while one is needed.

Connections are opened late and shared: a ceremony keeps one from beginning to end, the vault one from the PIN to the
lock, and whoever needs the TPM meanwhile gets the same. What is loaded in it is loaded once. A TPM without a resource
manager has room for three objects: storage root key, attestation key, and one more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.vaults.private_directory import FileSteps, PrivateDirectory
from keyvouch_agent.vaults.tpm import account_file, attestation_key
from keyvouch_agent.vaults.tpm.account_file import AccountState
from keyvouch_agent.vaults.tpm.attestation_key import AttestationKeySeed, LoadedAttestationKey
from keyvouch_agent.vaults.tpm.connection import Tpm, TpmAccess
from keyvouch_agent.vaults.tpm.key_file import KeyFile
from keyvouch_agent.vaults.tpm.losses import open_account_parent, read_key_file
from keyvouch_agent.vaults.tpm.parent import choose_parent
from keyvouch_agent.vaults.tpm.pin_index import PinIndex, open_index
from keyvouch_agent.vaults.tpm.profile import TpmProfile, read_profile

__all__ = ["FILE_NAME", "TpmAccount", "TpmLink", "key_file_name"]

FILE_NAME: Final = "account.cbor"
_KEY_SUFFIX: Final = ".pem"


class TpmLink:
    """A connection and what of the account is loaded in it, each part when it is first asked for."""

    def __init__(self, tpm: Tpm, account: TpmAccount) -> None:
        self.tpm = tpm
        self._account = account
        self._parent: Any = None
        self._attestation_key: LoadedAttestationKey | None = None
        self._index: PinIndex | None = None

    @property
    def parent(self) -> Any:
        """The storage root key: the pinned one, or the one that is pinned now."""
        if self._parent is None:
            pinned = self._account.state.parent
            if pinned is None:
                self._parent, pinned = choose_parent(self.tpm, self._account.profile)
                self._account.store(replace(self._account.state, parent=pinned))
            else:
                self._parent = open_account_parent(self.tpm, self._account.state, pinned)
        return self._parent

    @property
    def attestation_key(self) -> LoadedAttestationKey:
        """The attestation key. Raises `DeviceError(KEY_NOT_FOUND)` where the account has none."""
        if self._attestation_key is None:
            record = self._account.state.attestation
            if record is None:
                raise _no_attestation_key()
            seed = AttestationKeySeed(record.algorithm, record.unique)
            self._attestation_key = attestation_key.load(self.tpm, seed, record.public.name)
        return self._attestation_key

    def use_attestation_key(self, key: LoadedAttestationKey) -> None:
        """A fresh one has been made and recorded."""
        self._attestation_key = key

    @property
    def index(self) -> PinIndex:
        """The PIN's index. There must be a PIN."""
        if self._index is None:
            pin = self._account.state.pin
            assert pin is not None
            self._index = open_index(self.tpm, pin.gate, pin.serialized)
        return self._index

    def forget_index(self) -> None:
        """The index has changed: look it up again when it is needed."""
        self._index = None


class TpmAccount:
    """The record and the connection. Make one with `open`, and `close` it to release the folder's lock."""

    def __init__(self, directory: PrivateDirectory, access: TpmAccess, profile: TpmProfile) -> None:
        self.profile = profile
        self._directory = directory
        self._access = access
        self._link: TpmLink | None = None
        self._users = 0
        self._state = self._load()

    @classmethod
    def open(cls, path: Path, access: TpmAccess, *, steps: FileSteps | None = None) -> TpmAccount:
        """Open the account in folder `path`, which is made if it is not there, and ask the TPM what it can do.

        Raises `DeviceError`: those of `PrivateDirectory`, `VAULT_CORRUPT`, and those of `TpmAccess.open`.
        """
        directory = PrivateDirectory(path, steps or FileSteps())
        try:
            with access.open() as tpm:
                profile = read_profile(tpm)
            return cls(directory, access, profile)
        except BaseException:
            directory.close()
            raise

    @property
    def state(self) -> AccountState:
        """The record as it is on the disk."""
        return self._state

    def store(self, state: AccountState) -> None:
        """Replace the record durably, or leave it as it was."""
        try:
            self._directory.replace(FILE_NAME, account_file.encode(state))
        except DeviceError:
            self._state = self._load()
            raise
        self._state = state

    def close(self) -> None:
        """End a connection that is still open and release the folder."""
        self._users = 0
        self._disconnect()
        self._directory.close()

    # Connections

    def keep(self) -> TpmLink:
        """A link that stays until `let_go`. Raises as `TpmAccess.open` does."""
        if self._link is None:
            self._link = TpmLink(self._access.open(), self)
        self._users += 1
        return self._link

    def let_go(self) -> None:
        """Somebody who kept the link needs it no more; the last one closes it."""
        self._users = max(0, self._users - 1)
        if not self._users:
            self._disconnect()

    @contextmanager
    def linked(self) -> Iterator[TpmLink]:
        """A link for the block. What the block holds besides the link's own is flushed at its end."""
        link = self.keep()
        try:
            yield link
        finally:
            self.let_go()

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.tpm.close()
            self._link = None

    # Key files

    def write_key(self, credential: CredentialId, key: KeyFile) -> None:
        """Keep a key file, before the record names it."""
        self._directory.replace(key_file_name(credential), key.to_pem())

    def read_key(self, credential: CredentialId) -> KeyFile:
        """The key file of a credential. Raises `DeviceError`: DEVICE_KEY_LOST where it is gone, VAULT_CORRUPT."""
        return read_key_file(self._directory.read(key_file_name(credential)))

    def remove_key(self, credential: CredentialId) -> None:
        """Remove a key file that the record no longer names."""
        self._directory.remove(key_file_name(credential))

    def sweep(self) -> None:
        """Remove key files that the record does not name: an interrupted ceremony left them.

        Where the record itself is missing they stay: it may come back from a backup.
        """
        if self._state == AccountState():
            return
        known = {key_file_name(key.id) for key in self._state.keys}
        for name in self._directory.names(_KEY_SUFFIX):
            if name not in known:
                self._directory.remove(name)

    def erase(self) -> None:
        """Remove every file of the account."""
        for name in (*self._directory.names(_KEY_SUFFIX), FILE_NAME):
            self._directory.remove(name)
        self._state = AccountState()

    def _load(self) -> AccountState:
        content = self._directory.read(FILE_NAME)
        return AccountState() if content is None else account_file.decode(content)


def key_file_name(credential: CredentialId) -> str:
    """The name of a key's file in the account's folder."""
    return f"{credential.hex()[:64]}{_KEY_SUFFIX}"


def _no_attestation_key() -> DeviceError:
    return DeviceError(
        Reason.KEY_NOT_FOUND,
        "This account has no attestation key.",
        fix="Enrol the device again: the TPM then makes one.",
    )
