"""`SessionServer` over gRPC: SameDeviceService on the device listener."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import grpc

from keyvouch.v1 import same_device_pb2, same_device_pb2_grpc
from keyvouch_agent.agent_ports import Answer, Secret
from keyvouch_agent.rpc.channel import EnrolledChannel
from keyvouch_agent.rpc.prompt_stream import answer_message
from keyvouch_agent.session_ports import AppRequest, BegunSignIn, OpenedSession

__all__ = ["SessionClient"]

_T = TypeVar("_T")
_SECONDS: Final = 20.0


class SessionClient:
    """Calls about this device's own sessions. Each has a deadline of 20 seconds."""

    def __init__(self, channel: EnrolledChannel) -> None:
        self._channel = channel
        self._stub: same_device_pb2_grpc.SameDeviceServiceAsyncStub = same_device_pb2_grpc.SameDeviceServiceStub(
            channel.channel
        )

    async def begin_sign_in(self, wanted: AppRequest) -> BegunSignIn:
        """Begin a sign-in of this device's user."""
        request = same_device_pb2.SameDeviceServiceBeginSignInRequest(
            app_id=wanted.app_id,
            app_name=wanted.app_name,
            audience=wanted.audience,
            binding_message=wanted.binding_message,
        )
        begun = await self._answer(self._stub.BeginSignIn(request, timeout=_SECONDS))
        return BegunSignIn(
            sign_in_id=begun.sign_in_id,
            token=Secret(begun.sign_in_token),
            prompt_id=begun.prompt_id,
            offer=begun.offer,
            expires_at=begun.expires_at,
            number=begun.number,
        )

    async def complete_sign_in(self, begun: BegunSignIn, answer: Answer) -> OpenedSession:
        """Hand in an approval."""
        request = same_device_pb2.CompleteSignInRequest(
            sign_in_id=begun.sign_in_id, sign_in_token=begun.token.reveal(), answer=answer_message(answer)
        )
        done = await self._answer(self._stub.CompleteSignIn(request, timeout=_SECONDS))
        return OpenedSession(
            session_id=done.tokens.session_id,
            access_token=Secret(done.tokens.access_token),
            access_expires_at=done.tokens.access_expires_at,
            refresh_token=Secret(done.tokens.refresh_token),
            session_expires_at=done.tokens.session_expires_at,
            acr=done.session.acr,
        )

    async def close(self) -> None:
        """End the channel."""
        await self._channel.close()

    async def _answer(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise self._channel.error_of(failure) from failure
