"""Running a unit of work, which waits for its own transaction and nothing else.

A work is written as a coroutine because some stores are reached over a network. In stores that answer at once
its calls never suspend, so one step runs it whole, and nothing else can come between its statements. In the others
it is looked at where it waits.
Not here: transactions and their undoing (`sqlite`, `memory`, `postgres`).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Generator
from types import coroutine
from typing import Any, Protocol, TypeVar

from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_server.ports import Transaction

S = TypeVar("S")
T = TypeVar("T")


class Asked(Protocol):
    """A view of a store that is reached over a network."""

    asking: bool
    """Whether an answer of the database is waited for."""
    live: bool
    """Whether it may be asked anything."""


V = TypeVar("V", bound=Asked)


class Job:
    """A work that waits for its group: who waits for it, and how it ended."""

    __slots__ = ("context", "error", "future", "value", "work")

    def __init__(self, work: Callable[[Transaction], Awaitable[Any]], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.context = contextvars.copy_context()
        self.value: Any = None
        self.error: BaseException | None = None

    def settle(self, failure: BaseException | None) -> None:
        """Answer the waiting caller, unless it has gone. `failure` is the whole group's."""
        if self.future.done():
            return
        error = self.error if failure is None else failure
        if error is None:
            self.future.set_result(self.value)
        else:
            self.future.set_exception(error)


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


def newer_schema(found: int, known: int) -> UnavailableError:
    """The error for a store that a newer program has been at."""
    return UnavailableError(
        Reason.STORE_SCHEMA,
        f"The store has schema version {found}; this program knows versions up to {known}.",
        fix="Run the newer server again, or restore the backup made before the upgrade.",
        metadata={"found": str(found), "known": str(known)},
    )


def closed() -> UnavailableError:
    """The error for a store that is used after `close`."""
    return UnavailableError(
        Reason.STORE_UNAVAILABLE, "The store is closed: the server is stopping.", fix="Try again in a moment."
    )
