"""A registration step by step, so that tests can come between its calls."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.proofs import spki_of
from keyvouch.statement import RegistrationStatement
from keyvouch.v1 import common_pb2, enrolment_pb2
from keyvouch_bench.device import SoftKey, completion
from keyvouch_client.errors import answer
from support.live_server import LIMIT, LiveServer, Metadata


@dataclass(slots=True)
class BegunRegistration:
    """A registration between its two calls; `answer` is what the device will send."""

    begun: enrolment_pb2.BeginRegistrationResponse
    channel_key: ec.EllipticCurvePrivateKey
    credential: SoftKey
    answer: enrolment_pb2.CompleteRegistrationRequest

    @property
    def device_id(self) -> str:
        """The id the server has drawn for the device."""
        return RegistrationStatement.parse(self.begun.statement).device_id

    @property
    def metadata(self) -> Metadata:
        """Metadata that carries the registration token."""
        return (("authorization", f"Registration {self.begun.registration_token}"),)


async def begin(
    live: LiveServer, session: Metadata, *, name: str = "laptop", provider: int = common_pb2.PROVIDER_KIND_UNSPECIFIED
) -> BegunRegistration:
    """BeginRegistration with fresh keys."""
    channel_key = ec.generate_private_key(ec.SECP256R1())
    request = enrolment_pb2.BeginRegistrationRequest(
        channel_public_key=spki_of(channel_key.public_key()),
        display_name=name,
        provider=provider,  # type: ignore[arg-type]
    )
    begun = await answer(live.enrolment.BeginRegistration(request, metadata=session, timeout=LIMIT))
    credential = SoftKey(begun.rp_id, begun.user_handle)
    return BegunRegistration(begun, channel_key, credential, completion(begun.statement, credential, channel_key))


async def complete(
    live: LiveServer, begun: BegunRegistration, given: enrolment_pb2.CompleteRegistrationRequest | None = None
) -> enrolment_pb2.CompleteRegistrationResponse:
    """CompleteRegistration with the device's answer, or with another one."""
    call = live.enrolment.CompleteRegistration(given or begun.answer, metadata=begun.metadata, timeout=LIMIT)
    return await answer(call)
