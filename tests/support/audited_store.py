"""A store that holds every transaction against its audit records: what was done is told, or it is found here (G11).

A real store is behind it; nothing is changed on the way. A row that matters has to be named by a record of the same
transaction. What does not matter are budgets and counters, what was used when, and the forgetting of what is long over.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from keyvouch_server.domain import model as m
from keyvouch_server.domain import oversight_model as o
from keyvouch_server.domain.names import name_key
from keyvouch_server.ports import Changes, R, Snapshot, Store, Transaction, Where

T = TypeVar("T")

NAMES: dict[type[Any], tuple[str, ...]] = {
    m.Tenant: ("id",),
    m.PolicyVersion: ("version",),
    m.User: ("id",),
    m.LoginName: ("user_id", "name_key"),
    m.UserGroup: ("id",),
    m.GroupMember: ("group_id", "user_id"),
    m.AccessPass: ("id",),
    m.Registration: ("device_id",),
    m.Device: ("id",),
    m.Credential: ("device_id",),
    m.DeviceTpm: ("device_id",),
    m.KeyReplacement: ("device_id",),
    m.SignIn: ("id",),
    m.Session: ("id",),
    o.RiskEvent: ("id",),
    o.Block: ("user_id",),
}
"""The tables that matter, and by which of its columns a row has to be named."""

MATTERS: dict[type[Any], frozenset[str]] = {
    m.Tenant: frozenset({"name", "home"}),
    m.User: frozenset({"username", "display_name", "role", "kind", "default_method", "flagged_at"}),
    m.AccessPass: frozenset({"code_hash", "start_at", "lifetime_minutes"}),
    m.Registration: frozenset({"state"}),
    m.Device: frozenset({"display_name", "certificate"}),
    m.Credential: frozenset({"public_key", "assurance"}),
    m.DeviceTpm: frozenset({"health", "proved_assurance"}),
    m.SignIn: frozenset({"state"}),
    m.Session: frozenset({"generation", "revoked_at"}),
}
"""Columns whose change matters; of other tables that matter every one does."""

FORGOTTEN = (m.SignIn, m.Registration, m.KeyReplacement, o.Block)
"""What is deleted when it is long over, with no act of anybody's."""


@dataclass(slots=True)
class _Work:
    """What one run of a work has changed, and its records."""

    changed: list[tuple[str, Any]] = field(default_factory=list)
    records: list[o.AuditRecord] = field(default_factory=list)

    def untold(self) -> Iterable[str]:
        said = {text for record in self.records for text in _texts(record)}
        told = said | {name_key(text) for text in said}
        for what, row in self.changed:
            names = {str(getattr(row, name)) for name in NAMES[type(row)]}
            if names <= told:
                continue
            if isinstance(row, m.Registration) and row.id in told:
                continue
            if isinstance(row, m.PolicyVersion) and what == "insert" and row.version == 1 and row.tenant_id in told:
                continue  # with its tenant
            deleted = {record.user_id for record in self.records if record.action == "user.delete"}
            if what == "delete" and getattr(row, "user_id", "") in deleted:
                continue  # with their user
            yield f"{what} {row} by {[(r.action, r.subject) for r in self.records]}"


class AuditedStore:
    """Implements `ports.Store` over another store. `untold` has what no record tells of, `acts` the actions seen."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.untold: list[str] = []
        self.acts: set[str] = set()

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """See `ports.Store`."""
        return await self._store.read(work)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """See `ports.Store`."""
        runs: list[_Work] = []

        async def watched(tx: Transaction) -> T:
            runs.append(_Work())
            return await work(_Watched(tx, runs[-1]))

        result = await self._store.write(watched)
        self.untold += runs[-1].untold()
        self.acts |= {record.action for record in runs[-1].records}
        return result

    async def close(self) -> None:
        """See `ports.Store`."""
        await self._store.close()


class _Watched:
    """One transaction whose changes are kept."""

    def __init__(self, tx: Transaction, work: _Work) -> None:
        self._tx, self._work = tx, work
        self.get, self.find, self.count = tx.get, tx.find, tx.count

    async def insert(self, record: object) -> None:
        await self._tx.insert(record)
        if isinstance(record, o.AuditRecord):
            self._work.records.append(record)
        elif type(record) in NAMES:
            self._work.changed.append(("insert", record))

    async def update(self, table: type[R], where: Where, changes: Changes) -> list[R]:
        changed: list[R] = await self._tx.update(table, where, changes)
        if table in NAMES and (table not in MATTERS or MATTERS[table] & changes.keys()):
            self._work.changed += [("update", row) for row in changed]
        return changed

    async def delete(self, table: type[R], where: Where) -> list[R]:
        gone: list[R] = await self._tx.delete(table, where)
        if table in NAMES and table not in FORGOTTEN:
            self._work.changed += [("delete", row) for row in gone]
        return gone


def _texts(record: o.AuditRecord) -> set[str]:
    return {record.actor, record.subject, record.user_id, *json.loads(record.details).values()}
