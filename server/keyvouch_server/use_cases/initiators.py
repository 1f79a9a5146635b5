"""Who begins sign-ins, and how many: budgets, and those whom a user has reported (P1, P18).

Everything is counted before anything is compared, in the transaction of the request:

    initiator   strangers: `INITIATOR`, by address; where that says nothing (loopback: a proxy may stand there), by key
    block       an initiator that the user has reported stays away from that user for an hour
    user        as many as policy says, and then one a minute; an approval gives all of it back

The users' budgets are five: of strangers and of known clients, each for prompts and for security keys, and of the
user's own devices. So a stranger who goes on for ever keeps strangers out, and nobody else: not the known clients that
share an address with them either, be it used up or reported. Names that nobody has are counted like others; what is
counted is keyed by ids, so that no spelling has a budget of its own (P10).

An approval gives back one request of its initiator: an account of one's own buys no requests against others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keyvouch.errors import Reason, ThrottledError
from keyvouch.ids import TenantId, UserId
from keyvouch_server.domain.model import SignIn, SignInWay, User
from keyvouch_server.domain.oversight_model import Block, RiskEvent, RiskKind
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Above, Transaction
from keyvouch_server.use_cases.budgets import Budget, Budgets, Charge, source_of, throttled
from keyvouch_server.use_cases.risks import Risks
from keyvouch_server.use_cases.world import World

INITIATOR: Final = Budget("begin-initiator", 600, 600)
"""Requests that one initiator may have begun and nobody approved: enough for all the people behind one address."""

BLOCK_SECONDS: Final = 3600
"""How long whoever was reported stays away from the user."""

REFILL: Final = 1
"""Requests a minute, once a user's budget is used up."""

_WITH_KEY, _STRANGER_AT_ADDRESS, _KNOWN_AT_ADDRESS = "key", "address", "known-client-address"
"""What is blocked: whoever has a proof key, strangers at an address, known clients there."""

TOO_MANY: Final = "too many sign-ins were begun and not approved"
"""Also what strangers are told who are shut out."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request as it is counted. `user` is None for a name that nobody has; `user_id` always names somebody."""

    tenant_id: TenantId
    user_id: UserId
    user: User | None
    way: SignInWay
    known_client: bool
    address: str
    proof_thumbprint: bytes


class Initiators:
    """Admits requests, and shuts out those who begin too many or were reported."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._budgets = Budgets(world)
        self._risks = Risks(world)

    async def admit(
        self, tx: Transaction, attempt: Attempt, policy: Policy, verdicts: Verdicts
    ) -> ThrottledError | None:
        """Count a request. Returns the refusal, with reason INITIATOR_BLOCKED where a report is why."""
        of_user = _charge_of_user(attempt, policy)
        of_initiator = _charge_of_initiator(attempt)
        counted = await self._budgets.read(tx, [of_user, *of_initiator])
        for charge in of_initiator:
            wait = await self._budgets.take(tx, charge, counted, attempt.tenant_id)
            if wait:
                return _refused(verdicts, "throttle.initiator", throttled(TOO_MANY, wait))
        if attempt.way is not SignInWay.SAME_DEVICE:
            blocked = await self._blocked(tx, attempt)
            if blocked:
                return _refused(verdicts, "block", _blocked_for(blocked))
        wait = await self._budgets.take(tx, of_user, counted, attempt.tenant_id)
        if wait:
            await self._note_bombing(tx, attempt)
            return _refused(verdicts, "throttle.user", throttled(TOO_MANY, wait))
        verdicts.allow("throttle", "known client" if attempt.known_client else "")
        return None

    async def _blocked(self, tx: Transaction, attempt: Attempt) -> int:
        """For how many seconds this initiator has to stay away from the user; 0 if it need not."""
        now = self._world.clock.now()
        blocks = await tx.find(Block, {"user_id": attempt.user_id, "until": Above(now)})
        at_address = _KNOWN_AT_ADDRESS if attempt.known_client else _STRANGER_AT_ADDRESS
        own = {
            self._row(attempt.user_id, _WITH_KEY, attempt.proof_thumbprint.hex()),
            self._row(attempt.user_id, at_address, source_of(attempt.address)),
        }
        return max((one.until - now for one in blocks if one.key in own), default=0)

    async def _note_bombing(self, tx: Transaction, attempt: Attempt) -> None:
        """P1: strangers who begin too many prompts are noted once. P12: a name that nobody has costs the same look."""
        if attempt.way is not SignInWay.PROMPT or attempt.known_client:
            return
        if attempt.user is None:
            await tx.find(RiskEvent, {"user_id": attempt.user_id, "kind": RiskKind.PUSH_BOMBING}, limit=1)
            return
        await self._risks.note(
            tx,
            RiskKind.PUSH_BOMBING,
            "More sign-ins were begun for this user than policy allows, and none was approved.",
            tenant_id=attempt.tenant_id,
            user_id=attempt.user_id,
            address=attempt.address,
        )

    async def approved(self, tx: Transaction, sign_in: SignIn) -> None:
        """What was feared has not come to pass: the user's budget is whole again, the initiator's has one more."""
        budget = begin_budget(1, sign_in.way, known_client=sign_in.known_client)
        await self._budgets.give_back(tx, budget, sign_in.user_id)
        if sign_in.way is not SignInWay.SAME_DEVICE and not sign_in.known_client:
            of = initiator_of(sign_in.address, sign_in.proof_thumbprint)
            await self._budgets.give_back_one(tx, [Charge(INITIATOR, of)], due=True)

    async def reported(self, tx: Transaction, sign_in: SignIn) -> None:
        """The user said "this was not me": an event for the administrators, and the initiator stays away (PS5, P1).

        With a stranger its address is shut to strangers; to known clients too only where one of them was reported: they
        may be the user's own, and somebody beside them is not to keep them out (P18).
        """
        await self._risks.note(
            tx,
            RiskKind.REPORTED,
            f"The user said of a sign-in to {sign_in.app_name}: this was not me.",
            tenant_id=sign_in.tenant_id,
            user_id=sign_in.user_id,
            subject=sign_in.id,
            address=sign_in.address,
        )
        if sign_in.way is SignInWay.SAME_DEVICE:
            return
        until = self._world.clock.now() + BLOCK_SECONDS
        source = source_of(sign_in.address)
        shut = [
            self._row(sign_in.user_id, _WITH_KEY, sign_in.proof_thumbprint.hex()),
            self._row(sign_in.user_id, _STRANGER_AT_ADDRESS, source),
            self._row(sign_in.user_id, _KNOWN_AT_ADDRESS, source) if sign_in.known_client else "",
        ]
        for key in filter(None, shut):
            if not await tx.update(Block, {"key": key}, {"until": until}):
                await tx.insert(Block(key, sign_in.tenant_id, sign_in.user_id, until))

    def _row(self, user: UserId, what: str, value: str) -> str:
        """The row by which an initiator is blocked for a user; empty where there is none, as of no address."""
        return self._world.keys.mac("block", f"{user}/{what}/{value}".encode()).hex() if value else ""


def begin_budget(most: int, way: SignInWay, *, known_client: bool) -> Budget:
    """How many sign-ins may be begun for one user without an approval (P1): no minute has more than policy says."""
    if way is SignInWay.SAME_DEVICE:
        return Budget("begin-device", most, REFILL)
    name = "begin-key" if way is SignInWay.SECURITY_KEY else "begin"
    return Budget(f"{name}-known" if known_client else name, most, REFILL)


def _charge_of_user(attempt: Attempt, policy: Policy) -> Charge:
    most = policy.approval.begins_per_minute
    return Charge(begin_budget(most, attempt.way, known_client=attempt.known_client), attempt.user_id)


def _charge_of_initiator(attempt: Attempt) -> tuple[Charge, ...]:
    """Strangers alone: a known client has the budget of one user, and is not to wait for who shares its address."""
    if attempt.way is SignInWay.SAME_DEVICE or attempt.known_client:
        return ()
    return (Charge(INITIATOR, initiator_of(attempt.address, attempt.proof_thumbprint)),)


def initiator_of(address: str, proof_thumbprint: bytes) -> str:
    """As whom a request is counted."""
    return source_of(address) or proof_thumbprint.hex()


def _refused(verdicts: Verdicts, rule: str, refusal: ThrottledError) -> ThrottledError:
    verdicts.refuse(rule, refusal)
    return refusal


def _blocked_for(seconds: int) -> ThrottledError:
    return ThrottledError(
        Reason.INITIATOR_BLOCKED,
        "The user has reported a sign-in that was begun from here.",
        retry_after=float(seconds),
        fix="Sign in on the device itself or at another computer, or wait.",
    )
