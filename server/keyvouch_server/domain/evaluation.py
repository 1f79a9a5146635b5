"""Policy over a person and a request: is the method for them, and what does it have to prove?

Asked before anybody is prompted, and once more when an approval becomes a session (KI1, P19); by the dry run, for
everybody; and by explanations. Nothing is looked up here: groups and keys are arguments. Each rule leaves its verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from keyvouch.assurance import AssuranceRequirement
from keyvouch.errors import Reason, RefusedError
from keyvouch.ids import UserId
from keyvouch_server.domain.model import Role, SignInMethod, SignInWay, UserKind
from keyvouch_server.domain.policy import Policy, reaches
from keyvouch_server.domain.policy_parts import AccessPassPolicy, ApprovalPolicy, Campaign, SecurityKeyPolicy, Targets
from keyvouch_server.domain.verdicts import Verdicts

SELF_AUDIENCE = "keyvouch"
"""Audience of tokens that are meant for this server alone."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who signs in, as policies see them. `groups` are ids."""

    user_id: UserId
    role: Role = Role.USER
    kind: UserKind = UserKind.MEMBER
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: by which app, for whom, and how much it wants this time (step-up; empty: nothing more)."""

    app_id: str
    audience: str
    required_assurance: str = ""
    phishing_resistant: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What a sign-in has to prove: the stricter of method, app and request."""

    required_assurance: str
    phishing_resistant: bool = False


@dataclass(frozen=True, slots=True)
class DueCampaign:
    """A campaign that a person has not fulfilled."""

    campaign: Campaign
    overdue: bool = field(default=False)


def is_target(targets: Targets, subject: Subject) -> bool:
    """PS12: excludes win over includes."""
    excluded = subject.user_id in targets.exclude_users or not subject.groups.isdisjoint(targets.exclude_groups)
    if excluded:
        return False
    included = subject.user_id in targets.include_users or not subject.groups.isdisjoint(targets.include_groups)
    return targets.everybody or included


def method_of(way: SignInWay) -> SignInMethod:
    """The method that a way of approving belongs to."""
    return SignInMethod.SECURITY_KEY if way is SignInWay.SECURITY_KEY else SignInMethod.APPROVAL


def decide_method(policy: Policy, method: SignInMethod, subject: Subject, verdicts: Verdicts) -> None:
    """PS12, PS15, T2, T14: the method is on and for this person.

    Raises METHOD_DISABLED, METHOD_NOT_TARGETED or ACCESS_PASS_GUEST: precise, for audit log and explanations. What a
    caller is told of them is for whoever answers.
    """
    part = _part(policy, method)
    with verdicts.check(f"{method.value}.enabled", f"policy version {policy.version}"):
        if not part.enabled:
            raise method_disabled(method)
    with verdicts.check(f"{method.value}.targets", _said_of(part.targets)):
        if not is_target(part.targets, subject):
            raise RefusedError(
                Reason.METHOD_NOT_TARGETED,
                f"Policy does not name this user for the method {method.value}.",
                fix="Add the user, or a group of theirs, to the targets of the method.",
                metadata={"method": method.value},
            )
    if method is SignInMethod.ACCESS_PASS:
        with verdicts.check("access_pass.guest", subject.kind.value):
            if subject.kind is UserKind.GUEST:
                raise RefusedError(
                    Reason.ACCESS_PASS_GUEST, "Guests never sign in with an access pass.", fix="Use another method."
                )


def _part(policy: Policy, method: SignInMethod) -> ApprovalPolicy | SecurityKeyPolicy | AccessPassPolicy:
    if method is SignInMethod.APPROVAL:
        return policy.approval
    return policy.security_key if method is SignInMethod.SECURITY_KEY else policy.access_pass


def method_disabled(method: SignInMethod) -> RefusedError:
    """For a method that policy has switched off."""
    return RefusedError(
        Reason.METHOD_DISABLED,
        f"The method {method.value} is switched off by policy, so nobody was asked.",
        fix="Use another method, or ask an administrator to enable it.",
        metadata={"method": method.value},
    )


def _said_of(targets: Targets) -> str:
    return "everybody but those excluded" if targets.everybody else "those included and not excluded"


def demand_of(policy: Policy, way: SignInWay, wanted: Wanted, verdicts: Verdicts) -> Demand:
    """What this sign-in has to prove. Raises STRENGTH_REQUIRED where its way can never prove it (P3, P13).

    Clients say themselves which app they are, and resource servers look at whom a token is for: so the rule of an app
    holds for its id and for the audience of that name, whatever the client calls itself (KI3).
    """
    method = policy.security_key if way is SignInWay.SECURITY_KEY else policy.approval
    required, resistant = method.required_assurance, wanted.phishing_resistant
    apps = [one for one in policy.apps if one.app_id in (wanted.app_id, wanted.audience)]
    if not apps:
        verdicts.pass_over("app", f"no rule for the app {wanted.app_id}")
    for app in apps:
        required, resistant = stricter(required, app.required_assurance), resistant or app.phishing_resistant
        verdicts.allow(
            "app", f"{app.app_id}: {app.required_assurance}, phishing-resistant: {str(app.phishing_resistant).lower()}"
        )
    if wanted.required_assurance:
        required = stricter(required, wanted.required_assurance)
        verdicts.allow("request.required_assurance", wanted.required_assurance)
    with verdicts.check("phishing_resistance", "required" if resistant else "not required"):
        if resistant and way is SignInWay.PROMPT:
            raise RefusedError(
                Reason.STRENGTH_REQUIRED,
                "This app asks for a sign-in that cannot be relayed, and matching a number can be; nobody was asked.",
                fix="Sign in with a security key at this computer, or on the device itself.",
                metadata={"required": "phishing-resistant"},
            )
    return Demand(required, resistant)


@lru_cache(maxsize=4096)
def stricter(one: str, other: str) -> str:
    """Two requirements as one, in text form."""
    return AssuranceRequirement.parse(one).together_with(AssuranceRequirement.parse(other)).text()


def due_campaigns(policy: Policy, subject: Subject, assurances: Iterable[str], *, now: int) -> tuple[DueCampaign, ...]:
    """KI8: what this person still has to register; `assurances` are those of the keys they have."""
    keys = tuple(assurances)
    return tuple(
        DueCampaign(one, overdue=now >= one.required_by)
        for one in policy.campaigns
        if is_target(one.targets, subject) and not any(reaches(key, one.required_assurance) for key in keys)
    )


def decide_campaigns(due: Iterable[DueCampaign], wanted: Wanted, verdicts: Verdicts) -> None:
    """KI8: after the day, whoever has not registered signs in to this server only. Raises METHOD_REQUIRED."""
    late = next((one.campaign for one in due if one.overdue), None)
    if late is None:
        verdicts.pass_over("campaigns", "nothing is overdue")
        return
    with verdicts.check("campaigns", f"{late.name}: to register what is missing"):
        if wanted.audience != SELF_AUDIENCE:
            raise RefusedError(
                Reason.METHOD_REQUIRED,
                f"A key that reaches {late.required_assurance} had to be registered by now ({late.name}).",
                fix="Sign in to Keyvouch itself (audience `keyvouch`) and register one.",
                metadata={"campaign": late.name, "required": late.required_assurance},
            )
