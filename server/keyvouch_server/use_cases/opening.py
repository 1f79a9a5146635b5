"""Opening a sign-in: who is named, may it be begun now, to which keys is it offered. The drawing is in sign_in.proto.

Every way of signing in is opened here, so that throttle, policy and the one open request per user hold for all.
Requests with a security key are counted by themselves, and supersede one another only: they come to no device, so
that whoever begins them for somebody else would disturb approvals unseen (P18). What becomes of a request is
`sign_in`; who is told of it is for the ceremony that opens it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from keyvouch.errors import KeyvouchError, Reason, RefusedError
from keyvouch.ids import (
    ID_ENTROPY,
    PROMPT,
    SIGN_IN,
    USER,
    CredentialId,
    DeviceId,
    PromptId,
    SignInId,
    TenantId,
    UserId,
    new_id,
)
from keyvouch.statement import SignInOffer
from keyvouch_server.domain.model import (
    Credential,
    Device,
    Prompt,
    ProviderKind,
    SignIn,
    SignInState,
    SignInWay,
    Tenant,
    User,
)
from keyvouch_server.domain.names import check_text, name_key
from keyvouch_server.domain.policy import Policy, decide_some_key, decide_way, reaches, required_by
from keyvouch_server.domain.sign_in import TRANSITIONS, Event, draw_number
from keyvouch_server.ports import OneOf, Transaction
from keyvouch_server.use_cases.begin_counts import Begins, begins_of, begins_of_nobody, throttled
from keyvouch_server.use_cases.decoys import Decoys
from keyvouch_server.use_cases.key_standing import in_standing, standing
from keyvouch_server.use_cases.world import ANONYMOUS, World, precise, sha256

MOST_SECURITY_KEYS: Final = 8
"""Offers of a sign-in with a security key, always: to the keys that were used or registered last, and to decoys."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A sign-in that was opened, the prompts that offer it, and what it superseded, each with its prompts."""

    sign_in: SignIn
    prompts: list[Prompt]
    superseded: list[tuple[SignIn, list[Prompt]]]
    policy: Policy


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


class Openings:
    """Requests as they begin: steps 2 to 6 of `SignIns.begin`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._decoys = Decoys(world.keys)

    async def for_name(
        self, tx: Transaction, request: SignInRequest, proof_thumbprint: bytes, token: str, way: SignInWay
    ) -> Opened | KeyvouchError:
        """Steps 2 to 6, for whoever is named."""
        user = await self._world.user_named(tx, request.tenant, request.username)
        if user is None:
            return await self._begin_for_nobody(tx, request, proof_thumbprint, token, way)
        return await self.open(tx, user, request, proof_thumbprint, token, way=way)

    async def open(
        self,
        tx: Transaction,
        user: User,
        request: SignInRequest,
        proof_thumbprint: bytes,
        token: str,
        *,
        way: SignInWay,
        device: Device | None = None,
    ) -> Opened | KeyvouchError:
        """Steps 3 to 6, for a user. With `device` the sign-in is that device's own, and offered to no other."""
        actor = device.id if device else ANONYMOUS
        policy = await self._world.policy_of(tx, user.tenant_id)
        credentials = await self._credentials(tx, user, way, device)
        fit = await self._may_begin(tx, user, policy, credentials, way)
        if isinstance(fit, KeyvouchError):
            await self._audit_refused_begin(tx, request, user.tenant_id, user.id, fit, actor=actor, **precise(fit))
            return fit if way is SignInWay.SAME_DEVICE else _untold(fit)
        superseded = await self._supersede(tx, user.id, way, actor=actor)
        sign_in = self._row(request, user.tenant_id, user.id, policy, proof_thumbprint, token, way)
        await tx.insert(sign_in)
        asked = [c for c in fit if reaches(c.assurance, sign_in.required_assurance)]
        prompts = await self._prompts(tx, sign_in, request, [(c.device_id, c.id) for c in asked])
        why = {} if asked or not credentials else await self._why_none(tx, credentials, policy)
        await self._audit_begin(tx, sign_in, "ok" if asked else Reason.NO_METHOD.value, actor=actor, **why)
        return Opened(sign_in, prompts, superseded, policy)

    async def _why_none(self, tx: Transaction, credentials: list[Credential], policy: Policy) -> dict[str, str]:
        """For the audit log: what is wrong with the keys that a client was not offered, and is not told of."""
        _, refusal = await standing(tx, self._world, credentials, policy)
        return {"why": refusal.reason.value if refusal else Reason.ASSURANCE_TOO_LOW.value}

    async def _credentials(
        self, tx: Transaction, user: User, way: SignInWay, device: Device | None
    ) -> list[Credential]:
        """Those that could decide it: a client can use a security key, and no key inside somebody's device."""
        if device is not None:
            return await tx.find(Credential, {"device_id": device.id})
        found = await tx.find(Credential, {"user_id": user.id})
        if way is not SignInWay.SECURITY_KEY:
            return found
        keys = {d.id: d for d in await tx.find(Device, {"user_id": user.id, "provider": ProviderKind.FIDO2})}

        def newest_use(credential: Credential) -> tuple[int, str]:
            device = keys[credential.device_id]
            return max(device.last_used_at, device.registered_at), device.id

        return sorted((c for c in found if c.device_id in keys), key=newest_use, reverse=True)

    async def _prompts(
        self, tx: Transaction, sign_in: SignIn, request: SignInRequest, keys: list[tuple[DeviceId, CredentialId]]
    ) -> list[Prompt]:
        """Offer it to each key. With a security key there are always as many offers, and as many rows: neither what is
        told nor the time it takes says how many keys there are (P12).
        """
        shown = sign_in
        if sign_in.security_key:
            named = self.nobody(request)
            decoys = [self._decoys.key(named, number) for number in range(MOST_SECURITY_KEYS)]
            keys = [*keys, *decoys][:MOST_SECURITY_KEYS]
            shown = sign_in if sign_in.tenant_id else replace(sign_in, tenant_id=self._decoys.tenant(request.tenant))
        prompts = [self._offer(shown, request, device, credential) for device, credential in keys]
        for prompt in prompts:
            await tx.insert(prompt)
        return prompts

    async def _begin_for_nobody(
        self, tx: Transaction, request: SignInRequest, proof_thumbprint: bytes, token: str, way: SignInWay
    ) -> Opened | KeyvouchError:
        """P12: unknown names meet the tenant's policy, the throttle and a newer request like known ones; neither the
        number nor a refusal nor what becomes of an older request tells who exists.
        """
        tenant = await tx.get(Tenant, name_key=name_key(request.tenant))
        policy = await self._world.policy_of(tx, tenant.id) if tenant else Policy()
        nobody, tenant_id = self.nobody(request), tenant.id if tenant else TenantId("")
        begins = (await begins_of_nobody(tx, nobody, now=self._world.clock.now())).one_more(way)
        counted = {name: str(number) for name, number in begins.columns().items()}
        refusal = self._may_begin_for_nobody(begins, policy, way)
        if refusal is not None:
            await self._audit_refused_begin(tx, request, tenant_id, nobody, refusal, **counted)
            return refusal
        superseded = await self._supersede(tx, nobody, way)
        sign_in = self._row(request, tenant_id, nobody, policy, proof_thumbprint, token, way)
        await tx.insert(sign_in)
        prompts = await self._prompts(tx, sign_in, request, [])
        await self._audit_begin(tx, sign_in, "nobody", **counted)
        return Opened(sign_in, prompts, superseded, policy)

    def nobody(self, request: SignInRequest) -> UserId:
        """A user id that no user has, always the same for one name however it is spelt."""
        named = f"{name_key(request.tenant)}\n{name_key(request.username)}".encode()
        return UserId(new_id(USER, self._world.keys.mac("nobody", named)[:ID_ENTROPY]))

    def _may_begin_for_nobody(self, begins: Begins, policy: Policy, way: SignInWay) -> KeyvouchError | None:
        """The same as `_may_begin`."""
        too_many = begins.refusal(way, policy.approval.begins_per_minute, now=self._world.clock.now())
        if too_many is not None:
            return too_many
        try:
            decide_way(policy, way)
        except KeyvouchError as refusal:
            return refusal
        return None

    async def _may_begin(
        self, tx: Transaction, user: User, policy: Policy, credentials: list[Credential], way: SignInWay
    ) -> list[Credential] | KeyvouchError:
        """Throttle, then policy; returns the credentials that may be used now.

        Of security keys none may be left: a client learns nothing of what a user has before it has shown one (P12).
        Wrong numbers rest what asks for numbers, and nothing else (P18).
        """
        now = self._world.clock.now()
        begins = begins_of(user, now=now).one_more(way)
        await tx.update(User, {"id": user.id}, {"begins_window": now - now % 60, **begins.columns()})
        if user.locked_until > now and way is not SignInWay.SECURITY_KEY:
            return throttled("too many wrong numbers were typed", user.locked_until - now)
        too_many = begins.refusal(way, policy.approval.begins_per_minute, now=now)
        if too_many is not None:
            return too_many
        try:
            decide_way(policy, way)
            if way is SignInWay.SECURITY_KEY:
                return (await standing(tx, self._world, credentials, policy))[0]
            fit = await in_standing(tx, self._world, credentials, policy)
            decide_some_key((c.assurance for c in fit), required_by(policy, way))
        except KeyvouchError as refusal:
            return refusal
        return fit

    def _row(
        self,
        request: SignInRequest,
        tenant: TenantId,
        user: UserId,
        policy: Policy,
        proof: bytes,
        token: str,
        way: SignInWay,
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
            required_assurance=required_by(policy, way),
            created_at=now,
            expires_at=now + policy.approval.lifetime_seconds,
            same_device=way is SignInWay.SAME_DEVICE,
            security_key=way is SignInWay.SECURITY_KEY,
        )

    def _offer(self, sign_in: SignIn, request: SignInRequest, device: DeviceId, credential: CredentialId) -> Prompt:
        offer = SignInOffer(
            server_id=self._world.facts.server_id,
            tenant_id=sign_in.tenant_id,
            user_id=sign_in.user_id,
            device_id=device,
            credential_id=credential,
            sign_in_id=sign_in.id,
            nonce=self._world.entropy.token(32),
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
            id=PromptId(self._world.new_id(PROMPT)),
            sign_in_id=sign_in.id,
            device_id=device,
            credential_id=credential,
            offer=offer.encode(),
            created_at=sign_in.created_at,
            expires_at=sign_in.expires_at,
        )

    async def _supersede(
        self, tx: Transaction, user: UserId, way: SignInWay, *, actor: str = ANONYMOUS
    ) -> list[tuple[SignIn, list[Prompt]]]:
        """KI4: one open request per user, and one with a security key; the newer one ends the older one in the same
        transaction.
        """
        states, target = TRANSITIONS[Event.SUPERSEDE]
        with_key = way is SignInWay.SECURITY_KEY
        where = {"user_id": user, "state": OneOf(tuple(states)), "security_key": with_key}
        old = await tx.update(SignIn, where, {"state": target})
        for s in old:
            await audit_end(self._world, tx, Event.SUPERSEDE, s, actor=actor)
        return [(s, await withdrawn(tx, s)) for s in old]

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
            way=sign_in.way.value,
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


async def withdrawn(tx: Transaction, ended: SignIn) -> list[Prompt]:
    """The prompts that devices need not show any more. Those for a client came to no device, and go with the end."""
    if ended.security_key:
        await tx.delete(Prompt, {"sign_in_id": ended.id})
        return []
    return await tx.find(Prompt, {"sign_in_id": ended.id})


async def audit_end(world: World, tx: Transaction, event: Event, ended: SignIn, *, actor: str) -> None:
    """The audit record of a sign-in that ended without a decision."""
    await world.audit(
        tx,
        f"sign_in.{event.value}",
        actor=actor,
        tenant_id=ended.tenant_id,
        subject=ended.id,
        user_id=ended.user_id,
    )


def check_request(request: SignInRequest) -> None:
    """Check everything a client asks for. Raises FIELD_INVALID."""
    check_text(request.tenant, "context.tenant", longest=128)
    check_text(request.username, "context.username", longest=128)
    check_app(request, within="context.")


def check_app(request: SignInRequest, *, within: str = "") -> None:
    """Check what a request says of the app. `within` is the message the fields are in. Raises FIELD_INVALID."""
    check_text(request.app_id, f"{within}app_id", longest=128)
    check_text(request.app_name, f"{within}app_name", longest=64)
    check_text(request.audience, f"{within}audience", longest=256, required=False)
    check_text(request.binding_message, f"{within}binding_message", longest=128, required=False)


def _untold(refusal: KeyvouchError) -> KeyvouchError:
    """What anybody may be told who names a user: not of what model the user's keys are, nor what became of a badge."""
    if refusal.reason in _BADGES:  # under one reason: it is nobody's business that a key is weak, or a user renamed
        return RefusedError(Reason.CARD_CERTIFICATE, _NO_BADGE, fix=_ANOTHER)
    why = _UNTOLD.get(refusal.reason)
    if why is None and "found" not in refusal.metadata:
        return refusal
    return RefusedError(refusal.reason, why or _NO_KEY, fix=_ANOTHER)


_ANOTHER: Final = "Use another method, or ask an administrator."
_NO_KEY: Final = "Policy accepts the key of no device of this user any more, so none was asked."
_NO_MODEL: Final = "Policy accepts the security key of no device of this user any more, so none was asked."
_NO_BADGE: Final = "No device of this user has a key with a certificate that counts now, so none was asked."
_UNTOLD: Final = {Reason.AUTHENTICATOR_MODEL: _NO_MODEL, Reason.AUTHENTICATOR_STATUS: _NO_MODEL}
_BADGES: Final = frozenset({Reason.CARD_CERTIFICATE, Reason.CARD_USER, Reason.WEAK_KEY_ROCA})
