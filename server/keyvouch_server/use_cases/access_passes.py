"""Temporary Access Passes: issued by administrators, spent at sign-in, explained in the audit log only."""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from keyvouch.errors import ConflictError, KeyvouchError, NotFoundError, Reason, UnauthenticatedError
from keyvouch.ids import ACCESS_PASS, AccessPassId, TenantId, UserId
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import AccessPass, Role, Tenant, User
from keyvouch_server.domain.names import MAX_TYPED, invalid_field, name_key
from keyvouch_server.domain.policy import ACCESS_PASS_ATTEMPTS, Policy, access_pass_end, access_pass_refusal
from keyvouch_server.ports import Above, Plus, Snapshot, Transaction
from keyvouch_server.use_cases.sessions import IssuedSession, Sessions
from keyvouch_server.use_cases.world import ANONYMOUS, Caller, World, settled, unknown_user

ALPHABET: Final = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
"""31 characters nobody mistakes for another; eight of them are 39.6 bits, spent at most five times."""

ONE_TIME_SECONDS: Final = 600
"""T13: with a one-time pass, registration must finish within ten minutes of the sign-in."""


@dataclass(frozen=True, slots=True)
class ViewedPass:
    """A pass with its owner and the reason it cannot be used, None when it can (T7)."""

    found: AccessPass
    user: User
    refusal: Reason | None


@dataclass(frozen=True, slots=True)
class CreatedPass:
    """A new pass with its code, which exists nowhere else."""

    viewed: ViewedPass
    code: str = field(repr=False)


class AccessPasses:
    """Creating, listing, deleting and spending Temporary Access Passes."""

    def __init__(self, world: World, sessions: Sessions) -> None:
        self._world = world
        self._sessions = sessions

    async def create(
        self, caller: Caller, username: str, *, start_at: int, lifetime_minutes: int, one_time: bool
    ) -> CreatedPass:
        """T6, T12: make the user's pass. A valid one must be deleted first, any other is overwritten."""

        async def work(tx: Transaction) -> CreatedPass | KeyvouchError:
            user = await self._target(tx, caller, username, Action.CREATE_ACCESS_PASS)
            policy = await self._world.policy_of(tx, user.tenant_id)
            old = await tx.get(AccessPass, user_id=user.id)
            if old is not None and access_pass_refusal(policy, old, now=self._world.clock.now()) is None:
                return ConflictError(
                    Reason.ACCESS_PASS_EXISTS,
                    f"{user.username} has a valid access pass already.",
                    fix="Delete it first; that also ends the user's sessions.",
                )
            return await self.create_in(
                tx,
                user,
                policy,
                actor=caller.user.id,
                start_at=start_at,
                lifetime_minutes=lifetime_minutes,
                one_time=one_time,
            )

        return settled(await self._world.store.write(work))

    async def create_in(
        self,
        tx: Transaction,
        user: User,
        policy: Policy,
        *,
        actor: str,
        start_at: int = 0,
        lifetime_minutes: int = 0,
        one_time: bool = False,
    ) -> CreatedPass:
        """The same inside another ceremony's transaction. Sessions stay, but for those the old pass opened (T8)."""
        now = self._world.clock.now()
        rules = policy.access_pass
        lifetime = lifetime_minutes or rules.default_lifetime_minutes
        if not rules.minimum_lifetime_minutes <= lifetime <= rules.maximum_lifetime_minutes:
            expected = f"{rules.minimum_lifetime_minutes} to {rules.maximum_lifetime_minutes} minutes by policy"
            raise invalid_field("lifetime_minutes", expected)
        if start_at and not now - 60 <= start_at <= now + 366 * 86400:
            raise invalid_field("start_at", "an instant from now to a year ahead, or nothing for now")
        code = self._draw(rules.length)
        made = AccessPass(
            id=AccessPassId(self._world.new_id(ACCESS_PASS)),
            tenant_id=user.tenant_id,
            user_id=user.id,
            code_hash=self._hash(user.id, code),
            created_at=now,
            start_at=start_at or now,
            lifetime_minutes=lifetime,
            one_time=one_time or rules.one_time_required,
        )
        for old in await tx.delete(AccessPass, {"user_id": user.id}):
            await self._end_sessions_of(tx, old, actor=actor)
        await tx.insert(made)
        await self._audit(tx, "access_pass.create", actor, made)
        return CreatedPass(ViewedPass(made, user, access_pass_refusal(policy, made, now=now)), code)

    def _draw(self, length: int) -> str:
        """Uniform characters: bytes that would favour some are thrown away."""
        limit = 256 - 256 % len(ALPHABET)
        code = ""
        while len(code) < length:
            code += "".join(ALPHABET[b % len(ALPHABET)] for b in self._world.entropy.token(64) if b < limit)
        return code[:length]

    def _hash(self, user: str, code: str) -> bytes:
        """Keyed hash of a code as people type it: case, spaces and hyphens do not matter."""
        code = code if len(code) <= MAX_TYPED else ""  # no code is as long, and folding it would take long
        typed = unicodedata.normalize("NFKC", code).upper().replace(" ", "").replace("-", "")
        return self._world.keys.mac("access-pass", f"{user}/{typed}".encode())

    async def list(self, caller: Caller, username: str, *, after: str, limit: int) -> Sequence[ViewedPass]:
        """T5, T7: passes of one user, or of everybody whose passes the caller may see; never the codes."""
        authorise(caller.user.role, Action.LIST_ACCESS_PASSES)

        async def work(tx: Snapshot) -> Sequence[ViewedPass]:
            where: dict[str, object] = {"tenant_id": caller.user.tenant_id}
            if username:
                where["user_id"] = (await self._target(tx, caller, username, Action.LIST_ACCESS_PASSES)).id
            return await self._visible(tx, caller, where, after, limit)

        return await self._world.store.read(work)

    async def _visible(
        self, tx: Snapshot, caller: Caller, where: dict[str, object], after: str, limit: int
    ) -> Sequence[ViewedPass]:
        """A page that is full unless it is the last one, however many passes are not for the caller's eyes."""
        policy = await self._world.policy_of(tx, caller.user.tenant_id)
        views: list[ViewedPass] = []
        while rows := await tx.find(AccessPass, {**where, "id": Above(after)}, order="id", limit=limit):
            views += [v for v in [await self._view(tx, policy, row) for row in rows] if _may_see(caller, v)]
            after = rows[-1].id
            if len(views) >= limit or len(rows) < limit:
                break
        return views[:limit]

    async def _view(self, tx: Snapshot, policy: Policy, row: AccessPass) -> ViewedPass:
        user = await tx.get(User, id=row.user_id)
        if user is None:
            raise unknown_user()
        return ViewedPass(row, user, access_pass_refusal(policy, row, now=self._world.clock.now()))

    async def delete(self, caller: Caller, username: str) -> int:
        """T8, T11, T12: delete the user's pass and end what it opened; if it was valid, end all the user's sessions.

        Returns how many ended.
        """

        async def work(tx: Transaction) -> int | KeyvouchError:
            user = await self._target(tx, caller, username, Action.DELETE_ACCESS_PASS)
            policy = await self._world.policy_of(tx, user.tenant_id)
            gone = await tx.delete(AccessPass, {"user_id": user.id})
            if not gone:
                return NotFoundError(
                    Reason.ACCESS_PASS_NONE, f"{user.username} has no access pass.", fix="Nothing needs to be done."
                )
            await self._audit(tx, "access_pass.delete", caller.user.id, gone[0])
            if access_pass_refusal(policy, gone[0], now=self._world.clock.now()) is not None:
                return await self._end_sessions_of(tx, gone[0], actor=caller.user.id)
            live = await self._sessions.live_sessions(tx, user_id=user.id)
            return await self._sessions.revoke_in(tx, live, reason="access_pass_deleted", actor=caller.user.id)

        return settled(await self._world.store.write(work))

    async def _end_sessions_of(self, tx: Transaction, gone: AccessPass, *, actor: str) -> int:
        """T8: no session outlives the pass that opened it."""
        live = await self._sessions.live_sessions(tx, user_id=gone.user_id, access_pass_id=gone.id)
        return await self._sessions.revoke_in(tx, live, reason="access_pass_deleted", actor=actor)

    async def _target(self, tx: Snapshot, caller: Caller, username: str, action: Action) -> User:
        """The user the act is about; the caller's right is checked before existence is told."""
        await self._world.must_stand(tx, caller)
        user = await tx.get(User, tenant_id=caller.user.tenant_id, username_key=name_key(username))
        target = user.role if user else Role.USER
        on_self = user is not None and user.id == caller.user.id
        authorise(caller.user.role, action, target=target, on_self=on_self)
        if user is None:
            raise unknown_user()
        return user

    # -- spending ---------------------------------------------------------------------------------

    async def sign_in(self, tenant: str, username: str, code: str, *, address: str) -> IssuedSession:
        """T8, T17: open a session with a pass. Every refusal looks alike; the audit record says why."""
        return settled(await self._world.store.write(lambda tx: self._sign_in(tx, tenant, username, code, address)))

    async def _sign_in(
        self, tx: Transaction, tenant_name: str, username: str, code: str, address: str
    ) -> IssuedSession | UnauthenticatedError:
        """1. find; 2. count the try before comparing; 3. compare; 4. policy; 5. session and audit."""
        world, now = self._world, self._world.clock.now()
        tenant = await tx.get(Tenant, name_key=name_key(tenant_name))
        # P11: the store is asked the same questions for names that exist and for names that do not.
        user = await tx.get(User, tenant_id=tenant.id if tenant else "", username_key=name_key(username))
        found = await tx.get(AccessPass, user_id=user.id if user else "")
        offered = self._hash(user.id if user else "nobody", code)
        policy = await world.policy_of(tx, tenant.id) if tenant else Policy()
        refusal = await self._why_not(tx, policy, found, offered, now)
        if user is None or found is None or refusal is not None:
            await world.audit(
                tx,
                "access_pass.sign_in",
                actor=ANONYMOUS,
                tenant_id=tenant.id if tenant else TenantId(""),
                subject=found.id if found else "",
                user_id=user.id if user else UserId(""),
                outcome=(refusal or Reason.ACCESS_PASS_NONE).value,
                address=address,
            )
            return _refused()
        await tx.update(AccessPass, {"id": found.id}, {"used_at": now, "attempts": 0})
        session = self._sessions.from_access_pass(found, policy, one_time_seconds=ONE_TIME_SECONDS)
        await tx.insert(session)
        await self._audit(tx, "access_pass.sign_in", user.id, found)
        return self._sessions.issue(session, user, policy)

    async def _why_not(
        self, tx: Transaction, policy: Policy, found: AccessPass | None, offered: bytes, now: int
    ) -> Reason | None:
        """At most five wrong tries per pass: the try is counted in the row before anything is compared."""
        same = hmac.compare_digest(offered, found.code_hash if found else bytes(32))
        alive = found is not None and found.attempts < ACCESS_PASS_ATTEMPTS
        counted = found.id if found is not None and alive and not same else ""
        await tx.update(AccessPass, {"id": counted}, {"attempts": Plus(1)})
        if found is None:
            return Reason.ACCESS_PASS_NONE
        if not alive:
            return Reason.ACCESS_PASS_ATTEMPTS
        return access_pass_refusal(policy, found, now=now) if same else Reason.ACCESS_PASS_WRONG

    async def _audit(self, tx: Transaction, action: str, actor: str, made: AccessPass) -> None:
        await self._world.audit(
            tx,
            action,
            actor=actor,
            tenant_id=made.tenant_id,
            subject=made.id,
            user_id=made.user_id,
            ends_at=str(access_pass_end(made)),
        )


def _may_see(caller: Caller, view: ViewedPass) -> bool:
    try:
        authorise(caller.user.role, Action.LIST_ACCESS_PASSES, target=view.user.role)
    except KeyvouchError:
        return False
    return True


def _refused() -> UnauthenticatedError:
    return UnauthenticatedError(
        Reason.ACCESS_PASS_REFUSED,
        "The user name and access pass do not open a session.",
        fix="Check both for typing mistakes, or ask your administrator for a new access pass.",
    )
