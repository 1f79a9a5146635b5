"""`PromptLink` over gRPC: one bidirectional stream per enrolment that comes back by itself.

    connecting ──welcome──► connected ──stream ends──► waiting ──back-off──► connecting
         └─ device_removed, certificate_required, the certificate has ended ─► a final state

Every try opens a fresh channel, so a renewed certificate is used at the next one. The back-off is reset by a
welcome, never by a mere connection. Not here: what a prompt means, and keeping answers (`device_link` sends those
without an outcome again after each welcome).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, assert_never

import grpc

from keyvouch.errors import KeyvouchError, MalformedError, Reason
from keyvouch.v1 import common_pb2, prompts_pb2, prompts_pb2_grpc
from keyvouch_agent.agent_ports import (
    Answer,
    EventHandler,
    HealthVerdict,
    LinkState,
    Outcome,
    Prompt,
    ServerEvent,
    SignInState,
    StateHandler,
    Welcome,
    Withdrawn,
)
from keyvouch_agent.backoff import Backoff
from keyvouch_agent.ports import HealthReport
from keyvouch_agent.rpc.channel import EnrolledChannel
from keyvouch_agent.rpc.enrolment import tpm_attestation

__all__ = ["PromptStream", "answer_message"]

_FIRST_MESSAGE_SECONDS: Final = 15.0
_LONGEST_REASON: Final = 400

_FINAL: Final = {
    Reason.DEVICE_REMOVED: LinkState.REMOVED,
    Reason.CERTIFICATE_REQUIRED: LinkState.CERTIFICATE_REFUSED,
}

_Stream = grpc.aio.StreamStreamCall[prompts_pb2.StreamPromptsRequest, prompts_pb2.StreamPromptsResponse]


class PromptStream:
    """Keeps the prompt stream of one device open.

    `open_channel` gives a fresh channel or raises a `KeyvouchError`, which ends the link; `on_event` gets every
    message in order; `on_state` every change, with a sentence. `sleep` waits out the back-off.
    """

    def __init__(
        self,
        *,
        open_channel: Callable[[], EnrolledChannel],
        endpoint: str,
        agent_version: str,
        on_event: EventHandler,
        on_state: StateHandler,
        backoff: Backoff,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._open_channel = open_channel
        self._endpoint = endpoint
        self._agent_version = agent_version
        self._on_event = on_event
        self._on_state = on_state
        self._backoff = backoff
        self._sleep = sleep
        self._outgoing: asyncio.Queue[prompts_pb2.StreamPromptsRequest] | None = None

    def send(self, answer: Answer) -> None:
        """Queue the answer on the open stream; without one it is left to the next welcome."""
        if self._outgoing is not None:
            self._outgoing.put_nowait(prompts_pb2.StreamPromptsRequest(answer=answer_message(answer)))

    def report_health(self, report: HealthReport) -> None:
        """Queue the report on the open stream."""
        if self._outgoing is not None:
            self._outgoing.put_nowait(prompts_pb2.StreamPromptsRequest(health=_health_message(report)))

    async def run(self) -> LinkState:
        """Keep the stream open until a final state, and return that."""
        while True:
            self._on_state(LinkState.CONNECTING, "")
            failure = await self._connect_once()
            if failure is not None and (final := _FINAL.get(failure.reason)) is not None:
                self._on_state(final, str(failure)[:_LONGEST_REASON])
                return final
            delay = self._backoff.delay()
            why = failure.message if failure is not None else "The server has ended the stream."
            self._on_state(LinkState.WAITING, f"{why[:_LONGEST_REASON]} Next try in {delay:.1f} s.")
            await self._sleep(delay)

    async def _connect_once(self) -> KeyvouchError | None:
        """One connection from hello to its end. Returns why it ended, None when the server closed it."""
        try:
            channel = self._open_channel()
        except KeyvouchError as failure:
            return failure
        self._outgoing = asyncio.Queue()
        stub: prompts_pb2_grpc.PromptServiceAsyncStub = prompts_pb2_grpc.PromptServiceStub(channel.channel)
        call = stub.StreamPrompts(self._requests(self._outgoing))
        try:
            await self._listen(call)
        except grpc.aio.AioRpcError as failure:
            return channel.error_of(failure)
        except KeyvouchError as failure:
            return failure
        finally:
            self._outgoing = None
            call.cancel()
            await channel.close()
        return None

    async def _requests(
        self, outgoing: asyncio.Queue[prompts_pb2.StreamPromptsRequest]
    ) -> AsyncIterator[prompts_pb2.StreamPromptsRequest]:
        yield prompts_pb2.StreamPromptsRequest(hello=prompts_pb2.Hello(agent_version=self._agent_version))
        while True:
            yield await outgoing.get()

    async def _listen(self, call: _Stream) -> None:
        try:
            async with asyncio.timeout(_FIRST_MESSAGE_SECONDS):
                first = await _read(call)
        except TimeoutError:
            raise _silent(self._endpoint) from None
        if first is None:
            return
        if first.WhichOneof("event") != "welcome":
            raise _silent(self._endpoint)
        self._backoff.reset()
        self._on_state(LinkState.CONNECTED, "")
        await self._on_event(_event(first))
        while (message := await _read(call)) is not None:
            if message.WhichOneof("event") is not None:
                await self._on_event(_event(message))


async def _read(call: _Stream) -> prompts_pb2.StreamPromptsResponse | None:
    """The next message, None at the end of the stream."""
    message = await call.read()
    return message if isinstance(message, prompts_pb2.StreamPromptsResponse) else None


def _silent(endpoint: str) -> MalformedError:
    return MalformedError(
        Reason.SERVER_UNREACHABLE,
        f"What answers at {endpoint} did not welcome this device.",
        fix="Check that the address is a Keyvouch device listener.",
    )


def _state(value: common_pb2.SignInState.ValueType) -> SignInState:
    """The state, or `unspecified` for one that a newer server may have."""
    try:
        return SignInState(common_pb2.SignInState.Name(value).removeprefix("SIGN_IN_STATE_").lower())
    except ValueError:
        return SignInState.UNSPECIFIED


def _event(message: prompts_pb2.StreamPromptsResponse) -> ServerEvent:
    kind = message.WhichOneof("event")
    match kind:
        case "welcome":
            w = message.welcome
            return Welcome(w.server_version, w.server_time, w.health_nonce, tuple(w.health_pcrs))
        case "prompt":
            prompt = message.prompt
            choices = tuple(prompt.number_choices)
            return Prompt(prompt.prompt_id, prompt.offer, prompt.expires_at, prompt.number_digits, choices)
        case "outcome":
            outcome = message.outcome
            state = _state(outcome.state)
            return Outcome(outcome.prompt_id, outcome.accepted, state, outcome.reason, outcome.message)
        case "withdrawn":
            return Withdrawn(message.withdrawn.prompt_id, _state(message.withdrawn.state))
        case "health":
            return _verdict(message.health)
        case None:
            raise ValueError("the message holds no event this agent knows")
        case _:
            assert_never(kind)


def _verdict(message: prompts_pb2.HealthVerdict) -> HealthVerdict:
    state = common_pb2.HealthState.Name(message.state).removeprefix("HEALTH_STATE_").lower()
    assurance = message.assurance
    words = (
        common_pb2.Protection.Name(assurance.protection).removeprefix("PROTECTION_"),
        common_pb2.Verification.Name(assurance.verification).removeprefix("VERIFICATION_"),
        common_pb2.Provenance.Name(assurance.provenance).removeprefix("PROVENANCE_"),
    )
    return HealthVerdict(state, tuple(message.findings), "/".join(words).lower())


def _health_message(report: HealthReport) -> prompts_pb2.HealthReport:
    return prompts_pb2.HealthReport(
        quote=tpm_attestation(report.quote) if report.quote else None,
        pcr_values=report.pcr_values,
        event_log=report.event_log,
        trouble=report.trouble,
    )


def answer_message(answer: Answer) -> prompts_pb2.Answer:
    """A signed decision as it travels."""
    message = prompts_pb2.Answer(prompt_id=answer.prompt_id, statement=answer.statement)
    proof = answer.assertion
    if proof is None:
        message.channel_signature = answer.channel_signature
        return message
    message.assertion.CopyFrom(
        prompts_pb2.AssertionEvidence(
            credential_id=proof.credential_id,
            client_data_json=proof.client_data,
            authenticator_data=proof.authenticator_data,
            signature=proof.signature,
            user_handle=proof.user_handle or b"",
        )
    )
    return message
