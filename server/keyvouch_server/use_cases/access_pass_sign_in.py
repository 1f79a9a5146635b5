"""Signing in with a Temporary Access Pass: every try is counted before it is compared, and all refusals look alike.

What a caller learns is the same whoever is named and whatever is wrong: the same bytes, after the same statements to
the store and the same keyed hashes (P9, P11, P12), at an instant that is drawn at random. The one try that kills a
pass, and the first one that finds a budget of a tenant used up, write a risk event beside.

Budgets. Whoever gets in is given back what it took, and so are copies of that request, sent again when a reply is lost.
A right code whose pass cannot be used is not, for nobody is to learn from a budget that it was right (T17):

    budget             at once   then          it stops
    address and user   4         1 in 10 min   one address from spending the five comparisons of a pass (P18)
    address            60        20 a minute   one address from trying many names; an office behind one address has room
    user               100       60 a minute   many addresses that try one name
    tenant             600       600 a minute  many addresses that try many names
    server             6000      6000 a minute the same in all tenants

Against guesses the five comparisons are what counts: of 31^8 codes they find the one of a pass in 170,000 million.
Budgets bound how many passes strangers can kill. Those that strangers share with an owner are refilled fast, that of a
user every second: whoever waits as long as RetryInfo says, and tries again, gets in among them. Addresses of this
machine have no budget of their own (`budgets.source_of`).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError
from keyvouch.ids import AccessPassId, TenantId
from keyvouch_server.domain.access_pass import ATTEMPTS, ONE_TIME_SECONDS, access_pass_end, access_pass_refusal
from keyvouch_server.domain.evaluation import DueCampaign
from keyvouch_server.domain.model import AccessPass, PolicyVersion, Role, SignInMethod, Tenant, User
from keyvouch_server.domain.names import name_key
from keyvouch_server.domain.oversight_model import RiskKind
from keyvouch_server.domain.policy import Policy
from keyvouch_server.ports import Below, Plus, Transaction
from keyvouch_server.use_cases.access_passes import code_hash
from keyvouch_server.use_cases.budgets import Budget, Budgets, Charge, UsedUp, source_of, throttled
from keyvouch_server.use_cases.decoys import Decoys
from keyvouch_server.use_cases.risks import Risks
from keyvouch_server.use_cases.sessions import IssuedSession, Sessions
from keyvouch_server.use_cases.sign_in_rules import campaigns_due
from keyvouch_server.use_cases.world import ANONYMOUS, World, settled

OF_ADDRESS_AND_USER: Final = Budget("pass-address-user", 4, 0.1)
OF_ADDRESS: Final = Budget("pass-address", 60, 20)
OF_USER: Final = Budget("pass-user", 100, 60)
OF_TENANT: Final = Budget("pass-tenant", 600, 600)
OF_SERVER: Final = Budget("pass-server", 6000, 6000)

_TOLD: Final = {OF_ADDRESS.name: "one address", OF_TENANT.name: "this tenant", OF_SERVER.name: "this server"}
"""Budgets that administrators are told of when they are used up."""

COPY_SECONDS: Final = 60
"""How long after a one-time pass has opened its session the same code is taken for a copy of that request."""

EARLIEST_SECONDS: Final = 0.01
LATEST_SECONDS: Final = 0.03
"""When a refusal leaves, counted from when its call came. Most work takes less, so that what it took does not show."""

_NO_CODE: Final = bytes(32)
"""Compared with where there is nothing to compare with: no keyed hash is like this one."""


@dataclass(frozen=True, slots=True)
class OpenedWithPass:
    """A session with its tokens, and what the person has to register (KI8)."""

    issued: IssuedSession
    due: tuple[DueCampaign, ...] = ()


@dataclass(frozen=True, slots=True)
class _Try:
    """What a caller sent."""

    tenant: str
    username: str
    code: str = field(repr=False)
    address: str


@dataclass(frozen=True, slots=True)
class _Named:
    """Whoever is named, and the tenant. Where there is no such user, `user` stands in, whose id is of nobody."""

    tenant_id: TenantId
    user: User
    exists: bool
    budget_of_tenant: str


@dataclass(frozen=True, slots=True)
class _Tried:
    """What became of one try: the pass that it was for, whether the code is right, and why there is no session."""

    found: AccessPass
    right: bool
    why_not: Reason | None


class AccessPassSignIns:
    """Spending passes. `pause` waits until a refusal may leave."""

    def __init__(
        self, world: World, sessions: Sessions, *, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._world = world
        self._sessions = sessions
        self._budgets = Budgets(world)
        self._risks = Risks(world)
        self._decoys = Decoys(world.keys)
        self._pause = pause

    async def sign_in(self, tenant: str, username: str, code: str, *, address: str) -> OpenedWithPass:
        """T8, T17: open a session with a pass. Raises ACCESS_PASS_REFUSED, or THROTTLED; the audit record says why.

        1. who is named; 2. budgets; 3. count the try, then compare; 4. policy; 5. session and audit.
        """
        time = asyncio.get_running_loop().time
        leaves = time() + drawn_seconds(self._world.entropy.token(4))
        sent = _Try(tenant, username, code, address)
        outcome = await self._world.store.write(lambda tx: self._sign_in(tx, sent))
        if isinstance(outcome, KeyvouchError):
            await self._pause(max(0.0, leaves - time()))
        return settled(outcome)

    async def _sign_in(self, tx: Transaction, sent: _Try) -> OpenedWithPass | KeyvouchError:
        named = await self._find(tx, sent)
        charges = self._charges(named, sent)
        used_up = await self._budgets.take_all(tx, charges, named.tenant_id)
        if used_up is not None:
            return await self._throttle(tx, named, sent, used_up)
        policy = await self._policy(tx, named)
        tried = await self._compare(tx, named, sent, policy)
        await self._budgets.give_back_one(tx, charges, due=self._is_no_guess(tried))
        if tried.why_not is not None:
            return await self._refuse(tx, named, sent, tried)
        await tx.update(User, {"id": named.user.id}, {"last_method": SignInMethod.ACCESS_PASS.value})
        seconds, address = ONE_TIME_SECONDS, sent.address
        session = self._sessions.from_access_pass(tried.found, policy, one_time_seconds=seconds, address=address)
        await tx.insert(session)
        ends = str(access_pass_end(tried.found))
        await self._audit(tx, named, sent, "ok", subject=tried.found.id, session=session.id, ends_at=ends)
        due = await campaigns_due(tx, self._world, policy, await self._world.subject_of(tx, named.user))
        return OpenedWithPass(self._sessions.issue(session, named.user, policy), due)

    def _is_no_guess(self, tried: _Tried) -> bool:
        if tried.why_not is not Reason.ACCESS_PASS_USED or not tried.right:
            return tried.why_not is None
        now = self._world.clock.now()
        return now - (tried.found.used_at or now) <= COPY_SECONDS

    async def _find(self, tx: Transaction, sent: _Try) -> _Named:
        tenant = await tx.get(Tenant, name_key=name_key(sent.tenant))
        tenant_id = tenant.id if tenant else TenantId("")
        user = await self._world.user_in(tx, tenant_id, sent.username)
        nobody, nowhere = self._decoys.nobody(sent.tenant, sent.username), self._decoys.tenant(sent.tenant)
        stand_in = User(nobody, tenant_id, "", "", "", Role.USER, b"", 0)
        return _Named(tenant_id, user or stand_in, user is not None, tenant_id or nowhere)

    def _charges(self, named: _Named, sent: _Try) -> list[Charge]:
        source, user = source_of(sent.address), named.user.id
        own = [Charge(OF_ADDRESS_AND_USER, f"{source}/{user}"), Charge(OF_ADDRESS, source)] if source else []
        shared = [Charge(OF_USER, user), Charge(OF_TENANT, named.budget_of_tenant), Charge(OF_SERVER, "")]
        return [*own, *shared]

    async def _policy(self, tx: Transaction, named: _Named) -> Policy:
        if named.tenant_id:
            return await self._world.policy_of(tx, named.tenant_id)
        await tx.find(PolicyVersion, {"tenant_id": ""}, order="version", descending=True, limit=1)
        return Policy()

    async def _compare(self, tx: Transaction, named: _Named, sent: _Try, policy: Policy) -> _Tried:
        """Whether the code is right and the pass can be used. Whatever is wrong, as much is done.

        The try is counted in the row before anything is compared, and only a right code takes its own back. That of a
        one-time pass is spent by the same update: of several at once, one finds it unspent.
        """
        now, user = self._world.clock.now(), named.user
        found = await tx.get(AccessPass, user_id=user.id)
        subject = await self._world.subject_of(tx, user)
        offered = code_hash(self._world.keys, user.id, sent.code)
        held = found or AccessPass(AccessPassId(""), named.tenant_id, user.id, _NO_CODE, 0, 0, 0, one_time=False)
        why_not = access_pass_refusal(policy, held, subject, now=now)
        counted = await tx.update(AccessPass, {"id": held.id, "attempts": Below(ATTEMPTS)}, {"attempts": Plus(1)})
        right = hmac.compare_digest(offered, counted[0].code_hash if counted else _NO_CODE)
        if right and why_not is None:
            unspent = {"id": held.id, "used_at": 0} if held.one_time else {"id": held.id}
            if await tx.update(AccessPass, unspent, {"attempts": Plus(-1), "used_at": now}):
                return _Tried(held, right, None)
            why_not = Reason.ACCESS_PASS_USED
        await tx.update(AccessPass, {"id": held.id if right else ""}, {"attempts": Plus(-1)})
        if not counted:
            why_not = Reason.ACCESS_PASS_ATTEMPTS if found else Reason.ACCESS_PASS_NONE
        elif not right:
            held, why_not = counted[0], Reason.ACCESS_PASS_WRONG
        return _Tried(held, right, why_not)

    async def _refuse(self, tx: Transaction, named: _Named, sent: _Try, tried: _Tried) -> UnauthenticatedError:
        assert tried.why_not is not None
        await self._audit(tx, named, sent, tried.why_not.value, subject=tried.found.id)
        if tried.why_not is Reason.ACCESS_PASS_WRONG and tried.found.attempts >= ATTEMPTS:
            await self._note_dead(tx, named, sent, tried.found)
        return UnauthenticatedError(
            Reason.ACCESS_PASS_REFUSED,
            "The user name and access pass do not open a session.",
            fix="Check both for typing mistakes, or ask your administrator for a new access pass.",
        )

    async def _note_dead(self, tx: Transaction, named: _Named, sent: _Try, dead: AccessPass) -> None:
        await self._risks.note(
            tx,
            RiskKind.PASS_GUESSED,
            f"{ATTEMPTS} wrong codes were tried for the access pass of {named.user.username}, and it is dead.",
            tenant_id=named.tenant_id,
            user_id=named.user.id,
            subject=dead.id,
            address=sent.address,
        )

    async def _throttle(self, tx: Transaction, named: _Named, sent: _Try, used_up: UsedUp) -> KeyvouchError:
        """Nothing was compared. Administrators are told once, however many addresses there are, until they looked."""
        budget = used_up.charge.budget.name
        await self._audit(tx, named, sent, Reason.THROTTLED.value, budget=budget)
        if budget in _TOLD and not named.tenant_id:  # there is nobody to tell, and as much is asked (P12)
            await self._risks.is_open(tx, RiskKind.PASS_BUDGET, tenant_id=named.tenant_id, subject=budget)
        elif budget in _TOLD:
            await self._risks.note(
                tx,
                RiskKind.PASS_BUDGET,
                f"So many wrong access passes were tried from or in {_TOLD[budget]} that no more are compared for now.",
                tenant_id=named.tenant_id,
                subject=budget,
                address=sent.address,
            )
        return throttled("too many access passes were tried", used_up.seconds)

    async def _audit(
        self, tx: Transaction, named: _Named, sent: _Try, outcome: str, *, subject: str = "", **details: str
    ) -> None:
        """T17: precisely what was wrong, for administrators alone."""
        await self._world.audit(
            tx,
            "access_pass.sign_in",
            actor=named.user.id if outcome == "ok" else ANONYMOUS,
            tenant_id=named.tenant_id,
            subject=subject,
            user_id=named.user.id if named.exists else "",
            outcome=outcome,
            address=sent.address,
            **details,
        )


def drawn_seconds(random: bytes) -> float:
    """When a refusal leaves: uniform between `EARLIEST_SECONDS` and `LATEST_SECONDS`, by random bytes."""
    share = int.from_bytes(random) / (1 << 8 * len(random))
    return EARLIEST_SECONDS + share * (LATEST_SECONDS - EARLIEST_SECONDS)
