"""AdministrationService, over `use_cases.administration`, `access_passes`, `devices` and `health`."""

from __future__ import annotations

from typing import Any

from keyvouch.errors import MalformedError
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import administration_pb2_grpc as rpc
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.relay import Relay
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.interceptors import caller_of
from keyvouch_server.use_cases.access_passes import AccessPasses
from keyvouch_server.use_cases.administration import Administration
from keyvouch_server.use_cases.devices import Devices
from keyvouch_server.use_cases.health import HealthReports


class AdministrationServicer(rpc.AdministrationServiceServicer):
    """Serves keyvouch.v1.AdministrationService."""

    def __init__(
        self,
        administration: Administration,
        passes: AccessPasses,
        devices: Devices,
        health: HealthReports,
        relay: Relay,
    ) -> None:
        self._administration = administration
        self._passes = passes
        self._devices = devices
        self._health = health
        self._relay = relay

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Any) -> pb.CreateTenantResponse:
        """See administration.proto."""
        made = await self._administration.create_tenant(caller_of(), request.name, request.administrator)
        return pb.CreateTenantResponse(
            tenant=convert.tenant(made.tenant),
            administrator=convert.user(made.administrator, 0),
            access_pass=convert.access_pass(made.access_pass.viewed),
            code=made.access_pass.code,
        )

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Any) -> pb.ListTenantsResponse:
        """See administration.proto."""
        after, size = convert.page(request.page)
        rows = await self._administration.tenants(caller_of(), after=after, limit=size)
        return pb.ListTenantsResponse(
            tenants=[convert.tenant(t) for t in rows], next_token=rows[-1].id if len(rows) == size else ""
        )

    async def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> pb.CreateUserResponse:
        """See administration.proto."""
        user = await self._administration.create_user(
            caller_of(), request.username, request.display_name, convert.role(request.role)
        )
        return pb.CreateUserResponse(user=convert.user(user, 0))

    async def ListUsers(self, request: pb.ListUsersRequest, context: Any) -> pb.ListUsersResponse:
        """See administration.proto."""
        after, size = convert.page(request.page)
        rows = await self._administration.users(caller_of(), after=after, limit=size)
        return pb.ListUsersResponse(
            users=[convert.user(v.user, v.devices) for v in rows],
            next_token=rows[-1].user.id if len(rows) == size else "",
        )

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Any) -> pb.DeleteUserResponse:
        """See administration.proto."""
        devices, sessions = await self._administration.delete_user(caller_of(), request.username)
        return pb.DeleteUserResponse(removed_devices=devices, revoked_sessions=sessions)

    async def CreateAccessPass(self, request: pb.CreateAccessPassRequest, context: Any) -> pb.CreateAccessPassResponse:
        """See administration.proto."""
        made = await self._passes.create(
            caller_of(),
            request.username,
            start_at=request.start_at,
            lifetime_minutes=request.lifetime_minutes,
            one_time=request.one_time,
        )
        return pb.CreateAccessPassResponse(access_pass=convert.access_pass(made.viewed), code=made.code)

    async def ListAccessPasses(self, request: pb.ListAccessPassesRequest, context: Any) -> pb.ListAccessPassesResponse:
        """See administration.proto."""
        after, size = convert.page(request.page)
        rows = await self._passes.list(caller_of(), request.username, after=after, limit=size)
        return pb.ListAccessPassesResponse(
            access_passes=[convert.access_pass(v) for v in rows],
            next_token=rows[-1].found.id if len(rows) == size else "",
        )

    async def DeleteAccessPass(self, request: pb.DeleteAccessPassRequest, context: Any) -> pb.DeleteAccessPassResponse:
        """See administration.proto."""
        return pb.DeleteAccessPassResponse(revoked_sessions=await self._passes.delete(caller_of(), request.username))

    async def ListDevices(self, request: pb.ListDevicesRequest, context: Any) -> pb.ListDevicesResponse:
        """See administration.proto."""
        after, size = convert.page(request.page)
        rows = await self._devices.of_tenant(caller_of(), request.username, after=after, limit=size)
        return pb.ListDevicesResponse(
            devices=[convert.device(v, connected=self._relay.is_connected(v.device.id)) for v in rows],
            next_token=rows[-1].device.id if len(rows) == size else "",
        )

    async def AdminRemoveDevice(
        self, request: pb.AdminRemoveDeviceRequest, context: Any
    ) -> pb.AdminRemoveDeviceResponse:
        """See administration.proto."""
        ended = await self._devices.remove_as_administrator(caller_of(), request.device_id)
        return pb.AdminRemoveDeviceResponse(revoked_sessions=ended)

    async def AcceptDeviceHealth(
        self, request: pb.AcceptDeviceHealthRequest, context: Any
    ) -> pb.AcceptDeviceHealthResponse:
        """See administration.proto."""
        accepted = await self._health.accept(caller_of(), request.device_id, request.reported_at)
        view = await self._devices.view(accepted.device_id)
        connected = self._relay.is_connected(accepted.device_id)
        return pb.AcceptDeviceHealthResponse(device=convert.device(view, connected=connected))

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:
        """See administration.proto."""
        return pb.GetPolicyResponse(policy=convert.policy(await self._administration.policy(caller_of())))

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: Any) -> pb.UpdatePolicyResponse:
        """See administration.proto."""
        saved = await self._administration.update_policy(
            caller_of(), convert.policy_from(request.policy), accept_lock_out=request.accept_lock_out
        )
        return pb.UpdatePolicyResponse(policy=convert.policy(saved))

    async def ListAuditRecords(self, request: pb.ListAuditRecordsRequest, context: Any) -> pb.ListAuditRecordsResponse:
        """See administration.proto."""
        token, size = convert.page(request.page)
        rows = await self._administration.audit_records(
            caller_of(), request.username, before=_sequence(token), limit=size
        )
        return pb.ListAuditRecordsResponse(
            records=[convert.audit_record(r) for r in rows],
            next_token=str(rows[-1].sequence) if len(rows) == size else "",
        )


def _sequence(token: str) -> int:
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):
        refused: MalformedError = invalid_field("page.token", "the next_token of the page before")
        raise refused
    return int(token) if token else 0
