"""`DeviceServer` over gRPC: the device listener's unary calls."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import grpc

from keyvouch.v1 import prompts_pb2, prompts_pb2_grpc
from keyvouch_agent.rpc.channel import EnrolledChannel

__all__ = ["DeviceClient"]

_T = TypeVar("_T")
_SECONDS: Final = 20.0


class DeviceClient:
    """Calls on the device listener. Each call has a deadline of 20 seconds."""

    def __init__(self, channel: EnrolledChannel) -> None:
        self._channel = channel
        self._stub: prompts_pb2_grpc.PromptServiceAsyncStub = prompts_pb2_grpc.PromptServiceStub(channel.channel)

    async def renew_certificate(self) -> tuple[bytes, ...]:
        """A new certificate chain for the channel key in use."""
        call = self._stub.RenewCertificate(prompts_pb2.RenewCertificateRequest(), timeout=_SECONDS)
        return tuple((await self._answer(call)).certificate_chain)

    async def unregister(self) -> int:
        """Remove this device; return how many sessions ended with it."""
        call = self._stub.Unregister(prompts_pb2.UnregisterRequest(), timeout=_SECONDS)
        return (await self._answer(call)).revoked_sessions

    async def display_name(self) -> str:
        """The device's name as the server knows it."""
        call = self._stub.GetDevice(prompts_pb2.GetDeviceRequest(), timeout=_SECONDS)
        return (await self._answer(call)).device.display_name

    async def close(self) -> None:
        """End the channel."""
        await self._channel.close()

    async def _answer(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise self._channel.error_of(failure) from failure
