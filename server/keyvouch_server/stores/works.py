"""Running a unit of work, which waits for its own transaction and nothing else.

A work is written as a coroutine because some stores are reached over a network. In stores that answer at once
its calls never suspend, so one step runs it whole, and nothing else can come between its statements. In the others
it is looked at where it waits.
Not here: transactions and their undoing (`sqlite`, `memory`, `postgres`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import coroutine
from typing import Any, Protocol, TypeVar

from keyvouch.errors import Reason, UnavailableError, UsageError

S = TypeVar("S")
T = TypeVar("T")


class Asked(Protocol):
    """A view of a store that is reached over a network."""

    asking: bool
    """Whether an answer of the database is waited for."""
    live: bool
    """Whether it may be asked anything."""


V = TypeVar("V", bound=Asked)


def drive(work: Callable[[S], Awaitable[T]], view: S) -> T:
    """Run `work(view)` and return its result. Raises `UsageError` if it waits for anything but the store."""
    steps = work(view).__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    steps.close()
    raise _waited()


@coroutine
def run(work: Callable[[V], Awaitable[T]], view: V) -> Generator[Any, Any, T]:
    """The same in a store that is reached over a network: waits for statements, and for nothing else."""
    steps = work(view).__await__()
    failure: BaseException | None = None
    while True:
        try:
            waits_for = next(steps) if failure is None else steps.throw(failure)
        except StopIteration as end:
            result: T = end.value
            return result
        if not view.asking:
            view.live = False  # what the work has begun beside itself asks nothing any more
            steps.close()
            raise _waited()
        try:
            yield waits_for
            failure = None
        except BaseException as error:  # noqa: BLE001 - it is the work's to deal with
            failure = error


def _waited() -> UsageError:
    return UsageError(
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
