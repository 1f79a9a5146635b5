"""EnrolmentService, over `use_cases.registration` and `use_cases.tpm_preparation`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from keyvouch.attestation.tpm_registration import Certification
from keyvouch.v1 import enrolment_pb2 as pb
from keyvouch.v1 import enrolment_pb2_grpc as rpc
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.relay import Relay
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.interceptors import caller_of, token_of
from keyvouch_server.rpc.sign_in_messages import fate_from
from keyvouch_server.use_cases.devices import DeviceView
from keyvouch_server.use_cases.registration import ALGORITHMS, RegistrationRequest, Registrations
from keyvouch_server.use_cases.registration_completion import Departing, RegistrationAnswer
from keyvouch_server.use_cases.tpm_ceremony import BegunTpm
from keyvouch_server.use_cases.tpm_evidence import TpmAnswer
from keyvouch_server.use_cases.tpm_preparation import TpmPreparations, TpmRequest
from keyvouch_server.use_cases.world import ServerFacts

MOST_DEVICES: Final = 100
"""As many as a policy can allow one user."""


class EnrolmentServicer(rpc.EnrolmentServiceServicer):
    """Serves keyvouch.v1.EnrolmentService."""

    def __init__(
        self, registrations: Registrations, preparations: TpmPreparations, facts: ServerFacts, relay: Relay
    ) -> None:
        self._registrations = registrations
        self._preparations = preparations
        self._facts = facts
        self._relay = relay

    async def BeginRegistration(
        self, request: pb.BeginRegistrationRequest, context: Any
    ) -> pb.BeginRegistrationResponse:
        """See enrolment.proto."""
        wanted = RegistrationRequest(
            channel_key=request.channel_public_key,
            display_name=request.display_name,
            provider=convert.provider(request.provider),
            tpm_verifies=tuple(request.tpm.verifies) if request.HasField("tpm") else None,
        )
        begun = await self._registrations.begin(caller_of(), wanted)
        return pb.BeginRegistrationResponse(
            registration_id=begun.registration.id,
            registration_token=begun.token,
            statement=begun.registration.statement,
            rp_id=self._facts.rp_id,
            user_handle=begun.user.user_handle,
            username=begun.user.username,
            algorithms=[int(a) for a in ALGORITHMS],
            expires_at=begun.registration.expires_at,
            required_assurance=convert.requirement(begun.policy.registration.required_assurance),
            tpm=_offer(begun.tpm),
            present_devices=[convert.device(v, connected=self._relay.is_connected(v.device.id)) for v in begun.present],
            device_endpoint=self._facts.device_endpoint,
            devices_allowed=begun.policy.registration.devices_per_user,
        )

    async def PrepareTpm(self, request: pb.PrepareTpmRequest, context: Any) -> pb.PrepareTpmResponse:
        """See enrolment.proto."""
        shown = TpmRequest(
            endorsement_key=request.endorsement_key,
            endorsement_certificates=tuple(request.endorsement_certificates),
            attestation_key=request.attestation_key,
            pin_index=request.pin_index,
            session_nonce=request.session_nonce,
        )
        granted = await self._preparations.prepare(token_of(), shown)
        return pb.PrepareTpmResponse(
            credential_blob=granted.credential_blob,
            encrypted_secret=granted.encrypted_secret,
            sealed_certificate=granted.sealed_certificate,
            first_write=granted.first_write,
            pin_change=granted.pin_change,
            statement=granted.statement,
        )

    async def CompleteRegistration(
        self, request: pb.CompleteRegistrationRequest, context: Any
    ) -> pb.CompleteRegistrationResponse:
        """See enrolment.proto."""
        answer = RegistrationAnswer(
            client_data=request.client_data_json,
            attestation_object=request.attestation_object,
            channel_proof=request.channel_proof,
            tpm=_evidence(request.tpm) if request.HasField("tpm") else None,
            card=tuple(request.card.certificates) if request.HasField("card") else None,
            departing=_departing(request.departing),
        )
        done = await self._registrations.complete(token_of(), answer)
        view = DeviceView(done.device, done.credential, done.user, done.tenant, done.tpm)
        return pb.CompleteRegistrationResponse(
            device=convert.device(view, connected=False),
            certificate_chain=done.certificate_chain,
            device_endpoint=self._facts.device_endpoint,
            tenant_name=done.tenant.name,
            replaced_device_id=done.replaced_device_id,
            removed_device_ids=done.departed,
            revoked_sessions=done.revoked_sessions,
        )


def certification(message: pb.TpmAttestation) -> Certification:
    """What a TPM attested, from the wire."""
    return Certification(message.attest, message.signature)


def _departing(devices: Sequence[pb.DepartingDevice]) -> tuple[Departing, ...]:
    found = tuple(Departing(one.device_id, fate_from(one.fate, "departing.fate")) for one in devices)
    if len({one.device_id for one in found}) != len(found) or len(found) > MOST_DEVICES:
        raise invalid_field("departing", f"each device once, at most {MOST_DEVICES} of them")
    return found


def _offer(tpm: BegunTpm | None) -> pb.TpmOffer | None:
    return pb.TpmOffer(ceremony_key=bytes(tpm.ceremony_key), pin_limit=tpm.pin_limit) if tpm else None


def _evidence(message: pb.TpmEvidence) -> TpmAnswer:
    return TpmAnswer(
        activation=message.activation,
        pin_index=certification(message.pin_index),
        channel_key=message.channel_key,
        channel_certification=certification(message.channel_key_certification),
    )
