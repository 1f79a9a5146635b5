"""The store in memory: the double that tests use where durability is not what they test.

It keeps the contract of the port, with an implementation of its own: unique columns, references, atomic
transactions one at a time. It forgets everything when it goes. Not here: any way to make it durable (`sqlite`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Final, TypeVar

from keyvouch.errors import UsageError
from keyvouch_server.domain import model, oversight_model
from keyvouch_server.ports import (
    Above,
    AtMost,
    Below,
    Changes,
    Duplicate,
    OneOf,
    Plus,
    R,
    Snapshot,
    Transaction,
    Where,
)
from keyvouch_server.stores.records import Statements, Table
from keyvouch_server.stores.works import closed, drive, ended

T = TypeVar("T")
Rows = dict[int, Any]
"""Records of one table by a number that is never used again, in the order they were added."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """What the schema demands of one table: unique column groups, and references by column."""

    unique: tuple[tuple[str, ...], ...]
    references: Mapping[str, type[Any]]
    cascade: frozenset[str] = frozenset()


_TENANT: Final = {"tenant_id": model.Tenant}
_USER: Final = {"tenant_id": model.Tenant, "user_id": model.User}
_RULES: Final[Mapping[type[Any], _Rules]] = {
    model.Tenant: _Rules((("id",), ("name_key",)), {}),
    model.User: _Rules((("id",), ("user_handle",), ("tenant_id", "username_key")), _TENANT),
    model.LoginName: _Rules((("tenant_id", "name_key"),), _USER, frozenset({"user_id"})),
    model.UserGroup: _Rules((("id",), ("tenant_id", "name_key")), _TENANT),
    model.GroupMember: _Rules(
        (("group_id", "user_id"),), {**_USER, "group_id": model.UserGroup}, frozenset({"group_id", "user_id"})
    ),
    model.PolicyVersion: _Rules((("tenant_id", "version"),), _TENANT),
    model.AccessPass: _Rules((("id",), ("user_id",)), _USER),
    model.Registration: _Rules((("id",), ("device_id",), ("token_hash",)), _USER),
    model.Device: _Rules((("id",), ("channel_key",)), _USER),
    model.Credential: _Rules((("id",),), {**_USER, "device_id": model.Device}, frozenset({"device_id"})),
    model.DeviceTpm: _Rules((("device_id",),), {**_USER, "device_id": model.Device}, frozenset({"device_id"})),
    model.KeyReplacement: _Rules((("id",),), {**_TENANT, "device_id": model.Device}, frozenset({"device_id"})),
    model.SignIn: _Rules((("id",),), {}),
    model.Prompt: _Rules((("id",),), {"sign_in_id": model.SignIn}, frozenset({"sign_in_id"})),
    model.Session: _Rules((("id",),), _USER),
    oversight_model.AuditRecord: _Rules((("sequence",),), {}),
    oversight_model.AuditCheckpoint: _Rules((("tenant_id", "chain_number"),), {}),
    oversight_model.Throttle: _Rules((("key",),), {}),
    oversight_model.Block: _Rules((("key",),), {}),
    oversight_model.RiskEvent: _Rules((("id",),), _TENANT),
    oversight_model.DoneRequest: _Rules((("tenant_id", "actor", "request_id"),), {}),
    oversight_model.UsedProof: _Rules((("id",),), {}),
}


class _Tables:
    """All records, and an undo log of the transaction that runs."""

    def __init__(self) -> None:
        self.statements = Statements()
        self.rows: dict[type[Any], Rows] = {record: {} for record in _RULES}
        self._undo: list[tuple[Rows, int, Any]] = []
        self._next = 0
        self._last_sequence = 0

    def put(self, record: Any) -> None:
        """Add a record, numbered if it asks for that. Raises `Duplicate`."""
        if self.statements.table(type(record)).numbered and record.sequence == 0:
            record = replace(record, sequence=self._last_sequence + 1)
        self._admit(record, -1)
        self._next += 1
        self._set(self.rows[type(record)], self._next, record)
        if isinstance(record, oversight_model.AuditRecord):
            self._last_sequence = max(self._last_sequence, record.sequence)

    def change(self, table: Table[R], where: Where, changes: Changes) -> list[R]:
        """Change records; a later one that may not be changed undoes the earlier ones."""
        mark, changed = len(self._undo), []
        try:
            for number, record in self.select(table, where):
                after = replace(record, **{name: _changed(record, name, value) for name, value in changes.items()})  # type: ignore[type-var]
                self._admit(after, number)
                self._set(self.rows[table.record], number, after)
                changed.append(after)
        except BaseException:
            self.undo(mark)
            raise
        return changed

    def remove(self, table: Table[R], where: Where) -> list[R]:
        """Delete records, and what may not be without them."""
        mark = len(self._undo)
        removed = self.select(table, where)
        try:
            for number, record in removed:
                self._set(self.rows[table.record], number, None)
                self._release(table.record, record)
        except BaseException:
            self.undo(mark)
            raise
        return [record for _, record in removed]

    def select(self, table: Table[R], where: Where) -> list[tuple[int, R]]:
        """Records that meet `where`, with their numbers, in the order they were added."""
        tests = [_condition(table.check(column), value) for column, value in where.items()]
        rows = self.rows[table.record].items()
        return [(number, record) for number, record in rows if all(test(record) for test in tests)]

    def undo(self, mark: int) -> None:
        """Go back to where the undo log had `mark` entries."""
        while len(self._undo) > mark:
            rows, number, before = self._undo.pop()
            _store(rows, number, before)

    def forget_undo(self) -> None:
        """Keep what the transaction did."""
        self._undo.clear()

    def _set(self, rows: Rows, number: int, record: Any) -> None:
        self._undo.append((rows, number, rows.get(number)))
        _store(rows, number, record)

    def _admit(self, record: Any, number: int) -> None:
        """Hold a record that is to be number `number` against the rules of its table."""
        kind = type(record)
        _check_types(self.statements.table(kind), record)
        for columns in _RULES[kind].unique:
            value = attrgetter(*columns)
            if any(other != number and value(row) == value(record) for other, row in self.rows[kind].items()):
                raise Duplicate(f"{kind.__name__} with this {', '.join(columns)}")
        for column, target in _RULES[kind].references.items():
            if not any(row.id == getattr(record, column) for row in self.rows[target].values()):
                raise UsageError(f"A record breaks a rule of its table: no {target.__name__} for {column}.")

    def _release(self, kind: type[Any], record: Any) -> None:
        for table, rules in _RULES.items():
            for column, target in rules.references.items():
                if target is not kind:
                    continue
                where = {column: record.id}
                if column in rules.cascade:
                    self.remove(self.statements.table(table), where)
                elif self.select(self.statements.table(table), where):
                    raise UsageError(f"A record breaks a rule of its table: {table.__name__} refers to it.")


def _store(rows: Rows, number: int, record: Any) -> None:
    if record is None:
        del rows[number]
    else:
        rows[number] = record


def _check_types(table: Table[Any], record: Any) -> None:
    for field in fields(record):
        if not isinstance(getattr(record, field.name), table.types[field.name]):
            raise UsageError(f"A record breaks a rule of its table: the type of {table.name}.{field.name}.")


def _changed(record: Any, column: str, value: Any) -> Any:
    return getattr(record, column) + value.value if isinstance(value, Plus) else value


def _condition(column: str, wanted: Any) -> Callable[[Any], bool]:
    value = attrgetter(column)
    if isinstance(wanted, Above):
        return lambda record: bool(value(record) > wanted.value)
    if isinstance(wanted, Below):
        return lambda record: bool(value(record) < wanted.value)
    if isinstance(wanted, AtMost):
        return lambda record: bool(value(record) <= wanted.value)
    if isinstance(wanted, OneOf):
        return lambda record: value(record) in wanted.values
    return lambda record: bool(value(record) == wanted)


class _MemoryTransaction:
    """Reads and writes on the tables. The text of each statement is made too: that checks the call."""

    def __init__(self, tables: _Tables) -> None:
        self._tables = tables
        self.live = True

    async def get(self, table: type[R], **key: object) -> R | None:
        found = await self.find(table, key, limit=1)
        return found[0] if found else None

    async def find(
        self, table: type[R], where: Where, *, order: str = "", descending: bool = False, limit: int = 1000
    ) -> list[R]:
        mapped = self._table(table)
        self._tables.statements.select(mapped, where, order, descending, limit)
        found = [record for _, record in self._tables.select(mapped, where)]
        if order:
            found.sort(key=attrgetter(order), reverse=descending)
        return found[:limit]

    async def count(self, table: type[Any], where: Where) -> int:
        mapped = self._table(table)
        self._tables.statements.count(mapped, where)
        return len(self._tables.select(mapped, where))

    async def insert(self, record: object) -> None:
        self._table(type(record))
        self._tables.put(record)

    async def update(self, table: type[R], where: Where, changes: Changes) -> list[R]:
        mapped = self._table(table)
        self._tables.statements.update(mapped, where, changes)
        return self._tables.change(mapped, where, changes)

    async def delete(self, table: type[R], where: Where) -> list[R]:
        mapped = self._table(table)
        self._tables.statements.delete(mapped, where)
        return self._tables.remove(mapped, where)

    def _table(self, record: type[R]) -> Table[R]:
        if not self.live:
            raise ended()
        if record not in _RULES:
            raise UsageError(f"There is no table for {record.__name__}.")
        return self._tables.statements.table(record)


class MemoryStore:
    """The `Store` port in memory. Use it from one event loop."""

    def __init__(self) -> None:
        self._tables = _Tables()
        self._closed = False

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """Run `work`; nothing else runs meanwhile, so what it sees is consistent."""
        if self._closed:
            raise closed()
        return self._run(work)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `work` in one transaction."""
        if self._closed:
            raise closed()
        await asyncio.sleep(0)  # others run here, as they would while a disk writes
        try:
            result = self._run(work)
        except BaseException:
            self._tables.undo(0)
            raise
        self._tables.forget_undo()
        return result

    async def close(self) -> None:
        """Take no more works."""
        self._closed = True

    def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        transaction = _MemoryTransaction(self._tables)
        try:
            return drive(work, transaction)
        finally:
            transaction.live = False
