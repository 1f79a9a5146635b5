"""SameDeviceService: sign-ins of the device itself, over `use_cases.same_device` and `use_cases.session_refresh`."""

from __future__ import annotations

from typing import Any

from keyvouch.v1 import same_device_pb2 as pb
from keyvouch.v1 import same_device_pb2_grpc as rpc
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.interceptors import certificate_of, device_of
from keyvouch_server.rpc.prompts import answer_of
from keyvouch_server.use_cases.offering import SignInRequest
from keyvouch_server.use_cases.same_device import BegunOnDevice, SameDeviceSignIns
from keyvouch_server.use_cases.session_refresh import SessionRefreshes


class SameDeviceServicer(rpc.SameDeviceServiceServicer):
    """Serves keyvouch.v1.SameDeviceService."""

    def __init__(self, sign_ins: SameDeviceSignIns, refreshes: SessionRefreshes) -> None:
        self._sign_ins = sign_ins
        self._refreshes = refreshes

    async def BeginSignIn(
        self, request: pb.SameDeviceServiceBeginSignInRequest, context: Any
    ) -> pb.SameDeviceServiceBeginSignInResponse:
        """See same_device.proto."""
        device = device_of()
        wanted = _request(request, device.channel_key, context.peer())
        return _begun(await self._sign_ins.begin(device, wanted, certificate_of()))

    async def CompleteSignIn(self, request: pb.CompleteSignInRequest, context: Any) -> pb.CompleteSignInResponse:
        """See same_device.proto."""
        done = await self._sign_ins.complete(
            device_of(), request.sign_in_id, request.sign_in_token, answer_of(request.answer), certificate_of()
        )
        if done.session is None:
            return pb.CompleteSignInResponse(state=convert.state(done.state))
        return pb.CompleteSignInResponse(
            state=convert.state(done.state),
            tokens=convert.tokens(done.session),
            session=convert.session(done.session.session, done.session.user),
        )

    async def RefreshSession(
        self, request: pb.SameDeviceServiceRefreshSessionRequest, context: Any
    ) -> pb.SameDeviceServiceRefreshSessionResponse:
        """See same_device.proto."""
        address, _ = convert.address_of(context.peer())
        issued = await self._refreshes.refresh_over_channel(
            request.refresh_token, device_of(), certificate_of(), address=address
        )
        return pb.SameDeviceServiceRefreshSessionResponse(tokens=convert.tokens(issued))


def _request(asked: pb.SameDeviceServiceBeginSignInRequest, channel_key: bytes, peer: str) -> SignInRequest:
    """Tenant and user are the device's own, so the request names none."""
    address, place = convert.address_of(peer)
    return SignInRequest(
        tenant="",
        username="",
        app_id=asked.app_id,
        app_name=asked.app_name,
        audience=asked.audience,
        binding_message=asked.binding_message,
        proof_key=channel_key,
        address=address,
        place=place,
    )


def _begun(begun: BegunOnDevice) -> pb.SameDeviceServiceBeginSignInResponse:
    return pb.SameDeviceServiceBeginSignInResponse(
        sign_in_id=begun.sign_in.id,
        sign_in_token=begun.token,
        prompt_id=begun.prompt.id,
        offer=begun.prompt.offer,
        expires_at=begun.sign_in.expires_at,
        number=begun.sign_in.number,
    )
