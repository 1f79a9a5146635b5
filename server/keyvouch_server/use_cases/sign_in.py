"""Sign-in: begin, follow, decide, redeem, withdraw. The drawing is in sign_in.proto and prompts.proto."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from keyvouch.attestation import CredentialRecord, VerifiedAssertion, verify_assertion
from keyvouch.cose import CoseKey
from keyvouch.errors import EvidenceError, KeyvouchError, Reason, ThrottledError
from keyvouch.ids import ID_ENTROPY, PROMPT, SIGN_IN, USER, DeviceId, PromptId, SignInId, TenantId, UserId, new_id
from keyvouch.proofs import load_proof_key, thumbprint, verify_proof
from keyvouch.statement import Decision, DecisionStatement, Purpose, SignInOffer, challenge, redeem_statement
from keyvouch_server.domain.model import (
    NO_SESSION,
    AuditRecord,
    Credential,
    Device,
    Prompt,
    Session,
    SignIn,
    SignInState,
    Tenant,
    User,
)
from keyvouch_server.domain.names import check_text, name_key
from keyvouch_server.domain.policy import REST_SECONDS, Policy, decide_approval_enabled, decide_assurance, reaches
from keyvouch_server.domain.sign_in import OPEN, TRANSITIONS, Event, draw_number, why_not
from keyvouch_server.ports import Above, AtMost, OneOf, Plus, Snapshot, Transaction
from keyvouch_server.use_cases.sessions import IssuedSession, Sessions
from keyvouch_server.use_cases.world import ANONYMOUS, SERVER, World, settled, sha256, unknown_sign_in

RETENTION_SECONDS: Final = 7 * 86400
"""How long a sign-in that came to nothing is kept before the sweep removes it. Its audit records stay."""
FORGET_EVERY_SECONDS: Final = 3600
"""How often the sweep looks for them: it has to read the whole table."""


@dataclass(frozen=True, slots=True)
class SignInRequest:
    """What a client asks for, as received; see SignInContext in sign_in.proto."""

    tenant: str
    username: str
    app_id: str
    app_name: str
    audience: str
    binding_message: str
    proof_key: bytes
    address: str
    place: str


@dataclass(frozen=True, slots=True)
class BegunSignIn:
    """What the client holds after `begin`."""

    sign_in: SignIn
    token: str = field(repr=False)


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


class SignIns:
    """The sign-in ceremony."""

    def __init__(self, world: World, sessions: Sessions) -> None:
        self._world = world
        self._sessions = sessions
        self._keys: dict[bytes, CoseKey] = {}
        self._forget_at = 0

    # -- begin ------------------------------------------------------------------------------------

    async def begin(self, request: SignInRequest) -> BegunSignIn:
        """Open a sign-in and offer it to the user's devices.

        1. check the request; 2. find the user: nobody gets the same kind of row; 3. throttle; 4. policy
        (KI1: before any device is bothered); 5. supersede the older request (KI4); 6. row, prompts, audit.
        """
        _check_request(request)
        print_ = thumbprint(load_proof_key(request.proof_key))
        token = self._world.secret("kvs")
        outcome = settled(await self._world.store.write(lambda tx: self._begin(tx, request, print_, token)))
        sign_in, prompts, superseded = outcome
        for old, old_prompts in superseded:
            self._world.announcer.sign_in(old, old_prompts)
        for prompt in prompts:
            self._world.announcer.prompt(prompt, len(sign_in.number))
        return BegunSignIn(sign_in, token)

    async def _begin(
        self, tx: Transaction, request: SignInRequest, proof_thumbprint: bytes, token: str
    ) -> tuple[SignIn, list[Prompt], list[tuple[SignIn, list[Prompt]]]] | KeyvouchError:
        world = self._world
        user = await world.user_named(tx, request.tenant, request.username)
        if user is None:
            return await self._begin_for_nobody(tx, request, proof_thumbprint, token)
        policy = await world.policy_of(tx, user.tenant_id)
        credentials = await tx.find(Credential, {"user_id": user.id})
        refusal = await self._may_begin(tx, user, policy, credentials)
        if refusal is not None:
            await self._audit_refused_begin(tx, request, user.tenant_id, user.id, refusal)
            return refusal
        superseded = await self._supersede(tx, user.id)
        sign_in = self._row(request, user, policy, proof_thumbprint, token)
        await tx.insert(sign_in)
        prompts = [
            self._offer(sign_in, request, c) for c in credentials if reaches(c.assurance, sign_in.required_assurance)
        ]
        for prompt in prompts:
            await tx.insert(prompt)
        await self._audit_begin(tx, sign_in, "ok" if prompts else Reason.NO_METHOD.value)
        return sign_in, prompts, superseded

    async def _begin_for_nobody(
        self, tx: Transaction, request: SignInRequest, proof_thumbprint: bytes, token: str
    ) -> tuple[SignIn, list[Prompt], list[tuple[SignIn, list[Prompt]]]] | KeyvouchError:
        """P12: unknown names meet the tenant's policy, the throttle and a newer request like known ones; neither the
        number nor a refusal nor what becomes of an older request tells who exists.
        """
        tenant = await tx.get(Tenant, name_key=name_key(request.tenant))
        policy = await self._world.policy_of(tx, tenant.id) if tenant else Policy()
        nobody, tenant_id = self._nobody(request), tenant.id if tenant else TenantId("")
        attempt = await self._attempt_of_nobody(tx, nobody)
        refusal = self._may_begin_for_nobody(attempt, policy)
        if refusal is not None:
            await self._audit_refused_begin(tx, request, tenant_id, nobody, refusal, attempt=str(attempt))
            return refusal
        superseded = await self._supersede(tx, nobody)
        row = self._row(request, None, policy, proof_thumbprint, token)
        sign_in = replace(row, tenant_id=tenant_id, user_id=nobody)
        await tx.insert(sign_in)
        await self._audit_begin(tx, sign_in, "nobody", attempt=str(attempt))
        return sign_in, [], superseded

    def _nobody(self, request: SignInRequest) -> UserId:
        """A user id that no user has, always the same for one name however it is spelt."""
        named = f"{name_key(request.tenant)}\n{name_key(request.username)}".encode()
        return UserId(new_id(USER, self._world.keys.mac("nobody", named)[:ID_ENTROPY]))

    async def _attempt_of_nobody(self, tx: Transaction, nobody: UserId) -> int:
        """Which attempt of the running minute this is. There is no row to count in, so the audit log counts."""
        now = self._world.clock.now()
        attempts = {"user_id": nobody, "action": "sign_in.begin"}
        newest = await tx.find(AuditRecord, attempts, order="sequence", descending=True, limit=1)
        if not newest or newest[0].at < now - now % 60:
            return 1
        return 1 + int(json.loads(newest[0].details)["attempt"])

    def _may_begin_for_nobody(self, attempt: int, policy: Policy) -> KeyvouchError | None:
        """The same as `_may_begin`."""
        if attempt > policy.approval.begins_per_minute:
            return _too_many_begins(60 - self._world.clock.now() % 60)
        try:
            decide_approval_enabled(policy)
        except KeyvouchError as refusal:
            return refusal
        return None

    async def _may_begin(
        self, tx: Transaction, user: User, policy: Policy, credentials: Sequence[Credential]
    ) -> KeyvouchError | None:
        """Throttle, then policy. The counters are in the row, so they survive restarts and are shared by nodes."""
        now = self._world.clock.now()
        window = now - now % 60
        begins = user.begins + 1 if user.begins_window == window else 1
        await tx.update(User, {"id": user.id}, {"begins_window": window, "begins": begins})
        if user.locked_until > now:
            return _throttled("too many wrong numbers were typed", user.locked_until - now)
        if begins > policy.approval.begins_per_minute:
            return _too_many_begins(window + 60 - now)
        try:
            decide_approval_enabled(policy)
            if credentials:
                required = policy.approval.required_assurance
                strong = [c for c in credentials if reaches(c.assurance, required)]
                decide_assurance((strong or list(credentials))[0].assurance, required)
        except KeyvouchError as refusal:
            return refusal
        return None

    def _row(self, request: SignInRequest, user: User | None, policy: Policy, proof: bytes, token: str) -> SignIn:
        now = self._world.clock.now()
        return SignIn(
            id=SignInId(self._world.new_id(SIGN_IN)),
            tenant_id=user.tenant_id if user else TenantId(""),
            user_id=user.id if user else UserId(""),
            token_hash=sha256(token),
            state=SignInState.PENDING,
            number=draw_number(policy.approval.number_digits, self._world.entropy.token(16)),
            proof_key=request.proof_key,
            proof_thumbprint=proof,
            app_id=request.app_id,
            app_name=request.app_name,
            audience=request.audience or request.app_id,
            address=request.address,
            binding_message=request.binding_message,
            policy_version=policy.version,
            required_assurance=policy.approval.required_assurance,
            created_at=now,
            expires_at=now + policy.approval.lifetime_seconds,
        )

    def _offer(self, sign_in: SignIn, request: SignInRequest, credential: Credential) -> Prompt:
        world = self._world
        offer = SignInOffer(
            server_id=world.facts.server_id,
            tenant_id=sign_in.tenant_id,
            user_id=sign_in.user_id,
            device_id=credential.device_id,
            credential_id=credential.id,
            sign_in_id=sign_in.id,
            nonce=world.entropy.token(32),
            app_id=sign_in.app_id,
            app_name=sign_in.app_name,
            audience=sign_in.audience,
            proof_key=sign_in.proof_thumbprint,
            place=request.place,
            address=sign_in.address,
            binding_message=sign_in.binding_message,
            issued_at=sign_in.created_at,
            expires_at=sign_in.expires_at,
            policy_version=sign_in.policy_version,
            required_assurance=sign_in.required_assurance,
        )
        return Prompt(
            id=PromptId(world.new_id(PROMPT)),
            sign_in_id=sign_in.id,
            device_id=credential.device_id,
            credential_id=credential.id,
            offer=offer.encode(),
            created_at=sign_in.created_at,
            expires_at=sign_in.expires_at,
        )

    async def _supersede(self, tx: Transaction, user: UserId) -> list[tuple[SignIn, list[Prompt]]]:
        """KI4: one open request per user; the newer one ends the older one in the same transaction."""
        states, target = TRANSITIONS[Event.SUPERSEDE]
        where = {"user_id": user, "state": OneOf(tuple(states))}
        old = await tx.update(SignIn, where, {"state": target})
        for s in old:
            await self._audit_end(tx, Event.SUPERSEDE, s, actor=ANONYMOUS)
        return [(s, await tx.find(Prompt, {"sign_in_id": s.id})) for s in old]

    async def _audit_begin(self, tx: Transaction, sign_in: SignIn, outcome: str, **details: str) -> None:
        await self._world.audit(
            tx,
            "sign_in.begin",
            actor=ANONYMOUS,
            tenant_id=sign_in.tenant_id,
            subject=sign_in.id,
            user_id=sign_in.user_id,
            outcome=outcome,
            address=sign_in.address,
            app=sign_in.app_id,
            **details,
        )

    async def _audit_refused_begin(
        self,
        tx: Transaction,
        request: SignInRequest,
        tenant: TenantId,
        user: UserId,
        refusal: KeyvouchError,
        **details: str,
    ) -> None:
        await self._world.audit(
            tx,
            "sign_in.begin",
            actor=ANONYMOUS,
            tenant_id=tenant,
            user_id=user,
            outcome=refusal.reason.value,
            address=request.address,
            app=request.app_id,
            **details,
        )

    async def _audit_end(self, tx: Transaction, event: Event, ended: SignIn, *, actor: str) -> None:
        await self._world.audit(
            tx,
            f"sign_in.{event.value}",
            actor=actor,
            tenant_id=ended.tenant_id,
            subject=ended.id,
            user_id=ended.user_id,
        )

    # -- follow and withdraw ----------------------------------------------------------------------

    async def follow(self, sign_in_id: str, token: str) -> SignIn:
        """The sign-in as it is now, for the holder of its token."""
        found = await self._world.store.read(lambda tx: tx.get(SignIn, id=sign_in_id))
        if found is None or found.token_hash != sha256(token):
            raise unknown_sign_in()
        if found.state in OPEN and found.expires_at <= self._world.clock.now():
            await self._end(Event.EXPIRE, {"id": found.id}, actor=SERVER)
            return await self.follow(sign_in_id, token)
        return found

    async def cancel(self, sign_in_id: str, token: str) -> SignInState:
        """Withdraw a sign-in that is still open. One that has ended stays as it is."""
        found = await self.follow(sign_in_id, token)
        ended = await self._end(Event.CANCEL, {"id": found.id}, actor=ANONYMOUS)
        return ended[0].state if ended else (await self.follow(sign_in_id, token)).state

    async def expire(self) -> int:
        """End what has run out of time and forget what ended long ago; returns how many expired."""
        now = self._world.clock.now()
        ended = await self._end(Event.EXPIRE, {"expires_at": AtMost(now)}, actor=SERVER)
        if now >= self._forget_at:
            self._forget_at = now + FORGET_EVERY_SECONDS
            # What became a session stays with it: the row is the proof of where the session came from.
            old = {"expires_at": AtMost(now - RETENTION_SECONDS), "session_id": NO_SESSION}
            await self._world.store.write(lambda tx: tx.delete(SignIn, old))
        return len(ended)

    async def _end(self, event: Event, where: dict[str, object], *, actor: str) -> list[SignIn]:
        states, target = TRANSITIONS[event]

        async def work(tx: Transaction) -> list[tuple[SignIn, list[Prompt]]]:
            ended = await tx.update(SignIn, {**where, "state": OneOf(tuple(states))}, {"state": target})
            for s in ended:
                await self._audit_end(tx, event, s, actor=actor)
            return [(s, await tx.find(Prompt, {"sign_in_id": s.id})) for s in ended]

        outcome = await self._world.store.write(work)
        for sign_in, prompts in outcome:
            self._world.announcer.sign_in(sign_in, prompts)
        return [s for s, _ in outcome]

    # -- decide -----------------------------------------------------------------------------------

    async def open_prompts(self, device: DeviceId) -> list[tuple[Prompt, int]]:
        """PS21: every prompt that still waits for this device, with the number of digits to type."""
        now = self._world.clock.now()
        prompts = await self._world.store.read(
            lambda tx: tx.find(Prompt, {"device_id": device, "expires_at": Above(now)}, order="created_at")
        )
        rows = [await self._sign_in_of(p) for p in prompts]
        return [(p, len(s.number)) for p, s in zip(prompts, rows, strict=True) if s and s.state is SignInState.PENDING]

    async def _sign_in_of(self, prompt: Prompt) -> SignIn | None:
        return await self._world.store.read(lambda tx: tx.get(SignIn, id=prompt.sign_in_id))

    async def answer(self, device: Device, answer: Answer) -> Answered:
        """Take a device's signed decision.

        1. find prompt and sign-in: they must be this device's; 2. the row must be open; 3. the statement must
        carry the very offer that was sent; 4. verify the signature: assertion for an approval, channel key for
        a denial or report; 5. compare the number: a miss ends the request; 6. one conditional update with the
        sign counter, last use and audit record in one transaction.

        Never raises for a bad answer: the outcome says what happened, and a bad answer changes nothing but the
        audit log (a wrong number under a good signature ends the request).
        """
        offered = await self._world.store.read(lambda tx: self._find_prompt(tx, device, answer.prompt_id))
        if offered is None:
            return Answered(SignInState.EXPIRED, unknown_sign_in())
        if offered.sign_in.state is not SignInState.PENDING:
            return Answered(
                offered.sign_in.state, _too_late(offered.sign_in, hashlib.sha256(answer.statement).digest())
            )
        try:
            event, verified = self._judge(offered, answer)
        except KeyvouchError as error:
            refusal = error
            await self._world.store.write(lambda tx: self._audit_refusal(tx, offered, refusal))
            return Answered(offered.sign_in.state, refusal)
        return await self._decide(offered, event, verified, hashlib.sha256(answer.statement).digest())

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

    async def _decide(
        self, offered: _Offered, event: Event, verified: VerifiedAssertion | None, digest: bytes
    ) -> Answered:
        """Step 6."""
        try:
            outcome = await self._world.store.write(lambda tx: self._move(tx, offered, event, verified, digest))
        except EvidenceError as undone:  # and its audit record with it
            refusal = undone
            await self._world.store.write(lambda tx: self._audit_refusal(tx, offered, refusal))
            return Answered(offered.sign_in.state, refusal)
        if outcome is None:
            return await self._lost_the_race(offered, digest)
        decided, prompts = outcome
        self._world.announcer.sign_in(decided, [p for p in prompts if p.id != offered.prompt.id])
        return Answered(decided.state, why_not(decided.state) if event is Event.MISMATCH else None)

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
            await self._count_use(tx, offered.credential, verified)
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

    async def _lost_the_race(self, offered: _Offered, digest: bytes) -> Answered:
        """Somebody else moved the row first, or its time ran out while the evidence was verified."""
        row = await self._sign_in_of(offered.prompt)
        if row is None or (row.state in OPEN and row.expires_at <= self._world.clock.now()):
            return Answered(SignInState.EXPIRED, why_not(SignInState.EXPIRED))
        return Answered(row.state, _too_late(row, digest))

    async def _count_use(self, tx: Transaction, credential: Credential, verified: VerifiedAssertion) -> None:
        """The sign counter moves by compare-and-set: of two assertions that saw one counter, one counts (W5)."""
        where = {"id": credential.id, "sign_count": credential.sign_count}
        if not await tx.update(Credential, where, {"sign_count": verified.sign_count}):
            raise _counter_moved()

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

    async def _audit_refusal(self, tx: Transaction, offered: _Offered, refusal: KeyvouchError) -> None:
        await self._world.audit(
            tx,
            "sign_in.answer",
            actor=offered.device.id,
            tenant_id=offered.sign_in.tenant_id,
            subject=offered.sign_in.id,
            user_id=offered.sign_in.user_id,
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

    # -- redeem -----------------------------------------------------------------------------------

    async def redeem(self, sign_in_id: str, token: str, proof: bytes) -> IssuedSession:
        """Turn an approval into a session for whoever holds the proof key."""
        found = await self.follow(sign_in_id, token)
        statement = redeem_statement(self._world.facts.server_id, found.id, token)
        verify_proof(load_proof_key(found.proof_key), Purpose.REDEEM, statement, signature=proof)
        return await self.consume(found.id)

    async def consume(self, sign_in_id: SignInId) -> IssuedSession:
        """The same, for a caller whose proof key has been verified already.

        1. policy again, on what was proved (KI1, P19); 2. `approved -> consumed`, session and audit in one
        transaction; 3. tokens. Repeated before the sign-in's expiry it gives the same session again: the
        tokens are derived, the row decides, and there is never a second session.
        """
        result = settled(await self._world.store.write(lambda tx: self._consume(tx, sign_in_id)))
        row, session, user, policy = result
        self._world.announcer.sign_in(row, ())
        return self._sessions.issue(session, user, policy)

    async def _consume(
        self, tx: Transaction, sign_in_id: SignInId
    ) -> tuple[SignIn, Session, User, Policy] | KeyvouchError:
        world, now = self._world, self._world.clock.now()
        row = await tx.get(SignIn, id=sign_in_id)
        user = await tx.get(User, id=row.user_id) if row else None
        if row is None or user is None:
            return why_not(row.state) if row else unknown_sign_in()
        policy = await world.policy_of(tx, row.tenant_id)
        if row.state is SignInState.CONSUMED and now < row.expires_at:
            return await self._repeat(tx, row, user, policy)
        try:
            if row.state is SignInState.APPROVED:
                decide_approval_enabled(policy)
                decide_assurance(row.assurance, policy.approval.required_assurance)
        except KeyvouchError as refusal:
            await self._audit_consumption(tx, row, refusal.reason.value)
            return refusal
        session = self._sessions.from_approval(row, policy)
        states, target = TRANSITIONS[Event.REDEEM]
        consumed = await tx.update(
            SignIn,
            {"id": row.id, "state": OneOf(tuple(states)), "expires_at": Above(now)},
            {"state": target, "session_id": session.id},
        )
        if not consumed:
            return why_not(SignInState.EXPIRED if row.state is SignInState.APPROVED else row.state)
        await tx.insert(session)
        await self._audit_consumption(tx, row, "ok")
        return consumed[0], session, user, policy

    async def _repeat(
        self, tx: Transaction, row: SignIn, user: User, policy: Policy
    ) -> tuple[SignIn, Session, User, Policy] | KeyvouchError:
        session = await tx.get(Session, id=row.session_id)
        if session is None or session.revoked_at or session.generation != 1:
            return why_not(row.state)
        return row, session, user, policy

    async def _audit_consumption(self, tx: Transaction, row: SignIn, outcome: str) -> None:
        await self._world.audit(
            tx,
            "sign_in.redeem",
            actor=row.user_id,
            tenant_id=row.tenant_id,
            subject=row.id,
            user_id=row.user_id,
            outcome=outcome,
        )


def _check_request(request: SignInRequest) -> None:
    check_text(request.tenant, "context.tenant", longest=128)
    check_text(request.username, "context.username", longest=128)
    check_text(request.app_id, "context.app_id", longest=128)
    check_text(request.app_name, "context.app_name", longest=64)
    check_text(request.audience, "context.audience", longest=256, required=False)
    check_text(request.binding_message, "context.binding_message", longest=128, required=False)


def _throttled(why: str, seconds: int) -> ThrottledError:
    return ThrottledError(
        Reason.THROTTLED,
        f"Not now: {why}.",
        retry_after=float(max(1, seconds)),
        fix=f"Try again in {max(1, seconds)} seconds, or use another method.",
    )


def _too_many_begins(seconds: int) -> ThrottledError:
    return _throttled("too many sign-ins were begun in this minute", seconds)


def _too_late(sign_in: SignIn, digest: bytes) -> KeyvouchError:
    """W1: a copy of the answer that decided is `challenge_consumed`; any other late answer learns the state."""
    return why_not(SignInState.CONSUMED if sign_in.decision_hash == digest else sign_in.state)


def _counter_moved() -> EvidenceError:
    return EvidenceError(
        Reason.SIGN_COUNT,
        "The key was used for something else at the same moment, so this signature counts for nothing.",
        fix="Answer again.",
    )


def _wrong_evidence() -> EvidenceError:
    return EvidenceError(
        Reason.MISSING_FIELD,
        "An approval needs an assertion, a denial or a report a signature of the channel key.",
        fix="Update the agent.",
    )
