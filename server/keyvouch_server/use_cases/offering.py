"""What a sign-in is made of: its row, and the prompts that offer it to keys. Nothing is decided here (`opening`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from keyvouch.ids import PROMPT, SIGN_IN, CredentialId, DeviceId, PromptId, SignInId, TenantId, UserId
from keyvouch.statement import SignInOffer
from keyvouch_server.domain.evaluation import Demand
from keyvouch_server.domain.model import Prompt, Role, SignIn, SignInState, SignInWay, User
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.sign_in import draw_choices, draw_number
from keyvouch_server.ports import Transaction
from keyvouch_server.use_cases.decoys import Decoys
from keyvouch_server.use_cases.sign_in_rules import digits_of, offers_choices
from keyvouch_server.use_cases.world import World, sha256

MOST_SECURITY_KEYS: Final = 8
"""Offers of a sign-in with a security key, always: to the keys that were used or registered last, and to decoys."""


@dataclass(frozen=True, slots=True)
class SignInRequest:
    """What a client asks for, as received; see SignInContext and BeginSignInRequest in sign_in.proto."""

    tenant: str
    username: str
    app_id: str
    app_name: str
    audience: str
    binding_message: str
    proof_key: bytes
    address: str
    place: str
    required_assurance: str = ""
    phishing_resistant: bool = False
    known_client: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """Whom a request names: a user, or nobody, who has an id too, always the same for one name (`nobody`)."""

    tenant_id: TenantId
    user_id: UserId
    user: User | None
    policy: Policy
    key_lengths: str = ""


@dataclass(frozen=True, slots=True)
class Beginning:
    """One request on its way: what was asked for, by which way, and with which token and proof key it goes on."""

    request: SignInRequest
    named: Named
    way: SignInWay
    proof_thumbprint: bytes
    token: str
    actor: str
    known_client: bool = False


class Offering:
    """Makes the rows of a sign-in."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._decoys = Decoys(world.keys)

    def row(self, begun: Beginning, demand: Demand, rules: str, *, offers: int) -> SignIn:
        """A sign-in that waits. Number and nonce come from here; the clock is the server's."""
        now, request, policy = self._world.clock.now(), begun.request, begun.named.policy
        number = draw_number(digits_of(policy), self._world.entropy.token(16))
        return SignIn(
            id=SignInId(self._world.new_id(SIGN_IN)),
            tenant_id=begun.named.tenant_id,
            user_id=begun.named.user_id,
            token_hash=sha256(begun.token),
            state=SignInState.PENDING,
            number=number,
            proof_key=request.proof_key,
            proof_thumbprint=begun.proof_thumbprint,
            app_id=request.app_id,
            app_name=request.app_name,
            audience=request.audience or request.app_id,
            address=request.address,
            binding_message=request.binding_message,
            policy_version=policy.version,
            required_assurance=demand.required_assurance,
            created_at=now,
            expires_at=now + policy.approval.lifetime_seconds,
            same_device=begun.way is SignInWay.SAME_DEVICE,
            security_key=begun.way is SignInWay.SECURITY_KEY,
            phishing_resistant=demand.phishing_resistant,
            known_client=begun.known_client,
            choices=self._choices(begun, number),
            rules=rules,
            offers=offers,
            after_misses=begun.named.user is not None and begun.named.user.number_misses > 0,
        )

    def _choices(self, begun: Beginning, number: str) -> str:
        """The legacy choice, with the number among them; empty where the person types it. Nobody's is never shown."""
        role = begun.named.user.role if begun.named.user else Role.USER
        if begun.way is not SignInWay.PROMPT or not offers_choices(begun.named.policy, role):
            return ""
        return " ".join(draw_choices(number, self._world.entropy.token(32)))

    async def prompts(
        self, tx: Transaction, sign_in: SignIn, begun: Beginning, keys: list[tuple[DeviceId, CredentialId]]
    ) -> list[Prompt]:
        """Offer it to each key. With a security key there are always as many offers, and as many rows: neither what is
        told nor the time it takes says how many keys there are (P12).
        """
        shown, request = sign_in, begun.request
        if sign_in.security_key:
            named, where = sign_in.user_id, (request.tenant, begun.named.key_lengths)
            decoys = [self._decoys.key(named, number, *where) for number in range(MOST_SECURITY_KEYS)]
            keys = [*keys, *decoys][:MOST_SECURITY_KEYS]
            shown = sign_in if sign_in.tenant_id else replace(sign_in, tenant_id=self._decoys.tenant(request.tenant))
        prompts = [self._offer(shown, request, device, credential) for device, credential in keys]
        for prompt in prompts:
            await tx.insert(prompt)
        return prompts

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
