"""SessionService and SecurityInfoService: a person's own sessions, methods and devices."""

from __future__ import annotations

from typing import Any

from keyvouch.v1 import security_info_pb2 as info
from keyvouch.v1 import security_info_pb2_grpc as info_rpc
from keyvouch.v1 import sessions_pb2 as pb
from keyvouch.v1 import sessions_pb2_grpc as rpc
from keyvouch_server.keyring import Keyring
from keyvouch_server.relay import Relay
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.interceptors import caller_of
from keyvouch_server.use_cases.devices import Devices
from keyvouch_server.use_cases.sessions import Sessions
from keyvouch_server.use_cases.world import ServerFacts


class SessionServicer(rpc.SessionServiceServicer):
    """Serves keyvouch.v1.SessionService."""

    def __init__(self, sessions: Sessions, keyring: Keyring, facts: ServerFacts) -> None:
        self._sessions = sessions
        self._keyring = keyring
        self._facts = facts

    async def RefreshSession(self, request: pb.RefreshSessionRequest, context: Any) -> pb.RefreshSessionResponse:
        """See sessions.proto."""
        issued = await self._sessions.refresh(request.refresh_token, request.proof)
        return pb.RefreshSessionResponse(tokens=convert.tokens(issued))

    async def IntrospectSession(
        self, request: pb.IntrospectSessionRequest, context: Any
    ) -> pb.IntrospectSessionResponse:
        """See sessions.proto."""
        caller = caller_of()
        return pb.IntrospectSessionResponse(
            session=convert.session(caller.session, caller.user), role=caller.user.role.value
        )

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        """See sessions.proto."""
        caller = caller_of()
        after, size = convert.page(request.page)
        rows = await self._sessions.sessions_of(caller.user.id, after=after, limit=size)
        return pb.ListSessionsResponse(
            sessions=[convert.session(row, caller.user) for row in rows],
            next_token=rows[-1].id if len(rows) == size else "",
        )

    async def RevokeSession(self, request: pb.RevokeSessionRequest, context: Any) -> pb.RevokeSessionResponse:
        """See sessions.proto."""
        await self._sessions.revoke(caller_of(), request.session_id)
        return pb.RevokeSessionResponse()

    async def GetJwks(self, request: pb.GetJwksRequest, context: Any) -> pb.GetJwksResponse:
        """See sessions.proto."""
        return pb.GetJwksResponse(jwks=self._keyring.jwks, server_id=self._facts.server_id, issuer=self._facts.issuer)


class SecurityInfoServicer(info_rpc.SecurityInfoServiceServicer):
    """Serves keyvouch.v1.SecurityInfoService."""

    def __init__(self, devices: Devices, relay: Relay) -> None:
        self._devices = devices
        self._relay = relay

    async def GetSecurityInfo(self, request: info.GetSecurityInfoRequest, context: Any) -> info.GetSecurityInfoResponse:
        """See security_info.proto."""
        caller = caller_of()
        views = await self._devices.of_user(caller.user.id)
        return info.GetSecurityInfoResponse(
            user_id=caller.user.id,
            username=caller.user.username,
            tenant_name=await self._devices.tenant_name(caller),
            devices=[convert.device(v, connected=self._relay.is_connected(v.device.id)) for v in views],
            warnings=_warnings(len(views)),
        )

    async def RemoveDevice(self, request: info.RemoveDeviceRequest, context: Any) -> info.RemoveDeviceResponse:
        """See security_info.proto."""
        ended = await self._devices.remove_own(caller_of(), request.device_id)
        return info.RemoveDeviceResponse(revoked_sessions=ended)


def _warnings(devices: int) -> list[str]:
    if devices == 0:
        return ["No device can approve your sign-ins yet. Enrol one before your access pass ends."]
    if devices == 1:
        return ["You have one device. If it is lost, only an administrator can help you: enrol a second one."]
    return []
