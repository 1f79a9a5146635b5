"""One enrolment at work: its prompts, its answers, its channel.

    waiting ──approve──► signing ──signed, kept, sent──► sent ──outcome──► gone
       └─deny, report──────────────────────────────────►┘
    waiting, signing, sent ──withdrawn, expired──► gone

An answer is written to the outbox before it is sent and leaves it with its outcome or its expiry, so it is sent
again after each welcome until then. Prompts are known by their ids: a copy changes nothing. What is not here:
sockets and terminals; the stream itself (`rpc.prompt_stream`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum, unique
from typing import Protocol, assert_never

from keyvouch.errors import ConflictError, KeyvouchError, NotFoundError, Reason, RefusedError
from keyvouch.statement import Decision, DecisionStatement
from keyvouch_agent.agent_ports import (
    Answer,
    Clock,
    DeviceServer,
    EventHandler,
    HealthVerdict,
    LinkState,
    Outcome,
    Prompt,
    PromptLink,
    ServerEvent,
    SignInState,
    StateHandler,
    Welcome,
    Withdrawn,
)
from keyvouch_agent.ceremonies.same_device import SameDeviceCeremony
from keyvouch_agent.ceremonies.sign_in import Review, SignInCeremony
from keyvouch_agent.certificate_renewal import CertificateRenewal
from keyvouch_agent.channel_keys import ChannelKeys
from keyvouch_agent.health_reporting import HealthReporting
from keyvouch_agent.ledger import Enrolment, KeptAnswer, Ledger
from keyvouch_agent.logs import AgentLog
from keyvouch_agent.own_sign_ins import OwnSignIns
from keyvouch_agent.ports import Provider, ProviderCapabilities, ProviderInteraction
from keyvouch_agent.provider_shelf import ProviderKey
from keyvouch_agent.server_time import ServerTime
from keyvouch_agent.session_ports import SessionServer
from keyvouch_agent.views import Document, enrolment_document, health_document, outcome_document, prompt_document

__all__ = ["DeviceLink", "LinkPorts", "OpenLink", "PromptState"]

MAX_PROMPTS = 32
"""Prompts one enrolment holds at a time; a server that sends more is ignored beyond."""

OUTCOME_SECONDS = 10.0
"""How long a decision waits for its outcome before it is reported as queued."""

CONFIRM_SECONDS = 2.0
"""How long after a welcome a prompt from before the reconnection may stay unconfirmed."""


@unique
class PromptState(StrEnum):
    """Where a prompt stands on this device."""

    WAITING = "waiting"
    SIGNING = "signing"
    SENT = "sent"


class OpenLink(Protocol):
    """Makes the prompt stream of an enrolment; `current` gives the record as it is at each connection."""

    def __call__(self, current: Callable[[], Enrolment], on_event: EventHandler, on_state: StateHandler) -> PromptLink:
        """Make it; nothing is opened before `run`."""


@dataclass(frozen=True, slots=True)
class LinkPorts:
    """The outside world of a link. `emit` tells whoever watches; it must not block."""

    ledger: Ledger
    clock: Clock
    provider_of: Callable[[ProviderKey], Provider]
    channel_keys: ChannelKeys
    open_link: OpenLink
    device_server: Callable[[Enrolment], DeviceServer]
    session_server: Callable[[Enrolment], SessionServer]
    log: AgentLog
    emit: Callable[[Document], None]
    signing: asyncio.Lock


@dataclass(slots=True)
class _Pending:
    review: Review
    outcome: asyncio.Future[Outcome]
    state: PromptState = PromptState.WAITING
    confirmed: bool = True
    expiry: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Sent:
    kept: KeptAnswer
    sends: int = field(default=0)


class DeviceLink:
    """Runs one enrolment until its stream reaches a final state or the task is cancelled."""

    def __init__(self, enrolment: Enrolment, ports: LinkPorts) -> None:
        self.enrolment = enrolment
        self.state = LinkState.CONNECTING
        self.detail = ""
        self._ports = ports
        self._protection = ports.channel_keys.load(enrolment.channel_key).protection
        self._time = ServerTime(ports.clock)
        self._ceremony = SignInCeremony(
            enrolment=enrolment,
            provider=self._provider,
            channel_keys=ports.channel_keys,
            server_now=self._time.now,
        )
        self._stream = ports.open_link(lambda: self.enrolment, self._on_event, self._on_state)
        self._renewal = CertificateRenewal(
            current=lambda: self.enrolment,
            store=self._store,
            device_server=ports.device_server,
            server_time=self._time,
            channel_keys=ports.channel_keys,
            log=ports.log,
        )
        self._health = HealthReporting(
            current=lambda: self.enrolment,
            provider=self._provider,
            signing=ports.signing,
            send=self._stream.report_health,
            log=ports.log,
        )
        self.own_sign_ins = self._sign_ins_of_its_own()
        self._prompts: dict[str, _Pending] = {}
        self._sent: dict[str, _Sent] = {}

    def _sign_ins_of_its_own(self) -> OwnSignIns:
        ceremony = SameDeviceCeremony(
            current=lambda: self.enrolment,
            server=self._ports.session_server,
            signing=self._ceremony,
            turn=self._ports.signing,
        )
        return OwnSignIns(ceremony, current=lambda: self.enrolment, server_now=self._time.now)

    async def run(self) -> LinkState:
        """Keep the stream open and the certificate fresh."""
        for kept in await asyncio.to_thread(self._ports.ledger.outbox, self.enrolment.device_id):
            self._sent[kept.prompt_id] = _Sent(kept, sends=1)
        renewal = asyncio.create_task(self._renewal.run())
        try:
            return await self._stream.run()
        finally:
            renewal.cancel()
            self._health.stop()
            for prompt_id in list(self._prompts):
                self._forget(prompt_id)

    # What user interfaces see and do

    def status(self) -> Document:
        """The enrolment and how its stream fares."""
        return {
            **enrolment_document(self.enrolment, channel_key=self._protection),
            "state": self.state.value,
            "detail": self.detail,
            "pending": sum(p.state is not PromptState.SENT for p in self._prompts.values()),
            "unacknowledged": len(self._sent),
            **health_document(self._health.verdict),
        }

    def prompts(self) -> list[Document]:
        """Prompts that wait for a decision."""
        return [self._document(p) for p in self._prompts.values() if p.state is not PromptState.SENT]

    def holds(self, prompt_id: str) -> bool:
        """Whether this link has that prompt."""
        return prompt_id in self._prompts

    async def capabilities(self) -> ProviderCapabilities:
        """What holds this enrolment's key, with its PIN tries."""
        async with self._ports.signing:
            return await asyncio.to_thread(lambda: self._provider().capabilities())

    async def approve(self, prompt_id: str, number: str, interaction: ProviderInteraction) -> Document:
        """Sign an approval and send it. Returns the outcome, or state `queued` while the server is away.

        Raises what `SignInCeremony.approve` raises; then the prompt waits again and another try is open.
        """
        pending = self._take(prompt_id)
        self._ceremony.check_number(pending.review, number)
        pending.state = PromptState.SIGNING
        try:
            async with self._ports.signing:
                answer = await asyncio.to_thread(self._ceremony.approve, pending.review, number, interaction)
            self._check_still_open(prompt_id, pending)
        except BaseException:
            self._ceremony.withdraw(pending.review)
            pending.state = PromptState.WAITING
            raise
        return await self._deliver(pending, answer)

    async def refuse(self, prompt_id: str, decision: Decision) -> Document:
        """Sign a denial or a report and send it.

        Raises the channel key's `DeviceError`; then the prompt waits again.
        """
        pending = self._take(prompt_id)
        pending.state = PromptState.SIGNING
        try:
            answer = await asyncio.to_thread(self._ceremony.refuse, pending.review, decision)
            self._check_still_open(prompt_id, pending)
        except BaseException:
            pending.state = PromptState.WAITING
            raise
        return await self._deliver(pending, answer)

    def _take(self, prompt_id: str) -> _Pending:
        pending = self._prompts.get(prompt_id)
        if pending is None:
            raise _unknown_prompt()
        if pending.state is not PromptState.WAITING:
            raise ConflictError(
                Reason.CHALLENGE_CONSUMED,
                "This prompt is being answered already.",
                fix="Wait for its outcome: `keyvouch-agent pending` shows what is left.",
            )
        return pending

    def _check_still_open(self, prompt_id: str, pending: _Pending) -> None:
        if self._prompts.get(prompt_id) is not pending:
            raise RefusedError(
                Reason.SIGN_IN_SUPERSEDED,
                "The request was withdrawn while it was being answered. Nothing was sent.",
                fix="If you are still signing in, a newer request should be pending.",
            )
        self._ceremony.check_open(pending.review)

    async def _deliver(self, pending: _Pending, answer: Answer) -> Document:
        pending.state = PromptState.SENT
        expires_at = pending.review.expires_at
        kept = KeptAnswer.of(answer, device_id=self.enrolment.device_id, expires_at=expires_at)
        try:
            await asyncio.to_thread(self._ports.ledger.keep, kept)
        except BaseException:
            pending.state = PromptState.WAITING
            raise
        self._send(_Sent(kept))
        try:
            async with asyncio.timeout(OUTCOME_SECONDS):
                return outcome_document(await asyncio.shield(pending.outcome))
        except TimeoutError:
            return {
                "prompt_id": answer.prompt_id,
                "accepted": False,
                "state": "queued",
                "reason": Reason.SERVER_UNREACHABLE.value,
                "message": "The answer is kept and is sent as soon as the server can be reached.",
            }

    def _send(self, sent: _Sent) -> None:
        self._sent[sent.kept.prompt_id] = sent
        if self.state is LinkState.CONNECTED:
            sent.sends += 1
            self._stream.send(sent.kept.answer)

    # What the server says

    def _on_state(self, state: LinkState, detail: str) -> None:
        self.state, self.detail = state, detail
        if state is LinkState.WAITING and self._renewal.ended(self._ports.clock.now()):
            self.detail += (
                " By this device's clock its certificate has ended: run `keyvouch-agent unregister`, then enrol again."
            )
        log = self._ports.log.info if state is LinkState.CONNECTED else self._ports.log.warning
        if state is not LinkState.CONNECTING:
            log("link", device=self.enrolment.device_id, state=state, detail=self.detail)
        self._ports.emit({"event": "link", **self.status()})

    async def _on_event(self, event: ServerEvent) -> None:
        match event:
            case Welcome():
                await self._on_welcome(event)
            case Prompt():
                self._on_prompt(event)
            case Outcome():
                await self._on_outcome(event)
            case Withdrawn():
                await self._on_withdrawn(event)
            case HealthVerdict():
                self._health.judged(event)
            case _:
                assert_never(event)

    async def _on_welcome(self, welcome: Welcome) -> None:
        self._time.learn(welcome.server_time)
        self._renewal.wake()
        self._health.welcomed(welcome)
        for prompt_id, sent in list(self._sent.items()):
            if sent.kept.expires_at <= self._time.now():
                await self._drop_answer(prompt_id)
            else:
                self._send(sent)
        for pending in self._prompts.values():
            pending.confirmed = pending.state is PromptState.SENT
        asyncio.get_running_loop().call_later(CONFIRM_SECONDS, self._drop_unconfirmed)

    def _drop_unconfirmed(self) -> None:
        """The server sends every open prompt after a welcome; what it does not send again is closed."""
        gone = [prompt_id for prompt_id, pending in self._prompts.items() if not pending.confirmed]
        for prompt_id in gone if self.state is LinkState.CONNECTED else ():
            self._withdraw(prompt_id, SignInState.UNSPECIFIED)

    def _on_prompt(self, prompt: Prompt) -> None:
        known = self._prompts.get(prompt.prompt_id)
        if known is not None and known.review.prompt.offer == prompt.offer:
            known.confirmed = True
            return
        if prompt.prompt_id in self._sent:
            return
        try:
            if known is not None or len(self._prompts) >= MAX_PROMPTS:
                raise _odd_prompt()
            review = self._ceremony.review(prompt)
        except KeyvouchError as error:
            self._refused(prompt, error)
            return
        loop = asyncio.get_running_loop()
        pending = _Pending(review, loop.create_future())
        self._prompts[prompt.prompt_id] = pending
        seconds = review.expires_at - self._time.now()
        pending.expiry = loop.call_later(seconds, self._withdraw, prompt.prompt_id, SignInState.EXPIRED)
        self._ports.log.info("prompt", device=self.enrolment.device_id, prompt=prompt.prompt_id)
        self._ports.emit({"event": "prompt", **self._document(pending)})

    def _refused(self, prompt: Prompt, error: KeyvouchError) -> None:
        fields = {"device": self.enrolment.device_id, "prompt": prompt.prompt_id, "reason": error.reason}
        self._ports.log.error("prompt-refused", **fields)
        self._ports.emit({"event": "refused", **fields, "reason": error.reason.value, "message": str(error)})

    async def _on_outcome(self, outcome: Outcome) -> None:
        sent = self._sent.get(outcome.prompt_id)
        if sent is not None and sent.sends > 1 and _is_own_copy(sent.kept, outcome):
            outcome = replace(outcome, accepted=True, reason="", message="An earlier copy of this answer was accepted.")
        await self._drop_answer(outcome.prompt_id)
        pending = self._forget(outcome.prompt_id)
        if pending is not None and not pending.outcome.done():
            pending.outcome.set_result(outcome)
        self._ports.log.info("outcome", prompt=outcome.prompt_id, state=outcome.state, accepted=outcome.accepted)
        self._ports.emit({"event": "outcome", **outcome_document(outcome)})

    async def _on_withdrawn(self, withdrawn: Withdrawn) -> None:
        await self._drop_answer(withdrawn.prompt_id)
        self._withdraw(withdrawn.prompt_id, withdrawn.state)

    def _withdraw(self, prompt_id: str, state: SignInState) -> None:
        pending = self._forget(prompt_id)
        if pending is None:
            return
        self._ceremony.withdraw(pending.review)
        if not pending.outcome.done():
            why = f"The request is {state.value} and needs no answer any more."
            pending.outcome.set_result(Outcome(prompt_id, False, state, Reason.CHALLENGE_CONSUMED.value, why))
        self._ports.emit({"event": "withdrawn", "prompt_id": prompt_id, "state": state.value})

    def _forget(self, prompt_id: str) -> _Pending | None:
        pending = self._prompts.pop(prompt_id, None)
        if pending is not None and pending.expiry is not None:
            pending.expiry.cancel()
        return pending

    async def _drop_answer(self, prompt_id: str) -> None:
        if self._sent.pop(prompt_id, None) is not None:
            await asyncio.to_thread(self._ports.ledger.drop, prompt_id)

    def _document(self, pending: _Pending) -> Document:
        return prompt_document(pending.review, self.enrolment, server_now=self._time.now())

    def _provider(self) -> Provider:
        return self._ports.provider_of(ProviderKey(self.enrolment.provider, self.enrolment.account))

    async def _store(self, enrolment: Enrolment) -> None:
        await asyncio.to_thread(self._ports.ledger.record, enrolment)
        self.enrolment = enrolment


_STATES_OF = {
    Decision.APPROVE: frozenset({SignInState.APPROVED, SignInState.CONSUMED}),
    Decision.DENY: frozenset({SignInState.DENIED}),
    Decision.REPORT: frozenset({SignInState.REPORTED}),
}


def _is_own_copy(kept: KeptAnswer, outcome: Outcome) -> bool:
    """Whether an answer that was sent more than once failed only because the first copy had been taken."""
    decision = DecisionStatement.parse(kept.statement).decision
    return not outcome.accepted and outcome.state in _STATES_OF[decision]


def _unknown_prompt() -> NotFoundError:
    return NotFoundError(
        Reason.PROMPT_UNKNOWN,
        "There is no such prompt: it was answered, was withdrawn or has expired.",
        fix="List what is open with `keyvouch-agent pending`.",
    )


def _odd_prompt() -> RefusedError:
    return RefusedError(
        Reason.STATEMENT_MISMATCH,
        "The server sent too many prompts, or another request under the id of an open one.",
        fix="Nothing was signed. Tell your administrator.",
    )
