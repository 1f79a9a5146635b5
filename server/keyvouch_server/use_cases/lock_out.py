"""Whether a change of policy would lock out the administrator who makes it.

A list of allowed models, a required assurance, targets, the rule of an app or a method that is switched off judge
administrators too. So the way by which the caller came in is tried against the policy that is wanted, before that is
saved. It is no rule for others: what becomes of them is what previews are for (`policy_effects`).
"""

from __future__ import annotations

from typing import Final

from keyvouch.errors import Reason, RefusedError
from keyvouch_server.domain.evaluation import SELF_AUDIENCE, Wanted
from keyvouch_server.domain.model import Credential, SessionKind
from keyvouch_server.domain.policy import Policy, decide_some_key
from keyvouch_server.domain.session import way_of
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Snapshot
from keyvouch_server.use_cases.key_standing import in_standing
from keyvouch_server.use_cases.sign_in_rules import Question, evaluate
from keyvouch_server.use_cases.world import Caller, World

COMMAND_LINE: Final = Wanted(app_id="keyvouch-cli", audience=SELF_AUDIENCE)
"""What administrators sign in to this server with, and the last way in that is left to them."""


async def lock_out(
    tx: Snapshot, world: World, caller: Caller, *, present: Policy, wanted: Policy
) -> RefusedError | None:
    """Why the caller could not sign in again as for this session, if it is for what changes between two policies."""
    if caller.session.kind is not SessionKind.APPROVAL or await _refusal(tx, world, caller, present) is not None:
        return None
    refusal = await _refusal(tx, world, caller, wanted)
    if refusal is None:
        return None
    return RefusedError(
        Reason.POLICY_LOCKS_OUT,
        f"By this policy you could not sign in again as you have now. {refusal.message}",
        fix="It was not saved. Register a key that the new policy accepts and sign in with it first. If you have "
        "another way in, save it with `accept_lock_out` (`keyvouch admin policy set --accept-lock-out`).",
        metadata={"cause": refusal.reason.value},
    )


async def _refusal(tx: Snapshot, world: World, caller: Caller, policy: Policy) -> RefusedError | None:
    """What a sign-in on the command line would meet, with the device of this session and by its way.

    A client with a security key is told nothing of keys before it has shown one; administrators are, of their own.
    """
    asked = Question(policy, await world.subject_of(tx, caller.user), way_of(caller.session), COMMAND_LINE)
    try:
        keys = await tx.find(Credential, {"device_id": caller.session.device_id})
        found = await evaluate(tx, world, asked, keys, Verdicts())
        fit = await in_standing(tx, world, keys, policy)
        decide_some_key((key.assurance for key in fit), found.demand.required_assurance)
    except RefusedError as refusal:
        return refusal
    return None
