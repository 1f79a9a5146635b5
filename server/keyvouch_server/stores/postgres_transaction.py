"""What a unit of work sees of a PostgreSQL connection: statements, and what became of them.

Not here: when a transaction begins and ends (`postgres`), and the SQL text (`records`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

from keyvouch.errors import UnavailableError, UsageError
from keyvouch_server.ports import Changes, Duplicate, OneOf, R, Where
from keyvouch_server.stores.postgres_connection import TROUBLE, Connection, unavailable
from keyvouch_server.stores.records import Row, Statements
from keyvouch_server.stores.works import ended

UniqueColumns = Mapping[str, frozenset[str]]
"""By table the columns whose change can meet a duplicate."""


class PostgresSnapshot:
    """Reads on one connection, for as long as its work runs. `broken` is the failure that ended it early."""

    __slots__ = ("_connection", "_statements", "asking", "broken", "live", "spoiled")

    def __init__(self, connection: Connection, statements: Statements) -> None:
        self._connection = connection
        self._statements = statements
        self.live = True
        self.asking = False
        self.spoiled = False
        self.broken: BaseException | None = None

    async def get(self, table: type[R], **key: object) -> R | None:
        """The one record whose columns equal `key`, or None."""
        found = await self.find(table, key, limit=1)
        return found[0] if found else None

    async def find(
        self, table: type[R], where: Where, *, order: str = "", descending: bool = False, limit: int = 1000
    ) -> list[R]:
        """Up to `limit` records that meet `where`."""
        mapped = self._statements.table(table)
        if (possible := _possible(where)) is None:
            return []
        rows = await self._run(*self._statements.select(mapped, possible, order, descending, limit))
        return [mapped.decode(row) for row in rows]

    async def count(self, table: type[Any], where: Where) -> int:
        """How many records meet `where`."""
        if (possible := _possible(where)) is None:
            return 0
        rows = await self._run(*self._statements.count(self._statements.table(table), possible))
        return int(rows[0][0])

    async def _run(self, text: str, values: Sequence[Any]) -> Sequence[Row]:
        if not self.live:
            raise ended()
        if self.broken is not None:
            raise unavailable(self.broken)
        if self.spoiled:
            raise UsageError("The transaction went wrong before.", fix="Let the work end with the first error.")
        self.asking = True
        try:
            rows: Sequence[Any] = await self._connection.fetch(text, *values)
        except TROUBLE as error:
            raise self._failed(error) from error
        finally:
            self.asking = False
        return rows

    def _failed(self, error: BaseException) -> Duplicate | UsageError | UnavailableError:
        """What a statement's failure means. The database takes no more statements of this work after it."""
        self.spoiled = True
        if isinstance(error, asyncpg.UniqueViolationError):
            return Duplicate(str(error))
        if isinstance(error, asyncpg.IntegrityConstraintViolationError):
            return UsageError(f"A record breaks a rule of its table: {error}.")
        if isinstance(error, (asyncpg.DataError, asyncpg.ProgramLimitExceededError)):  # the latter: too long to index
            return UsageError(f"A value cannot be stored: {error}.")
        # Statements are the program's own: it is in the wrong, unless somebody took its rights away.
        wrong = isinstance(error, asyncpg.SyntaxOrAccessError)
        if wrong and not isinstance(error, asyncpg.InsufficientPrivilegeError):
            return UsageError(f"This cannot be asked of the store: {error}.")
        self.broken = error
        return unavailable(error)


class PostgresTransaction(PostgresSnapshot):
    """Reads and writes in the group's transaction."""

    __slots__ = ("_unique",)

    def __init__(self, connection: Connection, statements: Statements, unique: UniqueColumns) -> None:
        super().__init__(connection, statements)
        self._unique = unique

    async def insert(self, record: object) -> None:
        """Add a record. Raises `Duplicate`."""
        text, values = self._statements.insert(record)
        _storable(values)
        if not await self._run(text, values):
            raise Duplicate(f"{type(record).__name__} with this key or unique value")

    async def update(self, table: type[R], where: Where, changes: Changes) -> list[R]:
        """Change records; return them as they are afterwards."""
        mapped = self._statements.table(table)
        if (possible := _possible(where)) is None:
            return []
        text, values = self._statements.update(mapped, possible, changes)
        _storable(values)
        if self._unique.get(mapped.name, frozenset()).isdisjoint(changes):
            rows = await self._run(text, values)
        else:
            rows = await self._guarded(text, values)
        return [mapped.decode(row) for row in rows]

    async def delete(self, table: type[R], where: Where) -> list[R]:
        """Delete records; return them as they were."""
        mapped = self._statements.table(table)
        if (possible := _possible(where)) is None:
            return []
        return [mapped.decode(row) for row in await self._run(*self._statements.delete(mapped, possible))]

    async def _guarded(self, text: str, values: Sequence[Any]) -> Sequence[Row]:
        """A statement that may meet a duplicate, after which the transaction goes on."""
        await self._run("SAVEPOINT statement", ())
        try:
            rows = await self._run(text, values)
        except Duplicate:
            self.spoiled = False
            await self._run("ROLLBACK TO statement", ())
            await self._run("RELEASE statement", ())
            raise
        await self._run("RELEASE statement", ())
        return rows


def _possible(where: Where) -> Where | None:
    """The conditions without texts that PostgreSQL cannot hold, so that no record has them; None if none can be met."""
    for column, value in where.items():
        if _unheld(value):
            return None
        if type(value) is OneOf and any(map(_unheld, value.values)):
            kept = tuple(choice for choice in value.values if not _unheld(choice))
            return _possible({**where, column: OneOf(kept)}) if kept else None
    return where


def _unheld(value: object) -> bool:
    return isinstance(value, str) and "\0" in value


def _storable(values: Sequence[Any]) -> None:
    if any(map(_unheld, values)):
        raise UsageError("A value cannot be stored: a text with a NUL in it.", fix="Refuse it where it comes in.")
