"""Temporary Access Passes: issued, replaced, listed and deleted by administrators.

Not here: how they are spent (`access_pass_sign_in`), and why one cannot be used (`domain.access_pass`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from keyvouch.errors import ConflictError, KeyvouchError, NotFoundError, Reason
from keyvouch.ids import ACCESS_PASS, AccessPassId
from keyvouch_server.domain.access_pass import (
    access_pass_end,
    access_pass_refusal,
    as_typed,
    draw_code,
    lifetime_of,
    start_of,
)
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import AccessPass, User
from keyvouch_server.domain.policy import Policy
from keyvouch_server.ports import Above, Keys, Snapshot, Transaction
from keyvouch_server.use_cases.sessions import Ended, Sessions
from keyvouch_server.use_cases.world import Caller, World, settled, unknown_user


class OldSessions(StrEnum):
    """What becomes of a user's sessions when their pass is replaced (KI11)."""

    KEEP = "keep"
    """They stay, but for those that the old pass opened (T8)."""
    REVOKE = "revoke"


@dataclass(frozen=True, slots=True)
class PassWish:
    """What a pass is to be. Nothing said: from now on, for as long as policy says, for any device.

    `binding` is as in `AccessPass`.
    """

    start_at: int = 0
    lifetime_minutes: int = 0
    one_time: bool = False
    binding: str = ""


@dataclass(frozen=True, slots=True)
class ViewedPass:
    """A pass with its owner and the reason it cannot be used, None when it can (T7)."""

    found: AccessPass
    user: User
    refusal: Reason | None


@dataclass(frozen=True, slots=True)
class CreatedPass:
    """A new pass with its code, which exists nowhere else. `ended` counts the sessions that went with an older one."""

    viewed: ViewedPass
    code: str = field(repr=False)
    ended: int = 0


class AccessPasses:
    """What administrators do with passes."""

    def __init__(self, world: World, sessions: Sessions) -> None:
        self._world = world
        self._sessions = sessions

    async def create(self, caller: Caller, username: str, wish: PassWish) -> CreatedPass:
        """T6, T12: make the user's pass. A valid one must be deleted first, any other is overwritten."""

        async def work(tx: Transaction) -> CreatedPass | KeyvouchError:
            user = await self._target(tx, caller, username, Action.CREATE_ACCESS_PASS)
            policy = await self._world.policy_of(tx, user.tenant_id)
            if await usable_pass(tx, self._world, user, policy) is not None:
                return _exists(user)
            return await self.create_in(tx, user, policy, actor=caller.user.id, wish=wish)

        return settled(await self._world.store.write(work))

    async def create_in(
        self, tx: Transaction, user: User, policy: Policy, *, actor: str, wish: PassWish | None = None
    ) -> CreatedPass:
        """The same inside another ceremony's transaction. Sessions stay, but for those the old pass opened (T8)."""
        wish = wish or PassWish()
        code, made = self._draw(user, policy, wish)
        ended, replaced = 0, {}
        for old in await tx.delete(AccessPass, {"user_id": user.id}):
            ended += await self._end_sessions_of(tx, old, actor=actor)
            replaced = {"replaced": old.id}
        action = "access_pass.create"
        return await self._insert(tx, user, policy, made, code, action, actor=actor, ended=ended, **replaced)

    async def replace(self, caller: Caller, username: str, wish: PassWish, sessions: OldSessions) -> CreatedPass:
        """T12, KI11: a new pass in the place of the user's pass, valid or not, in one step.

        Raises `NotFoundError(ACCESS_PASS_NONE)` where there is nothing to replace.
        """

        async def work(tx: Transaction) -> tuple[CreatedPass, Ended] | KeyvouchError:
            user, actor = await self._target(tx, caller, username, Action.REPLACE_ACCESS_PASS), caller.user.id
            policy = await self._world.policy_of(tx, user.tenant_id)
            code, made = self._draw(user, policy, wish)
            gone = await tx.delete(AccessPass, {"user_id": user.id})
            if not gone:
                return _none(user, "Create one.")
            if sessions is OldSessions.KEEP:
                ended = Ended(await self._end_sessions_of(tx, gone[0], actor=actor))
            else:
                ended = await self._end_all_sessions(tx, user, actor=actor)
            action, replaced = "access_pass.replace", {"replaced": gone[0].id, "sessions": sessions.value}
            count = ended.sessions
            created = await self._insert(tx, user, policy, made, code, action, actor=actor, ended=count, **replaced)
            return created, ended

        def tell(done: tuple[CreatedPass, Ended] | KeyvouchError) -> None:
            if not isinstance(done, KeyvouchError):
                self._sessions.tell(done[1])

        return settled(await self._world.write_and_tell(work, tell))[0]

    def _draw(self, user: User, policy: Policy, wish: PassWish) -> tuple[str, AccessPass]:
        """T3, T6: a code, and the pass that it opens. Raises FIELD_INVALID for what policy does not allow."""
        now = self._world.clock.now()
        code = draw_code(policy.access_pass.length, self._world.entropy.token)
        return code, AccessPass(
            id=AccessPassId(self._world.new_id(ACCESS_PASS)),
            tenant_id=user.tenant_id,
            user_id=user.id,
            code_hash=code_hash(self._world.keys, user.id, code),
            created_at=now,
            start_at=start_of(wish.start_at, now=now),
            lifetime_minutes=lifetime_of(policy, wish.lifetime_minutes),
            one_time=wish.one_time or policy.access_pass.one_time_required,
            binding=wish.binding,
        )

    async def _insert(
        self,
        tx: Transaction,
        user: User,
        policy: Policy,
        made: AccessPass,
        code: str,
        action: str,
        *,
        actor: str,
        ended: int,
        **details: str,
    ) -> CreatedPass:
        await tx.insert(made)
        details |= {"binding": made.binding} if made.binding else {}
        await self._audit(tx, action, actor, made, ended_sessions=str(ended), **details)
        return CreatedPass(await self._view(tx, user, policy, made), code, ended)

    async def list(self, caller: Caller, username: str, *, after: str, limit: int) -> Sequence[ViewedPass]:
        """T5, T7: passes of one user, or of everybody whose passes the caller may see; never the codes."""
        authorise(caller.user, Action.LIST_ACCESS_PASSES)

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
            for row in rows:
                user = await tx.get(User, id=row.user_id)
                if user is not None and _may_see(caller, user):
                    views.append(await self._view(tx, user, policy, row))
            after = rows[-1].id
            if len(views) >= limit or len(rows) < limit:
                break
        return views[:limit]

    async def _view(self, tx: Snapshot, user: User, policy: Policy, row: AccessPass) -> ViewedPass:
        subject = await self._world.subject_of(tx, user)
        return ViewedPass(row, user, access_pass_refusal(policy, row, subject, now=self._world.clock.now()))

    async def delete(self, caller: Caller, username: str) -> int:
        """T8, T11, T12: delete the user's pass and end what it opened; if it was valid, end all the user's sessions.

        Returns how many ended.
        """

        async def work(tx: Transaction) -> Ended | KeyvouchError:
            user = await self._target(tx, caller, username, Action.DELETE_ACCESS_PASS)
            policy = await self._world.policy_of(tx, user.tenant_id)
            valid = await usable_pass(tx, self._world, user, policy) is not None
            gone = await tx.delete(AccessPass, {"user_id": user.id})
            if not gone:
                return _none(user, "Nothing needs to be done.")
            if valid:
                ended = await self._end_all_sessions(tx, user, actor=caller.user.id)
            else:
                ended = Ended(await self._end_sessions_of(tx, gone[0], actor=caller.user.id))
            await self._audit(tx, "access_pass.delete", caller.user.id, gone[0], ended_sessions=str(ended.sessions))
            return ended

        def tell(done: Ended | KeyvouchError) -> None:
            if not isinstance(done, KeyvouchError):
                self._sessions.tell(done)

        return settled(await self._world.write_and_tell(work, tell)).sessions

    async def _end_sessions_of(self, tx: Transaction, gone: AccessPass, *, actor: str) -> int:
        """T8: no session outlives the pass that opened it."""
        live = await self._sessions.live_sessions(tx, user_id=gone.user_id, access_pass_id=gone.id)
        return await self._sessions.revoke_in(tx, live, reason="access_pass_deleted", actor=actor)

    async def _end_all_sessions(self, tx: Transaction, user: User, *, actor: str) -> Ended:
        return await self._sessions.end_all_in(tx, user.id, reason="access_pass_deleted", actor=actor)

    async def _target(self, tx: Snapshot, caller: Caller, username: str, action: Action) -> User:
        """The user the act is about; the caller's right is checked before existence is told."""
        await self._world.must_stand(tx, caller)
        user = await self._world.user_called(tx, caller.user.tenant_id, username)
        return authorise(caller.user, action, user, unknown=unknown_user())

    async def _audit(self, tx: Transaction, action: str, actor: str, made: AccessPass, **details: str) -> None:
        await self._world.audit(
            tx,
            action,
            actor=actor,
            tenant_id=made.tenant_id,
            subject=made.id,
            user_id=made.user_id,
            ends_at=str(access_pass_end(made)),
            **details,
        )


async def usable_pass(tx: Snapshot, world: World, user: User, policy: Policy) -> AccessPass | None:
    """T9: the pass that a user can sign in with now, or None."""
    found = await tx.get(AccessPass, user_id=user.id)
    if found is None:
        return None
    refusal = access_pass_refusal(policy, found, await world.subject_of(tx, user), now=world.clock.now())
    return found if refusal is None else None


def code_hash(keys: Keys, user: str, code: str) -> bytes:
    """The keyed hash of a code of a user's, the only form in which codes are stored (T6)."""
    return keys.mac("access-pass", f"{user}/{as_typed(code)}".encode())


def _may_see(caller: Caller, user: User) -> bool:
    try:
        authorise(caller.user, Action.LIST_ACCESS_PASSES, user)
    except KeyvouchError:
        return False
    return True


def _exists(user: User) -> ConflictError:
    return ConflictError(
        Reason.ACCESS_PASS_EXISTS,
        f"{user.username} has a valid access pass already.",
        fix="Delete it first, which also ends the user's sessions; or replace it and say what becomes of them.",
    )


def _none(user: User, fix: str) -> NotFoundError:
    return NotFoundError(Reason.ACCESS_PASS_NONE, f"{user.username} has no access pass.", fix=fix)
