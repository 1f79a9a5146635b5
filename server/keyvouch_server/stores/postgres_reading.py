"""Reading a PostgreSQL store from outside the serving process: one snapshot, and no event loop of the caller's.

What asks is a command that does one thing after the other, while the database's driver wants an event loop: so there is
one here, in a thread of its own, that is told each step. Rows come in batches, however many there are.
Not here: what is read (`postgres_audit`, `postgres_upkeep`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from keyvouch_server.stores import postgres_connection as connections
from keyvouch_server.stores.postgres_connection import TROUBLE, Connection, unavailable

if TYPE_CHECKING:
    import asyncpg

T = TypeVar("T")

BATCH: Final = 1000
"""Rows that are fetched at a time."""
LONG_SECONDS: Final = 24 * 3600
"""What one statement may take, and how long whoever reads the output may pause. Nobody is kept from writing, but behind
an old snapshot the database cannot clean up: so not for ever."""
_BEGIN: Final = f"""
    SET statement_timeout = '{LONG_SECONDS}s'; SET idle_in_transaction_session_timeout = '{LONG_SECONDS}s';
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"""


class PrivateLoop:
    """An event loop in a thread of its own, for as long as the block lasts; a caller may well run in another one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="keyvouch-reading", daemon=True)

    def wait(self, step: Coroutine[Any, Any, T]) -> T:
        """Run a step to its end. Raises `UnavailableError` when the database does not do its work."""
        future = asyncio.run_coroutine_threadsafe(step, self._loop)
        try:
            return future.result()
        except (*TROUBLE, ValueError) as error:  # a text that is no UTF-8 is a ValueError
            raise unavailable(error) from error
        finally:
            future.cancel()  # when the caller is interrupted; else it has ended

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        asyncio.run_coroutine_threadsafe(_end_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_others() -> None:
    """Let what the caller was interrupted in come to its end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class Reading:
    """The store as it was at one moment. Make it with `reading`; every method raises `UnavailableError`."""

    def __init__(self, connection: Connection, loop: PrivateLoop) -> None:
        self._connection = connection
        self._loop = loop

    def rows(self, text: str, *values: object) -> Iterator[asyncpg.Record]:
        """The rows of a query, in batches, which may be read beside those of another one.

        Where they are not read to the end, the database keeps their place until the snapshot ends.
        """
        rows = self._connection.cursor(text, *values, prefetch=BATCH, timeout=LONG_SECONDS).__aiter__()
        while batch := self._loop.wait(_batch(rows)):
            yield from batch

    def all(self, text: str, *values: object) -> list[asyncpg.Record]:
        """The rows of a query at once: for few."""
        return self._loop.wait(fetched(self._connection, text, *values))

    def schema_version(self) -> int:
        """The version of the schema, 0 where there is none."""
        return self._loop.wait(connections.schema_version(self._connection))[0]


async def _batch(rows: AsyncIterator[asyncpg.Record]) -> list[asyncpg.Record]:
    batch = []
    for _ in itertools.repeat(None, BATCH):
        try:
            batch.append(await anext(rows))
        except StopAsyncIteration:
            break
    return batch


async def fetched(connection: Connection, text: str, *values: object) -> list[asyncpg.Record]:
    """The rows of a query that may take long."""
    return await connection.fetch(text, *values, timeout=LONG_SECONDS)


@contextlib.asynccontextmanager
async def snapshot(url: str) -> AsyncIterator[Connection]:
    """A connection that sees the store as it is now, until the block ends; its statements may take long.

    Raises `UnavailableError` when there is no connection.
    """
    async with connections.connected(url) as connection:
        await connection.execute(_BEGIN)
        yield connection


@contextlib.contextmanager
def reading(url: str) -> Iterator[Reading]:
    """Read the store at `url` as it is now. Raises `UnavailableError`."""
    with PrivateLoop() as loop:
        context = snapshot(url)
        connection = loop.wait(context.__aenter__())
        try:
            yield Reading(connection, loop)
        finally:
            loop.wait(context.__aexit__(None, None, None))
