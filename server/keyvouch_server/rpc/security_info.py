"""SecurityInfoService: a person's own methods and devices, over `use_cases.security_info` and `use_cases.devices`."""

from __future__ import annotations

from typing import Any

from keyvouch.v1 import security_info_pb2 as pb
from keyvouch.v1 import security_info_pb2_grpc as rpc
from keyvouch_server.domain.model import SignInMethod
from keyvouch_server.relay import Relay
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.interceptors import caller_of
from keyvouch_server.rpc.sign_in_messages import (
    campaign_message,
    fate_from,
    method_from,
    method_message,
    rule_message,
)
from keyvouch_server.use_cases.devices import Devices
from keyvouch_server.use_cases.receipts import Receipts
from keyvouch_server.use_cases.security_info import MethodState, SecurityInfo
from keyvouch_server.use_cases.sessions import Sessions


class SecurityInfoServicer(rpc.SecurityInfoServiceServicer):
    """Serves keyvouch.v1.SecurityInfoService."""

    def __init__(
        self, info: SecurityInfo, devices: Devices, sessions: Sessions, receipts: Receipts, relay: Relay
    ) -> None:
        self._info = info
        self._devices = devices
        self._sessions = sessions
        self._receipts = receipts
        self._relay = relay

    async def GetSecurityInfo(self, request: pb.GetSecurityInfoRequest, context: Any) -> pb.GetSecurityInfoResponse:
        """See security_info.proto."""
        view = await self._info.view(caller_of())
        told = pb.GetSecurityInfoResponse(
            user_id=view.user.id,
            username=view.user.username,
            tenant_name=view.tenant_name,
            devices=[convert.device(v, connected=self._relay.is_connected(v.device.id)) for v in view.devices],
            warnings=view.warnings,
            methods=[_method_state(state) for state in view.methods],
            ask_lost_or_replaced=view.ask_lost_or_replaced,
            campaigns=[campaign_message(due) for due in view.campaigns],
        )
        if view.user.default_method:
            told.default_method = method_message(SignInMethod(view.user.default_method))
        return told

    async def RemoveDevice(self, request: pb.RemoveDeviceRequest, context: Any) -> pb.RemoveDeviceResponse:
        """See security_info.proto."""
        fate = fate_from(request.fate)
        ended = await self._devices.remove_own(caller_of(), request.device_id, fate)
        return pb.RemoveDeviceResponse(revoked_sessions=ended)

    async def RenameDevice(self, request: pb.RenameDeviceRequest, context: Any) -> pb.RenameDeviceResponse:
        """See security_info.proto."""
        view = await self._devices.rename_own(caller_of(), request.device_id, request.display_name)
        connected = self._relay.is_connected(view.device.id)
        return pb.RenameDeviceResponse(device=convert.device(view, connected=connected))

    async def SetDefaultMethod(self, request: pb.SetDefaultMethodRequest, context: Any) -> pb.SetDefaultMethodResponse:
        """See security_info.proto."""
        await self._info.set_default_method(caller_of(), method_from(request.method))
        return pb.SetDefaultMethodResponse()

    async def RevokeOtherSessions(
        self, request: pb.RevokeOtherSessionsRequest, context: Any
    ) -> pb.RevokeOtherSessionsResponse:
        """See security_info.proto."""
        return pb.RevokeOtherSessionsResponse(revoked_sessions=await self._sessions.revoke_others(caller_of()))

    async def GetOwnReceipt(self, request: pb.GetOwnReceiptRequest, context: Any) -> pb.GetOwnReceiptResponse:
        """See security_info.proto."""
        receipt = await self._receipts.receipt_of_session(caller_of(), request.session_id)
        return pb.GetOwnReceiptResponse(receipt=receipt)

    async def ExplainOwnSignIn(self, request: pb.ExplainOwnSignInRequest, context: Any) -> pb.ExplainOwnSignInResponse:
        """See security_info.proto."""
        verdicts, version = await self._info.explain(caller_of())
        return pb.ExplainOwnSignInResponse(rules=[rule_message(one) for one in verdicts], policy_version=version)


def _method_state(state: MethodState) -> pb.MethodState:
    refusal = state.refusal
    return pb.MethodState(
        method=method_message(state.method),
        usable=refusal is None,
        reason=refusal.reason.value if refusal else "",
        message=str(refusal) if refusal else "",
        last_used_at=state.last_used_at,
    )
