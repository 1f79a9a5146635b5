"""Users of a tenant, their roles and the names they sign in with.

A user's id never changes and is never used again; names do change. Every name is a `LoginName` under its canonical key,
so that however somebody is called it is one identity with one set of limits (P10). Not here: groups (`groups`), what
users register (`devices`, `access_passes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keyvouch.errors import NotFoundError, Reason, RefusedError
from keyvouch.ids import USER, TenantId, UserId
from keyvouch_server.domain.authorisation import Action, authorise, is_further
from keyvouch_server.domain.model import (
    AccessPass,
    Device,
    GroupMember,
    LoginName,
    Registration,
    Role,
    Session,
    SignIn,
    SignInState,
    User,
    UserGroup,
    UserKind,
)
from keyvouch_server.domain.names import check_name, check_text, invalid_field, name_key
from keyvouch_server.domain.oversight_model import Block
from keyvouch_server.ports import Above, Duplicate, Snapshot, Transaction
from keyvouch_server.use_cases.devices import Devices, RemovedDevice
from keyvouch_server.use_cases.directory_views import (
    MOST_ALIASES,
    GroupView,
    UserView,
    group_views,
    views_of,
)
from keyvouch_server.use_cases.login_names import insert_name, name_taken, rename
from keyvouch_server.use_cases.sessions import Ended, Sessions
from keyvouch_server.use_cases.world import Caller, World, limit_reached, unknown_user


@dataclass(frozen=True, slots=True)
class UserWish:
    """What a user is to be; None where it stays as it is."""

    username: str | None = None
    display_name: str | None = None
    role: Role | None = None
    kind: UserKind | None = None


@dataclass(frozen=True, slots=True)
class _DeletedUser:
    """What went with a user, for those who have to be told."""

    devices: list[RemovedDevice]
    sign_ins: list[SignIn]
    sessions: int


class Directory:
    """Making, reading, changing and deleting users."""

    def __init__(self, world: World, sessions: Sessions, devices: Devices) -> None:
        self._world = world
        self._sessions = sessions
        self._devices = devices

    # -- reading ------------------------------------------------------------------------------------

    async def users(self, caller: Caller, *, after: str, limit: int) -> Sequence[UserView]:
        """A page of the tenant's users, in the order of their ids."""
        authorise(caller.user, Action.READ_DIRECTORY)

        async def work(tx: Snapshot) -> list[UserView]:
            where = {"tenant_id": caller.user.tenant_id, "id": Above(after)}
            return await views_of(tx, await tx.find(User, where, order="id", limit=limit))

        return await self._world.store.read(work)

    async def user(self, caller: Caller, who: str) -> tuple[UserView, Sequence[GroupView]]:
        """A user with their groups."""

        async def work(tx: Snapshot) -> tuple[UserView, Sequence[GroupView]]:
            user = await self._target(tx, caller, who, Action.READ_DIRECTORY)
            members = await tx.find(GroupMember, {"user_id": user.id}, order="group_id")
            groups = [await tx.get(UserGroup, id=m.group_id) for m in members]
            return (await views_of(tx, [user]))[0], await group_views(tx, [g for g in groups if g is not None])

        return await self._world.store.read(work)

    # -- making and changing ------------------------------------------------------------------------

    async def create(
        self,
        caller: Caller,
        username: str,
        display_name: str,
        role: Role,
        kind: UserKind = UserKind.MEMBER,
        aliases: Sequence[str] = (),
    ) -> UserView:
        """A new user of the caller's tenant, with all their names or not at all."""
        authorise(caller.user, Action.CREATE_USER)
        if len(aliases) > MOST_ALIASES:
            raise invalid_field("aliases", f"at most {MOST_ALIASES} names")

        async def work(tx: Transaction) -> UserView:
            await self._world.must_stand(tx, caller)
            user = await self.create_in(
                tx,
                caller.user.tenant_id,
                username,
                display_name=display_name,
                role=role,
                kind=kind,
                actor=caller.user.id,
            )
            for alias in aliases:
                shown = check_name(alias, "aliases")
                await insert_name(tx, user, shown, alias=True)
                await self._audit(tx, "user.add_alias", caller.user.id, user, alias=shown)
            return (await views_of(tx, [user]))[0]

        return await self._world.store.write(work)

    async def create_in(
        self,
        tx: Transaction,
        tenant: TenantId,
        username: str,
        *,
        actor: str,
        role: Role,
        display_name: str = "",
        kind: UserKind = UserKind.MEMBER,
    ) -> User:
        """The same inside another ceremony's transaction. Raises USER_EXISTS, which undoes it."""
        shown = check_name(username, "username")
        user = User(
            id=UserId(self._world.new_id(USER)),
            tenant_id=tenant,
            username=shown,
            username_key=name_key(shown),
            display_name=check_text(display_name or shown, "display_name", longest=64),
            role=role,
            user_handle=self._world.entropy.token(32),
            created_at=self._world.clock.now(),
            kind=kind,
        )
        try:
            await tx.insert(user)
        except Duplicate:
            raise name_taken(shown) from None
        await insert_name(tx, user, shown, alias=False)
        await self._audit(tx, "user.create", actor, user, username=shown, role=role.value, kind=kind.value)
        return user

    async def update(self, caller: Caller, who: str, wish: UserWish) -> tuple[UserView, int]:
        """Change a user; returns them with how many of their sessions ended.

        P13: another role ends all of them, so that privileges come with a new token only. Nobody changes their own.
        P16: a pass goes too where somebody who could make it for the old role could not for the new one.
        """

        async def work(tx: Transaction) -> tuple[UserView, Ended]:
            await self._world.must_stand(tx, caller)
            before = await self._target(tx, caller, who, Action.UPDATE_USER)
            wanted = _wished(before, wish)
            if wanted.role is not before.role:
                authorise(caller.user, Action.CHANGE_ROLE, before)
                authorise(caller.user, Action.CHANGE_ROLE, wanted)
                await self._keep_an_administrator(tx, before)
            if wanted.username != before.username:
                await rename(tx, before, wanted)
            ended = Ended(0)
            if wanted != before:
                await self._change(tx, before, wanted, actor=caller.user.id)
            if wanted.role is not before.role:
                ended = await self._sessions.end_all_in(tx, before.id, reason="role_changed", actor=caller.user.id)
                await self._drop_pass(tx, before, wanted, actor=caller.user.id)
            return (await views_of(tx, [wanted]))[0], ended

        view, ended = await self._world.write_and_tell(work, lambda done: self._sessions.tell(done[1]))
        return view, ended.sessions

    async def _drop_pass(self, tx: Transaction, before: User, wanted: User, *, actor: str) -> None:
        """Whoever made it knows the code, and would be the user of a higher role by it."""
        if not is_further(Action.CREATE_ACCESS_PASS, before.role, wanted.role):
            return
        for gone in await tx.delete(AccessPass, {"user_id": before.id}):
            await self._world.audit(
                tx,
                "access_pass.delete",
                actor=actor,
                tenant_id=before.tenant_id,
                subject=gone.id,
                user_id=before.id,
                reason="role_changed",
            )

    async def _change(self, tx: Transaction, before: User, wanted: User, *, actor: str) -> None:
        names = ("username", "username_key", "display_name", "role", "kind")
        await tx.update(User, {"id": before.id}, {name: getattr(wanted, name) for name in names})
        told = {name: str(getattr(wanted, name)) for name in names if getattr(wanted, name) != getattr(before, name)}
        told.pop("username_key", None)
        if "role" in told:
            told["role_before"] = before.role.value
        if "username" in told:
            told["username_before"] = before.username
        await self._audit(tx, "user.update", actor, before, **told)

    async def _keep_an_administrator(self, tx: Snapshot, going: User) -> None:
        """The last Global Administrator of a tenant stays one. Raises LAST_ADMINISTRATOR."""
        if going.role is not Role.GLOBAL_ADMINISTRATOR:
            return
        if await tx.count(User, {"tenant_id": going.tenant_id, "role": Role.GLOBAL_ADMINISTRATOR}) < 2:
            raise RefusedError(
                Reason.LAST_ADMINISTRATOR,
                f"{going.username} is the last Global Administrator of the tenant.",
                fix="Make somebody else a Global Administrator first.",
            )

    # -- aliases ------------------------------------------------------------------------------------

    async def add_alias(self, caller: Caller, who: str, alias: str) -> UserView:
        """One more name to sign in with. Raises USER_EXISTS, LIMIT_REACHED."""

        async def work(tx: Transaction) -> UserView:
            await self._world.must_stand(tx, caller)
            user = await self._target(tx, caller, who, Action.MANAGE_ALIASES)
            shown = check_name(alias, "alias")
            if await tx.count(LoginName, {"user_id": user.id, "alias": True}) >= MOST_ALIASES:
                raise limit_reached(f"A user has at most {MOST_ALIASES} aliases.", MOST_ALIASES)
            await insert_name(tx, user, shown, alias=True)
            await self._audit(tx, "user.add_alias", caller.user.id, user, alias=shown)
            return (await views_of(tx, [user]))[0]

        return await self._world.store.write(work)

    async def remove_alias(self, caller: Caller, who: str, alias: str) -> UserView:
        """One name less. Raises ALIAS_UNKNOWN, also for the login name itself."""

        async def work(tx: Transaction) -> UserView:
            await self._world.must_stand(tx, caller)
            user = await self._target(tx, caller, who, Action.MANAGE_ALIASES)
            row = {"tenant_id": user.tenant_id, "name_key": name_key(alias), "user_id": user.id, "alias": True}
            gone = await tx.delete(LoginName, row)
            if not gone:
                raise NotFoundError(
                    Reason.ALIAS_UNKNOWN,
                    f"{user.username} has no such alias.",
                    fix="Look at the user's aliases. A login name can be changed, not removed.",
                )
            await self._audit(tx, "user.remove_alias", caller.user.id, user, alias=gone[0].name)
            return (await views_of(tx, [user]))[0]

        return await self._world.store.write(work)

    # -- deleting -----------------------------------------------------------------------------------

    async def delete(self, caller: Caller, who: str) -> tuple[int, int]:
        """Remove a user with everything that is theirs; returns how many devices and live sessions went.

        What the audit log and risk events say of the user stays.
        """

        async def work(tx: Transaction) -> _DeletedUser:
            await self._world.must_stand(tx, caller)
            user = await self._target(tx, caller, who, Action.DELETE_USER)
            await self._keep_an_administrator(tx, user)
            return await self._delete(tx, user, caller.user.id)

        def tell(gone: _DeletedUser) -> None:
            for device in gone.devices:
                self._devices.announce(device)
            for sign_in in gone.sign_ins:
                self._world.announcer.sign_in(sign_in, ())

        gone = await self._world.write_and_tell(work, tell)
        return len(gone.devices), gone.sessions

    async def _delete(self, tx: Transaction, user: User, actor: str) -> _DeletedUser:
        devices = [
            await self._devices.remove_in(tx, d, actor=actor) for d in await tx.find(Device, {"user_id": user.id})
        ]
        ended = sum(d.sessions for d in devices)
        live = await self._sessions.live_sessions(tx, user_id=user.id)
        ended += await self._sessions.revoke_in(tx, live, reason="user_deleted", actor=actor)
        waiting = {"user_id": user.id, "state": SignInState.PENDING}
        cancelled = await tx.update(SignIn, waiting, {"state": SignInState.CANCELLED})
        for s in cancelled:
            await self._world.audit(
                tx, "sign_in.cancel", actor=actor, tenant_id=s.tenant_id, subject=s.id, user_id=s.user_id
            )
        for table in (SignIn, Session, Registration, AccessPass, Block):
            await tx.delete(table, {"user_id": user.id})
        await tx.delete(User, {"id": user.id})  # names and memberships go with it
        await self._audit(tx, "user.delete", actor, user, username=user.username)  # nothing else tells it any more
        return _DeletedUser(devices, cancelled, ended)

    # -- what all have in common ----------------------------------------------------------------------

    async def _target(self, tx: Snapshot, caller: Caller, who: str, action: Action) -> User:
        found = await self._world.user_called(tx, caller.user.tenant_id, who)
        return authorise(caller.user, action, found, unknown=unknown_user())

    async def _audit(self, tx: Transaction, action: str, actor: str, user: User, **details: str) -> None:
        await self._world.audit(
            tx, action, actor=actor, tenant_id=user.tenant_id, subject=user.id, user_id=user.id, **details
        )


def _wished(before: User, wish: UserWish) -> User:
    """The user as it is to be. Raises FIELD_INVALID."""
    shown = before.username if wish.username is None else check_name(wish.username, "username")
    told = before.display_name if wish.display_name is None else wish.display_name or shown
    return replace(
        before,
        username=shown,
        username_key=name_key(shown),
        display_name=check_text(told, "display_name", longest=64),
        role=wish.role or before.role,
        kind=wish.kind or before.kind,
    )
