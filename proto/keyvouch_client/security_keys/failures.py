"""From what a CTAP client raises to the one `DeviceError` that tells a person what to do.

One table, for every authenticator: security keys, and the agent's own over a TPM or software. What is *not* here: how
many attempts are left; the session asks the authenticator and passes it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fido2.client import ClientError, PinRequiredError
from fido2.ctap import CtapError

from keyvouch.errors import DeviceError, Reason

__all__ = ["device_error", "removed", "status_of"]

ERR = CtapError.ERR


@dataclass(frozen=True, slots=True)
class _Words:
    reason: Reason
    message: str
    fix: str


_WORDS: Mapping[int, _Words] = {
    ERR.PIN_INVALID: _Words(Reason.PIN_WRONG, "The PIN is wrong.", "Enter the PIN again, carefully."),
    ERR.PIN_AUTH_INVALID: _Words(
        Reason.DEVICE_FAILED, "The authenticator no longer accepts this PIN entry.", "Try again from the start."
    ),
    ERR.PIN_TOKEN_EXPIRED: _Words(Reason.USER_TIMEOUT, "The PIN entry has run out.", "Enter the PIN again."),
    ERR.PIN_AUTH_BLOCKED: _Words(
        Reason.PIN_POWER_CYCLE,
        "Three wrong PINs in a row: the authenticator takes no more for now.",
        "Restart it: take the key out and put it in again, or restart the agent. Then enter the PIN.",
    ),
    ERR.PIN_BLOCKED: _Words(
        Reason.PIN_BLOCKED,
        "The PIN was entered wrong too often and is blocked for good.",
        "Reset the authenticator, which destroys its keys, and register this device again.",
    ),
    ERR.PIN_NOT_SET: _Words(Reason.PIN_NOT_SET, "No PIN is set.", "Set a PIN first."),
    ERR.PIN_POLICY_VIOLATION: _Words(
        Reason.PIN_POLICY, "The authenticator does not take this PIN.", "Choose a longer PIN of at most 63 bytes."
    ),
    ERR.UV_INVALID: _Words(
        Reason.PIN_WRONG,
        "The authenticator did not recognise its user.",
        "Try again with the finger that is enrolled on it.",
    ),
    ERR.UV_BLOCKED: _Words(
        Reason.BUILT_IN_UV_BLOCKED,
        "The authenticator did not recognise its user too often and takes no more fingers or faces for now.",
        "Enter its PIN once: that unblocks it. Without a PIN, reset it and register this device again.",
    ),
    ERR.PUAT_REQUIRED: _Words(Reason.PIN_REQUIRED, "The PIN is needed for this.", "Enter the PIN."),
    ERR.OPERATION_DENIED: _Words(
        Reason.USER_CANCELLED, "The request was declined on the device.", "Start again and confirm the request."
    ),
    ERR.KEEPALIVE_CANCEL: _Words(Reason.USER_CANCELLED, "The request was withdrawn.", "Start again if it was yours."),
    ERR.USER_ACTION_TIMEOUT: _Words(Reason.USER_TIMEOUT, "Nobody confirmed in time.", "Start again and confirm."),
    ERR.ACTION_TIMEOUT: _Words(Reason.USER_TIMEOUT, "Nobody confirmed in time.", "Start again and confirm."),
    ERR.NO_CREDENTIALS: _Words(
        Reason.KEY_NOT_FOUND,
        "The authenticator does not hold this key: it was reset, replaced, or another one is connected.",
        "Connect the right one, or sign in another way and register this device again.",
    ),
    ERR.INVALID_CREDENTIAL: _Words(
        Reason.KEY_NOT_FOUND, "The authenticator does not know this key.", "Register this device again."
    ),
    ERR.CREDENTIAL_EXCLUDED: _Words(
        Reason.CREDENTIAL_EXISTS,
        "The authenticator holds a key for this account already.",
        "Use that one, or remove it from the account first.",
    ),
    ERR.KEY_STORE_FULL: _Words(
        Reason.KEY_STORE_FULL, "The authenticator has no room for another key.", "Remove a key that is not needed."
    ),
    ERR.UNSUPPORTED_ALGORITHM: _Words(
        Reason.UNSUPPORTED, "The authenticator knows none of the algorithms asked for.", "Use another authenticator."
    ),
    ERR.UNSUPPORTED_OPTION: _Words(
        Reason.UNSUPPORTED, "The authenticator cannot do what was asked.", "Use another authenticator."
    ),
    ERR.LIMIT_EXCEEDED: _Words(
        Reason.UNSUPPORTED, "The request is too large for this authenticator.", "Use another authenticator."
    ),
    ERR.REQUEST_TOO_LARGE: _Words(
        Reason.UNSUPPORTED, "The request is too large for this authenticator.", "Use another authenticator."
    ),
    ERR.CHANNEL_BUSY: _Words(
        Reason.VAULT_BUSY, "The authenticator is busy with another request.", "Finish that one first."
    ),
}

_UNKNOWN = _Words(
    Reason.DEVICE_FAILED, "The authenticator failed.", "Try again; if it happens again, restart it or use another one."
)
_WITH_RETRIES = (Reason.PIN_WRONG, Reason.PIN_POWER_CYCLE, Reason.PIN_BLOCKED)


def status_of(error: ClientError | CtapError) -> int | None:
    """Return the CTAP status behind an error of python-fido2, or None where it is the client's own."""
    cause = error if isinstance(error, CtapError) else error.cause
    return int(cause.code) if isinstance(cause, CtapError) else None


def device_error(error: ClientError | CtapError, *, retries_left: int | None = None) -> DeviceError:
    """Put an error of python-fido2 into words. `retries_left` is kept for the reasons that concern the PIN."""
    if isinstance(error, PinRequiredError):
        return DeviceError(Reason.USER_CANCELLED, "No PIN was entered.", fix="Start again and enter the PIN.")
    status = status_of(error)
    if status is None and isinstance(error, ClientError):
        return _client_error(error)
    words = _WORDS.get(status if status is not None else -1, _UNKNOWN)
    metadata = {"ctap_status": f"0x{status:02x}"} if status is not None else {}
    known = retries_left if words.reason in _WITH_RETRIES and status != ERR.UV_INVALID else None
    return DeviceError(words.reason, words.message, retries_left=known, fix=words.fix, metadata=metadata)


def removed(_error: Exception) -> DeviceError:
    """A device that does not answer any more."""
    return DeviceError(
        Reason.AUTHENTICATOR_REMOVED,
        "The authenticator was removed or stopped answering.",
        fix="Connect it, leave it there until all is done, and start again.",
    )


def _client_error(error: ClientError) -> DeviceError:
    match error.code:
        case ClientError.ERR.TIMEOUT:
            words = _WORDS[ERR.KEEPALIVE_CANCEL]
        case ClientError.ERR.CONFIGURATION_UNSUPPORTED:
            words = _Words(
                Reason.UNSUPPORTED,
                "This authenticator cannot verify its user: it has no PIN.",
                "Set one, or use another one.",
            )
        case _:
            words = _UNKNOWN
    return DeviceError(words.reason, words.message, fix=words.fix)
