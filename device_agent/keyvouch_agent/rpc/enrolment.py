"""`EnrolmentServer` over gRPC: SignInWithAccessPass, BeginRegistration, CompleteRegistration."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import grpc

from keyvouch.ids import CredentialId, DeviceId
from keyvouch.v1 import common_pb2, enrolment_pb2, enrolment_pb2_grpc, sign_in_pb2, sign_in_pb2_grpc
from keyvouch_agent.agent_ports import AttestationEvidence, Registered, RegistrationOffer, RequiredAssurance, Secret
from keyvouch_agent.rpc.errors import error_of

__all__ = ["EnrolmentClient"]

_T = TypeVar("_T")
_SECONDS: Final = 20.0

_PROVIDERS: Final = {
    "software": common_pb2.PROVIDER_KIND_SOFTWARE,
    "tpm": common_pb2.PROVIDER_KIND_TPM,
    "fido2": common_pb2.PROVIDER_KIND_FIDO2,
    "smartcard": common_pb2.PROVIDER_KIND_SMARTCARD,
}


class EnrolmentClient:
    """Calls on the public listener. `endpoint` only words the errors. Each call has a deadline of 20 seconds."""

    def __init__(self, channel: grpc.aio.Channel, *, endpoint: str) -> None:
        self._channel = channel
        self._endpoint = endpoint
        self._sign_in: sign_in_pb2_grpc.SignInServiceAsyncStub = sign_in_pb2_grpc.SignInServiceStub(channel)
        self._enrolment: enrolment_pb2_grpc.EnrolmentServiceAsyncStub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)

    async def sign_in_with_access_pass(self, *, tenant: str, username: str, access_pass: Secret) -> Secret:
        """Open a session that may register a method; return its access token."""
        request = sign_in_pb2.SignInWithAccessPassRequest(
            tenant=tenant, username=username, access_pass=access_pass.reveal()
        )
        response = await self._answer(self._sign_in.SignInWithAccessPass(request, timeout=_SECONDS))
        return Secret(response.tokens.access_token)

    async def begin_registration(
        self, access_token: Secret, *, channel_public_key: bytes, display_name: str, provider: str
    ) -> RegistrationOffer:
        """Ask for a registration statement."""
        request = enrolment_pb2.BeginRegistrationRequest(
            channel_public_key=channel_public_key,
            display_name=display_name,
            provider=_PROVIDERS.get(provider, common_pb2.PROVIDER_KIND_UNSPECIFIED),
        )
        metadata = (("authorization", f"Bearer {access_token.reveal()}"),)
        return _offer(
            await self._answer(self._enrolment.BeginRegistration(request, timeout=_SECONDS, metadata=metadata))
        )

    async def complete_registration(self, registration_token: Secret, evidence: AttestationEvidence) -> Registered:
        """Hand in the evidence."""
        request = enrolment_pb2.CompleteRegistrationRequest(
            client_data_json=evidence.client_data_json,
            attestation_object=evidence.attestation_object,
            channel_proof=evidence.channel_proof,
        )
        metadata = (("authorization", f"Registration {registration_token.reveal()}"),)
        return _registered(
            await self._answer(self._enrolment.CompleteRegistration(request, timeout=_SECONDS, metadata=metadata))
        )

    async def close(self) -> None:
        """End the channel."""
        await self._channel.close()

    async def _answer(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure, endpoint=self._endpoint) from failure


def _word(name: str, prefix: str) -> str:
    """`VERIFICATION_HARDWARE_GATED` is `hardware_gated` in `keyvouch.assurance`; unspecified is empty."""
    word = name.removeprefix(prefix).lower()
    return "" if word == "unspecified" else word


def _offer(message: enrolment_pb2.BeginRegistrationResponse) -> RegistrationOffer:
    required = message.required_assurance
    return RegistrationOffer(
        registration_id=message.registration_id,
        registration_token=Secret(message.registration_token),
        statement=message.statement,
        rp_id=message.rp_id,
        user_handle=message.user_handle,
        username=message.username,
        algorithms=tuple(message.algorithms),
        expires_at=message.expires_at,
        required=RequiredAssurance(
            protection=_word(common_pb2.RequiredProtection.Name(required.protection), "REQUIRED_PROTECTION_"),
            verification=_word(common_pb2.Verification.Name(required.verification), "VERIFICATION_"),
            provenance=_word(common_pb2.Provenance.Name(required.provenance), "PROVENANCE_"),
        ),
    )


def _registered(message: enrolment_pb2.CompleteRegistrationResponse) -> Registered:
    return Registered(
        device_id=DeviceId(message.device.device_id),
        tenant_id=message.device.tenant_id,
        user_id=message.device.user_id,
        display_name=message.device.display_name,
        credential_id=CredentialId(message.device.credential_id),
        certificate_chain=tuple(message.certificate_chain),
        device_endpoint=message.device_endpoint,
        tenant_name=message.tenant_name,
    )
