"""What it means that a part of an account is not there: which part, why as far as it can be told, and the way back.

A TPM says of everything that is gone that it is not there. What else is still there tells more: with the storage root
key gone the TPM was cleared, or is another one; with that key and without the PIN's counter its owner removed the
counter; with the counter and without that key somebody removed the key.
"""

from __future__ import annotations

from typing import Any

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.tpm import pin_index
from keyvouch_agent.vaults.tpm.account_file import AccountState, StorageParent
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.key_file import KeyFile
from keyvouch_agent.vaults.tpm.parent import open_parent
from keyvouch_agent.vaults.tpm.response_codes import REENROL, Code, Words

__all__ = [
    "NO_SUCH_KEY",
    "UNUSABLE_KEY_FILE",
    "UNUSABLE_SECRETS",
    "damaged_secrets",
    "open_account_parent",
    "read_key_file",
    "told_apart",
]

_REKEY = "Run `keyvouch-agent rekey`: the TPM makes a new key behind the same PIN."

_DAMAGED = Words(
    Reason.VAULT_CORRUPT,
    "The file of this account's key is damaged: the TPM does not take what is in it.",
    f"Restore it from a backup. Or: {_REKEY}",
)
UNUSABLE_KEY_FILE = {Code.INTEGRITY: _DAMAGED, Code.SIZE: _DAMAGED, Code.VALUE: _DAMAGED, Code.BINDING: _DAMAGED}
"""What refusals to load a key mean, where its parent is the right one."""

_DAMAGED_SECRETS = Words(
    Reason.VAULT_CORRUPT,
    "What is kept beside a key of this account is damaged: the TPM does not take it.",
    f"Restore the account's record from a backup. Or: {_REKEY}",
)
UNUSABLE_SECRETS = dict.fromkeys(UNUSABLE_KEY_FILE, _DAMAGED_SECRETS)
"""The same where it is not a key that is loaded but the seed of its secrets."""

NO_SUCH_KEY = Words(
    Reason.KEY_NOT_FOUND,
    "The record of this account does not know the key it is enrolled with: it is an older copy, or not all of it.",
    _REKEY,
)


def open_account_parent(tpm: Tpm, state: AccountState, pinned: StorageParent) -> Any:
    """The storage root key of an account. Raises `DeviceError`: TPM_CLEARED, DEVICE_KEY_LOST, TPM_OWNER_AUTH."""
    try:
        return open_parent(tpm, pinned)
    except DeviceError as error:
        if error.reason is Reason.TPM_CLEARED and _has_index(tpm, state):
            raise _no_root_key() from error
        raise


def damaged_secrets() -> DeviceError:
    """What is kept beside a key is not what was kept there."""
    return _DAMAGED_SECRETS.error()


def told_apart(tpm: Tpm, state: AccountState) -> DeviceError:
    """What it means that a part of the account is not there: the TPM was cleared, or root key or counter is gone."""
    if state.parent is not None:
        try:
            with tpm.passing():
                open_account_parent(tpm, state, state.parent)
        except DeviceError as error:
            if error.reason in (Reason.TPM_CLEARED, Reason.DEVICE_KEY_LOST):
                return error
    return pin_index.lost()


def read_key_file(data: bytes | None) -> KeyFile:
    """What an account's key file holds, None for one that is not there. Raises DEVICE_KEY_LOST, VAULT_CORRUPT."""
    if data is None:
        raise DeviceError(Reason.DEVICE_KEY_LOST, "The file of this account's key is gone.", fix=_REKEY)
    try:
        return KeyFile.read(data)
    except DeviceError as error:
        raise _DAMAGED.error() from error


def _has_index(tpm: Tpm, state: AccountState) -> bool:
    pin = state.pin
    if pin is None:
        return False
    try:
        return pin_index.public_area(tpm, pin.gate.handle) == pin.gate.written
    except DeviceError:
        return False


def _no_root_key() -> DeviceError:
    return DeviceError(
        Reason.DEVICE_KEY_LOST,
        "The storage root key that this account's keys are under is not in the TPM any more, or another one took its "
        "place at 0x81000001.",
        fix=f"Put it back if somebody removed it by mistake. Else: {REENROL}",
    )
