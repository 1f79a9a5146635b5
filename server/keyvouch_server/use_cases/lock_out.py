"""Whether a change of policy would lock out the administrator who makes it.

A list of allowed models, a required assurance or a method that is switched off judges administrators too. So the way
by which the caller came in is tried against the policy that is wanted, before that is saved. It is no rule for others:
what becomes of them is what policies are for.
"""

from __future__ import annotations

from keyvouch.errors import Reason, RefusedError
from keyvouch_server.domain.model import Credential, Session, SessionKind
from keyvouch_server.domain.policy import Policy, decide_some_key, decide_way, required_by
from keyvouch_server.ports import Snapshot
from keyvouch_server.use_cases.key_standing import in_standing
from keyvouch_server.use_cases.sessions import way_of
from keyvouch_server.use_cases.world import World


async def lock_out(
    tx: Snapshot, world: World, session: Session, *, present: Policy, wanted: Policy
) -> RefusedError | None:
    """Why whoever has `session` could not sign in again as they did, if it is for what changes between two policies."""
    if session.kind is not SessionKind.APPROVAL or await _refusal(tx, world, session, present) is not None:
        return None
    refusal = await _refusal(tx, world, session, wanted)
    if refusal is None:
        return None
    return RefusedError(
        Reason.POLICY_LOCKS_OUT,
        f"The policy was not saved, for you could not sign in again as you have now. {refusal.message}",
        fix="Register a key that the new policy accepts and sign in with it first. If you have another way in, save it "
        "with `accept_lock_out` (`keyvouch admin policy set --accept-lock-out`).",
        metadata={"cause": refusal.reason.value},
    )


async def _refusal(tx: Snapshot, world: World, session: Session, policy: Policy) -> RefusedError | None:
    way = way_of(session)
    try:
        decide_way(policy, way)
        fit = await in_standing(tx, world, await tx.find(Credential, {"device_id": session.device_id}), policy)
        decide_some_key((credential.assurance for credential in fit), required_by(policy, way))
    except RefusedError as refusal:
        return refusal
    return None
