"""`keyvouch admin tenant`."""

from __future__ import annotations

from keyvouch.v1 import administration_pb2, common_pb2
from keyvouch_client.commands.access_passes import code_lines
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document
from keyvouch_client.commands.output import inert, table

__all__ = ["create_tenant", "list_tenants"]


async def create_tenant(run: Invocation) -> None:
    """Make a tenant; the pass of its first administrator is shown once."""
    arguments = run.arguments
    request = administration_pb2.CreateTenantRequest(name=arguments.name, administrator=arguments.administrator)
    async with run.session() as session:
        told = await session.call(session.connection.administration.CreateTenant, request)
    lines = (
        f"Tenant {inert(told.tenant.name)} is made, with {inert(told.administrator.username)} as its administrator.",
        *code_lines(run, told.access_pass, told.code, told.tenant.name),
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
