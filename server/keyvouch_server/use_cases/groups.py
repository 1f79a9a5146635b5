"""Groups of users, for policies to name. A group is found by id or name inside its tenant, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from keyvouch.errors import ConflictError, NotFoundError, Reason, RefusedError
from keyvouch.ids import GROUP, GroupId
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import GroupMember, User, UserGroup
from keyvouch_server.domain.names import check_name, check_text, is_group_id, name_key
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.policy_parts import Targets
from keyvouch_server.ports import Above, Duplicate, Snapshot, Transaction
from keyvouch_server.use_cases.directory_views import GroupView, UserView, group_views, views_of
from keyvouch_server.use_cases.world import Caller, World, limit_reached, unknown_user

MOST_GROUPS: Final = 1000
"""Groups of one tenant."""

MOST_MEMBERSHIPS: Final = 100
"""Groups of one user: they are read at each sign-in."""


class Groups:
    """Making, reading and deleting groups, and who is in them."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def create(self, caller: Caller, name: str, description: str) -> GroupView:
        """A new group. Raises GROUP_EXISTS, LIMIT_REACHED."""
        authorise(caller.user, Action.MANAGE_GROUPS)
        tenant = caller.user.tenant_id
        shown = check_name(name, "name")
        told = check_text(description, "description", longest=256, required=False)
        made = UserGroup(
            GroupId(self._world.new_id(GROUP)), tenant, shown, name_key(shown), told, self._world.clock.now()
        )

        async def work(tx: Transaction) -> GroupView:
            await self._world.must_stand(tx, caller)
            if await tx.count(UserGroup, {"tenant_id": tenant}) >= MOST_GROUPS:
                raise limit_reached(f"A tenant has at most {MOST_GROUPS} groups.", MOST_GROUPS)
            try:
                await tx.insert(made)
            except Duplicate:
                raise ConflictError(
                    Reason.GROUP_EXISTS, f"There is a group named {shown} already.", fix="Choose another name."
                ) from None
            await self._audit(tx, caller, "group.create", made, name=shown)
            return GroupView(made)

        return await self._world.store.write(work)

    async def groups(self, caller: Caller, *, after: str, limit: int) -> Sequence[GroupView]:
        """A page of the tenant's groups, in the order of their ids."""
        authorise(caller.user, Action.READ_GROUPS)

        async def work(tx: Snapshot) -> list[GroupView]:
            where = {"tenant_id": caller.user.tenant_id, "id": Above(after)}
            return await group_views(tx, await tx.find(UserGroup, where, order="id", limit=limit))

        return await self._world.store.read(work)

    async def delete(self, caller: Caller, which: str) -> None:
        """Remove a group that the present policy does not name. Raises GROUP_IN_USE."""
        authorise(caller.user, Action.MANAGE_GROUPS)

        async def work(tx: Transaction) -> None:
            await self._world.must_stand(tx, caller)
            group = await self._called(tx, caller, which)
            policy = await self._world.policy_of(tx, group.tenant_id)
            used = [part for part, targets in _targets(policy) if group.id in _groups_of(targets)]
            if used:
                raise RefusedError(
                    Reason.GROUP_IN_USE,
                    f"The policy names {group.name}: {', '.join(used)}.",
                    fix="Take the group out of the policy first.",
                    metadata={"settings": ", ".join(used)},
                )
            await tx.delete(UserGroup, {"id": group.id})  # memberships go with it
            await self._audit(tx, caller, "group.delete", group, name=group.name)

        await self._world.store.write(work)

    async def add(self, caller: Caller, which: str, who: str) -> None:
        """Make a user a member; nothing changes for one who is. Raises LIMIT_REACHED."""
        authorise(caller.user, Action.MANAGE_GROUPS)

        async def work(tx: Transaction) -> None:
            group, user = await self._both(tx, caller, which, who)
            if await tx.get(GroupMember, group_id=group.id, user_id=user.id):
                return
            if await tx.count(GroupMember, {"user_id": user.id}) >= MOST_MEMBERSHIPS:
                raise limit_reached(f"A user is in at most {MOST_MEMBERSHIPS} groups.", MOST_MEMBERSHIPS)
            await tx.insert(GroupMember(group.id, user.id, group.tenant_id))
            await self._audit(tx, caller, "group.add_member", group, user_id=user.id)

        await self._world.store.write(work)

    async def remove(self, caller: Caller, which: str, who: str) -> None:
        """Take a user out; nothing changes for one who is not in."""
        authorise(caller.user, Action.MANAGE_GROUPS)

        async def work(tx: Transaction) -> None:
            group, user = await self._both(tx, caller, which, who)
            if await tx.delete(GroupMember, {"group_id": group.id, "user_id": user.id}):
                await self._audit(tx, caller, "group.remove_member", group, user_id=user.id)

        await self._world.store.write(work)

    async def members(self, caller: Caller, which: str, *, after: str, limit: int) -> Sequence[UserView]:
        """A page of a group's members, in the order of their ids."""
        authorise(caller.user, Action.READ_GROUPS)

        async def work(tx: Snapshot) -> list[UserView]:
            group = await self._called(tx, caller, which)
            where = {"group_id": group.id, "user_id": Above(after)}
            rows = await tx.find(GroupMember, where, order="user_id", limit=limit)
            users = [await tx.get(User, id=row.user_id) for row in rows]
            return await views_of(tx, [user for user in users if user is not None])

        return await self._world.store.read(work)

    async def _called(self, tx: Snapshot, caller: Caller, which: str) -> UserGroup:
        """The group of the caller's tenant with this id or name. Raises GROUP_UNKNOWN."""
        tenant = caller.user.tenant_id
        key = {"id": which} if is_group_id(which) else {"name_key": name_key(which)}
        group = await tx.get(UserGroup, tenant_id=tenant, **key)
        if group is None:
            raise NotFoundError(
                Reason.GROUP_UNKNOWN, "There is no such group in this tenant.", fix="Look it up in the list of groups."
            )
        return group

    async def _both(self, tx: Transaction, caller: Caller, which: str, who: str) -> tuple[UserGroup, User]:
        await self._world.must_stand(tx, caller)
        group = await self._called(tx, caller, which)
        user = await self._world.user_called(tx, caller.user.tenant_id, who)
        return group, authorise(caller.user, Action.MANAGE_GROUPS, user, unknown=unknown_user())

    async def _audit(
        self, tx: Transaction, caller: Caller, action: str, group: UserGroup, *, user_id: str = "", **details: str
    ) -> None:
        await self._world.audit(
            tx,
            action,
            actor=caller.user.id,
            tenant_id=group.tenant_id,
            subject=group.id,
            user_id=user_id,
            **details,
        )


def _targets(policy: Policy) -> Iterator[tuple[str, Targets]]:
    yield "approval.targets", policy.approval.targets
    yield "access_pass.targets", policy.access_pass.targets
    yield "security_key.targets", policy.security_key.targets
    for campaign in policy.campaigns:
        yield f"campaigns.{campaign.name}.targets", campaign.targets


def _groups_of(targets: Targets) -> tuple[str, ...]:
    return targets.include_groups + targets.exclude_groups
