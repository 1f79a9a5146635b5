"""`DeviceServer` and `ReplacementServer` over gRPC: the device listener's unary calls."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import grpc

from keyvouch.ids import CredentialId
from keyvouch.v1 import common_pb2, prompts_pb2, prompts_pb2_grpc
from keyvouch_agent.agent_ports import ReplacementEvidence, ReplacementOffer
from keyvouch_agent.rpc.channel import EnrolledChannel
from keyvouch_agent.rpc.enrolment import tpm_attestation

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
        return (await self._device()).display_name

    async def registered_key(self) -> CredentialId:
        """The key this device is registered with."""
        return CredentialId((await self._device()).credential_id)

    async def begin_key_replacement(self) -> ReplacementOffer:
        """Ask for a statement."""
        call = self._stub.BeginKeyReplacement(prompts_pb2.BeginKeyReplacementRequest(), timeout=_SECONDS)
        begun = await self._answer(call)
        return ReplacementOffer(
            registration_id=begun.registration_id,
            statement=begun.statement,
            rp_id=begun.rp_id,
            user_handle=begun.user_handle,
            username=begun.username,
            algorithms=tuple(begun.algorithms),
            certificate=begun.attestation_certificate,
        )

    async def complete_key_replacement(self, evidence: ReplacementEvidence) -> CredentialId:
        """Hand in the evidence; returns the device's key from now on."""
        request = prompts_pb2.CompleteKeyReplacementRequest(
            registration_id=evidence.registration_id,
            client_data_json=evidence.client_data_json,
            attestation_object=evidence.attestation_object,
            pin_index=tpm_attestation(evidence.pin_index),
        )
        done = await self._answer(self._stub.CompleteKeyReplacement(request, timeout=_SECONDS))
        return CredentialId(done.device.credential_id)

    async def close(self) -> None:
        """End the channel."""
        await self._channel.close()

    async def _device(self) -> common_pb2.Device:
        call = self._stub.GetDevice(prompts_pb2.GetDeviceRequest(), timeout=_SECONDS)
        return (await self._answer(call)).device

    async def _answer(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise self._channel.error_of(failure) from failure
