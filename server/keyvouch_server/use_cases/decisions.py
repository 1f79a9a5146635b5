"""Decisions: what a device answers to a prompt, and what that proves. The drawing is in prompts.proto."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from keyvouch.attestation import CredentialRecord, VerifiedAssertion, verify_assertion
from keyvouch.cose import CoseKey
from keyvouch.errors import EvidenceError, KeyvouchError, Reason
from keyvouch.ids import DeviceId
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import Decision, DecisionStatement, Purpose, challenge
from keyvouch_server.domain.model import Credential, Device, Prompt, SignIn, SignInState, User
from keyvouch_server.domain.policy import REST_SECONDS
from keyvouch_server.domain.sign_in import TRANSITIONS, Event, why_not
from keyvouch_server.ports import Above, OneOf, Plus, Snapshot, Transaction
from keyvouch_server.use_cases.world import World, unknown_sign_in


@dataclass(frozen=True, slots=True)
class Assertion:
    """The parts of a WebAuthn assertion as received."""

    credential_id: bytes
    client_data: bytes
    authenticator_data: bytes
    signature: bytes
    user_handle: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A device's decision as received: the signed statement, and an assertion or a channel signature."""

    prompt_id: str
    statement: bytes
    evidence: Assertion | bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of an answer. `refusal` is None when this answer decided the sign-in."""

    state: SignInState
    refusal: KeyvouchError | None = None


@dataclass(frozen=True, slots=True)
class _Offered:
    """A prompt with everything an answer to it is judged by."""

    device: Device
    prompt: Prompt
    sign_in: SignIn
    credential: Credential


class _CounterMovedError(Exception):
    """Undoes the transaction: the key was used for something else at the same moment."""

    def __init__(self, offered: _Offered) -> None:
        super().__init__()
        self.offered = offered
        self.refusal = EvidenceError(
            Reason.SIGN_COUNT,
            "The key was used for something else at the same moment, so this signature counts for nothing.",
            fix="Answer again.",
        )


class Decisions:
    """Prompts that wait for a device, and its answers to them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._keys: dict[bytes, CoseKey] = {}

    async def open_prompts(self, device: DeviceId) -> list[tuple[Prompt, int]]:
        """PS21: every prompt that still waits for this device, with the number of digits to type."""
        now = self._world.clock.now()
        prompts = await self._world.store.read(
            lambda tx: tx.find(Prompt, {"device_id": device, "expires_at": Above(now)}, order="created_at")
        )
        rows = [await self._sign_in_of(p) for p in prompts]
        waiting = [(p, s) for p, s in zip(prompts, rows, strict=True) if s and s.state is SignInState.PENDING]
        return [(p, len(s.number)) for p, s in waiting if not s.same_device]

    async def _sign_in_of(self, prompt: Prompt) -> SignIn | None:
        return await self._world.store.read(lambda tx: tx.get(SignIn, id=prompt.sign_in_id))

    async def answer(self, device: Device, answer: Answer, *, same_device: bool = False) -> Answered:
        """Take a device's signed decision, all of it in one transaction.

        1. find prompt and sign-in: they must be this device's, and on its stream only those that came there, in a
        same-device sign-in only that; 2. the row must be open; 3. the statement must carry the very offer that was
        sent; 4. verify the signature: assertion for an approval, channel key for a denial or report; 5. compare the
        number: a miss ends the request; 6. one conditional update with the sign counter, last use and audit record.

        Never raises for a bad answer: the outcome says what happened, and a bad answer changes nothing but the
        audit log (a wrong number under a good signature ends the request).
        """
        try:
            answered, decided = await self._world.store.write(
                lambda tx: self._answer(tx, device, answer, same_device=same_device)
            )
        except _CounterMovedError as undone:  # and its audit record with it
            offered, refusal = undone.offered, undone.refusal
            await self._world.store.write(lambda tx: self._audit_refusal(tx, device, offered.sign_in, refusal))
            return Answered(offered.sign_in.state, refusal)
        if decided is not None:
            sign_in, prompts = decided
            self._world.announcer.sign_in(sign_in, [p for p in prompts if p.id != answer.prompt_id])
        return answered

    async def _answer(
        self, tx: Transaction, device: Device, answer: Answer, *, same_device: bool
    ) -> tuple[Answered, tuple[SignIn, list[Prompt]] | None]:
        offered = await self._find_prompt(tx, device, answer.prompt_id)
        if offered is None or offered.sign_in.same_device is not same_device:
            refusal = unknown_sign_in()
            await self._audit_refusal(tx, device, None, refusal)
            return Answered(SignInState.EXPIRED, refusal), None
        sign_in, digest = offered.sign_in, hashlib.sha256(answer.statement).digest()
        if sign_in.state is not SignInState.PENDING:
            return Answered(sign_in.state, _too_late(sign_in, digest)), None
        try:
            event, verified = self._judge(offered, answer)
        except KeyvouchError as refused:
            await self._audit_refusal(tx, device, sign_in, refused)
            return Answered(sign_in.state, refused), None
        decided = await self._move(tx, offered, event, verified, digest)
        if decided is None:
            return Answered(SignInState.EXPIRED, why_not(SignInState.EXPIRED)), None
        state = decided[0].state
        return Answered(state, why_not(state) if event is Event.MISMATCH else None), decided

    async def _find_prompt(self, tx: Snapshot, device: Device, prompt_id: str) -> _Offered | None:
        prompt = await tx.get(Prompt, id=prompt_id)
        if prompt is None or prompt.device_id != device.id:
            return None
        sign_in = await tx.get(SignIn, id=prompt.sign_in_id)
        credential = await tx.get(Credential, id=prompt.credential_id)
        if sign_in is None or credential is None or sign_in.user_id != device.user_id:
            return None
        return _Offered(device, prompt, sign_in, credential)

    def _judge(self, offered: _Offered, answer: Answer) -> tuple[Event, VerifiedAssertion | None]:
        """Steps 3 to 5: what an answer proves. Raises; returns the event it stands for."""
        statement = DecisionStatement.parse(answer.statement)
        if statement.offer != offered.prompt.offer:
            raise EvidenceError(
                Reason.STATEMENT_MISMATCH,
                "The signed statement is not about the request that was sent.",
                fix="Nothing was decided. Answer the request that is shown now.",
            )
        if statement.decision is Decision.APPROVE:
            verified = self._verify_assertion(offered.credential, answer)
            matched = hmac.compare_digest(statement.number.encode(), offered.sign_in.number.encode())
            return (Event.APPROVE if matched else Event.MISMATCH), verified
        if not isinstance(answer.evidence, bytes):
            raise _wrong_evidence()
        key = load_proof_key(offered.device.channel_key)
        verify_proof(key, Purpose.SIGN_IN, answer.statement, signature=answer.evidence)
        return (Event.DENY if statement.decision is Decision.DENY else Event.REPORT), None

    def _verify_assertion(self, credential: Credential, answer: Answer) -> VerifiedAssertion:
        evidence, facts = answer.evidence, self._world.facts
        if isinstance(evidence, bytes):
            raise _wrong_evidence()
        return verify_assertion(
            credential=self._record(credential),
            credential_id=evidence.credential_id,
            client_data=evidence.client_data,
            authenticator_data=evidence.authenticator_data,
            signature=evidence.signature,
            user_handle=evidence.user_handle or None,
            challenge=challenge(Purpose.SIGN_IN, answer.statement),
            rp_id=facts.rp_id,
            origins=(facts.agent_origin,),
            require_user_verification=True,
        )

    async def _move(
        self, tx: Transaction, offered: _Offered, event: Event, verified: VerifiedAssertion | None, digest: bytes
    ) -> tuple[SignIn, list[Prompt]] | None:
        states, target = TRANSITIONS[event]
        now, sign_in = self._world.clock.now(), offered.sign_in
        decided = await tx.update(
            SignIn,
            {"id": sign_in.id, "state": OneOf(tuple(states)), "expires_at": Above(now)},
            {
                "state": target,
                "device_id": offered.device.id,
                "assurance": offered.credential.assurance,
                "decided_at": now,
                "decision_hash": digest,
            },
        )
        if not decided:
            return None
        if verified is not None:
            await self._count_use(tx, offered, verified)
        await tx.update(Device, {"id": offered.device.id}, {"last_used_at": now})
        await self._count_number(tx, sign_in, event)
        await self._world.audit(
            tx,
            f"sign_in.{event.value}",
            actor=offered.device.id,
            tenant_id=sign_in.tenant_id,
            subject=sign_in.id,
            user_id=sign_in.user_id,
            outcome=Reason.NUMBER_MISMATCH.value if event is Event.MISMATCH else "ok",
        )
        return decided[0], await tx.find(Prompt, {"sign_in_id": sign_in.id})

    async def _count_use(self, tx: Transaction, offered: _Offered, verified: VerifiedAssertion) -> None:
        """The sign counter moves by compare-and-set: of two assertions that saw one counter, one counts (W5)."""
        where = {"id": offered.credential.id, "sign_count": offered.credential.sign_count}
        if not await tx.update(Credential, where, {"sign_count": verified.sign_count}):
            raise _CounterMovedError(offered)

    async def _count_number(self, tx: Transaction, sign_in: SignIn, event: Event) -> None:
        """A wrong number counts on the account, across requests; a right one clears the count."""
        if event is Event.APPROVE:
            await tx.update(User, {"id": sign_in.user_id, "number_misses": Above(0)}, {"number_misses": 0})
        if event is not Event.MISMATCH:
            return
        users = await tx.update(User, {"id": sign_in.user_id}, {"number_misses": Plus(1)})
        policy = await self._world.policy_of(tx, sign_in.tenant_id)
        if users and users[0].number_misses >= policy.approval.number_misses:
            rest = self._world.clock.now() + REST_SECONDS
            await tx.update(User, {"id": sign_in.user_id}, {"number_misses": 0, "locked_until": rest})

    async def _audit_refusal(
        self, tx: Transaction, device: Device, sign_in: SignIn | None, refusal: KeyvouchError
    ) -> None:
        await self._world.audit(
            tx,
            "sign_in.answer",
            actor=device.id,
            tenant_id=device.tenant_id,
            subject=sign_in.id if sign_in else "",
            user_id=device.user_id,
            outcome=refusal.reason.value,
        )

    def _record(self, credential: Credential) -> CredentialRecord:
        return CredentialRecord(
            credential_id=credential.id,
            public_key=self._key(credential.public_key),
            sign_count=credential.sign_count,
            user_handle=credential.user_handle,
            backup_eligible=credential.backup_eligible,
        )

    def _key(self, public_key: bytes) -> CoseKey:
        key = self._keys.get(public_key)
        if key is None:
            if len(self._keys) >= 10_000:
                self._keys.clear()
            key = self._keys[public_key] = CoseKey(public_key)
        return key


def _too_late(sign_in: SignIn, digest: bytes) -> KeyvouchError:
    """W1: a copy of the answer that decided is `challenge_consumed`; any other late answer learns the state."""
    return why_not(SignInState.CONSUMED if sign_in.decision_hash == digest else sign_in.state)


def _wrong_evidence() -> EvidenceError:
    return EvidenceError(
        Reason.MISSING_FIELD,
        "An approval needs an assertion, a denial or a report a signature of the channel key.",
        fix="Update the agent.",
    )
