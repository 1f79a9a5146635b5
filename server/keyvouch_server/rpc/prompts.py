"""PromptService: the device listener, over `use_cases.decisions`, `devices`, `health` and `key_replacement`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, assert_never

from keyvouch.errors import MalformedError, Reason, UnavailableError
from keyvouch.v1 import prompts_pb2 as pb
from keyvouch.v1 import prompts_pb2_grpc as rpc
from keyvouch_server import __version__
from keyvouch_server.domain.model import Device
from keyvouch_server.relay import (
    DeviceEvent,
    DeviceRemoved,
    FellBehind,
    HealthJudged,
    Mailbox,
    OutcomeReady,
    PromptArrived,
    PromptWithdrawn,
    Relay,
    ServerStopping,
    StreamClosed,
)
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.enrolment import certification
from keyvouch_server.rpc.interceptors import device_of
from keyvouch_server.use_cases.decisions import Answered, Decisions
from keyvouch_server.use_cases.devices import Devices, removed
from keyvouch_server.use_cases.health import HealthQuestion, HealthReport, HealthReports, HealthVerdict
from keyvouch_server.use_cases.judgement import Answer, Assertion
from keyvouch_server.use_cases.key_replacement import KeyReplacements, ReplacementAnswer
from keyvouch_server.use_cases.registration import ALGORITHMS
from keyvouch_server.use_cases.world import World

HELLO_SECONDS: Final = 10
"""How long a device may take to say hello on a new stream."""


class PromptServicer(rpc.PromptServiceServicer):
    """Serves keyvouch.v1.PromptService."""

    def __init__(
        self,
        world: World,
        decisions: Decisions,
        devices: Devices,
        health: HealthReports,
        replacements: KeyReplacements,
        relay: Relay,
    ) -> None:
        self._world = world
        self._decisions = decisions
        self._devices = devices
        self._health = health
        self._replacements = replacements
        self._relay = relay

    async def StreamPrompts(
        self, request_iterator: AsyncIterator[pb.StreamPromptsRequest], context: Any
    ) -> AsyncIterator[pb.StreamPromptsResponse]:
        """See prompts.proto. Subscribes before it reads the rows, so no prompt falls between."""
        device = device_of()
        await _hello(request_iterator)
        with self._relay.device(device.id) as mailbox:
            await self._devices.view(device.id)  # it may have been removed while it was saying hello
            question = await self._health.question(device)
            yield pb.StreamPromptsResponse(welcome=_welcome(self._world.clock.now(), question))
            for prompt, asked in await self._decisions.open_prompts(device.id):
                mailbox.put(PromptArrived(prompt, asked))  # which knows what has come since
            reader = asyncio.create_task(self._read(device, question, request_iterator, mailbox))
            try:
                while not isinstance(event := await mailbox.take(), StreamClosed):
                    yield _message(event)
                await reader
            finally:
                reader.cancel()

    async def _read(
        self,
        device: Device,
        question: HealthQuestion | None,
        requests: AsyncIterator[pb.StreamPromptsRequest],
        mailbox: Mailbox,
    ) -> None:
        try:
            async for request in requests:
                match request.WhichOneof("event"):
                    case "answer":
                        answered = await self._decisions.answer(device, answer_of(request.answer))
                        mailbox.put(OutcomeReady(request.answer.prompt_id, answered))
                    case "health" if question is not None:
                        verdict = await self._health.report(device, question, _report(request.health))
                        mailbox.put(HealthJudged(verdict))
                    case _:
                        raise _unexpected()
        finally:
            mailbox.put(StreamClosed())

    async def GetDevice(self, request: pb.GetDeviceRequest, context: Any) -> pb.GetDeviceResponse:
        """See prompts.proto."""
        view = await self._devices.view(device_of().id)
        return pb.GetDeviceResponse(
            device=convert.device(view, connected=self._relay.is_connected(view.device.id)),
            tenant_name=view.tenant.name,
            username=view.user.username,
        )

    async def RenewCertificate(self, request: pb.RenewCertificateRequest, context: Any) -> pb.RenewCertificateResponse:
        """See prompts.proto."""
        return pb.RenewCertificateResponse(certificate_chain=await self._devices.renew(device_of()))

    async def BeginKeyReplacement(
        self, request: pb.BeginKeyReplacementRequest, context: Any
    ) -> pb.BeginKeyReplacementResponse:
        """See prompts.proto."""
        begun = await self._replacements.begin(device_of())
        return pb.BeginKeyReplacementResponse(
            registration_id=begun.replacement.id,
            statement=begun.replacement.statement,
            rp_id=self._world.facts.rp_id,
            user_handle=begun.user.user_handle,
            username=begun.user.username,
            algorithms=[int(a) for a in ALGORITHMS],
            expires_at=begun.replacement.expires_at,
            attestation_certificate=begun.replacement.certificate,
        )

    async def CompleteKeyReplacement(
        self, request: pb.CompleteKeyReplacementRequest, context: Any
    ) -> pb.CompleteKeyReplacementResponse:
        """See prompts.proto."""
        device = device_of()
        answer = ReplacementAnswer(
            request.client_data_json, request.attestation_object, certification(request.pin_index)
        )
        await self._replacements.complete(device, request.registration_id, answer)
        view = await self._devices.view(device.id)
        connected = self._relay.is_connected(device.id)
        return pb.CompleteKeyReplacementResponse(device=convert.device(view, connected=connected))

    async def Unregister(self, request: pb.UnregisterRequest, context: Any) -> pb.UnregisterResponse:
        """See prompts.proto."""
        return pb.UnregisterResponse(revoked_sessions=await self._devices.unregister(device_of()))


async def _hello(requests: AsyncIterator[pb.StreamPromptsRequest]) -> None:
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            first = await anext(requests)
    except (TimeoutError, StopAsyncIteration):
        first = pb.StreamPromptsRequest()
    if first.WhichOneof("event") != "hello":
        raise MalformedError(Reason.MISSING_FIELD, "A device says hello first.", fix="Update the agent.")


def _unexpected() -> MalformedError:
    return MalformedError(
        Reason.FIELD_INVALID,
        "After its hello, a device sends answers, and its health where it was asked for.",
        fix="Update the agent.",
    )


def _welcome(now: int, question: HealthQuestion | None) -> pb.Welcome:
    welcome = pb.Welcome(server_version=__version__, server_time=now)
    if question is not None:
        welcome.health_nonce = question.nonce
        welcome.health_pcrs.extend(question.pcrs)
    return welcome


def _report(report: pb.HealthReport) -> HealthReport:
    return HealthReport(
        quote=certification(report.quote),
        pcr_values=dict(report.pcr_values),
        event_log=report.event_log,
        trouble=report.trouble,
    )


def answer_of(answer: pb.Answer) -> Answer:
    """A decision as it came; nothing of it is looked at here."""
    if answer.WhichOneof("evidence") != "assertion":
        return Answer(answer.prompt_id, answer.statement, answer.channel_signature)
    return Answer(answer.prompt_id, answer.statement, assertion_of(answer.assertion))


def assertion_of(a: pb.AssertionEvidence) -> Assertion:
    """An assertion as it came."""
    return Assertion(a.credential_id, a.client_data_json, a.authenticator_data, a.signature, a.user_handle)


def _message(event: DeviceEvent) -> pb.StreamPromptsResponse:
    """What an event looks like on the wire; two of them end the stream."""
    match event:
        case PromptArrived(prompt, asked):
            shown = pb.Prompt(
                prompt_id=prompt.id,
                offer=prompt.offer,
                expires_at=prompt.expires_at,
                number_digits=asked.digits,
                number_choices=asked.choices,
            )
            return pb.StreamPromptsResponse(prompt=shown)
        case PromptWithdrawn(prompt_id, state):
            return pb.StreamPromptsResponse(withdrawn=pb.Withdrawn(prompt_id=prompt_id, state=convert.state(state)))
        case OutcomeReady(prompt_id, answered):
            return pb.StreamPromptsResponse(outcome=_outcome(prompt_id, answered))
        case HealthJudged(verdict):
            return pb.StreamPromptsResponse(health=_verdict(verdict))
        case DeviceRemoved():
            raise removed()
        case ServerStopping():
            raise UnavailableError(
                Reason.SERVER_UNREACHABLE, "The server is stopping.", fix="Connect again; nothing is lost."
            )
        case FellBehind() | StreamClosed():
            raise UnavailableError(
                Reason.STORE_UNAVAILABLE, "The stream fell behind.", fix="Connect again; nothing is lost."
            )
        case _:
            assert_never(event)


def _verdict(verdict: HealthVerdict) -> pb.HealthVerdict:
    return pb.HealthVerdict(
        state=convert.health(verdict.state),
        findings=verdict.findings,
        assurance=convert.assurance(verdict.assurance),
    )


def _outcome(prompt_id: str, answered: Answered) -> pb.Outcome:
    refusal = answered.refusal
    return pb.Outcome(
        prompt_id=prompt_id,
        accepted=refusal is None,
        state=convert.state(answered.state),
        reason=refusal.reason.value if refusal else "",
        message=str(refusal) if refusal else "",
    )
