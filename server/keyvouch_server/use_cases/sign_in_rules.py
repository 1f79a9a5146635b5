"""All rules over one sign-in, in their order: method, demand, keys, campaigns. Each leaves its verdict.

Asked before anybody is prompted, once more when an approval becomes a session, and by explanations; always these, so
that an explanation says what a sign-in would meet. Nothing is written. Not here: what is counted (`initiators`), and
what a caller is told of a refusal (`opening`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from keyvouch.errors import KeyvouchError, Reason, RefusedError
from keyvouch.ids import UserId
from keyvouch_server.domain.evaluation import (
    Demand,
    DueCampaign,
    Subject,
    Wanted,
    decide_campaigns,
    decide_method,
    demand_of,
    due_campaigns,
    method_of,
)
from keyvouch_server.domain.model import (
    Credential,
    Device,
    GroupMember,
    PolicyVersion,
    ProviderKind,
    Role,
    SignIn,
    SignInWay,
    User,
)
from keyvouch_server.domain.policy import Policy, decide_some_key
from keyvouch_server.domain.policy_parts import NIST_800_63B_4
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Above, Snapshot
from keyvouch_server.use_cases.key_standing import in_standing, standing
from keyvouch_server.use_cases.world import World

NIST_DIGITS = 6
"""NIST SP 800-63B-4 section 3.1.3.2: an out-of-band secret has at least six decimal digits."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the rules came to: the demand, the keys that may be used (whatever they reach), what is to be registered.
    `left_out` is why no key may be used, where a stranger is not told so.
    """

    demand: Demand
    fit: list[Credential]
    due: tuple[DueCampaign, ...]
    left_out: RefusedError | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the rules. `exists` is False for a name that nobody has; `told` is False for a stranger, who is
    not to find out by requests of more and more assurance what keys a user has (P12).
    """

    policy: Policy
    subject: Subject
    way: SignInWay
    wanted: Wanted
    exists: bool = True
    told: bool = True


async def evaluate(
    tx: Snapshot, world: World, asked: Question, keys: list[Credential], verdicts: Verdicts
) -> Evaluated:
    """Ask all rules before a sign-in. `keys` are those that could decide it (`keys_for`). Raises the first refusal.

    Of security keys none may be left: a client learns nothing of what a user has before it has shown one (P12). For
    the same reason a name that nobody has owes nothing to a campaign; where a stranger asks for more than policy does,
    no key may be left either; and where one names somebody for whom the method is not, none is.
    """
    policy, way = asked.policy, asked.way
    left_out = _left_out(asked, verdicts)
    if left_out is not None:
        return Evaluated(demand_of(policy, way, asked.wanted, verdicts), [], (), left_out)
    demand = demand_of(policy, way, asked.wanted, verdicts)
    if way is SignInWay.SECURITY_KEY:
        fit, _ = await standing(tx, world, keys, policy, verdicts)
    else:
        fit = await in_standing(tx, world, keys, policy, verdicts)
    due = await campaigns_due(tx, world, policy, asked.subject) if asked.exists else ()
    decide_campaigns(due, asked.wanted, verdicts)
    if way is not SignInWay.SECURITY_KEY:
        asks_more = bool(asked.wanted.required_assurance) and not asked.told
        required = _required_by_policy(asked) if asks_more else demand.required_assurance
        with verdicts.check("required_assurance", required):
            decide_some_key((key.assurance for key in fit), required)
    return Evaluated(demand, fit, due)


def _left_out(asked: Question, verdicts: Verdicts) -> RefusedError | None:
    """Ask for the method. A stranger gets no refusal by which those whom policy names are told apart from others."""
    try:
        decide_method(asked.policy, method_of(asked.way), asked.subject, verdicts)
    except RefusedError as refusal:
        if asked.told or refusal.reason is not Reason.METHOD_NOT_TARGETED:
            raise
        return refusal
    return None


def _required_by_policy(asked: Question) -> str:
    """What has to be proved whatever the request asks for."""
    wanted = replace(asked.wanted, required_assurance="")
    return demand_of(asked.policy, asked.way, wanted, Verdicts()).required_assurance


async def keys_for(tx: Snapshot, user: UserId, way: SignInWay, device: Device | None = None) -> list[Credential]:
    """Those that could decide a sign-in: a client can use a security key, and no key inside somebody's device."""
    if device is not None:
        return await tx.find(Credential, {"device_id": device.id})
    found = await tx.find(Credential, {"user_id": user})
    if way is not SignInWay.SECURITY_KEY:
        return found
    keys = {d.id: d for d in await tx.find(Device, {"user_id": user, "provider": ProviderKind.FIDO2})}

    def newest_use(credential: Credential) -> tuple[int, str]:
        device = keys[credential.device_id]
        return max(credential.last_used_at, device.registered_at), device.id

    return sorted((c for c in found if c.device_id in keys), key=newest_use, reverse=True)


async def campaigns_due(tx: Snapshot, world: World, policy: Policy, subject: Subject) -> tuple[DueCampaign, ...]:
    """KI8: what this user still has to register. Keys are looked up only where a campaign asks for some."""
    if not policy.campaigns:
        return ()
    keys = await tx.find(Credential, {"user_id": subject.user_id})
    return due_campaigns(policy, subject, [world.vouched(k.assurance) for k in keys], now=world.clock.now())


async def subject_for(tx: Snapshot, world: World, policy: Policy, user: User | UserId) -> Subject:
    """A user as this policy sees them, or nobody with that id: groups are looked up only where it names some."""
    if not isinstance(user, User):
        if _names_groups(policy):
            await tx.find(GroupMember, {"user_id": user})  # P12: as many questions as of somebody
        return Subject(user)
    if _names_groups(policy):
        return await world.subject_of(tx, user)
    return Subject(user.id, user.role, user.kind)


def _names_groups(policy: Policy) -> bool:
    parts = (policy.approval, policy.security_key, policy.access_pass)
    targets = [part.targets for part in parts] + [campaign.targets for campaign in policy.campaigns]
    return any(one.include_groups or one.exclude_groups for one in targets)


def digits_of(policy: Policy) -> int:
    """How many digits a number has: what policy says, and what its profile asks for at least."""
    least = NIST_DIGITS if policy.sign_in.profile == NIST_800_63B_4 else 0
    return max(policy.approval.number_digits, least)


def offers_choices(policy: Policy, role: Role) -> bool:
    """Whether the device shows three numbers: where policy says so, never for a user with a role, never under NIST."""
    return policy.approval.legacy_choice_of_three and role is Role.USER and policy.sign_in.profile != NIST_800_63B_4


MOST_VERSIONS: Final = 20
"""Versions of a policy that may come while one sign-in is under way; after more of them it has to be begun again."""


async def held_meanwhile(tx: Snapshot, row: SignIn, present: Policy) -> list[Policy]:
    """P19: the policies that held since a sign-in was begun, but for the present one. Raises POLICY_CHANGED."""
    if row.policy_version == present.version:
        return []
    since = {"tenant_id": row.tenant_id, "version": Above(row.policy_version - 1)}
    found = await tx.find(PolicyVersion, since, order="version", limit=MOST_VERSIONS + 1)
    if len(found) > MOST_VERSIONS:
        raise _begin_again("Policy was changed too often")
    return [Policy.load(one.document) for one in found if one.version < present.version]


def no_longer_enough(held: Policy, refusal: KeyvouchError) -> RefusedError:
    """P19: for a sign-in that the present policy allows, and one that held meanwhile does not."""
    told = {"version": str(held.version), "detail": refusal.reason.value}
    return _begin_again(f"Version {held.version} of the policy, which does not allow this, held", told)


def decide_lifetime(policy: Policy, row: SignIn, *, now: int) -> None:
    """P19: a sign-in lasts no longer than policy says by now. Raises POLICY_CHANGED."""
    if row.created_at + policy.approval.lifetime_seconds <= now < row.expires_at:
        raise _begin_again("Policy gives sign-ins less time")


def decide_number(policy: Policy, role: Role, row: SignIn) -> None:
    """P19: the number that was matched is as good as policy asks for by now. Raises POLICY_CHANGED."""
    if row.way is not SignInWay.PROMPT:
        return
    if len(row.number) >= digits_of(policy) and (not row.choices or offers_choices(policy, role)):
        return
    raise _begin_again("Policy asks for a longer number, or one that is typed,")


def _begin_again(what: str, metadata: Mapping[str, str] | None = None) -> RefusedError:
    return RefusedError(
        Reason.POLICY_CHANGED,
        f"{what} since this sign-in was begun.",
        fix="Begin the sign-in again.",
        metadata=metadata,
    )


def refusing_rule(verdicts: Verdicts) -> str:
    """The rule that decided a refusal, for the audit log. Keys are told apart by their ids, which say nothing there."""
    refused = [v.rule for v in verdicts if v.reason]
    return refused[-1].partition(".dev_")[0] if refused else ""
