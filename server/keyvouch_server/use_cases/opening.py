"""Opening a sign-in: who is named, may it be begun now, to which keys is it offered. The drawing is in sign_in.proto.

Every way of signing in is opened here, so that budgets, policy and the one open request per user hold for all.
Requests with a security key, and those of the user's own devices, are counted by themselves; whoever begins others for
the user does not end them: they come to no other device, and would be disturbed unseen (P18). What becomes of a request
is `sign_in`; who is told of it is for the ceremony that opens it.

Not here: the rules (`sign_in_rules`), what is counted (`initiators`), the rows (`offering`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keyvouch.errors import KeyvouchError, Reason, RefusedError, ThrottledError
from keyvouch.ids import CredentialId, DeviceId, TenantId
from keyvouch.statement import MAX_TEXT
from keyvouch_server.domain.evaluation import Subject, Wanted
from keyvouch_server.domain.model import Credential, Device, Prompt, SignIn, SignInMethod, SignInWay, Tenant, User
from keyvouch_server.domain.names import check_text, invalid_field, name_key
from keyvouch_server.domain.policy import Policy, reaches
from keyvouch_server.domain.sign_in import TRANSITIONS, Event
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import OneOf, Snapshot, Transaction
from keyvouch_server.use_cases.budgets import throttled
from keyvouch_server.use_cases.decoys import Decoys
from keyvouch_server.use_cases.initiators import TOO_MANY, Attempt, Initiators
from keyvouch_server.use_cases.key_standing import standing
from keyvouch_server.use_cases.known_clients import KnownClients
from keyvouch_server.use_cases.method_offers import methods_for
from keyvouch_server.use_cases.offering import Beginning, Named, Offering, SignInRequest
from keyvouch_server.use_cases.sign_in_rules import Evaluated, Question, evaluate, keys_for, refusing_rule, subject_for
from keyvouch_server.use_cases.world import ANONYMOUS, World, precise


@dataclass(frozen=True, slots=True)
class Opened:
    """A sign-in that was opened, the prompts that offer it, what it superseded, each with its prompts, and the methods
    to tell the client of.
    """

    sign_in: SignIn
    prompts: list[Prompt]
    superseded: list[tuple[SignIn, list[Prompt]]]
    methods: tuple[SignInMethod, ...]


class Openings:
    """Requests as they begin: steps 2 to 6 of `SignIns.begin`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._decoys = Decoys(world.keys)
        self._known = KnownClients(world)
        self._initiators = Initiators(world)
        self._offering = Offering(world)

    async def for_name(
        self, tx: Transaction, request: SignInRequest, proof_thumbprint: bytes, token: str, way: SignInWay
    ) -> Opened | KeyvouchError:
        """Steps 2 to 6, for whoever is named: nobody is asked the same questions as somebody (P12)."""
        named = await self._named(tx, request)
        known = self._known.knows(request.known_client, named.tenant_id, named.user_id)
        return await self._open(tx, Beginning(request, named, way, proof_thumbprint, token, ANONYMOUS, known))

    async def on_device(
        self, tx: Transaction, device: Device, user: User, request: SignInRequest, certificate: bytes, token: str
    ) -> Opened | KeyvouchError:
        """Steps 2 to 6, for a sign-in that is the device's own, and offered to no other."""
        named = Named(user.tenant_id, user.id, user, await self._world.policy_of(tx, user.tenant_id))
        begun = Beginning(request, named, SignInWay.SAME_DEVICE, certificate, token, device.id)
        return await self._open(tx, begun, device)

    async def _named(self, tx: Snapshot, request: SignInRequest) -> Named:
        tenant = await tx.get(Tenant, name_key=name_key(request.tenant))
        tenant_id = tenant.id if tenant else TenantId("")
        user = await self._world.user_in(tx, tenant_id, request.username)
        policy = await self._world.policy_of(tx, tenant_id) if tenant else Policy()
        user_id = user.id if user else self._decoys.nobody(request.tenant, request.username)
        return Named(tenant_id, user_id, user, policy, tenant.key_lengths if tenant else "")

    async def _open(self, tx: Transaction, begun: Beginning, device: Device | None = None) -> Opened | KeyvouchError:
        """Steps 3 to 6."""
        named, verdicts = begun.named, Verdicts()
        refusal = await self._admit(tx, begun, verdicts)
        if refusal is not None:
            return await self._refuse(tx, begun, refusal, verdicts)
        subject = await subject_for(tx, self._world, named.policy, named.user or named.user_id)
        keys = await keys_for(tx, named.user_id, begun.way, device)
        found = await self._evaluated(tx, begun, subject, keys, verdicts)
        if isinstance(found, KeyvouchError):
            return await self._refuse(tx, begun, found, verdicts)
        superseded = await self._supersede(tx, begun)
        asked = [(c.device_id, c.id) for c in found.fit if reaches(c.assurance, found.demand.required_assurance)]
        sign_in = self._offering.row(begun, found.demand, verdicts.document(), offers=len(asked))
        await tx.insert(sign_in)
        prompts = await self._offering.prompts(tx, sign_in, begun, asked)
        why = {} if asked or not keys or found.left_out else await self._why_none(tx, keys, named.policy)
        await self._audit(tx, begun, _outcome(begun, found, asked), subject=sign_in.id, way=begun.way.value, **why)
        return Opened(sign_in, prompts, superseded, await self._methods(tx, begun, subject))

    async def _admit(self, tx: Transaction, begun: Beginning, verdicts: Verdicts) -> KeyvouchError | None:
        """Step 3: budgets and blocks. Wrong numbers rest what asks for numbers, for everybody, and nothing else.

        A wrong number comes from the user's own device, under its key and PIN, so no stranger can bring the rest about
        (P18); a known client that did not rest would be worth guesses to whoever stole its token (P4).
        """
        named, request = begun.named, begun.request
        attempt = Attempt(
            named.tenant_id,
            named.user_id,
            named.user,
            begun.way,
            begun.known_client,
            request.address,
            begun.proof_thumbprint,
        )
        refusal = await self._initiators.admit(tx, attempt, named.policy, verdicts)
        rest = named.user.locked_until - self._world.clock.now() if named.user else 0
        if refusal is None and rest > 0 and begun.way is SignInWay.PROMPT:
            return verdicts.refuse("throttle.wrong_numbers", throttled("too many wrong numbers were typed", rest))
        return refusal

    async def _evaluated(
        self, tx: Transaction, begun: Beginning, subject: Subject, keys: list[Credential], verdicts: Verdicts
    ) -> Evaluated | KeyvouchError:
        """Step 4: policy, on all that is known before anybody is asked (KI1)."""
        request, named = begun.request, begun.named
        wanted = Wanted(
            request.app_id,
            request.audience or request.app_id,
            request.required_assurance,
            request.phishing_resistant,
        )
        told = begun.known_client or begun.way is SignInWay.SAME_DEVICE
        asked = Question(named.policy, subject, begun.way, wanted, exists=named.user is not None, told=told)
        try:
            found = await evaluate(tx, self._world, asked, keys, verdicts)
        except KeyvouchError as refusal:
            return refusal
        if len(found.demand.required_assurance) > MAX_TEXT:  # it has to stand in what is signed
            return invalid_field("context.required_assurance", "fewer names of anchors")
        return found

    async def _methods(self, tx: Snapshot, begun: Beginning, subject: Subject) -> tuple[SignInMethod, ...]:
        named, now = begun.named, self._world.clock.now()
        return await methods_for(tx, named, subject, begun.way, known_client=begun.known_client, now=now)

    async def _why_none(self, tx: Transaction, credentials: list[Credential], policy: Policy) -> dict[str, str]:
        """For the audit log: what is wrong with the keys that a client was not offered, and is not told of."""
        _, refusal = await standing(tx, self._world, credentials, policy)
        return {"why": refusal.reason.value if refusal else Reason.ASSURANCE_TOO_LOW.value}

    async def _supersede(self, tx: Transaction, begun: Beginning) -> list[tuple[SignIn, list[Prompt]]]:
        """KI4: one open request per user; the newer one ends the older one in the same transaction.

        With security keys a stranger's ends strangers' and a known client's known clients'. A device's own request ends
        the prompts as well; a prompt does not end a device's own (P18).
        """
        states, target = TRANSITIONS[Event.SUPERSEDE]
        where: dict[str, object] = {"user_id": begun.named.user_id, "state": OneOf(tuple(states))}
        if begun.way is SignInWay.SECURITY_KEY:
            where |= {"security_key": True, "known_client": begun.known_client}
        elif begun.way is SignInWay.SAME_DEVICE:
            where |= {"security_key": False}
        else:
            where |= {"security_key": False, "same_device": False}
        old = await tx.update(SignIn, where, {"state": target})
        for s in old:
            await audit_end(self._world, tx, Event.SUPERSEDE, s, actor=begun.actor)
        return [(s, await withdrawn(tx, s)) for s in old]

    async def _refuse(
        self, tx: Transaction, begun: Beginning, refusal: KeyvouchError, verdicts: Verdicts
    ) -> KeyvouchError:
        """Write down why, and answer with what this caller may be told."""
        rule = refusing_rule(verdicts)
        said = precise(refusal) if begun.named.user else {}
        await self._audit(tx, begun, refusal.reason.value, **said, **({"rule": rule} if rule else {}))
        if begun.way is SignInWay.SAME_DEVICE:
            return refusal
        return _untold(refusal if begun.known_client else _alike(refusal))

    async def _audit(
        self, tx: Transaction, begun: Beginning, outcome: str, *, subject: str = "", **details: str
    ) -> None:
        if begun.known_client:
            details["client"] = "known"
        await self._world.audit(
            tx,
            "sign_in.begin",
            actor=begun.actor,
            tenant_id=begun.named.tenant_id,
            subject=subject,
            user_id=begun.named.user_id,
            outcome=outcome,
            address=begun.request.address,
            app=begun.request.app_id,
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


def _outcome(begun: Beginning, found: Evaluated, asked: list[tuple[DeviceId, CredentialId]]) -> str:
    """What the audit log says of a request that was opened: its client is told nothing of it."""
    if asked:
        return "ok"
    if begun.named.user is None:
        return "nobody"
    return (found.left_out.reason if found.left_out else Reason.NO_METHOD).value


def _alike(refusal: KeyvouchError) -> KeyvouchError:
    """What strangers are told: not that the user has reported somebody, nor that wrong numbers were typed."""
    if isinstance(refusal, ThrottledError):
        return throttled(TOO_MANY, round(refusal.retry_after))
    return refusal


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
