"""Explanations: which rule decided what, of a sign-in that took place, or of one that a user would begin now.

The rules are those that sign-in itself asks (`sign_in_rules`), over one snapshot of the store. Nothing is written,
nothing is counted and nobody is asked anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from keyvouch.errors import KeyvouchError, NotFoundError, Reason, RefusedError
from keyvouch_server.domain.access_pass import access_pass_refusal
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.evaluation import Wanted, decide_method, demand_of
from keyvouch_server.domain.model import AccessPass, SignIn, SignInMethod, SignInState, SignInWay, User
from keyvouch_server.domain.policy import Policy, decide_assurance
from keyvouch_server.domain.verdicts import Verdict, Verdicts
from keyvouch_server.ports import Snapshot
from keyvouch_server.use_cases.budgets import Budgets, throttled
from keyvouch_server.use_cases.initiators import begin_budget
from keyvouch_server.use_cases.key_standing import standing
from keyvouch_server.use_cases.sign_in_rules import Question, evaluate, keys_for, subject_for
from keyvouch_server.use_cases.world import Caller, World, unknown_user

_KEY = "key."
"""Rules on one key begin with this. A key that does not count decides nothing while another one does."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdicts in the order in which the rules were asked, and what they came to.

    `state` is None for a sign-in that nobody began; `user_id` is empty where the name was nobody's.
    """

    verdicts: tuple[Verdict, ...]
    allowed: bool
    policy_version: int
    user_id: str
    state: SignInState | None = None


class Explanations:
    """Answers for administrators."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._budgets = Budgets(world)

    async def of_sign_in(self, caller: Caller, sign_in_id: str) -> Explanation:
        """What each rule said when a sign-in of the caller's tenant was begun, and what refused it at its redemption.

        Raises SIGN_IN_UNKNOWN.
        """
        authorise(caller.user, Action.EXPLAIN)

        async def work(tx: Snapshot) -> Explanation:
            row = await tx.get(SignIn, id=sign_in_id)
            if row is None or row.tenant_id != caller.user.tenant_id:
                raise _unknown_sign_in()
            said = tuple(Verdicts.load(row.rules))
            user = await tx.get(User, id=row.user_id)
            return Explanation(said, not _refusals(said), row.policy_version, user.id if user else "", row.state)

        return await self._world.store.read(work)

    async def of_question(self, caller: Caller, who: str, method: SignInMethod, wanted: Wanted) -> Explanation:
        """What each rule would say if this user began to sign in now. Raises USER_UNKNOWN."""
        authorise(caller.user, Action.EXPLAIN)

        async def work(tx: Snapshot) -> Explanation:
            user = await self._world.user_called(tx, caller.user.tenant_id, who)
            user = authorise(caller.user, Action.EXPLAIN, user, unknown=unknown_user())
            policy, verdicts = await self._world.policy_of(tx, user.tenant_id), Verdicts()
            try:
                if method is SignInMethod.ACCESS_PASS:
                    await self._ask_access_pass(tx, user, policy, verdicts)
                else:
                    way = SignInWay.SECURITY_KEY if method is SignInMethod.SECURITY_KEY else SignInWay.PROMPT
                    await self._ask(tx, user, policy, way, wanted, verdicts)
            except KeyvouchError:  # its verdict stands
                return Explanation(tuple(verdicts), False, policy.version, user.id)
            return Explanation(tuple(verdicts), not _refusals(tuple(verdicts)), policy.version, user.id)

        return await self._world.store.read(work)

    async def _ask(
        self, tx: Snapshot, user: User, policy: Policy, way: SignInWay, wanted: Wanted, verdicts: Verdicts
    ) -> None:
        """As for a stranger: a known client, and the user's own device, have budgets of their own."""
        with verdicts.check("throttle.user", "a client at which the user has not signed in before"):
            wait = await self._budgets.look(
                tx, begin_budget(policy.approval.begins_per_minute, way, known_client=False), user.id
            )
            if wait:
                raise throttled("too many sign-ins were begun and not approved", wait)
        with verdicts.check("throttle.wrong_numbers"):
            rest = user.locked_until - self._world.clock.now()
            if rest > 0 and way is SignInWay.PROMPT:
                raise throttled("too many wrong numbers were typed", rest)
        subject = await subject_for(tx, self._world, policy, user)
        keys = await keys_for(tx, user.id, way)
        try:
            await evaluate(tx, self._world, Question(policy, subject, way, wanted), keys, verdicts)
        finally:
            reached = await self._weigh_keys(tx, user, policy, way, wanted, verdicts)
        if not reached:
            no_key = RefusedError(
                Reason.NO_METHOD,
                "No key of this user can decide such a sign-in, so nobody would be asked.",
                fix="Register a device or security key that reaches what is required.",
            )
            verdicts.refuse("keys", no_key)

    async def _weigh_keys(
        self, tx: Snapshot, user: User, policy: Policy, way: SignInWay, wanted: Wanted, verdicts: Verdicts
    ) -> int:
        """Each key that may be used at all: does it reach what is required here? Returns how many do."""
        try:
            demand = demand_of(policy, way, wanted, Verdicts())
        except RefusedError:
            return 0
        fit, _ = await standing(tx, self._world, await keys_for(tx, user.id, way), policy)
        reached = 0
        for key in fit:
            try:
                with verdicts.check(f"{_KEY}{key.device_id}.required_assurance", key.assurance):
                    decide_assurance(key.assurance, demand.required_assurance)
                reached += 1
            except RefusedError:
                continue
        return reached

    async def _ask_access_pass(self, tx: Snapshot, user: User, policy: Policy, verdicts: Verdicts) -> None:
        subject = await subject_for(tx, self._world, policy, user)
        decide_method(policy, SignInMethod.ACCESS_PASS, subject, verdicts)
        found = await tx.get(AccessPass, user_id=user.id)
        with verdicts.check("access_pass.usable", "the user's pass"):
            refusal = (
                access_pass_refusal(policy, found, subject, now=self._world.clock.now())
                if found
                else Reason.ACCESS_PASS_NONE
            )
            if refusal is not None:
                raise RefusedError(
                    refusal, "The user has no pass that can be used now.", fix="Issue one, or replace the one there is."
                )


def _refusals(said: tuple[Verdict, ...]) -> list[Verdict]:
    return [v for v in said if v.reason and not v.rule.startswith(_KEY)]


def _unknown_sign_in() -> NotFoundError:
    return NotFoundError(
        Reason.SIGN_IN_UNKNOWN,
        "There is no such sign-in in this tenant.",
        fix="Take the id from the audit log.",
    )
