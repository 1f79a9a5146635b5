"""Reading the audit log of a SQLite store from outside, while a server may be running: one snapshot, nothing written.

Rows come one after the other, however many there are, in the order of the chain. Whoever can write to the file may have
put bytes where a text should be: they come as lone surrogates, which nothing encodes. What rows are is not judged here
(`keyvouch.audit_chain`), nor is what people see of them (`audit_commands`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keyvouch.ids import TenantId
from keyvouch_server.domain.oversight_model import AuditCheckpoint, AuditRecord
from keyvouch_server.stores import sqlite_files
from keyvouch_server.stores.audit_source import other_schema
from keyvouch_server.stores.records import Statements, Table
from keyvouch_server.stores.sqlite_transaction import unavailable

_BUSY_SECONDS = 5.0
_STATEMENTS = Statements()
_RECORDS, _CHECKPOINTS = _STATEMENTS.table(AuditRecord), _STATEMENTS.table(AuditCheckpoint)
_OF_TENANT = "tenant_id = CAST(? AS TEXT)"


class AuditReader:
    """The audit log as it was at one moment. Make it with `opened`. See `audit_source.AuditSource`."""

    older_than_chains = True

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.text_factory = _text

    def tenants(self) -> Mapping[TenantId, str]:
        """Every tenant by its id with its name, and whatever else has records or checkpoints, with an empty one."""
        names = self._connection.execute("SELECT id, name FROM tenant ORDER BY name_key").fetchall()
        others = self._connection.execute(
            "SELECT tenant_id, '' FROM audit_record WHERE tenant_id NOT IN (SELECT id FROM tenant)"
            " UNION SELECT tenant_id, '' FROM audit_checkpoint WHERE tenant_id NOT IN (SELECT id FROM tenant)"
        ).fetchall()
        return {TenantId(tenant): name for tenant, name in [*names, *others]}

    def username(self, user_id: str) -> str:
        """The login name of a user, empty for one who is gone."""
        text = "SELECT username FROM user WHERE id = CAST(? AS TEXT)"
        row = self._connection.execute(text, (_bytes(user_id),)).fetchone()
        return str(row[0]) if row else ""

    def chained(self, tenant: TenantId, *, first: int = 1) -> Iterator[AuditRecord]:
        """The records of the tenant's chain, from number `first` on."""
        condition = f"{_OF_TENANT} AND chain_number > 0 AND chain_number >= ? ORDER BY chain_number, sequence"
        return self._rows(_RECORDS, condition, _bytes(tenant), first)

    def unchained(self, tenant: TenantId) -> Iterator[AuditRecord]:
        """Records that are in no chain."""
        return self._rows(_RECORDS, f"{_OF_TENANT} AND chain_number <= 0 ORDER BY sequence", _bytes(tenant))

    def newest(self, tenant: TenantId) -> AuditRecord | None:
        """The last record of the tenant's chain."""
        condition = f"{_OF_TENANT} AND chain_number > 0 ORDER BY chain_number DESC, sequence DESC LIMIT 1"
        return next(self._rows(_RECORDS, condition, _bytes(tenant)), None)

    def first_since(self, tenant: TenantId, instant: int) -> int:
        """The number of the first record of the chain that was written at an instant or later; 0 if there is none."""
        text = f"SELECT min(chain_number) FROM audit_record WHERE {_OF_TENANT} AND chain_number > 0 AND at >= ?"  # noqa: S608
        return int(self._connection.execute(text, (_bytes(tenant), instant)).fetchone()[0] or 0)

    def checkpoints(self, tenant: TenantId) -> Iterator[AuditCheckpoint]:
        """The checkpoints that are kept of the tenant's chain."""
        return self._rows(_CHECKPOINTS, f"{_OF_TENANT} ORDER BY chain_number", _bytes(tenant))

    def _rows(self, table: Table[Any], condition: str, *values: object) -> Iterator[Any]:
        text = f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {condition}"  # noqa: S608 - no value in it
        return (table.decode(row) for row in self._connection.execute(text, values))


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    """The bytes that `_text` made a text of."""
    return text.encode(errors="surrogateescape")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[AuditReader]:
    """The audit log of the store at `path`. Raises `UnavailableError` when it cannot be read, or has another schema."""
    try:
        with contextlib.closing(sqlite_files.connect_reader(path, timeout=_BUSY_SECONDS)) as connection:
            connection.execute("BEGIN")
            if sqlite_files.schema_version(connection) != len(sqlite_files.packaged_migrations()):
                raise other_schema()
            yield AuditReader(connection)
    except sqlite3.Error as error:
        raise unavailable(error) from error
