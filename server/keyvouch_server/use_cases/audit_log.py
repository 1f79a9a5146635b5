"""The audit log beside its writing: signed checkpoints of each tenant's chain.

A checkpoint fixes what a chain was: whoever can write to the store could make a chain anew, but not the signature. So
each one goes to the program's log as well, and leaves the machine with it. Not here: the records (`World.audit`), and
the verification of a chain, which reads a store without a server (`audit_commands`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from keyvouch.audit_chain import Checkpoint, checkpoint_statement
from keyvouch.audit_lines import write_line
from keyvouch.ids import ServerId, TenantId
from keyvouch.statement import Purpose
from keyvouch_server.domain.audit import CHECKPOINT_SECONDS, checkpoint_due
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import Tenant
from keyvouch_server.domain.oversight_model import AuditCheckpoint, AuditRecord
from keyvouch_server.ports import Above, Below, Duplicate, Keys, Snapshot, Transaction
from keyvouch_server.use_cases.world import Caller, World

NO_TENANT = TenantId("")
"""Records that belong to no tenant have a chain of their own."""
_PAGE = 200

_log = logging.getLogger("keyvouch.audit")


class AuditLog:
    """Checkpoints: signing them, listing them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._next_at = world.clock.now() + CHECKPOINT_SECONDS

    async def sign_in_time(self) -> None:
        """Sign what is due, if the last time is long enough ago. For the sweep, which asks often."""
        now = self._world.clock.now()
        if not self._next_at - CHECKPOINT_SECONDS <= now < self._next_at:
            self._next_at = now + CHECKPOINT_SECONDS
            await self.sign_checkpoints()

    async def sign_checkpoints(self) -> list[AuditCheckpoint]:
        """Sign the newest record of every tenant that has one which no checkpoint covers."""
        made: list[AuditCheckpoint] = []
        page: Sequence[TenantId] = [NO_TENANT]
        while page:
            made += await self._sign(page)
            page = await self._tenants_after(page[-1])
        return made

    async def _tenants_after(self, last: TenantId) -> list[TenantId]:
        found = await self._world.store.read(lambda tx: tx.find(Tenant, {"id": Above(last)}, order="id", limit=_PAGE))
        return [tenant.id for tenant in found]

    async def _sign(self, tenants: Sequence[TenantId]) -> list[AuditCheckpoint]:
        due = await self._world.store.read(lambda tx: _due(tx, tenants))
        now, server = self._world.clock.now(), self._world.facts.server_id
        signed = [signed_checkpoint(self._world.keys, server, record, now) for record in due]
        if not signed:
            return []

        async def work(tx: Transaction) -> list[Checkpoint]:
            return [one for one in signed if await _kept(tx, one)]

        kept = await self._world.store.write(work)
        for one in kept:
            _log.info("checkpoint %s", write_line(one))
        return [_row(one) for one in kept]

    async def checkpoints(self, caller: Caller, *, before: int, limit: int) -> Sequence[AuditCheckpoint]:
        """A page of the checkpoints of the caller's tenant, the newest first."""
        authorise(caller.user, Action.READ_CHECKPOINTS)
        where: dict[str, object] = {"tenant_id": caller.user.tenant_id}
        if before:
            where["chain_number"] = Below(before)
        return await self._world.store.read(
            lambda tx: tx.find(AuditCheckpoint, where, order="chain_number", descending=True, limit=limit)
        )


def signed_checkpoint(keys: Keys, server_id: ServerId, record: AuditRecord, now: int) -> Checkpoint:
    """A checkpoint over a record, signed now."""
    number, digest = record.chain_number, record.hash
    statement = checkpoint_statement(server_id, record.tenant_id, number, digest, now)
    signature = keys.sign_identity(Purpose.AUDIT_CHECKPOINT, statement)
    return Checkpoint(server_id, record.tenant_id, number, digest, now, signature)


async def _due(tx: Snapshot, tenants: Sequence[TenantId]) -> list[AuditRecord]:
    found: list[AuditRecord] = []
    for tenant in tenants:
        where = {"tenant_id": tenant}
        newest = await tx.find(AuditRecord, where, order="sequence", descending=True, limit=1)
        signed = await tx.find(AuditCheckpoint, where, order="chain_number", descending=True, limit=1)
        if checkpoint_due(newest[0] if newest else None, signed[0] if signed else None):
            found += newest
    return found


async def _kept(tx: Transaction, one: Checkpoint) -> bool:
    """Keep a checkpoint, unless one of this record was kept meanwhile."""
    try:
        await tx.insert(_row(one))
    except Duplicate:
        return False
    return True


def _row(one: Checkpoint) -> AuditCheckpoint:
    return AuditCheckpoint(one.tenant_id, one.number, one.hash, one.at, one.signature)
