"""A store in which writes can be tried: they run to their end and are undone, so that thousands of acts find the same
world. A real store is behind it. Not here: what an act answers (the tests ask the server).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from keyvouch_server.ports import Changes, R, Snapshot, Store, Transaction, Where

T = TypeVar("T")


class _UndoneError(Exception):
    """Ends a transaction that has done its work, so that nothing of it stays."""


class DryStore:
    """Implements `ports.Store` over another store. While `dry`, works change nothing; `touched` has what would have
    stayed of them: for each statement of a work that came to its end, what it does and to which table.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.dry = False
        self.touched: list[tuple[str, str]] = []

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """See `ports.Store`."""
        return await self._store.read(work)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """See `ports.Store`."""
        if not self.dry:
            return await self._store.write(work)
        results: list[T] = []
        touched: list[tuple[str, str]] = []

        async def tried(tx: Transaction) -> None:
            results.clear()
            touched.clear()
            results.append(await work(_Noted(tx, touched)))
            raise _UndoneError

        try:
            await self._store.write(tried)
        except _UndoneError:
            self.touched += touched
        return results[0]

    async def close(self) -> None:
        """See `ports.Store`."""
        await self._store.close()


class _Noted:
    """One transaction whose changes are noted."""

    def __init__(self, tx: Transaction, touched: list[tuple[str, str]]) -> None:
        self._touched = touched
        self._tx = tx
        self.get, self.find, self.count = tx.get, tx.find, tx.count

    async def insert(self, record: object) -> None:
        await self._tx.insert(record)
        self._touched.append(("insert", type(record).__name__))

    async def update(self, table: type[R], where: Where, changes: Changes) -> list[R]:
        changed: list[R] = await self._tx.update(table, where, changes)
        self._touched += [("update", table.__name__) for _ in changed]
        return changed

    async def delete(self, table: type[R], where: Where) -> list[R]:
        gone: list[Any] = await self._tx.delete(table, where)
        self._touched += [("delete", table.__name__) for _ in gone]
        return gone
