"""The part of the PKCS#11 vault that asks the token nothing: what stands in the account's record, read and changed.

Each change is one replacement of the record. What is not here: the PIN (`gated`), and the keys themselves (`vault`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NoReturn

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import (
    INITIAL_LARGE_BLOBS,
    AuthenticatorSettings,
    Credential,
    KeyRequest,
    PinState,
    User,
)
from keyvouch_agent.vaults.pkcs11.account import CardAccount
from keyvouch_agent.vaults.pkcs11.failures import no_such_key, unsupported
from keyvouch_agent.vaults.pkcs11.record import CardKey, CardState

__all__ = ["MAX_KEYS", "RecordedVault"]

MAX_KEYS: Final = 16
_MAX_SIGN_COUNT: Final = (1 << 32) - 1
_NO_PIN_OF_CTAP: Final = "The PIN of a card is the card's own: it is asked for when the card is used."


class RecordedVault:
    """What of a `VerifyingVault` is known from the account's record."""

    def __init__(self, account: CardAccount) -> None:
        self._account = account

    @property
    def _state(self) -> CardState:
        return self._account.state

    @property
    def settings(self) -> AuthenticatorSettings:
        """What was set last."""
        return self._state.settings

    def store_settings(self, settings: AuthenticatorSettings) -> None:
        """Put other settings into the record."""
        self._account.store(replace(self._state, settings=settings))

    def pin_state(self) -> PinState:
        """CTAP's PIN is none of a card's."""
        return PinState(is_set=False, retries_left=0)

    def set_pin(self, pin: bytes) -> NoReturn:  # noqa: ARG002 - the port's
        """There is none of CTAP's."""
        raise unsupported(_NO_PIN_OF_CTAP)

    def change_pin(self, pin: bytes) -> NoReturn:  # noqa: ARG002
        """There is none of CTAP's."""
        raise unsupported(_NO_PIN_OF_CTAP)

    def verify_pin(self, pin_hash: bytes) -> NoReturn:  # noqa: ARG002
        """There is none of CTAP's."""
        raise unsupported(_NO_PIN_OF_CTAP)

    def find(self, rp_id_hash: bytes, credential: bytes) -> Credential | None:
        """Look a credential up by relying party and id."""
        for key in self._state.keys:
            if key.credential.id == credential and key.credential.rp_id_hash == rp_id_hash:
                return key.credential
        return None

    def discoverable(self, rp_id_hash: bytes | None = None) -> Sequence[Credential]:
        """Discoverable credentials, the newest first."""
        found = [key.credential for key in reversed(self._state.keys) if key.credential.discoverable]
        return [credential for credential in found if rp_id_hash in (None, credential.rp_id_hash)]

    def room(self) -> int:
        """Keys until the account is full. How many a token has room for it does not tell."""
        return max(0, MAX_KEYS - len(self._state.keys))

    def advance_sign_count(self, credential: CredentialId) -> int:
        """Count up on the disk."""
        key = self._find(credential)
        count = key.credential.sign_count + 1
        if count > _MAX_SIGN_COUNT:
            raise DeviceError(Reason.DEVICE_FAILED, "This key's counter is used up.", fix="Register this device again.")
        self._put(key, replace(key.credential, sign_count=count))
        return count

    def update_user(self, credential: CredentialId, user: User) -> None:
        """Put other names into the record. The label on the token stays."""
        key = self._find(credential)
        self._put(key, replace(key.credential, user=replace(user, id=key.credential.user.id)))

    def large_blobs(self) -> bytes:
        """A token keeps none."""
        return INITIAL_LARGE_BLOBS

    def store_large_blobs(self, array: bytes) -> None:
        """There is no room for any."""
        if array != INITIAL_LARGE_BLOBS:
            raise DeviceError(Reason.KEY_STORE_FULL, "A card keeps no large blobs.", fix="Keep them elsewhere.")

    def _replaced_by(self, new: KeyRequest | Credential) -> tuple[CardKey, ...]:
        """The keys in whose place a new one comes: the discoverable ones of its account, if it is one itself."""
        account = (new.rp_id_hash, new.user.id)

        def goes(old: Credential) -> bool:
            return old.discoverable and new.discoverable and (old.rp_id_hash, old.user.id) == account

        return tuple(key for key in self._state.keys if goes(key.credential))

    def _put(self, old: CardKey, new: Credential) -> None:
        keys = tuple(replace(key, credential=new) if key is old else key for key in self._state.keys)
        self._account.store(replace(self._state, keys=keys))

    def _find(self, credential: CredentialId) -> CardKey:
        for key in self._state.keys:
            if key.credential.id == credential:
                return key
        raise no_such_key()
