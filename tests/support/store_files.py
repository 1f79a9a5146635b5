"""What tests of one store do to it from inside; and to a SQLite file from outside."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keyvouch_server.ports import Store


async def add(store: Store, *records: object) -> None:
    """Insert records in one transaction."""

    async def work(tx: Any) -> None:
        for record in records:
            await tx.insert(record)

    await store.write(work)


async def count(store: Store, table: Any) -> int:
    """How many records of a class are durable."""
    return await store.read(lambda snapshot: snapshot.count(table, {}))


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as another program has it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        yield connection
