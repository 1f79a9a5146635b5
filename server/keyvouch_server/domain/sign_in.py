"""The state machine of a sign-in, as a table.

A sign-in is a row. Each act on it is one conditional update from the states named here to the one state it
leads to, in one transaction with its audit record; who finds the row in another state has come too late and
changes nothing. Replay protection is this table and the row, not a cache.

    pending --approve--> approved --redeem--> consumed
    pending --deny, report, mismatch--> denied, reported, failed
    pending, approved --expire, supersede, cancel--> expired, superseded, cancelled

Not here: what an approval must prove (`keyvouch.attestation`), policy, storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from keyvouch.errors import ConflictError, KeyvouchError, Reason, RefusedError
from keyvouch_server.domain.model import SignInState as S


class Event(StrEnum):
    """What can happen to a sign-in."""

    APPROVE = "approve"
    DENY = "deny"
    REPORT = "report"
    MISMATCH = "mismatch"
    EXPIRE = "expire"
    SUPERSEDE = "supersede"
    CANCEL = "cancel"
    REDEEM = "redeem"


TRANSITIONS: Final[Mapping[Event, tuple[frozenset[S], S]]] = {
    Event.APPROVE: (frozenset({S.PENDING}), S.APPROVED),
    Event.DENY: (frozenset({S.PENDING}), S.DENIED),
    Event.REPORT: (frozenset({S.PENDING}), S.REPORTED),
    Event.MISMATCH: (frozenset({S.PENDING}), S.FAILED),
    Event.EXPIRE: (frozenset({S.PENDING, S.APPROVED}), S.EXPIRED),
    Event.SUPERSEDE: (frozenset({S.PENDING, S.APPROVED}), S.SUPERSEDED),
    Event.CANCEL: (frozenset({S.PENDING, S.APPROVED}), S.CANCELLED),
    Event.REDEEM: (frozenset({S.APPROVED}), S.CONSUMED),
}

OPEN: Final = frozenset({S.PENDING, S.APPROVED})
"""States that can still change."""

_WHY: Final[Mapping[S, tuple[Reason, str, str]]] = {
    S.PENDING: (
        Reason.SIGN_IN_PENDING,
        "The sign-in has not been approved yet.",
        "Wait for the person to answer on the device.",
    ),
    S.APPROVED: (Reason.CHALLENGE_CONSUMED, "The sign-in was approved already.", "Nothing more is needed."),
    S.DENIED: (Reason.SIGN_IN_DENIED, "The sign-in was denied on the device.", "Begin again if this was a mistake."),
    S.REPORTED: (
        Reason.SIGN_IN_REPORTED,
        "The person said this sign-in was not theirs.",
        "The administrators were told. Begin again only if you are that person.",
    ),
    S.FAILED: (
        Reason.NUMBER_MISMATCH,
        "The number typed on the device is not the number shown.",
        "Begin again and type the new number.",
    ),
    S.EXPIRED: (Reason.SIGN_IN_EXPIRED, "Nobody answered in time.", "Begin again with the device at hand."),
    S.SUPERSEDED: (
        Reason.SIGN_IN_SUPERSEDED,
        "A newer sign-in took the place of this one.",
        "Go on with the newer one, or begin again.",
    ),
    S.CANCELLED: (Reason.SIGN_IN_CANCELLED, "The client withdrew this sign-in.", "Begin again."),
    S.CONSUMED: (Reason.CHALLENGE_CONSUMED, "This sign-in was used already.", "Begin again."),
}


def why_not(state: S) -> KeyvouchError:
    """The error for somebody who wanted to go on with a sign-in that is in `state`."""
    reason, message, fix = _WHY[state]
    kind = ConflictError if reason is Reason.CHALLENGE_CONSUMED else RefusedError
    return kind(reason, message, fix=fix, metadata={"state": state.value})


def draw_number(digits: int, entropy: bytes) -> str:
    """A number of exactly `digits` digits, uniform up to 2**-64, from 16 random bytes."""
    return str(int.from_bytes(entropy[:16], "big") % 10**digits).zfill(digits)


def draw_choices(number: str, entropy: bytes) -> tuple[str, str, str]:
    """The number and two others of its length, each set and each order as likely, from 32 random bytes."""
    size, value, drawn = 10 ** len(number), int.from_bytes(entropy[:32], "big"), [int(number)]
    for left in (size - 1, size - 2):
        value, other = divmod(value, left)
        for taken in sorted(drawn):
            other += other >= taken
        drawn.append(other)
    own = value % 3
    drawn[0], drawn[own] = drawn[own], drawn[0]
    first, second, third = (str(one).zfill(len(number)) for one in drawn)
    return first, second, third
