"""Where the PIN of a key provider stands: told before it is asked for, so that nobody types into a blocked one."""

from __future__ import annotations

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.ports import ProviderCapabilities, ProviderKind

__all__ = ["check_pin_usable", "describe_pin"]

_WAY_BACK = {
    ProviderKind.SOFTWARE: "Its keys are lost: run `keyvouch-agent unregister`, move the vault away, enrol again.",
    ProviderKind.TPM: "Get an access pass, then `keyvouch-agent enroll --replace`. The rest of the TPM is unaffected.",
    ProviderKind.FIDO2: "Reset the security key, which removes every key on it, then enrol again.",
    ProviderKind.SMARTCARD: "Unblock the card with its PUK, then try again.",
}


def check_pin_usable(capabilities: ProviderCapabilities) -> None:
    """Raise `DeviceError` with PIN_NOT_SET or PIN_BLOCKED where asking for the PIN would be in vain.

    An account in a TPM gets its PIN when it is enrolled: one without has lost its record (DEVICE_KEY_LOST).
    """
    if not capabilities.pin_is_set and capabilities.kind is ProviderKind.TPM:
        raise DeviceError(
            Reason.DEVICE_KEY_LOST,
            "The record of this account's TPM keys is gone, and with it the way to them.",
            fix=f"Restore its folder from a backup. Or: {_WAY_BACK[ProviderKind.TPM]}",
        )
    if not capabilities.pin_is_set:
        raise DeviceError(
            Reason.PIN_NOT_SET,
            f"{capabilities.name} has no PIN, so it cannot approve anything.",
            fix="Set one with `keyvouch-agent pin`.",
        )
    if capabilities.pin_retries_left == 0:
        raise DeviceError(
            Reason.PIN_BLOCKED,
            f"The PIN of {capabilities.name} is blocked after too many wrong tries.",
            fix=_WAY_BACK[capabilities.kind],
            retries_left=0,
        )


def describe_pin(capabilities: ProviderCapabilities) -> str:
    """A few words on the PIN for a person."""
    if not capabilities.pin_is_set:
        return "no PIN set"
    if capabilities.pin_retries_left is None:
        return "PIN set"
    if capabilities.pin_retries_left == 0:
        return "PIN blocked"
    return f"{capabilities.pin_retries_left} PIN tries left"
