"""Health reports of devices with a TPM: asked for on connecting, verified, judged, kept. See prompts.proto.

Losing a report loses nothing: the next connection asks again. What a report means is `domain.health`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from keyvouch.attestation.tpm_health import VerifiedHealth, verify_health
from keyvouch.attestation.tpm_registration import Certification
from keyvouch.errors import (
    EvidenceError,
    KeyvouchError,
    MalformedError,
    Reason,
    RefusedError,
    UnauthenticatedError,
    UnavailableError,
)
from keyvouch.statement import health_statement
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.health import (
    NO_HARDWARE,
    Judgement,
    accepted,
    assurance_now,
    decide_health,
    is_copy,
    judge_false,
    judge_report,
    judge_trouble,
)
from keyvouch_server.domain.model import Credential, Device, DeviceTpm, Health, SignIn, User
from keyvouch_server.domain.policy import Policy
from keyvouch_server.ports import Snapshot, Transaction
from keyvouch_server.use_cases.devices import removed
from keyvouch_server.use_cases.tpm_ceremony import PreparedTpm, read_transcript
from keyvouch_server.use_cases.world import Caller, World, settled, unknown_device

ANSWER_SECONDS: Final = 600
"""How long a question may be answered. A quote is younger than its question, and nothing else tells its age: those of a
stream that is kept open could be made ahead, and told one by one.
"""

_LOG_REASONS: Final = frozenset({Reason.TPM_EVENT_LOG, Reason.TPM_EVENT_LOG_REPLAY})


@dataclass(frozen=True, slots=True)
class HealthQuestion:
    """What a stream asks its device: 32 bytes that are good for this stream, and PCRs of the SHA-256 bank."""

    nonce: bytes
    pcrs: tuple[int, ...]
    asked_at: int


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What a device reports; see HealthReport in prompts.proto. `trouble` instead of all else where it is not empty."""

    quote: Certification
    pcr_values: Mapping[int, bytes]
    event_log: bytes
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class HealthVerdict:
    """What the server makes of a report: the device's TPM as it is kept now, and what its key counts for."""

    state: Health
    findings: tuple[str, ...]
    assurance: str


@dataclass(frozen=True, slots=True)
class _Heard:
    """A verified report. `log_trouble` says why the event log that came with it is not believed."""

    said: VerifiedHealth
    log_trouble: str = ""


class HealthReports:
    """Reports of devices, and what administrators accept of them."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def question(self, device: Device) -> HealthQuestion | None:
        """What to ask a device that has connected; None for one without a TPM that somebody vouches for."""

        async def work(tx: Snapshot) -> HealthQuestion | None:
            tpm = await tx.get(DeviceTpm, device_id=device.id)
            if tpm is None or not tpm.anchor:
                return None
            policy = await self._world.policy_of(tx, device.tenant_id)
            return HealthQuestion(self._world.entropy.token(32), policy.health.pcrs, self._world.clock.now())

        return await self._world.store.read(work)

    async def report(self, device: Device, question: HealthQuestion, report: HealthReport) -> HealthVerdict:
        """Take a report.

        1. verify it against the registration's transcript and the stream's question; 2. judge it beside what is known;
        3. the TPM's record, the assurance of the device's key and the audit record change in one transaction. A copy
        of a report changes nothing, and a report that does not hold is judged, not refused: `failed`. Raises
        `UnavailableError(DEADLINE)` for one that comes too late to be believed: the device has to connect again.
        """
        try:
            heard = await self._verify(device, question, report)
        except (UnauthenticatedError, UnavailableError):
            raise
        except (MalformedError, EvidenceError) as refusal:
            false = judge_false(refusal)
            return await self._keep(device, lambda _: false)
        except Exception:  # whatever it is: the device is not trusted any more, and there is a trace of it (TPM9)
            await self._keep(device, lambda _: judge_false(_unverified()))
            raise
        if heard is None:
            return await self._keep(device, lambda tpm: judge_trouble(tpm, report.trouble))
        return await self._keep(device, lambda tpm: self._judge(tpm, question, heard))

    async def _verify(self, device: Device, question: HealthQuestion, report: HealthReport) -> _Heard | None:
        if report.trouble:
            return None
        tpm = await self._world.store.read(lambda tx: tx.get(DeviceTpm, device_id=device.id))
        if tpm is None:
            raise removed()
        transcript = read_transcript(tpm.transcript)
        assert isinstance(transcript, PreparedTpm)
        return self._verify_quote(device, transcript, question, report)

    def _verify_quote(
        self, device: Device, transcript: PreparedTpm, question: HealthQuestion, report: HealthReport
    ) -> _Heard:
        """A log that is wrong costs its own credit alone: whoever wants to can leave it out."""

        def verified(event_log: bytes) -> VerifiedHealth:
            return verify_health(
                attestation_key=transcript.attestation_key,
                quote=report.quote,
                pcrs=question.pcrs,
                pcr_values=report.pcr_values,
                event_log=event_log,
                statement=health_statement(self._world.facts.server_id, device.id, question.nonce),
            )

        try:
            return _Heard(verified(report.event_log))
        except KeyvouchError as refusal:
            if refusal.reason not in _LOG_REASONS:
                raise
            return _Heard(verified(b""), refusal.message)

    async def _keep(self, device: Device, judge: Callable[[DeviceTpm], Judgement | None]) -> HealthVerdict:
        """Change what is known of the device's TPM by the judgement over it; None changes nothing."""

        async def work(tx: Transaction) -> HealthVerdict | KeyvouchError:
            tpm = await tx.get(DeviceTpm, device_id=device.id)
            if tpm is None:
                return removed()
            judgement = judge(tpm)
            return _verdict(tpm if judgement is None else await self._change(tx, device, tpm, judgement))

        return settled(await self._world.store.write(work))

    def _judge(self, tpm: DeviceTpm, question: HealthQuestion, heard: _Heard) -> Judgement | None:
        now = self._world.clock.now()
        if is_copy(tpm, heard.said):
            return None
        if now >= question.asked_at + ANSWER_SECONDS:
            raise _too_late()
        return judge_report(tpm, heard.said, now=now, log_trouble=heard.log_trouble)

    async def _change(self, tx: Transaction, device: Device, tpm: DeviceTpm, judgement: Judgement) -> DeviceTpm:
        (changed,) = await tx.update(DeviceTpm, {"device_id": device.id}, judgement.changes())
        if assurance_now(tpm) != assurance_now(changed):
            await _judge_again(tx, changed)
        if (tpm.health, tpm.findings) != (changed.health, changed.findings):
            failed = judgement.state is Health.FAILED
            await self._audit(
                tx,
                "device.health",
                device,
                actor=device.id,
                outcome=judgement.codes[0] if failed else "ok",
                state=judgement.state.value,
                findings=", ".join(judgement.codes),
            )
        return changed

    async def accept(self, caller: Caller, device_id: str, reported_at: int) -> DeviceTpm:
        """An administrator accepts what a device drifted to: later reports are compared with it."""

        async def work(tx: Transaction) -> DeviceTpm | KeyvouchError:
            await self._world.must_stand(tx, caller)
            device = await tx.get(Device, id=device_id)
            owner = await tx.get(User, id=device.user_id) if device is not None else None
            authorise(caller.user, Action.ACCEPT_HEALTH, owner, unknown=unknown_device())
            assert device is not None
            return await self._accept(tx, caller, device, reported_at)

        return settled(await self._world.store.write(work))

    async def _accept(
        self, tx: Transaction, caller: Caller, device: Device, reported_at: int
    ) -> DeviceTpm | KeyvouchError:
        tpm = await tx.get(DeviceTpm, device_id=device.id)
        try:
            if tpm is None or tpm.reported_at != reported_at:
                raise _reported_since()
            changes = accepted(tpm)
        except RefusedError as refusal:
            await self._audit(tx, "device.health.accept", device, actor=caller.user.id, outcome=refusal.reason.value)
            return refusal
        (changed,) = await tx.update(DeviceTpm, {"device_id": device.id, "health": Health.DRIFTED}, changes)
        await _judge_again(tx, changed)
        codes = ", ".join(finding.partition(":")[0] for finding in json.loads(tpm.findings))
        await self._audit(tx, "device.health.accept", device, actor=caller.user.id, findings=codes)
        return changed

    async def _audit(
        self, tx: Transaction, action: str, device: Device, *, actor: str, outcome: str = "ok", **details: str
    ) -> None:
        await self._world.audit(
            tx,
            action,
            actor=actor,
            tenant_id=device.tenant_id,
            subject=device.id,
            user_id=device.user_id,
            outcome=outcome,
            **details,
        )


async def _judge_again(tx: Transaction, tpm: DeviceTpm) -> None:
    """H8: the device's key counts for what its TPM's health lets it."""
    await tx.update(Credential, {"device_id": tpm.device_id}, {"assurance": assurance_now(tpm)})


async def check_health(tx: Snapshot, device_id: str, policy: Policy, *, now: int) -> None:
    """Raise `RefusedError(DEVICE_HEALTH)` where policy asks for the health of this device and it does not stand."""
    if policy.health.required:
        decide_health(await tx.get(DeviceTpm, device_id=device_id), policy.health, now=now)


def approved_assurance(sign_in: SignIn, keys: Iterable[Credential]) -> str:
    """What an approval is worth now: what its key proved then, or less where the device has failed since.

    `keys` are those of the device as they are now: a report that fails takes the standing of the key in its own
    transaction, so that there is no need to look at the TPM.
    """
    return NO_HARDWARE if any(key.assurance == NO_HARDWARE for key in keys) else sign_in.assurance


def _verdict(tpm: DeviceTpm) -> HealthVerdict:
    return HealthVerdict(tpm.health, tuple(json.loads(tpm.findings)), assurance_now(tpm))


def _unverified() -> KeyvouchError:
    return KeyvouchError(Reason.INTERNAL, "The server failed to verify it.")


def _too_late() -> UnavailableError:
    return UnavailableError(
        Reason.DEADLINE,
        "The report of health comes too long after its question, so it changes nothing.",
        fix="Connect again and answer the new question.",
    )


def _reported_since() -> RefusedError:
    return RefusedError(
        Reason.DEVICE_HEALTH,
        "The device has reported something else since, or has no TPM.",
        fix="Look at its findings again.",
    )
