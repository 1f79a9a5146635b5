"""A store that writes down which statements it is asked for: what a ceremony costs, and what it does for whom.

A real store is behind it; nothing is changed on the way. Not here: how long a statement takes (`tests/bench`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from keyvouch_server.ports import Changes, R, Snapshot, Store, Transaction, Where

T = TypeVar("T")
Statement = tuple[str, str]
"""What is done, and the table it is done to."""


class CountedStore:
    """Implements `ports.Store` over another store. `statements` is for the test to read and clear."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.statements: list[Statement] = []

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """See `ports.Store`."""
        return await self._store.read(lambda tx: work(_Counted(tx, self.statements)))

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """See `ports.Store`."""
        return await self._store.write(lambda tx: work(_Counted(tx, self.statements)))

    async def close(self) -> None:
        """See `ports.Store`."""
        await self._store.close()


class _Counted:
    """One transaction, written down."""

    def __init__(self, tx: Any, statements: list[Statement]) -> None:
        self._tx = tx
        self._statements = statements

    async def get(self, table: type[R], **key: object) -> R | None:
        self._statements.append(("get", table.__name__))
        found: R | None = await self._tx.get(table, **key)
        return found

    async def find(
        self, table: type[R], where: Where, *, order: str = "", descending: bool = False, limit: int = 1000
    ) -> list[R]:
        self._statements.append(("find", table.__name__))
        found: list[R] = await self._tx.find(table, where, order=order, descending=descending, limit=limit)
        return found

    async def count(self, table: type[Any], where: Where) -> int:
        self._statements.append(("count", table.__name__))
        number: int = await self._tx.count(table, where)
        return number

    async def insert(self, record: object) -> None:
        self._statements.append(("insert", type(record).__name__))
        await self._tx.insert(record)

    async def update(self, table: type[R], where: Where, changes: Changes) -> list[R]:
        self._statements.append(("update", table.__name__))
        changed: list[R] = await self._tx.update(table, where, changes)
        return changed

    async def delete(self, table: type[R], where: Where) -> list[R]:
        self._statements.append(("delete", table.__name__))
        gone: list[R] = await self._tx.delete(table, where)
        return gone
