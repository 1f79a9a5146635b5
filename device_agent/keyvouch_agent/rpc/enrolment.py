"""`EnrolmentServer` over gRPC: SignInWithAccessPass, BeginRegistration, PrepareTpm, CompleteRegistration."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import grpc

from keyvouch.errors import KeyvouchError, UnavailableError
from keyvouch.ids import CredentialId, DeviceId
from keyvouch.v1 import common_pb2, enrolment_pb2, enrolment_pb2_grpc, sign_in_pb2, sign_in_pb2_grpc
from keyvouch_agent.agent_ports import (
    AttestationEvidence,
    Departing,
    DeviceFate,
    PresentDevice,
    Registered,
    RegistrationOffer,
    RequiredAssurance,
    Secret,
    TpmOffer,
)
from keyvouch_agent.ports import TpmCertification, TpmEvidence, TpmGrant, TpmPreparation
from keyvouch_agent.rpc.channel import reach
from keyvouch_agent.rpc.errors import error_of
from keyvouch_client import Session

__all__ = ["EnrolmentClient", "tpm_attestation"]

_T = TypeVar("_T")
_SECONDS: Final = 20.0

_PROVIDERS: Final = {
    "software": common_pb2.PROVIDER_KIND_SOFTWARE,
    "tpm": common_pb2.PROVIDER_KIND_TPM,
    "fido2": common_pb2.PROVIDER_KIND_FIDO2,
    "smartcard": common_pb2.PROVIDER_KIND_SMARTCARD,
}

_FATES: Final = {fate: common_pb2.DeviceFate.Value(f"DEVICE_FATE_{fate.name}") for fate in DeviceFate}


class EnrolmentClient:
    """Calls on the public listener. `endpoint` only words the errors. Each call has a deadline of 20 seconds.

    With `session` a registration is begun in it, and `channel` is that of its connection.
    """

    def __init__(self, channel: grpc.aio.Channel, *, endpoint: str, session: Session | None = None) -> None:
        self._channel = channel
        self._endpoint = endpoint
        self._session = session
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
        self,
        access_token: Secret | None,
        *,
        channel_public_key: bytes,
        display_name: str,
        provider: str,
        verifies: tuple[int, ...] = (),
    ) -> RegistrationOffer:
        """Ask for a registration statement."""
        request = enrolment_pb2.BeginRegistrationRequest(
            channel_public_key=channel_public_key,
            display_name=display_name,
            provider=_PROVIDERS.get(provider, common_pb2.PROVIDER_KIND_UNSPECIFIED),
            tpm=enrolment_pb2.TpmAbilities(verifies=verifies) if verifies else None,
        )
        try:
            return _offer(await self._begin(access_token, request))
        except KeyvouchError as refusal:
            await _complete_prerequisites(refusal)
            raise

    async def _begin(
        self, access_token: Secret | None, request: enrolment_pb2.BeginRegistrationRequest
    ) -> enrolment_pb2.BeginRegistrationResponse:
        if self._session is not None:
            return await self._session.call(self._enrolment.BeginRegistration, request)
        assert access_token is not None
        metadata = (("authorization", f"Bearer {access_token.reveal()}"),)
        return await self._answer(self._enrolment.BeginRegistration(request, timeout=_SECONDS, metadata=metadata))

    async def reach_device_listener(self, endpoint: str) -> None:
        """Look whether the way is open by which prompts will come."""
        await reach(endpoint)

    async def prepare_tpm(self, registration_token: Secret, preparation: TpmPreparation) -> TpmGrant:
        """Show the TPM."""
        request = enrolment_pb2.PrepareTpmRequest(
            endorsement_key=preparation.endorsement_key,
            endorsement_certificates=preparation.endorsement_certificates,
            attestation_key=preparation.attestation_key,
            pin_index=preparation.pin_index,
            session_nonce=preparation.session_nonce,
        )
        metadata = (("authorization", f"Registration {registration_token.reveal()}"),)
        granted = await self._answer(self._enrolment.PrepareTpm(request, timeout=_SECONDS, metadata=metadata))
        return TpmGrant(
            credential_blob=granted.credential_blob,
            encrypted_secret=granted.encrypted_secret,
            sealed_certificate=granted.sealed_certificate,
            first_write=granted.first_write,
            pin_change=granted.pin_change,
            statement=granted.statement,
        )

    async def complete_registration(self, registration_token: Secret, evidence: AttestationEvidence) -> Registered:
        """Hand in the evidence."""
        request = enrolment_pb2.CompleteRegistrationRequest(
            client_data_json=evidence.client_data_json,
            attestation_object=evidence.attestation_object,
            channel_proof=evidence.channel_proof,
            tpm=_tpm_evidence(evidence.tpm) if evidence.tpm else None,
            card=enrolment_pb2.CardEvidence(certificates=evidence.certificates) if evidence.certificates else None,
            departing=[_departing(one) for one in evidence.departing],
        )
        metadata = (("authorization", f"Registration {registration_token.reveal()}"),)
        completing = self._enrolment.CompleteRegistration(request, timeout=_SECONDS, metadata=metadata)
        try:
            return _registered(await self._answer(completing))
        except KeyvouchError as refusal:
            await _complete_prerequisites(refusal)
            raise

    async def close(self) -> None:
        """End the channel."""
        await self._channel.close()

    async def _answer(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure, endpoint=self._endpoint) from failure


async def _complete_prerequisites(refusal: KeyvouchError) -> None:
    """PS11: put the state of the one that only the device can see into a refusal that names them all."""
    states = dict(one.split("=", 1) for one in refusal.metadata.get("prerequisites", "").split(",") if "=" in one)
    if not states.get("device_endpoint"):
        return
    try:
        await reach(states["device_endpoint"])
        states["device_endpoint"] = "ok"
    except UnavailableError as unreachable:
        states["device_endpoint"] = unreachable.reason.value
    refusal.metadata["prerequisites"] = ",".join(f"{name}={state}" for name, state in states.items())


def _departing(one: Departing) -> enrolment_pb2.DepartingDevice:
    return enrolment_pb2.DepartingDevice(device_id=one.device_id, fate=_FATES[one.fate])


def _present(device: common_pb2.Device) -> PresentDevice:
    kind = _word(common_pb2.ProviderKind.Name(device.provider), "PROVIDER_KIND_")
    return PresentDevice(device.device_id, device.display_name, kind, device.last_used_at)


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
        tpm=TpmOffer(message.tpm.ceremony_key, message.tpm.pin_limit) if message.HasField("tpm") else None,
        present=tuple(_present(device) for device in message.present_devices),
        device_endpoint=message.device_endpoint,
        devices_allowed=message.devices_allowed,
    )


def _tpm_evidence(evidence: TpmEvidence) -> enrolment_pb2.TpmEvidence:
    return enrolment_pb2.TpmEvidence(
        activation=evidence.activation,
        pin_index=tpm_attestation(evidence.pin_index),
        channel_key=evidence.channel_key,
        channel_key_certification=(
            tpm_attestation(evidence.channel_key_certification) if evidence.channel_key_certification else None
        ),
    )


def tpm_attestation(certification: TpmCertification) -> enrolment_pb2.TpmAttestation:
    """What a TPM attests, on the wire."""
    return enrolment_pb2.TpmAttestation(attest=certification.attest, signature=certification.signature)


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
        replaced_device_id=message.replaced_device_id,
        removed_device_ids=tuple(message.removed_device_ids),
        revoked_sessions=message.revoked_sessions,
    )
