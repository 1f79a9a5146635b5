"""What a unit of work sees of a SQLite connection: statements, and what became of them.

Not here: when a transaction begins and ends (`sqlite`), and the SQL text (`records`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from typing import Any

from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_server.ports import Changes, Duplicate, R, Where
from keyvouch_server.stores.records import Row, Statements
from keyvouch_server.stores.works import ended

_UNIQUE_VIOLATIONS = frozenset(
    {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID}
)


class SqliteSnapshot:
    """Reads on one connection, for as long as its work runs. `broken` is the failure that ended it early."""

    __slots__ = ("_cursor", "_statements", "broken", "live")

    def __init__(self, cursor: sqlite3.Cursor, statements: Statements) -> None:
        self._cursor = cursor
        self._statements = statements
        self.live = True
        self.broken: sqlite3.Error | None = None

    async def get(self, table: type[R], **key: object) -> R | None:
        """The one record whose columns equal `key`, or None."""
        mapped = self._statements.table(table)
        rows = self._run(*self._statements.select(mapped, key, "", False, 1))
        return mapped.decode(rows[0]) if rows else None

    async def find(
        self, table: type[R], where: Where, *, order: str = "", descending: bool = False, limit: int = 1000
    ) -> list[R]:
        """Up to `limit` records that meet `where`."""
        mapped = self._statements.table(table)
        rows = self._run(*self._statements.select(mapped, where, order, descending, limit))
        return [mapped.decode(row) for row in rows]

    async def count(self, table: type[Any], where: Where) -> int:
        """How many records meet `where`."""
        rows = self._run(*self._statements.count(self._statements.table(table), where))
        return int(rows[0][0])

    def _run(self, text: str, values: Sequence[Any]) -> list[Row]:
        if not self.live:
            raise ended()
        if self.broken is not None:
            raise unavailable(self.broken)
        try:
            return self._cursor.execute(text, values).fetchall()
        except sqlite3.IntegrityError as error:
            if error_code(error) in _UNIQUE_VIOLATIONS:
                raise Duplicate(str(error)) from error
            raise UsageError(f"A record breaks a rule of its table: {error}.") from error
        except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError) as error:
            raise UsageError(f"A value cannot be stored: {error}.") from error
        except sqlite3.Error as error:
            if error_code(error) == sqlite3.SQLITE_ERROR:  # the statement is wrong, the store is not
                raise UsageError(f"This cannot be asked of the store: {error}.") from error
            self.broken = error
            raise unavailable(error) from error


class SqliteTransaction(SqliteSnapshot):
    """Reads and writes in the group's transaction."""

    __slots__ = ()

    async def insert(self, record: object) -> None:
        """Add a record. Raises `Duplicate`."""
        self._run(*self._statements.insert(record))

    async def update(self, table: type[R], where: Where, changes: Changes) -> list[R]:
        """Change records; return them as they are afterwards."""
        mapped = self._statements.table(table)
        rows = self._run(*self._statements.update(mapped, where, changes))
        return [mapped.decode(row) for row in rows]

    async def delete(self, table: type[R], where: Where) -> list[R]:
        """Delete records; return them as they were."""
        mapped = self._statements.table(table)
        rows = self._run(*self._statements.delete(mapped, where))
        return [mapped.decode(row) for row in rows]


def error_code(error: sqlite3.Error) -> int:
    """SQLite's extended result code, or 0 for an error of the module itself."""
    return getattr(error, "sqlite_errorcode", 0)


def roll_back(connection: sqlite3.Connection) -> None:
    """End the transaction that is open, if one is."""
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def unavailable(cause: OSError | sqlite3.Error) -> UnavailableError:
    """The error for a store that does not do its work."""
    return UnavailableError(
        Reason.STORE_UNAVAILABLE,
        f"The store does not answer: {cause}. Nothing was changed.",
        fix="See that the disk has room and works, then try again.",
    )
