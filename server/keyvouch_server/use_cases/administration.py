"""Administration: tenants, the way back for a locked-out administrator, the audit log.

Users, groups, policies, passes and devices have their own modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keyvouch.errors import ConflictError, KeyvouchError, PermissionDeniedError, Reason, RefusedError
from keyvouch.ids import TENANT, TenantId
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.evaluation import Subject, decide_method
from keyvouch_server.domain.model import PolicyVersion, ProviderKind, Role, SignInMethod, Tenant, User
from keyvouch_server.domain.names import check_name, name_key
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.prerequisites import Wish, decide_registration
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Above, Below, Duplicate, Snapshot, Transaction
from keyvouch_server.use_cases.access_passes import AccessPasses, CreatedPass, PassWish
from keyvouch_server.use_cases.directory import Directory
from keyvouch_server.use_cases.world import SERVER, Caller, World, settled, unknown_user


@dataclass(frozen=True, slots=True)
class FoundedTenant:
    """A new tenant, its first Global Administrator and the pass to start with."""

    tenant: Tenant
    administrator: User
    access_pass: CreatedPass


class Administration:
    """What administrators do."""

    def __init__(self, world: World, passes: AccessPasses, directory: Directory) -> None:
        self._world = world
        self._passes = passes
        self._directory = directory

    # -- tenants ----------------------------------------------------------------------------------

    async def found(self, name: str, administrator: str) -> FoundedTenant:
        """The first tenant, made at installation by whoever holds the server's files."""
        return settled(
            await self._world.store.write(lambda tx: self._found(tx, name, administrator, SERVER, home=True))
        )

    async def create_tenant(self, caller: Caller, name: str, administrator: str) -> FoundedTenant:
        """A further tenant, made by a Global Administrator of the home tenant."""
        authorise(caller.user, Action.CREATE_TENANT)

        async def work(tx: Transaction) -> FoundedTenant | KeyvouchError:
            await self._world.must_stand(tx, caller)
            await self._must_be_home(tx, caller)
            return await self._found(tx, name, administrator, caller.user.id, home=False)

        return settled(await self._world.store.write(work))

    async def recover(self, tenant_name: str, administrator: str, *, default_policy: bool = False) -> CreatedPass:
        """A new pass for an administrator who is locked out, made by whoever holds the server's files.

        With `default_policy` the tenant gets the default rules as a new version: they let administrators in again
        whom the present ones do not. Raises `RefusedError(POLICY_LOCKS_OUT)` where a pass would be of no use.
        """

        async def work(tx: Transaction) -> CreatedPass | KeyvouchError:
            user = await self._world.user_named(tx, tenant_name, administrator)
            if user is None or user.role is Role.USER:
                return unknown_user()
            policy = await self._world.policy_of(tx, user.tenant_id)
            if default_policy:
                policy = await self._default_policy(tx, user.tenant_id, policy.version + 1)
            no_use = _of_no_use(policy, user, await self._world.subject_of(tx, user))
            if no_use is not None:
                raise no_use
            return await self._passes.create_in(tx, user, policy, actor=SERVER, wish=PassWish(one_time=True))

        return settled(await self._world.store.write(work))

    async def _default_policy(self, tx: Transaction, tenant: TenantId, version: int) -> Policy:
        policy = Policy(version=version)
        await tx.insert(PolicyVersion(tenant, version, policy.document(), self._world.clock.now(), SERVER))
        await self._world.audit(tx, "policy.reset", actor=SERVER, tenant_id=tenant, subject=str(version))
        return policy

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
        user = await self._directory.create_in(
            tx, tenant.id, administrator, role=Role.GLOBAL_ADMINISTRATOR, actor=actor
        )
        return FoundedTenant(tenant, user, await self._passes.create_in(tx, user, policy, actor=actor))

    async def tenants(self, caller: Caller, *, after: str, limit: int) -> Sequence[Tenant]:
        """All tenants for the home tenant's Global Administrators, the own one for everybody else."""
        authorise(caller.user, Action.LIST_TENANTS)

        async def work(tx: Snapshot) -> list[Tenant]:
            own = await tx.get(Tenant, id=caller.user.tenant_id)
            if own is not None and own.home and caller.user.role is Role.GLOBAL_ADMINISTRATOR:
                return await tx.find(Tenant, {"id": Above(after)}, order="id", limit=limit)
            return [own] if own is not None and own.id > after else []

        return await self._world.store.read(work)

    # -- audit ------------------------------------------------------------------------------------

    async def audit_records(self, caller: Caller, username: str, *, before: int, limit: int) -> Sequence[AuditRecord]:
        """A page of the tenant's audit log, newest first."""
        authorise(caller.user, Action.READ_AUDIT)

        async def work(tx: Snapshot) -> list[AuditRecord]:
            where: dict[str, object] = {"tenant_id": caller.user.tenant_id}
            if before:
                where["sequence"] = Below(before)
            if username:
                user = await self._world.user_called(tx, caller.user.tenant_id, username)
                if user is None:
                    raise unknown_user()
                where["user_id"] = user.id
            return await tx.find(AuditRecord, where, order="sequence", descending=True, limit=limit)

        return await self._world.store.read(work)


def _of_no_use(policy: Policy, user: User, subject: Subject) -> RefusedError | None:
    """Why somebody could not sign in with a pass, or could not register anything to sign in with afterwards."""
    try:
        decide_method(policy, SignInMethod.ACCESS_PASS, subject, Verdicts())
        decide_registration(policy, subject, Wish(ProviderKind.FIDO2, 0, ""))
    except RefusedError as refusal:
        return RefusedError(
            Reason.POLICY_LOCKS_OUT,
            f"A pass would be of no use to {user.username}. {refusal.message}",
            fix="No pass was made. Recover another administrator, or save the default policy with it: "
            "`keyvouch-server recover --default-policy`.",
            metadata={"cause": refusal.reason.value},
        )
    return None
