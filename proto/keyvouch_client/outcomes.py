"""How a sign-in ends without a session: one sentence and one way on for each state.

Not here: the states' meaning on the server, which `keyvouch.v1.common` draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from keyvouch.errors import KeyvouchError, Reason, RefusedError
from keyvouch.v1 import common_pb2

__all__ = ["REDEEMABLE", "error_for_state"]

REDEEMABLE: Final = frozenset({common_pb2.SIGN_IN_STATE_APPROVED, common_pb2.SIGN_IN_STATE_CONSUMED})
"""States in which redeeming makes sense. `consumed` may be the work of our own call whose reply was lost."""

_ENDED: Final[Mapping[int, tuple[Reason, str, str]]] = {
    common_pb2.SIGN_IN_STATE_DENIED: (
        Reason.SIGN_IN_DENIED,
        "The sign-in was denied on the device.",
        "If that was a slip, sign in again and choose Approve.",
    ),
    common_pb2.SIGN_IN_STATE_REPORTED: (
        Reason.SIGN_IN_REPORTED,
        "The sign-in was reported on the device as not asked for.",
        "If it was you, tell your administrator; then sign in again.",
    ),
    common_pb2.SIGN_IN_STATE_FAILED: (
        Reason.NUMBER_MISMATCH,
        "The number typed on the device was not the number shown here.",
        "Sign in again and type the new number; each number can be tried once.",
    ),
    common_pb2.SIGN_IN_STATE_EXPIRED: (
        Reason.SIGN_IN_EXPIRED,
        "Nobody answered on the device in time.",
        "Check that the device agent runs and is online, then sign in again.",
    ),
    common_pb2.SIGN_IN_STATE_SUPERSEDED: (
        Reason.SIGN_IN_SUPERSEDED,
        "A newer sign-in of the same user took the place of this one.",
        "Go on with the newer one. If you did not start it, deny it on the device and report it.",
    ),
    common_pb2.SIGN_IN_STATE_CANCELLED: (
        Reason.SIGN_IN_CANCELLED,
        "The sign-in was cancelled.",
        "Sign in again when you are ready.",
    ),
    common_pb2.SIGN_IN_STATE_CONSUMED: (
        Reason.CHALLENGE_CONSUMED,
        "The approval has been used already.",
        "Sign in again.",
    ),
}


def error_for_state(state: int) -> KeyvouchError | None:
    """The error of a sign-in that ended in `state`, or None while it can still become a session."""
    ended = _ENDED.get(state)
    if ended is None:
        return None
    reason, message, fix = ended
    return RefusedError(reason, message, fix=fix)
