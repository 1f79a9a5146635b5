"""Running a unit of work to its end without a suspension.

A work is written as a coroutine because some stores are reached over a network. In stores that answer at once
its calls never suspend, so one step runs it whole, and nothing else can come between its statements.
Not here: transactions and their undoing (`sqlite`, `memory`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from keyvouch.errors import Reason, UnavailableError, UsageError

S = TypeVar("S")
T = TypeVar("T")


def drive(work: Callable[[S], Awaitable[T]], view: S) -> T:
    """Run `work(view)` and return its result. Raises `UsageError` if it waits for anything but the store."""
    steps = work(view).__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    steps.close()
    raise UsageError(
        "A unit of work waited for something other than its own transaction.",
        fix="Do the waiting before or after the call of the store.",
    )


def ended() -> UsageError:
    """The error for a transaction that is used after its work has ended."""
    return UsageError("The transaction has ended.", fix="Use it only inside the work it was given to.")


def closed() -> UnavailableError:
    """The error for a store that is used after `close`."""
    return UnavailableError(
        Reason.STORE_UNAVAILABLE, "The store is closed: the server is stopping.", fix="Try again in a moment."
    )
