"""The embedded store: one SQLite file, one server process, many requests per sync of the disk.

Group commit: works that arrive while a commit is under way wait; then all of them run, one after the other, in
one transaction, each in its own savepoint so that a failing one is undone alone. The statements run in the event
loop's thread and take microseconds; the COMMIT, which waits for the disk, runs in a thread of its own; nobody is
answered before it has succeeded. If it fails, every work of the group is refused and none has left a trace.

Reads use a second connection. It sees what is committed, which in WAL mode with synchronous=FULL is what is
durable: a commit is shown to other connections only after its sync.

Not here: statements (`sqlite_transaction`), files, locks and migrations (`sqlite_files`),
backup and checks (`sqlite_upkeep`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from keyvouch.errors import UsageError
from keyvouch_server.ports import Snapshot, Transaction
from keyvouch_server.stores import sqlite_files
from keyvouch_server.stores.records import Statements
from keyvouch_server.stores.sqlite_transaction import (
    SqliteSnapshot,
    SqliteTransaction,
    error_code,
    roll_back,
    unavailable,
)
from keyvouch_server.stores.works import Job, closed, drive

T = TypeVar("T")

MOST_WORKS: Final = 256
"""Works in one group at most."""
LONGEST_RUN: Final = 0.02
"""Seconds after which a group takes no more works, so that the event loop is not kept too long."""


class SqliteStore:
    """The `Store` port on one SQLite file. Make it with `open`, end it with `close`; use it from one event loop."""

    def __init__(
        self, writer: sqlite3.Connection, reader: sqlite3.Connection, *, claim: int, busy_seconds: float
    ) -> None:
        self._writer, self._reader = writer, reader
        self._write_cursor, self._read_cursor = writer.cursor(), reader.cursor()
        self._claim = claim
        self._busy_seconds = busy_seconds
        self._statements = Statements()
        self._waiting: deque[Job] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = self._closed = False
        self._disk_tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._disk_thread = threading.Thread(target=self._serve_disk, name="keyvouch-store", daemon=True)
        self._disk_thread.start()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        busy_seconds: float = 5.0,
        migrations: Sequence[sqlite_files.Migration] | None = None,
    ) -> SqliteStore:
        """Open the store, make its file where there is none, and bring its schema up to date.

        `busy_seconds` is how long a group waits for another program that holds the file's write lock.
        Raises `UnavailableError`: `STORE_UNAVAILABLE` when another server uses the file or it cannot be opened,
        `STORE_SCHEMA` when it is newer than this program, or not a store.
        """
        claim = -1
        try:
            sqlite_files.prepare_file(path)
            claim = sqlite_files.lock(path)
            writer, reader = sqlite_files.connect(path, migrations or sqlite_files.packaged_migrations())
            return cls(writer, reader, claim=claim, busy_seconds=busy_seconds)
        except BaseException as error:
            if claim >= 0:
                os.close(claim)
            if isinstance(error, OSError | sqlite3.Error):
                raise unavailable(error) from error
            raise

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """Run `work` on one consistent snapshot of what is durable. Raises `UnavailableError`."""
        if self._closing:
            raise closed()
        if self._reader.in_transaction:
            raise UsageError("A read inside a read.", fix="Use the snapshot the outer work was given.")
        snapshot = SqliteSnapshot(self._read_cursor, self._statements)
        try:
            self._read_cursor.execute("BEGIN")
            return drive(work, snapshot)
        except sqlite3.Error as error:
            raise unavailable(error) from error
        finally:
            snapshot.live = False
            roll_back(self._reader)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `work` in one transaction; return once it is durable. Raises `UnavailableError`.

        A caller that is cancelled before its work has begun leaves no trace; later, the work stands.
        """
        if self._closing:
            raise closed()
        loop = asyncio.get_running_loop()
        job = Job(work, loop.create_future())
        self._waiting.append(job)
        if self._idle.is_set():
            self._idle.clear()
            loop.call_soon(self._begin)
        result: T = await job.future
        return result

    async def close(self) -> None:
        """Finish the works that wait, fold the log into the file and let go of it. May be called twice."""
        self._closing = True
        await self._idle.wait()
        if self._closed:
            return
        self._closed = True
        self._disk_tasks.put(None)
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        self._disk_thread.join()
        self._reader.close()
        self._writer.close()
        os.close(self._claim)

    # In the event loop: begin, run the group, hand its commit to the disk's thread, settle.

    def _begin(self) -> None:
        if not self._waiting:
            self._idle.set()
            return
        try:
            self._write_cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if error_code(error) & 0xFF != sqlite3.SQLITE_BUSY:
                self._refuse(self._take(), error)
                return
            loop = asyncio.get_running_loop()
            self._disk_tasks.put(lambda: self._wait_for_lock(loop))
            return
        self._run_group()

    def _run_group(self) -> None:
        group: list[Job] = []
        until = time.perf_counter() + LONGEST_RUN
        while self._waiting and len(group) < MOST_WORKS:
            job = self._waiting.popleft()
            if job.future.cancelled():
                continue
            group.append(job)
            broken = self._run_job(job)
            if broken is not None:
                roll_back(self._writer)
                self._refuse(group, broken)
                return
            if time.perf_counter() > until:
                break
        loop = asyncio.get_running_loop()
        self._disk_tasks.put(lambda: self._commit(loop, group))

    def _run_job(self, job: Job) -> sqlite3.Error | None:
        """Run one work in its savepoint. Returns the failure that ends the whole group, if there was one."""
        transaction = SqliteTransaction(self._write_cursor, self._statements)
        try:
            self._write_cursor.execute("SAVEPOINT work")
            job.value = job.context.run(drive, job.work, transaction)
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who gets it when the group is settled
            job.error = error
        finally:
            transaction.live = False
        if transaction.broken is not None:
            return transaction.broken
        try:
            if job.error is not None:
                self._write_cursor.execute("ROLLBACK TO work")
            self._write_cursor.execute("RELEASE work")
        except sqlite3.Error as error:
            return error
        return None

    def _take(self) -> list[Job]:
        return [self._waiting.popleft() for _ in range(min(MOST_WORKS, len(self._waiting)))]

    def _refuse(self, group: list[Job], failure: sqlite3.Error | None) -> None:
        self._settle(asyncio.get_running_loop(), group, failure)

    def _settle(self, loop: asyncio.AbstractEventLoop, group: list[Job], failure: sqlite3.Error | None) -> None:
        for job in group:
            job.settle(None if failure is None else unavailable(failure))
        # After the callers just answered: what they write next joins the next group.
        loop.call_soon(self._begin)

    # In the disk's thread.

    def _serve_disk(self) -> None:
        while (task := self._disk_tasks.get()) is not None:
            # The loop may be gone when a program ends without `close`; then nobody waits for an answer.
            with contextlib.suppress(RuntimeError):
                task()

    def _wait_for_lock(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for another program's write lock, off the loop, then go on there."""
        failure: sqlite3.Error | None = None
        try:
            self._writer.execute(f"PRAGMA busy_timeout = {int(self._busy_seconds * 1000):d}").fetchall()
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            failure = error
        self._writer.execute("PRAGMA busy_timeout = 0").fetchall()
        if failure is None:
            loop.call_soon_threadsafe(self._run_group)
        else:
            loop.call_soon_threadsafe(lambda: self._refuse(self._take(), failure))

    def _commit(self, loop: asyncio.AbstractEventLoop, group: list[Job]) -> None:
        failure: sqlite3.Error | None = None
        try:
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            failure = error
            roll_back(self._writer)
            self._bury()
        loop.call_soon_threadsafe(self._settle, loop, group, failure)

    def _bury(self) -> None:
        """Overwrite what a failed commit left in the log: it may be whole there, and a crash would revive it."""
        with contextlib.suppress(sqlite3.Error):
            version = sqlite_files.schema_version(self._writer)
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.execute(f"PRAGMA user_version = {version:d}")
            self._writer.execute("COMMIT")
        roll_back(self._writer)
