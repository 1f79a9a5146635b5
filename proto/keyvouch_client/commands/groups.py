"""`keyvouch admin group`: groups of users. What a group may do stands in the policy."""

from __future__ import annotations

from keyvouch.v1 import administration_pb2, common_pb2, directory_pb2
from keyvouch_client.commands.asking import confirm
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document
from keyvouch_client.commands.output import inert, table
from keyvouch_client.commands.users import user_table

__all__ = ["add", "create", "delete", "list_groups", "remove", "show"]


async def create(run: Invocation) -> None:
    """Make a group."""
    request = directory_pb2.CreateGroupRequest(name=run.arguments.group, description=run.arguments.description)
    async with run.session() as session:
        told = await session.call(session.connection.directory.CreateGroup, request)
    name = inert(told.group.name)
    run.output.show(document(told), f"Group {name} is made. Next: `keyvouch admin group add {name} USER ...`.")


async def list_groups(run: Invocation) -> None:
    """List the groups of the tenant."""
    found: list[directory_pb2.Group] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> directory_pb2.ListGroupsResponse:
            return await session.call(
                session.connection.directory.ListGroups, directory_pb2.ListGroupsRequest(page=page)
            )

        async for page in pages(fetch):
            found += page.groups
    rows = [
        (item.name, item.member_count, run.output.minute(item.created_at), item.group_id, item.description)
        for item in found
    ]
    listing = table(("group", "members", "created", "id", "description"), rows, fold=True)
    run.output.show({"groups": [document(item) for item in found]}, listing)


async def show(run: Invocation) -> None:
    """List the members of a group."""
    found: list[administration_pb2.User] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> directory_pb2.ListGroupMembersResponse:
            request = directory_pb2.ListGroupMembersRequest(group=run.arguments.group, page=page)
            return await session.call(session.connection.directory.ListGroupMembers, request)

        async for page in pages(fetch):
            found += page.users
    listing = user_table(found) if found else "The group has no members."
    run.output.show({"users": [document(item) for item in found]}, listing)


async def add(run: Invocation) -> None:
    """Make users members, one after the other: what was done before a refusal stays done."""
    group = run.arguments.group
    async with run.session() as session:
        for user in run.arguments.users:
            request = directory_pb2.AddGroupMemberRequest(group=group, user=user)
            await session.call(session.connection.directory.AddGroupMember, request)
            run.output.note(f"{inert(user)} is a member.")
    run.output.show({"group": group, "added": run.arguments.users}, f"Added to {inert(group)}.")


async def remove(run: Invocation) -> None:
    """Take users out, one after the other."""
    group = run.arguments.group
    async with run.session() as session:
        for user in run.arguments.users:
            request = directory_pb2.RemoveGroupMemberRequest(group=group, user=user)
            await session.call(session.connection.directory.RemoveGroupMember, request)
            run.output.note(f"{inert(user)} is no member any more.")
    run.output.show({"group": group, "removed": run.arguments.users}, f"Removed from {inert(group)}.")


async def delete(run: Invocation) -> None:
    """Remove a group. Policies that name it keep it from going."""
    group = run.arguments.group
    await confirm(run, f"Group {inert(group)} goes; its members stay users.")
    async with run.session() as session:
        request = directory_pb2.DeleteGroupRequest(group=group)
        told = await session.call(session.connection.directory.DeleteGroup, request)
    run.output.show(document(told) | {"deleted": group}, "The group is removed.")
