"""`keyvouch admin tenant` and `keyvouch admin user`."""

from __future__ import annotations

from keyvouch.v1 import administration_pb2, common_pb2
from keyvouch_client.commands.access_passes import code_lines
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.output import inert, table

__all__ = ["create_tenant", "create_user", "delete_user", "list_tenants", "list_users"]


async def create_tenant(run: Invocation) -> None:
    """Make a tenant; the pass of its first administrator is shown once."""
    arguments = run.arguments
    request = administration_pb2.CreateTenantRequest(name=arguments.name, administrator=arguments.administrator)
    async with run.session() as session:
        told = await session.call(session.connection.administration.CreateTenant, request)
    lines = (
        f"Tenant {inert(told.tenant.name)} is made, with {inert(told.administrator.username)} as its administrator.",
        *code_lines(run.output, told.access_pass, told.code),
    )
    run.output.show(document(told), *lines)


async def list_tenants(run: Invocation) -> None:
    """List the tenants the caller may see."""
    found: list[administration_pb2.Tenant] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListTenantsResponse:
            request = administration_pb2.ListTenantsRequest(page=page)
            return await session.call(session.connection.administration.ListTenants, request)

        async for page in pages(fetch):
            found += page.tenants
    rows = [(item.tenant_id, item.name, run.output.time(item.created_at)) for item in found]
    run.output.show({"tenants": [document(item) for item in found]}, table(("tenant", "name", "created"), rows))


async def create_user(run: Invocation) -> None:
    """Make a user."""
    arguments = run.arguments
    request = administration_pb2.CreateUserRequest(
        username=arguments.user,
        display_name=arguments.display_name,
        role=administration_pb2.Role.Value(f"ROLE_{arguments.role.upper()}"),
    )
    async with run.session() as session:
        told = await session.call(session.connection.administration.CreateUser, request)
    name = inert(told.user.username)
    run.output.show(
        document(told), f"User {name} is made. Next: `keyvouch admin pass create {name}` lets them register a device."
    )


async def list_users(run: Invocation) -> None:
    """List the users of the tenant."""
    found: list[administration_pb2.User] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListUsersResponse:
            request = administration_pb2.ListUsersRequest(page=page)
            return await session.call(session.connection.administration.ListUsers, request)

        async for page in pages(fetch):
            found += page.users
    rows = [
        (
            item.username,
            item.display_name,
            spoken(administration_pb2.Role.Name(item.role), "ROLE_"),
            item.device_count,
            run.output.time(item.created_at),
            item.user_id,
        )
        for item in found
    ]
    listing = table(("user", "name", "role", "devices", "created", "id"), rows)
    run.output.show({"users": [document(item) for item in found]}, listing)


async def delete_user(run: Invocation) -> None:
    """Remove a user with everything they had."""
    request = administration_pb2.DeleteUserRequest(username=run.arguments.user)
    async with run.session() as session:
        told = await session.call(session.connection.administration.DeleteUser, request)
    run.output.show(
        document(told),
        f"The user is removed; devices removed: {told.removed_devices}, sessions ended: {told.revoked_sessions}.",
    )
