"""AdministrationService, over the use cases of tenants, the directory, passes, devices, health and policies."""

from __future__ import annotations

from typing import Any

from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import administration_pb2_grpc as rpc
from keyvouch_server.relay import Relay
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.cursors import Cursors
from keyvouch_server.rpc.interceptors import caller_of
from keyvouch_server.rpc.pass_messages import access_pass, old_sessions, pass_wish
from keyvouch_server.rpc.policy_messages import policy_from, policy_message
from keyvouch_server.use_cases.access_passes import AccessPasses
from keyvouch_server.use_cases.administration import Administration
from keyvouch_server.use_cases.devices import Devices
from keyvouch_server.use_cases.directory import Directory
from keyvouch_server.use_cases.directory_views import UserView
from keyvouch_server.use_cases.health import HealthReports
from keyvouch_server.use_cases.policies import Policies


class AdministrationServicer(rpc.AdministrationServiceServicer):
    """Serves keyvouch.v1.AdministrationService."""

    def __init__(
        self,
        administration: Administration,
        directory: Directory,
        passes: AccessPasses,
        devices: Devices,
        health: HealthReports,
        policies: Policies,
        relay: Relay,
        cursors: Cursors,
    ) -> None:
        self._administration = administration
        self._directory = directory
        self._passes = passes
        self._devices = devices
        self._health = health
        self._policies = policies
        self._relay = relay
        self._cursors = cursors

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Any) -> pb.CreateTenantResponse:
        """See administration.proto."""
        made = await self._administration.create_tenant(caller_of(), request.name, request.administrator)
        return pb.CreateTenantResponse(
            tenant=convert.tenant(made.tenant),
            administrator=convert.user(UserView(made.administrator)),
            access_pass=access_pass(made.access_pass.viewed),
            code=made.access_pass.code,
        )

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Any) -> pb.ListTenantsResponse:
        """See administration.proto."""
        page = self._cursors.page(caller_of(), request)
        rows = await self._administration.tenants(caller_of(), after=page.after, limit=page.size)
        return pb.ListTenantsResponse(
            tenants=[convert.tenant(t) for t in rows], next_token=page.next_token(rows, lambda t: t.id)
        )

    async def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> pb.CreateUserResponse:
        """See administration.proto."""
        view = await self._directory.create(
            caller_of(),
            request.username,
            request.display_name,
            convert.role(request.role),
            convert.user_kind(request.kind),
            request.aliases,
        )
        return pb.CreateUserResponse(user=convert.user(view))

    async def ListUsers(self, request: pb.ListUsersRequest, context: Any) -> pb.ListUsersResponse:
        """See administration.proto."""
        page = self._cursors.page(caller_of(), request)
        rows = await self._directory.users(caller_of(), after=page.after, limit=page.size)
        return pb.ListUsersResponse(
            users=[convert.user(v) for v in rows],
            next_token=page.next_token(rows, lambda v: v.user.id),
        )

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Any) -> pb.DeleteUserResponse:
        """See administration.proto."""
        devices, sessions = await self._directory.delete(caller_of(), request.username)
        return pb.DeleteUserResponse(removed_devices=devices, revoked_sessions=sessions)

    async def CreateAccessPass(self, request: pb.CreateAccessPassRequest, context: Any) -> pb.CreateAccessPassResponse:
        """See administration.proto."""
        made = await self._passes.create(caller_of(), request.username, pass_wish(request))
        return pb.CreateAccessPassResponse(access_pass=access_pass(made.viewed), code=made.code)

    async def ReplaceAccessPass(
        self, request: pb.ReplaceAccessPassRequest, context: Any
    ) -> pb.ReplaceAccessPassResponse:
        """See administration.proto."""
        sessions = old_sessions(request.sessions)
        made = await self._passes.replace(caller_of(), request.username, pass_wish(request), sessions)
        shown = access_pass(made.viewed)
        return pb.ReplaceAccessPassResponse(access_pass=shown, code=made.code, revoked_sessions=made.ended)

    async def ListAccessPasses(self, request: pb.ListAccessPassesRequest, context: Any) -> pb.ListAccessPassesResponse:
        """See administration.proto."""
        page = self._cursors.page(caller_of(), request)
        rows = await self._passes.list(caller_of(), request.username, after=page.after, limit=page.size)
        return pb.ListAccessPassesResponse(
            access_passes=[access_pass(v) for v in rows],
            next_token=page.next_token(rows, lambda v: v.found.id),
        )

    async def DeleteAccessPass(self, request: pb.DeleteAccessPassRequest, context: Any) -> pb.DeleteAccessPassResponse:
        """See administration.proto."""
        return pb.DeleteAccessPassResponse(revoked_sessions=await self._passes.delete(caller_of(), request.username))

    async def ListDevices(self, request: pb.ListDevicesRequest, context: Any) -> pb.ListDevicesResponse:
        """See administration.proto."""
        page = self._cursors.page(caller_of(), request)
        rows = await self._devices.of_tenant(caller_of(), request.username, after=page.after, limit=page.size)
        return pb.ListDevicesResponse(
            devices=[convert.device(v, connected=self._relay.is_connected(v.device.id)) for v in rows],
            next_token=page.next_token(rows, lambda v: v.device.id),
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
        return pb.GetPolicyResponse(policy=policy_message(await self._policies.present(caller_of())))

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: Any) -> pb.UpdatePolicyResponse:
        """See administration.proto."""
        saved = await self._policies.update(
            caller_of(), policy_from(request.policy), accept_lock_out=request.accept_lock_out
        )
        return pb.UpdatePolicyResponse(policy=policy_message(saved))

    async def ListAuditRecords(self, request: pb.ListAuditRecordsRequest, context: Any) -> pb.ListAuditRecordsResponse:
        """See administration.proto."""
        page = self._cursors.page(caller_of(), request)
        rows = await self._administration.audit_records(
            caller_of(), request.username, before=page.number, limit=page.size
        )
        return pb.ListAuditRecordsResponse(
            records=[convert.audit_record(r) for r in rows],
            next_token=page.next_token(rows, lambda r: r.sequence),
        )
