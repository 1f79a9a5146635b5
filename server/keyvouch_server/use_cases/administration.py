"""Administration: tenants, users, policy, audit. Passes and devices have their own modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keyvouch.errors import ConflictError, KeyvouchError, PermissionDeniedError, Reason
from keyvouch.ids import TENANT, USER, TenantId, UserId
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import (
    AccessPass,
    AuditRecord,
    Device,
    PolicyVersion,
    Registration,
    Role,
    Session,
    SignIn,
    SignInState,
    Tenant,
    User,
)
from keyvouch_server.domain.names import check_name, check_text, name_key
from keyvouch_server.domain.policy import Policy, check_policy
from keyvouch_server.ports import Above, Below, Duplicate, Snapshot, Transaction
from keyvouch_server.use_cases.access_passes import AccessPasses, CreatedPass
from keyvouch_server.use_cases.devices import Devices, RemovedDevice
from keyvouch_server.use_cases.lock_out import lock_out
from keyvouch_server.use_cases.sessions import Sessions
from keyvouch_server.use_cases.world import SERVER, Caller, World, settled, unknown_user


@dataclass(frozen=True, slots=True)
class FoundedTenant:
    """A new tenant, its first Global Administrator and the pass to start with."""

    tenant: Tenant
    administrator: User
    access_pass: CreatedPass


@dataclass(frozen=True, slots=True)
class _DeletedUser:
    """What went with a user, for those who have to be told."""

    devices: list[RemovedDevice]
    sign_ins: list[SignIn]
    sessions: int


@dataclass(frozen=True, slots=True)
class UserView:
    """A user and how many devices they have."""

    user: User
    devices: int


class Administration:
    """What administrators do."""

    def __init__(self, world: World, sessions: Sessions, passes: AccessPasses, devices: Devices) -> None:
        self._world = world
        self._sessions = sessions
        self._passes = passes
        self._devices = devices

    # -- tenants ----------------------------------------------------------------------------------

    async def found(self, name: str, administrator: str) -> FoundedTenant:
        """The first tenant, made at installation by whoever holds the server's files."""
        return settled(
            await self._world.store.write(lambda tx: self._found(tx, name, administrator, SERVER, home=True))
        )

    async def create_tenant(self, caller: Caller, name: str, administrator: str) -> FoundedTenant:
        """A further tenant, made by a Global Administrator of the home tenant."""
        authorise(caller.user.role, Action.CREATE_TENANT)

        async def work(tx: Transaction) -> FoundedTenant | KeyvouchError:
            await self._world.must_stand(tx, caller)
            await self._must_be_home(tx, caller)
            return await self._found(tx, name, administrator, caller.user.id, home=False)

        return settled(await self._world.store.write(work))

    async def recover(self, tenant_name: str, administrator: str) -> CreatedPass:
        """A new pass for an administrator who is locked out, made by whoever holds the server's files."""

        async def work(tx: Transaction) -> CreatedPass | KeyvouchError:
            user = await self._world.user_named(tx, tenant_name, administrator)
            if user is None or user.role is Role.USER:
                return unknown_user()
            policy = await self._world.policy_of(tx, user.tenant_id)
            return await self._passes.create_in(tx, user, policy, actor=SERVER, one_time=True)

        return settled(await self._world.store.write(work))

    async def _must_be_home(self, tx: Snapshot, caller: Caller) -> None:
        tenant = await tx.get(Tenant, id=caller.user.tenant_id)
        if tenant is None or not tenant.home:
            raise PermissionDeniedError(
                Reason.ROLE_REQUIRED,
                "Only administrators of the tenant made at installation may do this.",
                fix="Ask the people who run this server.",
            )

    async def _found(
        self, tx: Transaction, name: str, administrator: str, actor: str, *, home: bool
    ) -> FoundedTenant | KeyvouchError:
        now = self._world.clock.now()
        shown = check_name(name, "name")
        tenant = Tenant(TenantId(self._world.new_id(TENANT)), shown, name_key(shown), home, now)
        policy = Policy()
        try:
            await tx.insert(tenant)
        except Duplicate:
            return ConflictError(
                Reason.TENANT_EXISTS, f"There is a tenant named {shown} already.", fix="Choose another name."
            )
        await tx.insert(PolicyVersion(tenant.id, policy.version, policy.document(), now, actor))
        await self._world.audit(tx, "tenant.create", actor=actor, tenant_id=tenant.id, subject=tenant.id)
        user = await self._insert_user(tx, tenant.id, administrator, administrator, Role.GLOBAL_ADMINISTRATOR, actor)
        if isinstance(user, KeyvouchError):
            return user
        return FoundedTenant(tenant, user, await self._passes.create_in(tx, user, policy, actor=actor))

    async def tenants(self, caller: Caller, *, after: str, limit: int) -> Sequence[Tenant]:
        """All tenants for the home tenant's Global Administrators, the own one for everybody else."""
        authorise(caller.user.role, Action.LIST_TENANTS)

        async def work(tx: Snapshot) -> list[Tenant]:
            own = await tx.get(Tenant, id=caller.user.tenant_id)
            if own is not None and own.home and caller.user.role is Role.GLOBAL_ADMINISTRATOR:
                return await tx.find(Tenant, {"id": Above(after)}, order="id", limit=limit)
            return [own] if own is not None and own.id > after else []

        return await self._world.store.read(work)

    # -- users ------------------------------------------------------------------------------------

    async def create_user(self, caller: Caller, username: str, display_name: str, role: Role) -> User:
        """A new user of the caller's tenant."""
        authorise(caller.user.role, Action.CREATE_USER, target=role)
        tenant = caller.user.tenant_id

        async def work(tx: Transaction) -> User | KeyvouchError:
            await self._world.must_stand(tx, caller)
            return await self._insert_user(tx, tenant, username, display_name, role, caller.user.id)

        return settled(await self._world.store.write(work))

    async def _insert_user(
        self, tx: Transaction, tenant: TenantId, username: str, display_name: str, role: Role, actor: str
    ) -> User | KeyvouchError:
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
        )
        try:
            await tx.insert(user)
        except Duplicate:
            return ConflictError(
                Reason.USER_EXISTS, f"There is a user named {shown} already.", fix="Choose another name."
            )
        await self._world.audit(
            tx, "user.create", actor=actor, tenant_id=tenant, subject=user.id, user_id=user.id, role=role.value
        )
        return user

    async def users(self, caller: Caller, *, after: str, limit: int) -> Sequence[UserView]:
        """A page of the tenant's users."""
        authorise(caller.user.role, Action.READ_DIRECTORY)

        async def work(tx: Snapshot) -> list[UserView]:
            where = {"tenant_id": caller.user.tenant_id, "id": Above(after)}
            rows = await tx.find(User, where, order="id", limit=limit)
            return [UserView(u, await tx.count(Device, {"user_id": u.id})) for u in rows]

        return await self._world.store.read(work)

    async def delete_user(self, caller: Caller, username: str) -> tuple[int, int]:
        """Remove a user with devices, pass and sessions; returns how many devices and live sessions went."""

        async def work(tx: Transaction) -> _DeletedUser | KeyvouchError:
            await self._world.must_stand(tx, caller)
            user = await tx.get(User, tenant_id=caller.user.tenant_id, username_key=name_key(username))
            on_self = user is not None and user.id == caller.user.id
            authorise(caller.user.role, Action.DELETE_USER, target=user.role if user else Role.USER, on_self=on_self)
            return await self._delete_user(tx, user, caller.user.id) if user else unknown_user()

        gone = settled(await self._world.store.write(work))
        for device in gone.devices:
            self._devices.announce(device)
        for sign_in in gone.sign_ins:
            self._world.announcer.sign_in(sign_in, ())
        return len(gone.devices), gone.sessions

    async def _delete_user(self, tx: Transaction, user: User, actor: str) -> _DeletedUser:
        devices = [
            await self._devices.remove_in(tx, d, actor=actor) for d in await tx.find(Device, {"user_id": user.id})
        ]
        ended = sum(d.sessions for d in devices)
        live = await self._sessions.live_sessions(tx, user_id=user.id)
        ended += await self._sessions.revoke_in(tx, live, reason="user_deleted", actor=actor)
        waiting = {"user_id": user.id, "state": SignInState.PENDING}
        cancelled = await tx.update(SignIn, waiting, {"state": SignInState.CANCELLED})
        for table in (SignIn, Session, Registration, AccessPass):
            await tx.delete(table, {"user_id": user.id})
        await tx.delete(User, {"id": user.id})
        await self._world.audit(
            tx, "user.delete", actor=actor, tenant_id=user.tenant_id, subject=user.id, user_id=user.id
        )
        return _DeletedUser(devices, cancelled, ended)

    # -- policy and audit -------------------------------------------------------------------------

    async def policy(self, caller: Caller) -> Policy:
        """The present policy."""
        authorise(caller.user.role, Action.READ_POLICY)
        return await self._world.store.read(lambda tx: self._world.policy_of(tx, caller.user.tenant_id))

    async def update_policy(self, caller: Caller, wanted: Policy, *, accept_lock_out: bool = False) -> Policy:
        """T3, T4: save a new version over the one the caller has seen.

        Raises `RefusedError(POLICY_LOCKS_OUT)` where the caller could not sign in again, unless that is accepted.
        """
        authorise(caller.user.role, Action.CHANGE_POLICY)
        saved = replace(check_policy(wanted), version=wanted.version + 1)

        async def work(tx: Transaction) -> Policy | KeyvouchError:
            await self._world.must_stand(tx, caller)
            tenant, now = caller.user.tenant_id, self._world.clock.now()
            present = await self._world.policy_of(tx, tenant)
            if present.version != wanted.version:
                return ConflictError(
                    Reason.POLICY_CHANGED,
                    f"The policy is at version {present.version} now, not {wanted.version}.",
                    fix="Look at the present policy and make the change again.",
                    metadata={"version": str(present.version)},
                )
            refusal = await lock_out(tx, self._world, caller.session, present=present, wanted=saved)
            outcome = refusal.reason.value if refusal and not accept_lock_out else "ok"
            details = {"lock_out": "accepted"} if refusal and accept_lock_out else {}
            await self._world.audit(
                tx,
                "policy.update",
                actor=caller.user.id,
                tenant_id=tenant,
                subject=str(saved.version),
                outcome=outcome,
                **details,
            )
            if refusal and not accept_lock_out:
                return refusal
            await tx.insert(PolicyVersion(tenant, saved.version, saved.document(), now, caller.user.id))
            return saved

        return settled(await self._world.store.write(work))

    async def audit_records(self, caller: Caller, username: str, *, before: int, limit: int) -> Sequence[AuditRecord]:
        """A page of the tenant's audit log, newest first."""
        authorise(caller.user.role, Action.READ_AUDIT)

        async def work(tx: Snapshot) -> list[AuditRecord]:
            where: dict[str, object] = {"tenant_id": caller.user.tenant_id}
            if before:
                where["sequence"] = Below(before)
            if username:
                user = await tx.get(User, tenant_id=caller.user.tenant_id, username_key=name_key(username))
                if user is None:
                    raise unknown_user()
                where["user_id"] = user.id
            return await tx.find(AuditRecord, where, order="sequence", descending=True, limit=limit)

        return await self._world.store.read(work)
