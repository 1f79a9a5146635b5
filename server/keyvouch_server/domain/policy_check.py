"""Whether a policy is consistent in itself. Each refusal names the field.

What is not here: whether the users and groups exist that a policy names (`use_cases.policy_targets`), and whom a policy
would lock out (`use_cases.lock_out`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Final

from keyvouch.assurance import AssuranceRequirement, Verification
from keyvouch.errors import MalformedError, Reason
from keyvouch.statement import MAX_TEXT
from keyvouch_server.domain.authenticators import check_rules
from keyvouch_server.domain.names import name_key
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.policy_parts import NIST_800_63B_4, Targets

MOST_IDS: Final = 1000
"""Ids in one list of targets."""
MOST_APPS: Final = 64
MOST_CAMPAIGNS: Final = 16

TARGET_LISTS: Final = ("include_users", "include_groups", "exclude_users", "exclude_groups")

_END_OF_TIME: Final = 253_402_300_799
"""The last second of the year 9999."""

_Ranges = tuple[tuple[str, str, int, int], ...]

_RANGES: Final[_Ranges] = (
    ("approval", "number_digits", 2, 8),
    ("approval", "lifetime_seconds", 30, 600),
    ("approval", "number_misses", 1, 100),
    ("approval", "begins_per_minute", 1, 6000),
    ("access_pass", "minimum_lifetime_minutes", 10, 43200),
    ("access_pass", "maximum_lifetime_minutes", 10, 43200),
    ("access_pass", "default_lifetime_minutes", 10, 43200),
    ("access_pass", "length", 8, 48),
    ("registration", "devices_per_user", 1, 100),
    ("registration", "accounts_per_device", 1, 20),
    ("registration", "pin_tries", 2, 10),
    ("session", "access_token_seconds", 60, 3600),
    ("session", "session_seconds", 300, 90 * 86400),
    ("health", "max_age_minutes", 5, 43200),
)

_NIST_RANGES: Final[_Ranges] = (
    ("approval", "number_digits", 6, 8),
    ("approval", "lifetime_seconds", 30, 600),
    ("approval", "number_misses", 1, 100),
)
"""NIST SP 800-63B-4 section 3.1.3: six digits at least, ten minutes at most; section 3.2.2: 100 failures at most."""

_QUOTABLE: Final = frozenset(range(23)) - {16}
"""PCRs that mean something: any program can reset 16 and 23."""


def check_policy(policy: Policy) -> Policy:
    """Return the policy if it is consistent, else raise `MalformedError(POLICY_INVALID)` naming the field."""
    _check_ranges(policy, _RANGES)
    p = policy.access_pass
    if not p.minimum_lifetime_minutes <= p.default_lifetime_minutes <= p.maximum_lifetime_minutes:
        raise invalid("access_pass.default_lifetime_minutes", "a value between the minimum and the maximum lifetime")
    for part, required in (
        ("approval", policy.approval.required_assurance),
        ("registration", policy.registration.required_assurance),
        ("security_key", policy.security_key.required_assurance),
    ):
        _check_requirement(f"{part}.required_assurance", required)
    pcrs = policy.health.pcrs
    if not pcrs or not _QUOTABLE.issuperset(pcrs) or list(pcrs) != sorted(set(pcrs)):
        raise invalid("health.pcrs", "one or several of 0 to 15 and 17 to 22, each once, in ascending order")
    check_rules(policy.registration.authenticators, invalid)
    for field, targets in targets_of(policy):
        _check_targets(field, targets)
    _check_apps(policy)
    _check_campaigns(policy)
    _check_profile(policy)
    return policy


def targets_of(policy: Policy) -> Iterator[tuple[str, Targets]]:
    """Everything in a policy that names people, by the name of its field."""
    yield "approval.targets", policy.approval.targets
    yield "access_pass.targets", policy.access_pass.targets
    yield "security_key.targets", policy.security_key.targets
    for n, campaign in enumerate(policy.campaigns):
        yield f"campaigns[{n}].targets", campaign.targets


def _check_ranges(policy: Policy, ranges: _Ranges, condition: str = "") -> None:
    for part, name, least, most in ranges:
        if not least <= getattr(getattr(policy, part), name) <= most:
            raise invalid(f"{part}.{name}", f"{least} to {most}{condition}")


def _check_requirement(field: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise invalid(field, f"names of anchors that fit in {MAX_TEXT} characters together")
    if AssuranceRequirement.parse(text).verification is Verification.NONE:
        raise invalid(field, "a gated key: software_gated or hardware_gated")


def _check_targets(field: str, targets: Targets) -> None:
    for name in TARGET_LISTS:
        ids: tuple[str, ...] = getattr(targets, name)
        if len(ids) > MOST_IDS or len(set(ids)) != len(ids):
            raise invalid(f"{field}.{name}", f"at most {MOST_IDS} ids, each once; name groups where there are more")


def _check_apps(policy: Policy) -> None:
    if len(policy.apps) > MOST_APPS:
        raise invalid("apps", f"rules for at most {MOST_APPS} apps")
    seen: set[str] = set()
    for n, app in enumerate(policy.apps):
        _check_words(f"apps[{n}].app_id", app.app_id, 256)
        if app.app_id in seen:
            raise invalid(f"apps[{n}].app_id", "an app that has no other rule")
        seen.add(app.app_id)
        _check_requirement(f"apps[{n}].required_assurance", app.required_assurance)


def _check_campaigns(policy: Policy) -> None:
    if len(policy.campaigns) > MOST_CAMPAIGNS:
        raise invalid("campaigns", f"at most {MOST_CAMPAIGNS} campaigns")
    seen: set[str] = set()
    for n, campaign in enumerate(policy.campaigns):
        _check_words(f"campaigns[{n}].name", campaign.name, 64)
        if name_key(campaign.name) in seen:
            raise invalid(f"campaigns[{n}].name", "a name that no other campaign has")
        seen.add(name_key(campaign.name))
        if not 0 < campaign.required_by <= _END_OF_TIME:
            raise invalid(f"campaigns[{n}].required_by", "seconds since the epoch, up to the year 9999")
        _check_requirement(f"campaigns[{n}].required_assurance", campaign.required_assurance)


def _check_words(field: str, text: str, longest: int) -> None:
    """They are shown to people, so nothing may hide in them."""
    if not text.strip() or len(text) > longest or any(unicodedata.category(c)[0] == "C" for c in text):
        raise invalid(field, f"1 to {longest} characters without control characters")


def _check_profile(policy: Policy) -> None:
    """Settings that a profile forbids are refused, not bent: what an administrator reads is what holds."""
    profile = policy.sign_in.profile
    if profile == "":
        return
    if profile != NIST_800_63B_4:
        raise invalid("sign_in.profile", f"nothing, or `{NIST_800_63B_4}`")
    condition = f" under the profile {NIST_800_63B_4}"
    _check_ranges(policy, _NIST_RANGES, condition)
    if policy.approval.legacy_choice_of_three:
        raise invalid("approval.legacy_choice_of_three", f"false{condition}")


def invalid(field: str, expected: str) -> MalformedError:
    """The refusal of a policy for one field."""
    return MalformedError(
        Reason.POLICY_INVALID,
        f"The policy was not saved: {field} takes {expected}.",
        fix="Correct the value and save again.",
        metadata={"field": field, "expected": expected},
    )
