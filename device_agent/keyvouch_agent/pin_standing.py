"""Where the PIN of a key provider stands: told before it is asked for, so that nobody types into a blocked one."""

from __future__ import annotations

from collections.abc import Mapping

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.ports import ProviderCapabilities, ProviderKind

__all__ = ["check_last_try", "check_pin_usable", "check_told_pin", "describe_pin", "tries_left"]

_WAY_BACK = {
    ProviderKind.SOFTWARE: "Its keys are lost: run `keyvouch-agent unregister`, move the vault away, enrol again.",
    ProviderKind.TPM: "Get an access pass, then `keyvouch-agent enroll --replace`. The rest of the TPM is unaffected.",
    ProviderKind.FIDO2: "Reset the security key, which removes every key on it, then enrol again.",
    ProviderKind.SMARTCARD: "Unblock the card by its PUK, as with pkcs15-tool --unblock-pin. Its keys are still there.",
}


_TOLD_WAY = "Deny the request with `keyvouch-agent deny`; `keyvouch-agent doctor` says how to get a new key."
_TOLD_WAY_BACK = {ProviderKind.SMARTCARD.value: _WAY_BACK[ProviderKind.SMARTCARD]}


def check_pin_usable(capabilities: ProviderCapabilities) -> None:
    """Raise `DeviceError` with PIN_NOT_SET or PIN_BLOCKED where asking for the PIN would be in vain.

    A holder that is away, or verifies its user itself, is asked when it is used. An account in a TPM gets its PIN when
    it is enrolled: one without has lost its record (DEVICE_KEY_LOST).
    """
    if not capabilities.pin_is_set and capabilities.kind is ProviderKind.TPM:
        raise DeviceError(
            Reason.DEVICE_KEY_LOST,
            "The record of this account's TPM keys is gone, and with it the way to them.",
            fix=f"Restore its folder from a backup. Or: {_WAY_BACK[ProviderKind.TPM]}",
        )
    if not capabilities.connected or not capabilities.asks_pin:
        return
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


def check_last_try(kind: object, retries_left: object, *, allowed: bool) -> None:
    """Raise `DeviceError(PIN_LAST_TRY)` before anybody types the PIN of a card that one wrong PIN more would block."""
    if kind == ProviderKind.SMARTCARD and retries_left == 1 and not allowed:
        raise DeviceError(
            Reason.PIN_LAST_TRY,
            "One try of the card's PIN is left: a wrong one blocks it, and then it takes the PUK.",
            fix="If you are sure of the PIN, run the command with --last-try. Else unblock the card with its PUK.",
            retries_left=1,
        )


def check_told_pin(pin: Mapping[str, object], *, last_try: bool = False) -> None:
    """Raise `DeviceError` where the agent tells of a PIN that typing it would be in vain: PIN_BLOCKED, PIN_LAST_TRY."""
    if not pin.get("asks_pin", True):
        return
    check_last_try(pin.get("provider"), pin.get("retries_left"), allowed=last_try)
    if pin.get("retries_left") == 0:
        raise DeviceError(
            Reason.PIN_BLOCKED,
            "The PIN of this key is blocked after too many wrong tries.",
            fix=_TOLD_WAY_BACK.get(str(pin.get("provider")), _TOLD_WAY),
            retries_left=0,
        )


def describe_pin(capabilities: ProviderCapabilities) -> str:
    """A few words on the PIN for a person."""
    if not capabilities.connected:
        return "not connected"
    if not capabilities.asks_pin and capabilities.kind is ProviderKind.SMARTCARD:
        return "its PIN is typed on the reader"
    if not capabilities.asks_pin:
        return "verifies you itself, by a finger for example"
    if not capabilities.pin_is_set:
        return "no PIN set"
    if capabilities.pin_retries_left is None:
        return "PIN set"
    if capabilities.pin_retries_left == 0:
        return "PIN blocked"
    return tries_left(capabilities.pin_retries_left, "PIN ")


def tries_left(count: int, what: str = "") -> str:
    """How many wrong PINs it still takes, and that the next one is the last where it is."""
    return f"{count} {what}tries left" if count != 1 else f"1 {what}try left: a wrong one blocks the PIN"
