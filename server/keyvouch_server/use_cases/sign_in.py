"""Sign-in, the client's half: begin, follow, withdraw, expire. The drawing is in sign_in.proto.

The device's half is `decisions`, the end of it all `redemption`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from keyvouch.errors import KeyvouchError, Reason, ThrottledError
from keyvouch.ids import ID_ENTROPY, PROMPT, SIGN_IN, USER, PromptId, SignInId, TenantId, UserId, new_id
from keyvouch.proofs import load_proof_key, thumbprint
from keyvouch.statement import SignInOffer
from keyvouch_server.domain.model import (
    NO_SESSION,
    AuditRecord,
    Credential,
    Device,
    Prompt,
    SignIn,
    SignInState,
    Tenant,
    User,
)
from keyvouch_server.domain.names import check_text, name_key
from keyvouch_server.domain.policy import Policy, decide_approval_enabled, decide_some_key, reaches
from keyvouch_server.domain.sign_in import OPEN, TRANSITIONS, Event, draw_number
from keyvouch_server.ports import AtMost, OneOf, Transaction
from keyvouch_server.use_cases.health import in_health
from keyvouch_server.use_cases.world import ANONYMOUS, SERVER, World, settled, sha256, unknown_sign_in

RETENTION_SECONDS: Final = 7 * 86400
"""How long a sign-in that came to nothing is kept before the sweep removes it. Its audit records stay."""
FORGET_EVERY_SECONDS: Final = 3600
"""How often the sweep looks for them: it has to read the whole table."""


Opened: TypeAlias = tuple[SignIn, list[Prompt], list[tuple[SignIn, list[Prompt]]]]
"""A sign-in that was opened, the prompts that offer it, and what it superseded, each with its prompts."""


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


class SignIns:
    """Sign-in requests."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._forget_at = 0
        self._thumbprints: dict[bytes, bytes] = {}

    # -- begin ------------------------------------------------------------------------------------

    async def begin(self, request: SignInRequest) -> BegunSignIn:
        """Open a sign-in and offer it to the user's devices.

        1. check the request; 2. find the user: nobody gets the same kind of row; 3. throttle; 4. policy
        (KI1: before any device is bothered); 5. supersede the older request (KI4); 6. row, prompts, audit.
        """
        _check_request(request)
        print_ = self._thumbprint(request.proof_key)
        token = self._world.secret("kvs")
        outcome = settled(await self._world.store.write(lambda tx: self._begin(tx, request, print_, token)))
        sign_in, prompts, superseded = outcome
        for old, old_prompts in superseded:
            self._world.announcer.sign_in(old, old_prompts)
        for prompt in prompts:
            self._world.announcer.prompt(prompt, len(sign_in.number))
        return BegunSignIn(sign_in, token)

    def _thumbprint(self, proof_key: bytes) -> bytes:
        """The key's name, checked once per key: a busy client begins many sign-ins with one."""
        found = self._thumbprints.get(proof_key)
        if found is None:
            if len(self._thumbprints) >= 1000:
                self._thumbprints.clear()
            found = self._thumbprints[proof_key] = thumbprint(load_proof_key(proof_key))
        return found

    async def _begin(
        self, tx: Transaction, request: SignInRequest, proof_thumbprint: bytes, token: str
    ) -> Opened | KeyvouchError:
        user = await self._world.user_named(tx, request.tenant, request.username)
        if user is None:
            return await self._begin_for_nobody(tx, request, proof_thumbprint, token)
        return await self.open(tx, user, request, proof_thumbprint, token)

    async def open(
        self,
        tx: Transaction,
        user: User,
        request: SignInRequest,
        proof_thumbprint: bytes,
        token: str,
        *,
        device: Device | None = None,
    ) -> Opened | KeyvouchError:
        """Steps 3 to 6, for a user. With `device` the sign-in is that device's own, and offered to no other."""
        actor = device.id if device else ANONYMOUS
        policy = await self._world.policy_of(tx, user.tenant_id)
        credentials = await tx.find(Credential, {"device_id": device.id} if device else {"user_id": user.id})
        fit = await self._may_begin(tx, user, policy, credentials)
        if isinstance(fit, KeyvouchError):
            await self._audit_refused_begin(tx, request, user.tenant_id, user.id, fit, actor=actor)
            return fit
        superseded = await self._supersede(tx, user.id, actor=actor)
        sign_in = self._row(request, user.tenant_id, user.id, policy, proof_thumbprint, token)
        sign_in = replace(sign_in, same_device=device is not None)
        await tx.insert(sign_in)
        prompts = [self._offer(sign_in, request, c) for c in fit if reaches(c.assurance, sign_in.required_assurance)]
        for prompt in prompts:
            await tx.insert(prompt)
        await self._audit_begin(tx, sign_in, "ok" if prompts else Reason.NO_METHOD.value, actor=actor)
        return sign_in, prompts, superseded

    async def _begin_for_nobody(
        self, tx: Transaction, request: SignInRequest, proof_thumbprint: bytes, token: str
    ) -> Opened | KeyvouchError:
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
        sign_in = self._row(request, tenant_id, nobody, policy, proof_thumbprint, token)
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
        self, tx: Transaction, user: User, policy: Policy, credentials: list[Credential]
    ) -> list[Credential] | KeyvouchError:
        """Throttle, then policy; returns the credentials of devices whose health stands.

        The counters are in the row, so they survive restarts and are shared by nodes.
        """
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
            fit = await in_health(tx, credentials, policy, now=now)
            decide_some_key((c.assurance for c in fit), policy.approval.required_assurance)
        except KeyvouchError as refusal:
            return refusal
        return fit

    def _row(
        self, request: SignInRequest, tenant: TenantId, user: UserId, policy: Policy, proof: bytes, token: str
    ) -> SignIn:
        now = self._world.clock.now()
        return SignIn(
            id=SignInId(self._world.new_id(SIGN_IN)),
            tenant_id=tenant,
            user_id=user,
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

    async def _supersede(
        self, tx: Transaction, user: UserId, *, actor: str = ANONYMOUS
    ) -> list[tuple[SignIn, list[Prompt]]]:
        """KI4: one open request per user; the newer one ends the older one in the same transaction."""
        states, target = TRANSITIONS[Event.SUPERSEDE]
        where = {"user_id": user, "state": OneOf(tuple(states))}
        old = await tx.update(SignIn, where, {"state": target})
        for s in old:
            await self._audit_end(tx, Event.SUPERSEDE, s, actor=actor)
        return [(s, await tx.find(Prompt, {"sign_in_id": s.id})) for s in old]

    async def _audit_begin(
        self, tx: Transaction, sign_in: SignIn, outcome: str, *, actor: str = ANONYMOUS, **details: str
    ) -> None:
        await self._world.audit(
            tx,
            "sign_in.begin",
            actor=actor,
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
        *,
        actor: str = ANONYMOUS,
        **details: str,
    ) -> None:
        await self._world.audit(
            tx,
            "sign_in.begin",
            actor=actor,
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


def _check_request(request: SignInRequest) -> None:
    check_text(request.tenant, "context.tenant", longest=128)
    check_text(request.username, "context.username", longest=128)
    check_app(request, within="context.")


def check_app(request: SignInRequest, *, within: str = "") -> None:
    """Check what a request says of the app. `within` is the message the fields are in. Raises FIELD_INVALID."""
    check_text(request.app_id, f"{within}app_id", longest=128)
    check_text(request.app_name, f"{within}app_name", longest=64)
    check_text(request.audience, f"{within}audience", longest=256, required=False)
    check_text(request.binding_message, f"{within}binding_message", longest=128, required=False)


def _throttled(why: str, seconds: int) -> ThrottledError:
    return ThrottledError(
        Reason.THROTTLED,
        f"Not now: {why}.",
        retry_after=float(max(1, seconds)),
        fix=f"Try again in {max(1, seconds)} seconds, or use another method.",
    )


def _too_many_begins(seconds: int) -> ThrottledError:
    return _throttled("too many sign-ins were begun in this minute", seconds)
