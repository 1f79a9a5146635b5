"""What tests of the SQLite store do to it from inside and from outside."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keyvouch_server.stores.sqlite import SqliteStore


async def add(store: SqliteStore, *records: object) -> None:
    """Insert records in one transaction."""

    async def work(tx: Any) -> None:
        for record in records:
            await tx.insert(record)

    await store.write(work)


async def count(store: SqliteStore, table: Any) -> int:
    """How many records of a class are durable."""
    return await store.read(lambda snapshot: snapshot.count(table, {}))


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as another program has it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        yield connection
