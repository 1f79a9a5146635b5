"""What looked like an attack: written down in the transaction in which it was noticed, for administrators to look at.

Not here: how administrators read and close these events (`use_cases.oversight`).
"""

from __future__ import annotations

import logging

from keyvouch.ids import RISK_EVENT, RiskEventId, TenantId, UserId
from keyvouch_server.domain.model import User
from keyvouch_server.domain.oversight_model import RiskEvent, RiskKind
from keyvouch_server.ports import Snapshot, Transaction
from keyvouch_server.use_cases.world import SERVER, World

_log = logging.getLogger("keyvouch.risk")


class Risks:
    """Writing risk events."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def note(
        self,
        tx: Transaction,
        kind: RiskKind,
        message: str,
        *,
        tenant_id: TenantId,
        user_id: str = "",
        subject: str = "",
        address: str = "",
    ) -> RiskEvent | None:
        """Write an event and its audit record. One of the same kind, user and subject that is open is not doubled.

        REPORTED also flags the user, until an administrator closes the last open event of theirs.
        """
        now = self._world.clock.now()
        if await self.is_open(tx, kind, tenant_id=tenant_id, user_id=user_id, subject=subject):
            return None
        event = RiskEvent(
            id=RiskEventId(self._world.new_id(RISK_EVENT)),
            tenant_id=tenant_id,
            user_id=UserId(user_id),
            kind=kind,
            at=now,
            address=address,
            subject=subject,
            message=message,
        )
        await tx.insert(event)
        if kind is RiskKind.REPORTED:
            await tx.update(User, {"id": user_id, "flagged_at": 0}, {"flagged_at": now})
        await self._world.audit(
            tx,
            "risk.note",
            actor=SERVER,
            tenant_id=tenant_id,
            subject=event.id,
            user_id=user_id,
            kind=kind.value,
            about=subject,
            address=address,
        )
        _log.warning("risk %s: tenant %s, user %s, about %s", kind.value, tenant_id, user_id or "-", subject or "-")
        return event

    async def is_open(
        self, tx: Snapshot, kind: RiskKind, *, tenant_id: TenantId, user_id: str = "", subject: str = ""
    ) -> bool:
        """Whether administrators have been told of just this and have not closed it. All that `note` asks then."""
        same = {"tenant_id": tenant_id, "user_id": user_id, "kind": kind, "subject": subject, "closed_at": 0}
        return bool(await tx.find(RiskEvent, same, limit=1))
