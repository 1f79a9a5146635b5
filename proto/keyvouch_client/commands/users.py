"""`keyvouch admin user`: the people of a tenant, their names, their roles."""

from __future__ import annotations

from keyvouch.v1 import administration_pb2, common_pb2, directory_pb2
from keyvouch_client.commands.asking import confirm
from keyvouch_client.commands.devices import device_table
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.output import Output, details, inert, table

__all__ = ["add_alias", "create", "delete", "list_users", "remove_alias", "show", "update", "user_table"]


async def create(run: Invocation) -> None:
    """Make a user."""
    arguments = run.arguments
    request = administration_pb2.CreateUserRequest(
        username=arguments.user,
        display_name=arguments.display_name,
        role=_role(arguments.role),
        kind=common_pb2.USER_KIND_GUEST if arguments.guest else common_pb2.USER_KIND_MEMBER,
        aliases=arguments.alias,
    )
    async with run.session() as session:
        told = await session.call(session.connection.administration.CreateUser, request)
    name = inert(told.user.username)
    following = (
        "A guest cannot use an access pass: to register a first device they have to be a member meanwhile "
        f"(`keyvouch admin user update {name} --member`)."
        if told.user.kind == common_pb2.USER_KIND_GUEST
        else f"Next: `keyvouch admin pass create {name}` lets them register a device."
    )
    run.output.show(document(told), f"User {name} is made. {following}")


def _role(word: str) -> administration_pb2.Role.ValueType:
    return administration_pb2.Role.Value(f"ROLE_{word.upper()}")


async def show(run: Invocation) -> None:
    """Show one user, with groups and devices."""
    found: list[common_pb2.Device] = []
    async with run.session() as session:
        request = directory_pb2.GetUserRequest(user=run.arguments.user)
        told = await session.call(session.connection.directory.GetUser, request)

        async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListDevicesResponse:
            asked = administration_pb2.ListDevicesRequest(username=told.user.username, page=page)
            return await session.call(session.connection.administration.ListDevices, asked)

        async for page in pages(fetch):
            found += page.devices
    lines = [_user_details(run.output, told.user, [group.name for group in told.groups])]
    lines += ["", device_table(run.output, found)] if found else ["", "No device is registered."]
    if told.user.flagged:
        see = f"`keyvouch admin risk list {inert(told.user.username)}`"
        lines += ["", f"They said of a sign-in that it was not them: {see}."]
    run.output.show(document(told) | {"devices": [document(device) for device in found]}, *lines)


def _user_details(output: Output, user: administration_pb2.User, groups: list[str]) -> str:
    return details(
        ("user", user.username),
        ("name", user.display_name),
        ("also", ", ".join(user.aliases)),
        ("role", _spoken_role(user)),
        ("kind", _spoken_kind(user)),
        ("groups", ", ".join(groups)),
        ("created", output.time(user.created_at)),
        ("flagged", "yes" if user.flagged else "no"),
        ("id", user.user_id),
    )


def _spoken_role(user: administration_pb2.User) -> str:
    return spoken(administration_pb2.Role.Name(user.role), "ROLE_")


def _spoken_kind(user: administration_pb2.User) -> str:
    return spoken(common_pb2.UserKind.Name(user.kind), "USER_KIND_")


async def update(run: Invocation) -> None:
    """Change what is named of a user."""
    arguments = run.arguments
    request = directory_pb2.UpdateUserRequest(user=arguments.user)
    if arguments.name is not None:
        request.username = arguments.name
    if arguments.display_name is not None:
        request.display_name = arguments.display_name
    if arguments.role is not None:
        request.role = _role(arguments.role)
    if arguments.kind is not None:
        request.kind = common_pb2.UserKind.Value(f"USER_KIND_{arguments.kind.upper()}")
    async with run.session() as session:
        told = await session.call(session.connection.directory.UpdateUser, request)
    lines = [f"User {inert(told.user.username)} is changed."]
    if arguments.name is not None:
        lines.append(f"Login name: {inert(told.user.username)}. The id stays, and so do devices and sessions.")
    if arguments.role is not None:
        lines.append(
            f"Role: {_spoken_role(told.user)}. Sessions ended: {told.revoked_sessions}; they sign in again to use it."
        )
    run.output.show(document(told), *lines)


async def add_alias(run: Invocation) -> None:
    """Give a user another login name."""
    request = directory_pb2.AddAliasRequest(user=run.arguments.user, alias=run.arguments.alias)
    async with run.session() as session:
        told = await session.call(session.connection.directory.AddAlias, request)
    run.output.show(document(told), _names(told.user))


async def remove_alias(run: Invocation) -> None:
    """Take a login name away."""
    request = directory_pb2.RemoveAliasRequest(user=run.arguments.user, alias=run.arguments.alias)
    async with run.session() as session:
        told = await session.call(session.connection.directory.RemoveAlias, request)
    run.output.show(document(told), _names(told.user))


def _names(user: administration_pb2.User) -> str:
    names = ", ".join(inert(name) for name in (user.username, *user.aliases))
    return f"{inert(user.username)} signs in as: {names}."


def user_table(users: list[administration_pb2.User]) -> str:
    """Users for people."""
    rows = [
        (
            "!" if user.flagged else " ",
            user.username,
            user.display_name,
            _spoken_role(user) + (", guest" if user.kind == common_pb2.USER_KIND_GUEST else ""),
            user.device_count,
            user.user_id,
        )
        for user in users
    ]
    titles = (" ", "user", "name", "role", "devices", "id")
    if any(user.flagged for user in users):
        return table(titles, rows) + "\n\n! said of a sign-in that it was not them: `keyvouch admin risk list --open`"
    return table(titles[1:], [row[1:] for row in rows])


async def list_users(run: Invocation) -> None:
    """List the users of the tenant."""
    found: list[administration_pb2.User] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListUsersResponse:
            request = administration_pb2.ListUsersRequest(page=page)
            return await session.call(session.connection.administration.ListUsers, request)

        async for page in pages(fetch):
            found += page.users
    run.output.show({"users": [document(item) for item in found]}, user_table(found))


async def delete(run: Invocation) -> None:
    """Remove a user with everything they had."""
    name = run.arguments.user
    await confirm(run, f"User {inert(name)} goes, with devices, passes and sessions; this cannot be undone.")
    request = administration_pb2.DeleteUserRequest(username=name)
    async with run.session() as session:
        told = await session.call(session.connection.administration.DeleteUser, request)
    run.output.show(
        document(told),
        f"The user is removed; devices removed: {told.removed_devices}, sessions ended: {told.revoked_sessions}.",
    )
