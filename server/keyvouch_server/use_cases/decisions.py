"""Decisions: what becomes of an answer to a prompt. The drawing is in prompts.proto.

What an answer proves is `judgement`. Answers of devices come here, those of clients with a security key through
`security_key`; both are decided in the same way.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

from keyvouch import cbor
from keyvouch.attestation import VerifiedAssertion
from keyvouch.errors import EvidenceError, KeyvouchError, Reason, RefusedError
from keyvouch.ids import DeviceId
from keyvouch_server.domain.evaluation import decide_method
from keyvouch_server.domain.model import Credential, Device, Prompt, SignIn, SignInMethod, SignInState, SignInWay, User
from keyvouch_server.domain.oversight_model import RiskKind
from keyvouch_server.domain.policy import REST_SECONDS
from keyvouch_server.domain.sign_in import TRANSITIONS, Event, why_not
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Above, NumberAsked, OneOf, Plus, Snapshot, Transaction
from keyvouch_server.use_cases.initiators import Initiators
from keyvouch_server.use_cases.judgement import Answer, Assertion, Judge, Offered
from keyvouch_server.use_cases.opening import withdrawn
from keyvouch_server.use_cases.risks import Risks
from keyvouch_server.use_cases.world import World, unknown_sign_in


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of an answer. `refusal` is None when this answer decided the sign-in."""

    state: SignInState
    refusal: KeyvouchError | None = None


Decided: TypeAlias = tuple[SignIn, list[Prompt]]
"""A sign-in that an answer has decided, and all prompts that offered it."""


class CounterMovedError(Exception):
    """Undoes the transaction: the key was used for something else at the same moment."""

    def __init__(self, offered: Offered) -> None:
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
        self._judge = Judge(world.facts)
        self._initiators = Initiators(world)
        self._risks = Risks(world)

    async def open_prompts(self, *devices: DeviceId) -> list[tuple[Prompt, NumberAsked]]:
        """PS21: every prompt that still waits for one of these devices, with what the person has to give.

        KI1: not those that policy does not allow any more; whoever approved them would do it for nothing.
        """
        return await self._world.store.read(lambda tx: self._open_prompts(tx, devices))

    async def _open_prompts(self, tx: Snapshot, devices: tuple[DeviceId, ...]) -> list[tuple[Prompt, NumberAsked]]:
        """Looked for among what is pending, little of each user: of withdrawn prompts there may be any number."""
        found = await tx.find(Device, {"id": OneOf(devices)}, limit=len(devices))
        if not found:
            return []
        now, owners = self._world.clock.now(), tuple({device.user_id for device in found})
        wanted = {"user_id": OneOf(owners), "state": SignInState.PENDING, "expires_at": Above(now)}
        rows = [row for row in await tx.find(SignIn, wanted) if row.way is SignInWay.PROMPT]
        asked = {row.id: asked_of(row) for row in rows if await self._is_allowed(tx, row)}
        if not asked:
            return []
        offered = {"sign_in_id": OneOf(tuple(asked)), "device_id": OneOf(devices)}
        return [(p, asked[p.sign_in_id]) for p in await tx.find(Prompt, offered, order="created_at")]

    async def _is_allowed(self, tx: Snapshot, sign_in: SignIn) -> bool:
        policy, user = await self._world.policy_of(tx, sign_in.tenant_id), await tx.get(User, id=sign_in.user_id)
        if user is None or policy.version == sign_in.policy_version:
            return user is not None
        try:
            decide_method(policy, SignInMethod.APPROVAL, await self._world.subject_of(tx, user), Verdicts())
        except RefusedError:
            return False
        return True

    async def answer(self, device: Device, answer: Answer, *, way: SignInWay = SignInWay.PROMPT) -> Answered:
        """Take a device's signed decision, all of it in one transaction.

        1. find prompt and sign-in: they must be this device's, and on its stream only those that came there, in a
        same-device sign-in only that; 2. the row must be open; 3. to 5. what the answer proves (`judgement`); 6. one
        conditional update with the sign counter, last use and audit record: a wrong number ends the request.

        Never raises for a bad answer: the outcome says what happened, and a bad answer changes nothing but the
        audit log (a wrong number under a good signature ends the request).
        """
        try:
            answered, _ = await self._world.write_and_tell(
                lambda tx: self._answer(tx, device, answer, way), lambda done: self.announce(done[1], answer.prompt_id)
            )
        except CounterMovedError as undone:  # and its audit record with it
            offered, refusal = undone.offered, undone.refusal
            await self._world.store.write(lambda tx: self._audit_refusal(tx, device, offered.sign_in, refusal))
            return Answered(offered.sign_in.state, refusal)
        return answered

    def announce(self, decided: Decided | None, answered_prompt: str) -> None:
        """Tell who waits for the sign-in that it is decided, once that is durable."""
        if decided is not None:
            sign_in, prompts = decided
            self._world.announcer.sign_in(sign_in, [p for p in prompts if p.id != answered_prompt])

    async def _answer(
        self, tx: Transaction, device: Device, answer: Answer, way: SignInWay
    ) -> tuple[Answered, Decided | None]:
        offered = await self._find_prompt(tx, device, answer.prompt_id)
        if offered is None or offered.sign_in.way is not way:
            refusal = unknown_sign_in()
            await self._audit_refusal(tx, device, None, refusal)
            return Answered(SignInState.EXPIRED, refusal), None
        answered, decided = await self.decide(tx, offered, answer)
        if answered.refusal is not None and answered.state is SignInState.PENDING:
            await self._audit_refusal(tx, device, offered.sign_in, answered.refusal)
        return answered, decided

    async def decide(self, tx: Transaction, offered: Offered, answer: Answer) -> tuple[Answered, Decided | None]:
        """Steps 2 to 6 of `answer`. After a refusal that leaves the request pending, its audit record is the caller's.

        Raises `CounterMovedError`, which has to undo the transaction.
        """
        sign_in = offered.sign_in
        if sign_in.state is not SignInState.PENDING:
            return Answered(sign_in.state, too_late(sign_in, answer.statement)), None
        try:
            event, verified = self._judge.judge(offered, answer)
        except KeyvouchError as refused:
            return Answered(sign_in.state, refused), None
        decided = await self._move(tx, offered, event, verified, answer)
        if decided is None:
            return Answered(SignInState.EXPIRED, why_not(SignInState.EXPIRED)), None
        state = decided[0].state
        return Answered(state, why_not(state) if event is Event.MISMATCH else None), decided

    async def _find_prompt(self, tx: Snapshot, device: Device, prompt_id: str) -> Offered | None:
        prompt = await tx.get(Prompt, id=prompt_id)
        if prompt is None or prompt.device_id != device.id:
            return None
        sign_in = await tx.get(SignIn, id=prompt.sign_in_id)
        credential = await tx.get(Credential, id=prompt.credential_id)
        if sign_in is None or credential is None or sign_in.user_id != device.user_id:
            return None
        return Offered(device, prompt, sign_in, credential)

    async def _move(
        self, tx: Transaction, offered: Offered, event: Event, verified: VerifiedAssertion | None, answer: Answer
    ) -> Decided | None:
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
                "decision_hash": hashlib.sha256(answer.statement).digest(),
                "evidence": _evidence(offered, answer) if event is Event.APPROVE else b"",
            },
        )
        if not decided:
            return None
        await self._count_use(tx, offered, verified)
        if event is Event.APPROVE:
            await self._initiators.approved(tx, sign_in)
        if event is Event.REPORT:
            await self._initiators.reported(tx, sign_in)
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
        return decided[0], await self._offered_beside(tx, offered)

    async def _offered_beside(self, tx: Transaction, offered: Offered) -> list[Prompt]:
        """All prompts of a sign-in that one of them has decided. Where it is the only one, nobody has to look."""
        only = offered.sign_in.offers == 1 and not offered.sign_in.security_key
        return [offered.prompt] if only else await withdrawn(tx, offered.sign_in)

    async def _count_use(self, tx: Transaction, offered: Offered, verified: VerifiedAssertion | None) -> None:
        """The sign counter moves by compare-and-set: of two assertions that saw one counter, one counts (W5). Where the
        channel key has signed, nothing moves.
        """
        where: dict[str, object] = {"id": offered.credential.id}
        changes: dict[str, object] = {"last_used_at": self._world.clock.now()}
        if verified is not None:
            where["sign_count"], changes["sign_count"] = offered.credential.sign_count, verified.sign_count
        if not await tx.update(Credential, where, changes) and verified is not None:
            raise CounterMovedError(offered)

    async def _count_number(self, tx: Transaction, sign_in: SignIn, event: Event) -> None:
        """A wrong number counts on the account, across requests; a right one clears the count. Where nobody types it,
        with a security key or on the device itself, it is no guess, and neither counts nor clears any (P4, P18).

        What was not on the account when the request was begun is not there now: no other that is matched by a number
        has been open since (KI4).
        """
        if sign_in.way is not SignInWay.PROMPT:
            return
        if event is Event.APPROVE and sign_in.after_misses:
            await tx.update(User, {"id": sign_in.user_id, "number_misses": Above(0)}, {"number_misses": 0})
        if event is not Event.MISMATCH:
            return
        users = await tx.update(User, {"id": sign_in.user_id}, {"number_misses": Plus(1)})
        policy = await self._world.policy_of(tx, sign_in.tenant_id)
        if users and users[0].number_misses >= policy.approval.number_misses:
            rest = self._world.clock.now() + REST_SECONDS
            await tx.update(User, {"id": sign_in.user_id}, {"number_misses": 0, "locked_until": rest})
            await self._risks.note(
                tx,
                RiskKind.NUMBERS_GUESSED,
                f"{users[0].number_misses} wrong numbers in a row were typed, so approvals rest for a while.",
                tenant_id=sign_in.tenant_id,
                user_id=sign_in.user_id,
                address=sign_in.address,
            )

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


def asked_of(sign_in: SignIn) -> NumberAsked:
    """What the person has to give on the device."""
    return NumberAsked(len(sign_in.number), tuple(sign_in.choices.split()))


def _evidence(offered: Offered, answer: Answer) -> bytes:
    """What approved a sign-in, as receipts keep it: statement, assertion and the key it verifies under (CBOR)."""
    made = answer.evidence
    assert isinstance(made, Assertion)  # the judge takes no other approval
    parts = [
        answer.statement,
        made.credential_id,
        made.client_data,
        made.authenticator_data,
        made.signature,
        made.user_handle,
        offered.credential.public_key,
    ]
    return cbor.encode(dict(enumerate(parts, start=1)))


def too_late(sign_in: SignIn, statement: bytes) -> KeyvouchError:
    """W1: a copy of the answer that decided is `challenge_consumed`; any other late answer learns the state."""
    digest = hashlib.sha256(statement).digest()
    return why_not(SignInState.CONSUMED if sign_in.decision_hash == digest else sign_in.state)
