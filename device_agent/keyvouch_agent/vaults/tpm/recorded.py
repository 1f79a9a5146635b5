"""The part of the TPM vault that asks the TPM nothing: what stands in the account's record, read and changed.

Each change is one replacement of the record. What is not here: the PIN, and the use of the keys (`vault`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import AuthenticatorSettings, Credential, KeyRequest, User
from keyvouch_agent.vaults.tpm.account import TpmAccount
from keyvouch_agent.vaults.tpm.account_file import AccountState
from keyvouch_agent.vaults.tpm.losses import NO_SUCH_KEY

__all__ = ["MAX_KEYS", "MAX_LARGE_BLOBS", "RecordedVault"]

MAX_KEYS: Final = 64
MAX_LARGE_BLOBS: Final = 4096
_MAX_SIGN_COUNT: Final = (1 << 32) - 1


class RecordedVault:
    """What of a `KeyVault` is known from the account's record."""

    def __init__(self, account: TpmAccount) -> None:
        self._account = account

    @property
    def _state(self) -> AccountState:
        return self._account.state

    @property
    def settings(self) -> AuthenticatorSettings:
        """What was set last."""
        return self._state.settings

    def store_settings(self, settings: AuthenticatorSettings) -> None:
        """Put other settings into the record."""
        self._account.store(replace(self._state, settings=settings))

    def find(self, rp_id_hash: bytes, credential: bytes) -> Credential | None:
        """Look a credential up by relying party and id."""
        for key in self._state.keys:
            if key.id == credential and key.rp_id_hash == rp_id_hash:
                return key
        return None

    def discoverable(self, rp_id_hash: bytes | None = None) -> Sequence[Credential]:
        """Discoverable credentials, the newest first."""
        found = [key for key in reversed(self._state.keys) if key.discoverable]
        return [key for key in found if rp_id_hash in (None, key.rp_id_hash)]

    def room(self) -> int:
        """Keys until the account is full. The TPM itself keeps none of them."""
        return max(0, MAX_KEYS - len(self._state.keys))

    def advance_sign_count(self, credential: CredentialId) -> int:
        """Count up on the disk."""
        key = self._find(credential)
        count = key.sign_count + 1
        if count > _MAX_SIGN_COUNT:
            raise DeviceError(Reason.DEVICE_FAILED, "This key's counter is used up.", fix="Register this device again.")
        self._put(key, replace(key, sign_count=count))
        return count

    def update_user(self, credential: CredentialId, user: User) -> None:
        """Put other names into the record."""
        key = self._find(credential)
        self._put(key, replace(key, user=replace(user, id=key.user.id)))

    def delete(self, credential: CredentialId) -> None:
        """Drop the key's record, then its file: nothing else in the world can load it."""
        key = self._find(credential)
        self._account.store(self._state.with_keys(tuple(k for k in self._state.keys if k is not key)))
        self._remove_files(key)

    def large_blobs(self) -> bytes:
        """The array in the record."""
        return self._state.large_blobs

    def store_large_blobs(self, array: bytes) -> None:
        """Put another array into the record."""
        if len(array) > MAX_LARGE_BLOBS:
            raise DeviceError(
                Reason.KEY_STORE_FULL,
                f"This account keeps {MAX_LARGE_BLOBS} bytes of large blobs; these are {len(array)}.",
                fix="Remove one of them.",
            )
        self._account.store(replace(self._state, large_blobs=array))

    def _replaced_by(self, new: KeyRequest | Credential) -> Sequence[Credential]:
        """The keys in whose place a new one comes: the discoverable ones of its account, if it is one itself."""
        account = (new.rp_id_hash, new.user.id)
        return [
            old
            for old in self._state.keys
            if old.discoverable and new.discoverable and (old.rp_id_hash, old.user.id) == account
        ]

    def _remove_files(self, *keys: Credential) -> None:
        """Remove the files of keys that the record does not name any more. One that stays is swept away later."""
        for key in keys:
            with suppress(DeviceError):
                self._account.remove_key(key.id)

    def _put(self, old: Credential, new: Credential) -> None:
        self._account.store(replace(self._state, keys=tuple(new if key is old else key for key in self._state.keys)))

    def _find(self, credential: CredentialId) -> Credential:
        for key in self._state.keys:
            if key.id == credential:
                return key
        raise NO_SUCH_KEY.error()
