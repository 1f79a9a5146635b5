"""Oversight: administrators see and end other people's sessions, and look at what seemed to be an attack.

Whose things they may touch is `domain.authorisation`; lookups never leave the caller's tenant. Not here: noticing risks
(`risks`), explanations (`explanations`), and what people do with sessions of their own (`sessions`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keyvouch.errors import KeyvouchError, NotFoundError, Reason
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import Device, Session, User
from keyvouch_server.domain.oversight_model import RiskEvent
from keyvouch_server.ports import Above, Below, OneOf, Snapshot, Transaction
from keyvouch_server.use_cases.sessions import Ended, Sessions
from keyvouch_server.use_cases.world import Caller, World, settled, unknown_device, unknown_user

ENDED_BY_ADMINISTRATOR = "ended_by_administrator"


@dataclass(frozen=True, slots=True)
class SessionsOf:
    """Whose sessions are to end: those of a user (id, login name or alias), of a device, one, or all of the tenant.

    Exactly one of them is set.
    """

    user: str = ""
    device_id: str = ""
    session_id: str = ""
    whole_tenant: bool = False


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session and whose it is."""

    session: Session
    user: User


@dataclass(frozen=True, slots=True)
class RiskView:
    """A risk event and whom it concerns; None where that is nobody, or nobody any more."""

    event: RiskEvent
    user: User | None

    @property
    def key(self) -> str:
        """What a page that goes on after this one starts from: newer events come first."""
        return f"{self.event.at} {self.event.id}"


class Oversight:
    """Reading and ending sessions; reading and closing risk events."""

    def __init__(self, world: World, sessions: Sessions) -> None:
        self._world = world
        self._sessions = sessions

    # -- sessions -----------------------------------------------------------------------------------

    async def sessions(self, caller: Caller, who: str, *, after: str, limit: int) -> Sequence[SessionView]:
        """A page of a user's sessions, or of the tenant's, in the order of their ids, ended ones included."""
        authorise(caller.user, Action.READ_SESSIONS)

        async def work(tx: Snapshot) -> Sequence[SessionView]:
            where: dict[str, object] = {"tenant_id": caller.user.tenant_id, "id": Above(after)}
            if who:
                where["user_id"] = (await self._named(tx, caller, who, Action.READ_SESSIONS)).id
            rows = await tx.find(Session, where, order="id", limit=limit)
            users = await _users(tx, {row.user_id for row in rows})
            return [SessionView(row, users[row.user_id]) for row in rows]

        return await self._world.store.read(work)

    async def revoke(self, caller: Caller, of: SessionsOf) -> int:
        """End sessions, and what was approved for more of them and not redeemed yet; returns how many sessions ended.

        Raises NotFoundError with USER_UNKNOWN, DEVICE_UNKNOWN or SESSION_UNKNOWN, and what `authorise` raises.
        """

        async def work(tx: Transaction) -> Ended:
            await self._world.must_stand(tx, caller)
            if of.session_id:
                return Ended(await self._end(tx, caller, await self._one(tx, caller, of.session_id)))
            where = await self._where(tx, caller, of)
            live = await self._sessions.live_sessions(tx, **where)
            ending = [s for s in live if not (of.whole_tenant and s.id == caller.session.id)]
            cancelled = await self._sessions.cancel_approvals(tx, actor=caller.user.id, **where)
            return Ended(await self._end(tx, caller, ending), cancelled)

        return (await self._world.write_and_tell(work, self._sessions.tell)).sessions

    async def _end(self, tx: Transaction, caller: Caller, sessions: Sequence[Session]) -> int:
        return await self._sessions.revoke_in(tx, sessions, reason=ENDED_BY_ADMINISTRATOR, actor=caller.user.id)

    async def _one(self, tx: Snapshot, caller: Caller, session_id: str) -> list[Session]:
        session = await tx.get(Session, id=session_id)
        await self._owned(tx, caller, session.user_id if session else "", _unknown_session())
        return [session] if session else []

    async def _where(self, tx: Snapshot, caller: Caller, of: SessionsOf) -> dict[str, object]:
        tenant = caller.user.tenant_id
        if of.whole_tenant:
            authorise(caller.user, Action.REVOKE_TENANT_SESSIONS)
            return {"tenant_id": tenant}
        if of.device_id:
            device = await tx.get(Device, id=of.device_id)
            await self._owned(tx, caller, device.user_id if device else "", unknown_device())
            return {"tenant_id": tenant, "device_id": of.device_id}
        user = await self._named(tx, caller, of.user, Action.REVOKE_SESSIONS)
        return {"tenant_id": tenant, "user_id": user.id}

    async def _owned(self, tx: Snapshot, caller: Caller, owner: str, unknown: NotFoundError) -> None:
        user = await tx.get(User, id=owner)
        authorise(caller.user, Action.REVOKE_SESSIONS, user, unknown=unknown)

    async def _named(self, tx: Snapshot, caller: Caller, who: str, action: Action) -> User:
        user = await self._world.user_called(tx, caller.user.tenant_id, who)
        return authorise(caller.user, action, user, unknown=unknown_user())

    # -- risk events --------------------------------------------------------------------------------

    async def risk_events(
        self, caller: Caller, who: str, *, open_only: bool, after: str, limit: int
    ) -> Sequence[RiskView]:
        """A page of risk events, the newest first, those after the one with the key `after`."""
        authorise(caller.user, Action.READ_RISKS)

        async def work(tx: Snapshot) -> Sequence[RiskView]:
            where: dict[str, object] = {"tenant_id": caller.user.tenant_id}
            if open_only:
                where["closed_at"] = 0
            if who:
                where["user_id"] = (await self._named(tx, caller, who, Action.READ_RISKS)).id
            events = await _newest_first(tx, where, after=after, limit=limit)
            users = await _users(tx, {event.user_id for event in events})
            return [RiskView(event, users.get(event.user_id)) for event in events]

        return await self._world.store.read(work)

    async def close_risk_event(self, caller: Caller, risk_event_id: str) -> RiskView:
        """Somebody has looked at it. The user's flag goes with the last open event. Closing a closed one succeeds."""

        async def work(tx: Transaction) -> RiskView | KeyvouchError:
            await self._world.must_stand(tx, caller)
            event = await tx.get(RiskEvent, id=risk_event_id)
            if event is None or event.tenant_id != caller.user.tenant_id:
                authorise(caller.user, Action.CLOSE_RISK)
                return _unknown_risk_event()
            user = await tx.get(User, id=event.user_id)
            authorise(caller.user, Action.CLOSE_RISK, user)
            closed = await tx.update(
                RiskEvent,
                {"id": event.id, "closed_at": 0},
                {"closed_at": self._world.clock.now(), "closed_by": caller.user.id},
            )
            if not closed:
                return RiskView(event, user)
            await self._lower_flag(tx, event)
            await self._world.audit(
                tx,
                "risk.close",
                actor=caller.user.id,
                tenant_id=event.tenant_id,
                subject=event.id,
                user_id=event.user_id,
                kind=event.kind.value,
            )
            return RiskView(closed[0], user)

        return settled(await self._world.store.write(work))

    async def _lower_flag(self, tx: Transaction, event: RiskEvent) -> None:
        if not event.user_id or await tx.find(RiskEvent, {"user_id": event.user_id, "closed_at": 0}, limit=1):
            return
        await tx.update(User, {"id": event.user_id, "flagged_at": Above(0)}, {"flagged_at": 0})


async def _newest_first(tx: Snapshot, where: Mapping[str, object], *, after: str, limit: int) -> list[RiskEvent]:
    """Events by instant and id, both descending: second by second, for many may have been noticed in one."""
    found: list[RiskEvent] = []
    second, _, last = after.partition(" ")
    if second:
        same = {**where, "at": int(second), "id": Below(last)}
        found = await tx.find(RiskEvent, same, order="id", descending=True, limit=limit)
    while len(found) < limit:
        before = {**where, "at": Below(found[-1].at if found else int(second))} if found or second else where
        newest = await tx.find(RiskEvent, before, order="at", descending=True, limit=1)
        if not newest:
            break
        same = {**where, "at": newest[0].at}
        found += await tx.find(RiskEvent, same, order="id", descending=True, limit=limit - len(found))
    return found


async def _users(tx: Snapshot, ids: set[str]) -> dict[str, User]:
    if not ids:
        return {}
    return {user.id: user for user in await tx.find(User, {"id": OneOf(tuple(ids))})}


def _unknown_session() -> NotFoundError:
    return NotFoundError(
        Reason.SESSION_UNKNOWN,
        "There is no such session in this tenant.",
        fix="List the sessions and use an id from there.",
    )


def _unknown_risk_event() -> NotFoundError:
    return NotFoundError(
        Reason.RISK_EVENT_UNKNOWN,
        "There is no such risk event in this tenant.",
        fix="List the risk events and use an id from there.",
    )
