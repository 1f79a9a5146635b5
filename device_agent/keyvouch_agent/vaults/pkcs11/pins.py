"""The PIN of a token, as it stands: whether it is set, the tries that are left, and what is not tried any more.

PKCS#11 has no counter, only three flags (CK_TOKEN_INFO, section 3.2): after a wrong PIN USER_PIN_COUNT_LOW, before the
last one USER_PIN_FINAL_TRY, after it USER_PIN_LOCKED. A PIV card tells the number itself (`piv`), and its word is taken
first. SoftHSM2 sets the first flag and never blocks.

The last try is not spent in passing: a wrong PIN then costs the card, until somebody with its PUK comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from pkcs11 import TokenFlag

from keyvouch.errors import DeviceError, Reason

__all__ = ["LOW", "Counted", "PinStanding", "read_standing", "require_try", "wrong_pin"]

LOW = 2
"""Tries that are left at least where a token says that few are left and not that it is the last one."""

_UNBLOCK = (
    "Unblock it with the PUK, which whoever issued the card has: pkcs15-tool --unblock-pin, or ykman piv access "
    "unblock-pin. On a token without a PUK its security officer sets a new PIN: pkcs11-tool --init-pin."
)


@dataclass(frozen=True, slots=True)
class PinStanding:
    """How the PIN stands. `tries_left` is None where the token does not tell."""

    is_set: bool
    tries_left: int | None
    on_pad: bool = False
    """Whether it is typed on the reader (CKF_PROTECTED_AUTHENTICATION_PATH)."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What the card itself says; None for no number, because the right PIN was shown to it already."""

    tries_left: int | None


def read_standing(flags: TokenFlag, *, counted: Counted | None = None) -> PinStanding:
    """What flags say that were read a moment ago; `counted` is what the card itself counts, where it tells."""
    left: int | None = None
    if flags & TokenFlag.USER_PIN_LOCKED:
        left = 0
    elif flags & TokenFlag.USER_PIN_FINAL_TRY:
        left = 1
    elif flags & TokenFlag.USER_PIN_COUNT_LOW:
        left = LOW
    return PinStanding(
        is_set=bool(flags & TokenFlag.USER_PIN_INITIALIZED),
        tries_left=counted.tries_left if counted else left,
        on_pad=bool(flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH),
    )


def require_try(standing: PinStanding, *, allow_last: bool) -> None:
    """Raise `DeviceError` where a PIN should not be asked for: PIN_NOT_SET, PIN_BLOCKED, PIN_LAST_TRY."""
    if not standing.is_set:
        raise DeviceError(
            Reason.PIN_NOT_SET,
            "The token has no PIN yet.",
            fix="Set it with the token's own tool, such as pkcs11-tool --init-pin.",
        )
    if standing.tries_left == 0:
        raise blocked_pin()
    if standing.tries_left == 1 and not allow_last:
        raise DeviceError(
            Reason.PIN_LAST_TRY,
            "One try of the card's PIN is left, and a wrong PIN would block the card. It is not tried now.",
            retries_left=1,
            fix="If you are sure of the PIN, run the command with --last-try. Else unblock the card with its PUK.",
        )


def wrong_pin(standing: PinStanding) -> DeviceError:
    """The PIN was wrong, or is blocked with that."""
    left = standing.tries_left
    if left == 0:
        return blocked_pin()
    fix = {None: "Try again.", 1: "One try is left. The next wrong PIN blocks the card."}
    return DeviceError(
        Reason.PIN_WRONG, "The PIN is wrong.", retries_left=left, fix=fix.get(left, f"{left} tries are left.")
    )


def blocked_pin() -> DeviceError:
    """No try is left."""
    return DeviceError(
        Reason.PIN_BLOCKED,
        "The PIN was entered wrong too often, and the card has blocked it. Its keys are still there.",
        retries_left=0,
        fix=_UNBLOCK,
    )
