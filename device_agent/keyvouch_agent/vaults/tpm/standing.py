"""How one account in a TPM stands: its PIN, its key, and what is in the way. Looks and changes nothing.

The steps are those of a signature, without the PIN and without the signature: what would refuse there refuses here, by
the same error.
"""

from __future__ import annotations

from dataclasses import dataclass

from keyvouch.attestation.pin_gate import PinCounter
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.vaults.tpm import pin_index
from keyvouch_agent.vaults.tpm.account_file import AccountState, PinRecord
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.losses import (
    NO_SUCH_KEY,
    UNUSABLE_KEY_FILE,
    open_account_parent,
    read_key_file,
    told_apart,
)
from keyvouch_agent.vaults.tpm.response_codes import REENROL

__all__ = ["AccountStanding", "examine"]


@dataclass(frozen=True, slots=True)
class AccountStanding:
    """`trouble` is what a signature would be refused with, None for a key that is usable.

    `tries_left` is the TPM's word, or with `remembered` the agent's own count, where the owner's password hides that.
    `certificate` is that of the attestation key, in DER, empty for none.
    """

    trouble: DeviceError | None = None
    handle: int = 0
    tries_left: int | None = None
    limit: int = 0
    remembered: bool = False
    certificate: bytes = b""


def examine(tpm: Tpm, state: AccountState, credential_id: CredentialId, key_file: bytes | None) -> AccountStanding:
    """Look at the account of `state`. `key_file` is what its key's file holds, None where there is none."""
    pin, certificate = state.pin, state.attestation.certificate if state.attestation else b""
    if pin is None or not pin.is_set or state.parent is None:
        return AccountStanding(_no_record(), pin.gate.handle if pin else 0, certificate=certificate)
    trouble, counter, remembered = None, None, False
    try:
        with tpm.passing():
            parent = open_account_parent(tpm, state, state.parent)
            counter, remembered = _counter(tpm, state, pin)
            if not counter.tries_left:
                raise pin_index.pin_refused(0)
            _check_key(tpm, parent, state, credential_id, key_file)
    except DeviceError as error:
        trouble = error
    left = counter.tries_left if counter else None
    return AccountStanding(trouble, pin.gate.handle, left, pin.limit, remembered, certificate)


def _counter(tpm: Tpm, state: AccountState, pin: PinRecord) -> tuple[PinCounter, bool]:
    try:
        if pin_index.public_area(tpm, pin.gate.handle) != pin.gate.written:
            raise pin_index.lost()
        return pin_index.read_counter(tpm, pin_index.open_index(tpm, pin.gate, pin.serialized)), False
    except DeviceError as error:
        if error.reason is Reason.DEVICE_KEY_LOST:
            raise told_apart(tpm, state) from error
        if error.reason is not Reason.TPM_OWNER_AUTH:
            raise
        return PinCounter(pin.limit - pin.tries_left, pin.limit), True


def _check_key(
    tpm: Tpm, parent: object, state: AccountState, credential_id: CredentialId, key_file: bytes | None
) -> None:
    if credential_id not in {key.id for key in state.keys}:
        raise NO_SUCH_KEY.error()
    key = read_key_file(key_file)
    tpm.hold(tpm.expecting(UNUSABLE_KEY_FILE, tpm.esapi.load, parent, key.private, key.public))


def _no_record() -> DeviceError:
    return DeviceError(
        Reason.DEVICE_KEY_LOST,
        "The record of this account's TPM keys is gone or was never finished.",
        fix=f"Restore its folder from a backup. Or: {REENROL}",
    )
