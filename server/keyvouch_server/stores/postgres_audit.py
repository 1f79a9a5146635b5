"""Reading the audit log of a PostgreSQL store from outside, while servers may run: one snapshot, nothing written.

See `audit_source`. A text is one here, whoever wrote it: the database takes no other bytes. But whoever owns the tables
may take away what makes a column hold a value at all, so that is looked at first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from keyvouch.errors import Reason, UnavailableError
from keyvouch.ids import TenantId
from keyvouch_server.domain.model import Tenant, User
from keyvouch_server.domain.oversight_model import AuditCheckpoint, AuditRecord
from keyvouch_server.stores.audit_source import other_schema
from keyvouch_server.stores.postgres_connection import packaged_migrations
from keyvouch_server.stores.postgres_reading import Reading, reading
from keyvouch_server.stores.records import PostgresStatements, Table

_STATEMENTS: Final = PostgresStatements()
_RECORDS, _CHECKPOINTS = _STATEMENTS.table(AuditRecord), _STATEMENTS.table(AuditCheckpoint)
_READ: Final = (_RECORDS, _CHECKPOINTS, _STATEMENTS.table(Tenant), _STATEMENTS.table(User))
_TYPES: Final[Mapping[type, str]] = {int: "bigint", bytes: "bytea", bool: "boolean"}
_COLUMNS: Final = """
    SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = $1 AND c.relkind = 'r'"""


class PostgresAuditReader:
    """The audit log as it was at one moment. Make it with `opened`. See `audit_source.AuditSource`."""

    older_than_chains = False

    def __init__(self, source: Reading) -> None:
        self._source = source

    def tenants(self) -> Mapping[TenantId, str]:
        """Every tenant by its id with its name, and whatever else has records or checkpoints, with an empty one."""
        names = self._source.all("SELECT id, name FROM tenant ORDER BY name_key")
        others = self._source.all(
            "SELECT tenant_id, '' FROM audit_record WHERE tenant_id NOT IN (SELECT id FROM tenant)"
            " UNION SELECT tenant_id, '' FROM audit_checkpoint WHERE tenant_id NOT IN (SELECT id FROM tenant)"
            " ORDER BY tenant_id"
        )
        return {TenantId(tenant): name for tenant, name in [*names, *others]}

    def username(self, user_id: str) -> str:
        """The login name of a user, empty for one who is gone."""
        rows = self._source.all('SELECT username FROM "user" WHERE id = $1', user_id) if _held(user_id) else []
        return str(rows[0][0]) if rows else ""

    def chained(self, tenant: TenantId, *, first: int = 1) -> Iterator[AuditRecord]:
        """The records of the tenant's chain, from number `first` on."""
        condition = "tenant_id = $1 AND chain_number > 0 AND chain_number >= $2 ORDER BY chain_number, sequence"
        return self._rows(_RECORDS, condition, tenant, first)

    def unchained(self, tenant: TenantId) -> Iterator[AuditRecord]:
        """Records that are in no chain."""
        return self._rows(_RECORDS, "tenant_id = $1 AND chain_number <= 0 ORDER BY sequence", tenant)

    def newest(self, tenant: TenantId) -> AuditRecord | None:
        """The last record of the tenant's chain."""
        condition = "tenant_id = $1 AND chain_number > 0 ORDER BY chain_number DESC, sequence DESC LIMIT 1"
        return next(self._rows(_RECORDS, condition, tenant), None)

    def first_since(self, tenant: TenantId, instant: int) -> int:
        """The number of the first record of the chain that was written at an instant or later; 0 if there is none."""
        text = "SELECT min(chain_number) FROM audit_record WHERE tenant_id = $1 AND chain_number > 0 AND at >= $2"
        return int(self._source.all(text, tenant, instant)[0][0] or 0) if _held(tenant) else 0

    def checkpoints(self, tenant: TenantId) -> Iterator[AuditCheckpoint]:
        """The checkpoints that are kept of the tenant's chain."""
        return self._rows(_CHECKPOINTS, "tenant_id = $1 ORDER BY chain_number", tenant)

    def _rows(self, table: Table[Any], condition: str, tenant: TenantId, *values: object) -> Iterator[Any]:
        if not _held(tenant):
            return iter(())
        text = f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {condition}"  # noqa: S608 - no value in it
        return (table.decode(tuple(row)) for row in self._source.rows(text, tenant, *values))


def _held(text: str) -> bool:
    """Whether the database can hold a text at all; an id from a file or from an older store may be anything."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


@contextlib.contextmanager
def opened(url: str) -> Iterator[PostgresAuditReader]:
    """The audit log of the store at `url`. Raises `UnavailableError` when it cannot be read, or has another schema."""
    with reading(url) as source:
        if source.schema_version() != len(packaged_migrations()):
            raise other_schema()
        for table in _READ:
            wanted = {column: _TYPES.get(kind, "text") for column, kind in table.types.items()}
            if wanted.items() - dict(map(tuple, source.all(_COLUMNS, table.name))).items():
                raise UnavailableError(
                    Reason.STORE_SCHEMA,
                    f"The table {table.name} is not as the schema wants it.",
                    fix="Keep the store as it is, and see what `keyvouch-server check` says of it.",
                )
        yield PostgresAuditReader(source)
