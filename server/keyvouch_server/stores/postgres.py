"""The store for several servers: one PostgreSQL database, many nodes, many requests per commit.

Works are written one after the other, whichever node they come to: whoever writes holds one advisory lock from the
first statement to the end of the commit. So every rule that leans on what it has just read holds as it does in the
embedded store, audit chains have one end, and no work is ever run twice. What that costs is won back by group commit:
works that arrive at a node meanwhile wait, then all of them run in one transaction, each in a savepoint of its own so
that a failing one is undone alone. Nobody is answered before the commit has succeeded.

Each group leaves its number in the node's row of the table `writer`. So a commit whose answer is lost with its
connection is looked up once the database is there again, and what is told to the callers is what happened. Only where
that cannot be found out are they told so.

Reads are snapshots on connections of their own, and wait for no writer.

Not here: statements (`postgres_transaction`), connections and migrations (`postgres_connection`), what other nodes are
told (`postgres_watch`).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from keyvouch.errors import UnavailableError, UsageError
from keyvouch_server.ports import Snapshot, Transaction
from keyvouch_server.stores import postgres_connection as connections
from keyvouch_server.stores.postgres_connection import LOCK, TROUBLE, Connection, unavailable
from keyvouch_server.stores.postgres_transaction import PostgresSnapshot, PostgresTransaction, UniqueColumns
from keyvouch_server.stores.records import PostgresStatements
from keyvouch_server.stores.sqlite_files import Migration
from keyvouch_server.stores.works import Job, closed, run

T = TypeVar("T")

MOST_WORKS: Final = 60
"""Works in one group at most. PostgreSQL keeps 64 savepoints of a transaction at hand, and is slower with more."""
LONGEST_RUN: Final = 0.02
"""Seconds after which a group takes no more works, so that other nodes have their turn."""
READERS: Final = 8
"""Reads at the same time; more wait."""
LONGEST_WAIT: Final = 20.0
"""Seconds after which a read that waits for its turn is refused."""
UNKNOWN: Final = "Whether the act took place could not be found out."

_BEGIN: Final = f"BEGIN; SELECT pg_advisory_xact_lock({LOCK})"
_UNIQUE_COLUMNS: Final = """
    SELECT DISTINCT c.relname, a.attname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
    WHERE i.indisunique AND c.relnamespace = current_schema()::regnamespace"""
# Nothing is noted, and so nothing committed, in a schema that is not this program's.
_NOTE: Final = """
    INSERT INTO writer (id, last_group) SELECT $1, $2 FROM store_version WHERE version = $3
    ON CONFLICT (id) DO UPDATE SET last_group = excluded.last_group, at = now()"""
# A write, though nothing is to be changed: it is answered only where commits are, and once all before it are as durable
# as they have to be. So a copy that only follows, or a commit that has not reached one yet, deceives nobody.
_NOTED: Final = "UPDATE writer SET at = now() WHERE id = $1 RETURNING last_group"
_FORGET: Final = "DELETE FROM writer WHERE at < now() - interval '1 day'"
_FIND_OUT_SECONDS: Final = 10.0
_UNDO_SECONDS: Final = 1.0
_log = logging.getLogger("keyvouch.store")
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("inside a work", default=False)


class PostgresStore:
    """The `Store` port on one PostgreSQL database. Make it with `open`, end it with `close`; use it from one loop."""

    def __init__(self, url: str, writer: Connection, unique: UniqueColumns, version: int) -> None:
        self._url = url
        self._version = version
        self._unique = unique
        self._statements = PostgresStatements()
        self._waiting: deque[Job] = deque()
        self._arrived, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._writer: Connection | None = writer
        self._readers: list[Connection] = []
        self._free_readers = asyncio.Semaphore(READERS)
        self._closing = False
        self._id, self._group = secrets.token_hex(16), 0
        self._writing = asyncio.create_task(self._write_groups())

    @classmethod
    async def open(cls, url: str, server_id: str, *, migrations: Sequence[Migration] | None = None) -> PostgresStore:
        """Open the store at `url`, and bring its schema up to date.

        `server_id` is the identity of the server in hexadecimal digits; the first one that comes owns the store.
        Raises `UnavailableError`: `STORE_UNAVAILABLE` when it cannot be reached, `STORE_SCHEMA` when it is newer than
        this program; and `KeyvouchError(CONFIGURATION)` when it is another server's.
        """
        writer = await connections.connect(url)
        try:
            known = migrations or connections.packaged_migrations()
            await connections.prepare(writer, server_id, known)
            if await writer.fetchval("SHOW fsync") == "off":
                _log.warning("the database runs with fsync = off: after a power cut it may have lost what was promised")
            await writer.execute(_FORGET)
            unique: dict[str, frozenset[str]] = {}
            for table, column in await writer.fetch(_UNIQUE_COLUMNS):
                unique[table] = unique.get(table, frozenset()) | {column}
        except BaseException as error:
            writer.terminate()
            if isinstance(error, TROUBLE):
                raise unavailable(error) from error
            raise
        return cls(url, writer, unique, len(known))

    @property
    def writer_pid(self) -> int | None:
        """The number by which the database knows this node's writer; its notifications bear it."""
        return self._writer.get_server_pid() if self._writer is not None else None

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """Run `work` on one consistent snapshot of what is durable. Raises `UnavailableError`."""
        self._admit("A read")
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                await self._free_readers.acquire()
        except TimeoutError:
            raise unavailable(TimeoutError("other reads take too long")) from None
        try:
            return await self._read(work)
        finally:
            self._free_readers.release()

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `work` in one transaction; return once it is durable. Raises `UnavailableError`.

        A caller that is cancelled before its work has begun leaves no trace; later, the work stands.
        """
        self._admit("A write")
        job = Job(work, asyncio.get_running_loop().create_future())
        job.context.run(_inside.set, True)
        self._waiting.append(job)
        self._idle.clear()
        self._arrived.set()
        result: T = await job.future
        return result

    async def close(self) -> None:
        """Finish the works that wait and let go of the database. May be called twice."""
        self._closing = True
        await self._idle.wait()
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)
        ending = [*self._readers, *([self._writer] if self._writer else [])]
        self._readers, self._writer = [], None
        await asyncio.gather(*(connections.close(connection) for connection in ending))

    def _admit(self, what: str) -> None:
        if self._closing:
            raise closed()
        if _inside.get():
            raise UsageError(f"{what} inside a unit of work.", fix="Use the transaction the outer work was given.")

    async def _connect(self) -> Connection:
        """Another connection. Why there is none is logged by `postgres_watch`; callers are strangers, perhaps."""
        try:
            return await connections.connect(self._url)
        except UnavailableError as error:
            raise unavailable(ConnectionError("it cannot be reached")) from error

    # Readers.

    async def _read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        connection = await self._reader()
        snapshot = PostgresSnapshot(connection, self._statements)
        token = _inside.set(True)
        whole = False
        try:
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            result = await run(work, snapshot)
            await connection.execute("COMMIT")
            whole = snapshot.broken is None
        except TROUBLE as error:
            snapshot.broken = error
            raise unavailable(error) from error
        finally:
            snapshot.live = False
            _inside.reset(token)
            if whole or (snapshot.broken is None and await self._undone(connection)):
                self._keep(connection)
            else:
                connection.terminate()
        return result

    async def _reader(self) -> Connection:
        while self._readers:
            connection = self._readers.pop()
            if not connection.is_closed():
                return connection
        return await self._connect()

    async def _undone(self, connection: Connection) -> bool:
        """Whether a read that was left, perhaps in the middle of a statement, could be ended at once."""
        try:
            async with asyncio.timeout(_UNDO_SECONDS):
                await connection.execute("ROLLBACK")
        except TROUBLE:
            return False
        except BaseException:
            connection.terminate()
            raise
        return True

    def _keep(self, connection: Connection) -> None:
        """Keep a connection for the next read."""
        if self._closing:
            connection.terminate()
        else:
            self._readers.append(connection)

    # The writer: one group after the other, for as long as the store is open.

    async def _write_groups(self) -> None:
        while True:
            if not self._waiting:
                self._idle.set()
                self._arrived.clear()
                await self._arrived.wait()
            group: list[Job] = []
            waiting = len(self._waiting)
            failure: BaseException | None = None
            try:
                await self._run_group(group)
            except Exception as error:  # noqa: BLE001 - those who wait get it, and the next group is tried
                failure = unavailable(error) if isinstance(error, TROUBLE) else error
                self._drop_writer()
            # Nobody who waited while nothing could be begun waits for another try.
            for job in group or (self._take(waiting) if failure is not None else ()):
                job.settle(failure)
            await asyncio.sleep(0)  # what those who were just answered write next joins the next group

    async def _run_group(self, group: list[Job]) -> None:
        """Run what waits, as `group`, in one transaction. Raises what ended it; nothing of it stands then."""
        connection = await self._connected_writer()
        await connection.execute(_BEGIN)
        until = time.perf_counter() + LONGEST_RUN
        between = ""
        while self._waiting and len(group) < MOST_WORKS:
            job = self._waiting.popleft()
            if job.future.cancelled():
                continue
            group.append(job)
            if len(group) > 1:
                await connection.execute(f"{between}SAVEPOINT work")
                between = "RELEASE work; "
            await self._run_job(job, connection)
            if job.error is not None:
                # The first work has no savepoint: with it all goes that there is, and the lock too.
                await connection.execute("ROLLBACK TO work" if between else f"ROLLBACK; {_BEGIN}")
            if time.perf_counter() > until:
                break
        if any(job.error is None for job in group):
            await self._commit(connection)
        else:
            await connection.execute("ROLLBACK")

    async def _run_job(self, job: Job, connection: Connection) -> None:
        """Run one work. Raises the failure that ends the whole group; the work's own is kept in the job."""
        transaction = PostgresTransaction(connection, self._statements, self._unique)
        task = asyncio.get_running_loop().create_task(_run(job.work, transaction), context=job.context)
        try:
            await asyncio.wait([task])
        finally:
            transaction.live = False
            if not task.done():  # the store is going away
                task.cancel()
        job.error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if transaction.broken is not None:
            raise unavailable(transaction.broken)
        if job.error is None and transaction.spoiled:
            job.error = UsageError("A unit of work went on after its transaction had gone wrong.")
        if job.error is None:
            job.value = task.result()

    async def _commit(self, connection: Connection) -> None:
        self._group += 1
        if await connection.execute(_NOTE, self._id, self._group, self._version) != "INSERT 0 1":
            raise connections.changed_schema()
        try:
            await connection.execute("COMMIT")
        except TROUBLE as error:
            await self._find_out(error)

    async def _find_out(self, error: BaseException) -> None:
        """Whether the group has been committed whose commit was not answered. Raises unless it was."""
        self._drop_writer()
        until = time.perf_counter() + _FIND_OUT_SECONDS
        while time.perf_counter() < until:
            try:
                connection = await self._connected_writer()
                # Behind the lock, so that the transaction has ended, one way or the other.
                await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
                last = await connection.fetchval(_NOTED, self._id)
            except (*TROUBLE, UnavailableError):
                self._drop_writer()
                await asyncio.sleep(0.1)
                continue
            if last == self._group:
                return
            raise unavailable(error) from error
        raise unavailable(error, UNKNOWN) from error

    async def _connected_writer(self) -> Connection:
        if self._writer is None or self._writer.is_closed():
            self._drop_writer()
            self._writer = await self._connect()
        return self._writer

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.terminate()
            self._writer = None

    def _take(self, most: int) -> list[Job]:
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]


async def _run(work: Callable[[Transaction], Awaitable[T]], view: PostgresTransaction) -> T:
    return await run(work, view)
