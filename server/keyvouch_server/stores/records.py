"""Records and rows: which table a record class is kept in, and the SQL text for each shape of call.

The snake_case of a class's name is its table, its fields are the columns. SQL text is made once for each shape
(operation, columns, kinds of condition) and kept by the store's `Statements`. Shapes come from the program,
never from a peer, so their number is bounded; values are always bound, never written into the text.
Not here: connections, transactions, and what a database makes of the text (`sqlite`).
"""

from __future__ import annotations

import dataclasses
import operator
import re
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic

from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_server.ports import Above, AtMost, Below, Changes, OneOf, Plus, R, Where

_SEQUENCE = "sequence"
"""A column of this name is numbered by the store when it is 0."""
_MOST_CHOICES = 1 << 14
_BASE_TYPES = (str, int, bytes, bool)

Row = tuple[Any, ...]
Shape = tuple[Hashable, ...]
"""Columns and kinds of condition, without values: a plain name stands for equality."""


@dataclass(frozen=True, slots=True)
class Table(Generic[R]):
    """How one record class maps to its table.

    `types` gives each column's Python type (NewTypes resolved), `decoders` the position and the lookup of each
    column that comes back from a row as something else than the record holds (booleans and enums).
    """

    record: type[R]
    name: str
    columns: tuple[str, ...]
    types: Mapping[str, type]
    decoders: tuple[tuple[int, Mapping[Any, Any]], ...]
    row: Callable[[object], Row]
    numbered: bool

    def decode(self, row: Row) -> R:
        """Make the record of a row. Raises `UnavailableError` for a value no record can have."""
        if not self.decoders:
            return self.record(*row)
        values = list(row)
        try:
            for position, lookup in self.decoders:
                values[position] = lookup[values[position]]
        except KeyError as unknown:
            raise UnavailableError(
                Reason.STORE_UNAVAILABLE,
                f"The table {self.name} holds a value this program does not know: {unknown}.",
                fix="Check the store, or restore a backup.",
            ) from unknown
        return self.record(*values)

    def check(self, column: str) -> str:
        """Return `column` if it is one, else raise `UsageError`."""
        if column in self.types:
            return column
        raise UsageError(f"{self.name} has no column {column!r}.", fix=f"Use one of: {', '.join(self.columns)}.")


def table_of(record: type[R]) -> Table[R]:
    """Work out the table of a record class. Raises `UsageError` for anything that is not one."""
    if not dataclasses.is_dataclass(record) or not isinstance(record, type):
        raise UsageError(f"{record!r} is not a record class.", fix="Pass one of the classes of domain.model.")
    hints = typing.get_type_hints(record)
    columns = tuple(field.name for field in dataclasses.fields(record))
    types = {column: _column_type(record, column, hints[column]) for column in columns}
    decoders = ((position, _decoder(types[column])) for position, column in enumerate(columns))
    return Table(
        record=record,
        name=re.sub(r"(?<=[a-z])(?=[A-Z])", "_", record.__name__).lower(),
        columns=columns,
        types=types,
        decoders=tuple((position, lookup) for position, lookup in decoders if lookup is not None),
        row=operator.attrgetter(*columns),
        numbered=columns[0] == _SEQUENCE,
    )


def _column_type(record: type, column: str, hint: Any) -> type:
    plain = getattr(hint, "__supertype__", hint)
    if isinstance(plain, type) and (plain in _BASE_TYPES or issubclass(plain, Enum)):
        return plain
    raise UsageError(f"{record.__name__}.{column} has a type that no column can hold: {hint}.")


def _decoder(column_type: type) -> Mapping[Any, Any] | None:
    if column_type is bool:
        return {0: False, 1: True}
    if issubclass(column_type, Enum):
        return {member.value: member for member in column_type}
    return None


def bind_where(where: Where) -> tuple[Shape, list[Any]]:
    """Split conditions into their shape and their values, in the order of the text's placeholders.

    Members of an enum belong to the shape, not to the values: written out, they let the database use the
    indexes that cover some states only.
    """
    shape: list[Hashable] = []
    values: list[Any] = []
    for column, value in where.items():
        kind = type(value)
        if kind is Above or kind is Below or kind is AtMost:
            shape.append((column, kind))
            values.append(value.value)
        elif kind is OneOf:
            if all(isinstance(choice, Enum) for choice in value.values):
                shape.append((column, Enum, value.values))
                continue
            choices = _padded(column, value.values)
            shape.append((column, kind, len(choices)))
            values.extend(choices)
        elif isinstance(value, Enum):
            shape.append((column, Enum, (value,)))
        else:
            shape.append(column)
            values.append(value)
    return tuple(shape), values


def _padded(column: str, choices: tuple[object, ...]) -> tuple[object, ...]:
    """Repeat the last choice up to a power of two, so that few lengths, and so few SQL texts, exist."""
    if not 0 < len(choices) <= _MOST_CHOICES:
        raise UsageError(f"OneOf for {column!r} has {len(choices)} values; 1 to {_MOST_CHOICES} are possible.")
    wanted = 1 << (len(choices) - 1).bit_length()
    return choices + choices[-1:] * (wanted - len(choices))


def bind_changes(changes: Changes) -> tuple[Shape, list[Any]]:
    """Split changes into their shape and their values, in the order of the text's placeholders."""
    shape: list[Hashable] = []
    values: list[Any] = []
    for column, value in changes.items():
        if type(value) is Plus:
            shape.append((column, Plus))
            values.append(value.value)
        else:
            shape.append(column)
            values.append(value)
    return tuple(shape), values


class Statements:
    """SQL text with its values, for one store. Every method raises `UsageError` for an unknown column.

    This is SQLite's text; other databases' differences are the methods that begin with `_write`.
    """

    def __init__(self) -> None:
        self._texts: dict[Hashable, str] = {}
        self._tables: dict[type[Any], Table[Any]] = {}

    def table(self, record: type[R]) -> Table[R]:
        """The table of a record class, worked out once."""
        table = self._tables.get(record)
        if table is None:
            table = self._tables[record] = table_of(record)
        return table

    def insert(self, record: object) -> tuple[str, Row]:
        """Text and values that add `record`."""
        table = self.table(type(record))
        row = table.row(record)
        unnumbered = table.numbered and row[0] == 0
        if unnumbered:
            row = row[1:]
        key = (table.record, unnumbered)
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = self._write_insert(table, unnumbered=unnumbered)
        return text, row

    def select(
        self, table: Table[Any], where: Where, order: str, descending: bool, limit: int
    ) -> tuple[str, list[Any]]:
        """Text and values that read up to `limit` records, all columns in the order of the record's fields."""
        if limit < 0:
            raise UsageError(f"limit is {limit}; it must not be negative.")
        shape, values = bind_where(where)
        values.append(limit)
        key = (table.record, "select", shape, order, descending)
        text = self._texts.get(key)
        if text is None:
            text = f"SELECT {', '.join(table.columns)} FROM {self._write_name(table)}{_where(table, shape)}"  # noqa: S608
            if order:
                text += f" ORDER BY {table.check(order)}{' DESC' if descending else ''}"
            text = self._texts[key] = self._write_marks(text + " LIMIT ?")
        return text, values

    def count(self, table: Table[Any], where: Where) -> tuple[str, list[Any]]:
        """Text and values that count records."""
        shape, values = bind_where(where)
        key = (table.record, "count", shape)
        text = self._texts.get(key)
        if text is None:
            text = f"SELECT count(*) FROM {self._write_name(table)}{_where(table, shape)}"  # noqa: S608
            text = self._texts[key] = self._write_marks(text)
        return text, values

    def update(self, table: Table[Any], where: Where, changes: Changes) -> tuple[str, list[Any]]:
        """Text and values that change records and return them as they are afterwards."""
        changed, values = bind_changes(changes)
        shape, where_values = bind_where(where)
        values += where_values
        key = (table.record, "update", shape, changed)
        text = self._texts.get(key)
        if text is None:
            _check_not_empty(table, shape)
            if not changed:
                raise UsageError(f"An update of {table.name} without changes.")
            assignments = ", ".join(_assignment(table, part) for part in changed)
            text = f"UPDATE {self._write_name(table)} SET {assignments}{_where(table, shape)}"  # noqa: S608
            text = self._texts[key] = self._write_marks(f"{text} RETURNING {', '.join(table.columns)}")
        return text, values

    def delete(self, table: Table[Any], where: Where) -> tuple[str, list[Any]]:
        """Text and values that delete records and return them as they were."""
        shape, values = bind_where(where)
        key = (table.record, "delete", shape)
        text = self._texts.get(key)
        if text is None:
            _check_not_empty(table, shape)
            text = f"DELETE FROM {self._write_name(table)}{_where(table, shape)}"  # noqa: S608
            text = self._texts[key] = self._write_marks(f"{text} RETURNING {', '.join(table.columns)}")
        return text, values

    def _write_name(self, table: Table[Any]) -> str:
        return table.name

    def _write_marks(self, text: str) -> str:
        return text

    def _write_insert(self, table: Table[Any], *, unnumbered: bool) -> str:
        columns = table.columns[1:] if unnumbered else table.columns
        marks = ", ".join("?" * len(columns))
        return f"INSERT INTO {self._write_name(table)} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608


class PostgresStatements(Statements):
    """The same for PostgreSQL. An insert that meets a duplicate returns no row: an error would end the transaction."""

    def _write_name(self, table: Table[Any]) -> str:
        return f'"{table.name}"'  # `user` is a word of the language

    def _write_marks(self, text: str) -> str:
        first, *others = text.split("?")  # values are never in the text, and names of states are plain words
        return first + "".join(f"${number}{part}" for number, part in enumerate(others, start=1))

    def _write_insert(self, table: Table[Any], *, unnumbered: bool) -> str:
        text = super()._write_insert(table, unnumbered=unnumbered)
        return self._write_marks(f"{text} ON CONFLICT DO NOTHING RETURNING true")


def _check_not_empty(table: Table[Any], shape: Shape) -> None:
    if not shape:
        raise UsageError(f"An update or delete of every {table.name}.", fix="Say which ones in `where`.")


def _where(table: Table[Any], shape: Shape) -> str:
    return " WHERE " + " AND ".join(_condition(table, part) for part in shape) if shape else ""


def _condition(table: Table[Any], part: Any) -> str:
    if isinstance(part, str):
        return f"{table.check(part)} = ?"
    column = table.check(part[0])
    if part[1] is Above:
        return f"{column} > ?"
    if part[1] is Below:
        return f"{column} < ?"
    if part[1] is AtMost:
        return f"{column} <= ?"
    if part[1] is Enum:
        return _is_member(column, part[2])
    return f"{column} IN ({', '.join('?' * part[2])})"


def _is_member(column: str, members: tuple[Enum, ...]) -> str:
    """The states in alphabetical order, joined by OR: the very form in which the schema's indexes name them."""
    names = sorted({str(member.value) for member in members})
    if not names or not all(name.isidentifier() for name in names):
        raise UsageError(f"{column!r} is compared with no state, or with one that is not a plain word: {names}.")
    alternatives = " OR ".join(f"{column} = '{name}'" for name in names)
    return f"({alternatives})" if len(names) > 1 else alternatives


def _assignment(table: Table[Any], part: Any) -> str:
    if isinstance(part, str):
        return f"{table.check(part)} = ?"
    return f"{table.check(part[0])} = {part[0]} + ?"
