"""Policy over a person and a request: targets, methods, demands, campaigns. Each rule leaves its verdict."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.assurance import Assurance, AssuranceRequirement, Protection, Provenance, RequiredProtection, Verification
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.ids import UserId
from keyvouch_server.domain.evaluation import (
    SELF_AUDIENCE,
    Demand,
    Subject,
    Wanted,
    decide_campaigns,
    decide_method,
    demand_of,
    due_campaigns,
    is_target,
    method_of,
    stricter,
)
from keyvouch_server.domain.model import Role, SignInMethod, SignInWay, UserKind
from keyvouch_server.domain.policy import Policy, reaches
from keyvouch_server.domain.policy_parts import GATED, AppPolicy, Campaign, Targets
from keyvouch_server.domain.verdicts import Outcome, Verdict, Verdicts

ADA = Subject(UserId("usr_ada"), groups=frozenset({"grp_staff", "grp_lab"}))
SHOP = Wanted("shop", "shop")
SELF = "any/software_gated/self"
HARDWARE = "hardware/hardware_gated/attested"
SOFTWARE_KEY, HARDWARE_KEY = "software/software_gated/self", "tpm/hardware_gated/attested/root"
PART = {
    SignInMethod.APPROVAL: "approval",
    SignInMethod.SECURITY_KEY: "security_key",
    SignInMethod.ACCESS_PASS: "access_pass",
}
ALL_METHODS = pytest.mark.parametrize("method", SignInMethod)


def changed(part: str, **values: Any) -> Policy:
    return replace(Policy(version=7), **{part: replace(getattr(Policy(), part), **values)})


def refusal(call: Any, *arguments: Any, **named: Any) -> Reason | None:
    """The reason for which a rule says no, or None."""
    try:
        call(*arguments, **named)
    except KeyvouchError as error:
        return error.reason if error.message and error.fix else Reason.INTERNAL
    return None


# targets: each list holds the person or a group of theirs, a stranger, or nobody

USERS = ((), ("usr_ada",), ("usr_eve",), ("usr_ada", "usr_eve"))
GROUPS = ((), ("grp_lab",), ("grp_other",), ("grp_lab", "grp_other"))
EVERY_COMBINATION = list(product((True, False), USERS, GROUPS, USERS, GROUPS))


def test_ps12_who_is_a_target_in_every_combination_of_the_five_settings():
    assert len(EVERY_COMBINATION) == 512
    for everybody, include_users, include_groups, exclude_users, exclude_groups in EVERY_COMBINATION:
        named_in = everybody or "usr_ada" in include_users or "grp_lab" in include_groups
        named_out = "usr_ada" in exclude_users or "grp_lab" in exclude_groups
        targets = Targets(everybody, include_users, include_groups, exclude_users, exclude_groups)
        assert is_target(targets, ADA) is (named_in and not named_out), targets


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (Targets(), True),
        (Targets(everybody=False), False),
        (Targets(everybody=False, include_users=("usr_ada",)), True),
        (Targets(everybody=False, include_groups=("grp_staff",)), True),
        (Targets(everybody=False, include_users=("usr_eve",), include_groups=("grp_other",)), False),
        (Targets(include_users=("usr_eve",)), True),
        (Targets(exclude_users=("usr_ada",)), False),
        (Targets(exclude_groups=("grp_staff",)), False),
        (Targets(everybody=False, include_users=("usr_ada",), exclude_groups=("grp_lab",)), False),
        (Targets(everybody=False, include_groups=("grp_staff",), exclude_groups=("grp_lab",)), False),
        (Targets(everybody=False, include_users=("usr_ada",), exclude_users=("usr_ada",)), False),
        (Targets(everybody=False, include_users=("USR_ADA",)), False),
        (Targets(everybody=False, include_users=("grp_staff",), include_groups=("usr_ada",)), False),
    ],
)
def test_ps12_excludes_win_over_includes(targets: Targets, expected: bool):
    assert is_target(targets, ADA) is expected


@ALL_METHODS
def test_ps12_each_method_is_for_those_it_is_meant_for(method: SignInMethod):
    for enabled, meant in product((True, False), repeat=2):
        policy = changed(PART[method], enabled=enabled, targets=Targets(everybody=meant))
        said = Verdicts()
        why = refusal(decide_method, policy, method, ADA, said)
        expected = Reason.METHOD_DISABLED if not enabled else None if meant else Reason.METHOD_NOT_TARGETED
        assert why is expected
        assert said.refused is (why is not None)
        assert next(v.rule for v in said) == f"{method.value}.enabled"


@ALL_METHODS
def test_ps12_a_method_that_is_off_or_for_others_leaves_the_rest_alone(method: SignInMethod):
    for values in ({"enabled": False}, {"targets": Targets(exclude_users=("usr_ada",))}):
        policy = changed(PART[method], **values)
        for other in set(SignInMethod) - {method}:
            assert refusal(decide_method, policy, other, ADA, Verdicts()) is None


@pytest.mark.parametrize("role", Role)
@ALL_METHODS
def test_t14_guests_have_every_method_but_the_pass(method: SignInMethod, role: Role):
    member, guest = replace(ADA, role=role), replace(ADA, role=role, kind=UserKind.GUEST)
    assert refusal(decide_method, Policy(), method, member, Verdicts()) is None
    expected = Reason.ACCESS_PASS_GUEST if method is SignInMethod.ACCESS_PASS else None
    assert refusal(decide_method, Policy(), method, guest, Verdicts()) is expected


def test_t2_a_pass_is_for_users_in_its_policy():
    policy = changed("access_pass", targets=Targets(everybody=False, include_groups=("grp_staff",)))
    assert refusal(decide_method, policy, SignInMethod.ACCESS_PASS, ADA, Verdicts()) is None
    other = Subject(UserId("usr_eve"))
    assert refusal(decide_method, policy, SignInMethod.ACCESS_PASS, other, Verdicts()) is Reason.METHOD_NOT_TARGETED


# what a sign-in has to prove


def with_app(**values: Any) -> Policy:
    return replace(Policy(), apps=(AppPolicy("bank", HARDWARE, True), AppPolicy("shop", **values)))


@pytest.mark.parametrize("way", SignInWay)
def test_ki8_a_demand_is_the_strictest_of_method_app_and_request(way: SignInWay):
    part = PART[method_of(way)]
    for method, app, request in product((GATED, SELF, HARDWARE), ("", GATED, SELF, HARDWARE), ("", SELF, HARDWARE)):
        policy = changed(part, required_assurance=method)
        if app:
            policy = replace(policy, apps=(AppPolicy("shop", app),))
        demand = demand_of(policy, way, replace(SHOP, required_assurance=request), Verdicts())
        asked = [one for one in (method, app, request) if one]
        for key in (SOFTWARE_KEY, HARDWARE_KEY, "software/software_gated/unattested"):
            assert reaches(key, demand.required_assurance) is all(reaches(key, one) for one in asked)
        assert not demand.phishing_resistant


def test_the_rule_of_another_app_is_no_rule_of_this_one():
    policy = with_app(required_assurance=SELF)
    assert demand_of(policy, SignInWay.PROMPT, SHOP, Verdicts()) == Demand(SELF)
    assert demand_of(policy, SignInWay.PROMPT, Wanted("Shop", "x"), Verdicts()) == Demand(GATED)
    assert demand_of(policy, SignInWay.SECURITY_KEY, Wanted("bank", "x"), Verdicts()) == Demand(HARDWARE, True)


@pytest.mark.parametrize("way", SignInWay)
@pytest.mark.parametrize("by_app", [False, True])
@pytest.mark.parametrize("by_request", [False, True])
def test_p3_what_must_not_be_relayed_is_never_proved_by_a_number(way: SignInWay, by_app: bool, by_request: bool):
    policy, said = with_app(phishing_resistant=by_app), Verdicts()
    wanted = replace(SHOP, phishing_resistant=by_request)
    demanded = by_app or by_request
    if demanded and way is SignInWay.PROMPT:
        assert refusal(demand_of, policy, way, wanted, said) is Reason.STRENGTH_REQUIRED
        assert said.refused
    else:
        assert demand_of(policy, way, wanted, said).phishing_resistant is demanded
        assert not said.refused


# stricter: the least requirement that asks for both

REQUIREMENTS = st.builds(
    AssuranceRequirement,
    st.sampled_from(RequiredProtection),
    st.sampled_from(Verification),
    st.sampled_from(Provenance),
    st.frozensets(st.sampled_from(["root", "other", "a,b", "50%"]), max_size=3),
).map(AssuranceRequirement.text)
KEYS = st.one_of(
    st.builds(
        Assurance,
        st.sampled_from(Protection),
        st.sampled_from(Verification),
        st.sampled_from([Provenance.CERTIFIED, Provenance.ATTESTED]),
        st.sampled_from(["root", "other", "a,b", "50%"]),
    ),
    st.builds(
        Assurance,
        st.just(Protection.SOFTWARE),
        st.sampled_from([Verification.NONE, Verification.SOFTWARE_GATED]),
        st.sampled_from([Provenance.UNATTESTED, Provenance.SELF]),
    ),
).map(Assurance.text)


@given(REQUIREMENTS, REQUIREMENTS, REQUIREMENTS)
def test_stricter_is_commutative_associative_and_idempotent_P19(one: str, other: str, third: str):
    assert stricter(one, other) == stricter(other, one)
    assert stricter(stricter(one, other), third) == stricter(one, stricter(other, third))
    assert stricter(one, one) == one
    assert stricter(stricter(one, other), other) == stricter(one, other)


@given(REQUIREMENTS, REQUIREMENTS, KEYS)
def test_stricter_is_never_weaker_than_either_and_asks_for_nothing_more_P19(one: str, other: str, key: str):
    assert reaches(key, stricter(one, other)) is (reaches(key, one) and reaches(key, other))


@pytest.mark.parametrize("way", list(SignInWay))
def test_ki3_the_rule_of_an_audience_holds_whatever_app_a_client_says_it_is_KI8(way: SignInWay):
    policy = replace(Policy(), apps=(AppPolicy("https://bank.test", HARDWARE), AppPolicy("weather", SELF)))
    for app, audience, demanded in (
        ("https://bank.test", "https://bank.test", HARDWARE),
        ("other", "https://bank.test", HARDWARE),
        ("https://bank.test", "other", HARDWARE),
        ("weather", "https://bank.test", stricter(HARDWARE, SELF)),
        ("weather", "other", SELF),
        ("other", "https://BANK.test", GATED),  # the token of another audience
        ("other", "other", GATED),
    ):
        found = demand_of(policy, way, Wanted(app, audience), Verdicts())
        assert found.required_assurance == demanded, (app, audience)


# P19: a policy that changes while a sign-in is under way

POLICIES = st.builds(
    lambda enabled, method, app, resistant, meant: replace(
        changed("approval", enabled=enabled, required_assurance=method, targets=Targets(everybody=meant)),
        apps=(AppPolicy("shop", app, resistant),),
    ),
    st.booleans(),
    st.sampled_from([GATED, SELF, HARDWARE]),
    st.sampled_from([GATED, SELF, HARDWARE]),
    st.booleans(),
    st.booleans(),
)


def accepts(policy: Policy, way: SignInWay, key: str) -> bool:
    """Whether one policy alone, from beginning to end, lets a key sign in to the shop."""
    said = Verdicts()
    if refusal(decide_method, policy, method_of(way), ADA, said) or refusal(demand_of, policy, way, SHOP, said):
        return False
    return reaches(key, demand_of(policy, way, SHOP, Verdicts()).required_assurance)


def accepted_through(policies: list[Policy], way: SignInWay, key: str) -> bool:
    """As a ceremony does: every step asks the policy of its time, and what was demanded before is demanded still."""
    demanded = GATED
    for policy in policies:
        if refusal(decide_method, policy, method_of(way), ADA, Verdicts()):
            return False
        if refusal(demand_of, policy, way, SHOP, Verdicts()):
            return False
        demanded = stricter(demanded, demand_of(policy, way, SHOP, Verdicts()).required_assurance)
    return reaches(key, demanded)


@given(
    st.lists(POLICIES, min_size=1, max_size=4),
    st.sampled_from([SignInWay.PROMPT, SignInWay.SAME_DEVICE]),
    st.sampled_from([SOFTWARE_KEY, HARDWARE_KEY, "software/software_gated/unattested"]),
)
def test_a_policy_that_flips_at_any_step_is_never_weaker_than_any_of_them_P19(
    policies: list[Policy], way: SignInWay, key: str
):
    assert accepted_through(policies, way, key) is all(accepts(policy, way, key) for policy in policies)


# campaigns

LATER, NOW = 2_000_000_000, 1_900_000_000
KEY_CAMPAIGN = Campaign("Keys for all", LATER, Targets(everybody=False, include_groups=("grp_staff",)), HARDWARE)


@pytest.mark.parametrize(
    ("subject", "keys", "now", "due", "overdue"),
    [
        (ADA, (), NOW, True, False),
        (ADA, (SOFTWARE_KEY,), NOW, True, False),
        (ADA, (SOFTWARE_KEY, HARDWARE_KEY), NOW, False, False),
        (ADA, (HARDWARE_KEY,), LATER, False, False),
        (ADA, (SOFTWARE_KEY,), LATER - 1, True, False),
        (ADA, (SOFTWARE_KEY,), LATER, True, True),
        (ADA, (), LATER + 1, True, True),
        (replace(ADA, groups=frozenset({"grp_lab"})), (), LATER, False, False),
    ],
)
def test_ki8_a_campaign_asks_those_who_have_no_such_key(
    subject: Subject, keys: tuple[str, ...], now: int, due: bool, overdue: bool
):
    policy = replace(Policy(), campaigns=(KEY_CAMPAIGN,))
    found = due_campaigns(policy, subject, iter(keys), now=now)
    assert [one.campaign.name for one in found] == (["Keys for all"] if due else [])
    assert [one.overdue for one in found] == ([overdue] if due else [])
    for audience in (SELF_AUDIENCE, "shop"):
        said = Verdicts()
        why = refusal(decide_campaigns, found, Wanted("shop", audience), said)
        assert why is (Reason.METHOD_REQUIRED if overdue and audience != SELF_AUDIENCE else None)
        assert said.refused is (why is not None)


def test_ki8_each_campaign_is_asked_of_by_itself():
    soft = Campaign("Any key", 1, required_assurance=GATED)
    policy = replace(Policy(), campaigns=(KEY_CAMPAIGN, soft))
    found = due_campaigns(policy, ADA, (SOFTWARE_KEY,), now=NOW)
    assert [one.campaign for one in found] == [KEY_CAMPAIGN]
    assert refusal(decide_campaigns, found, SHOP, Verdicts()) is None
    both = due_campaigns(policy, ADA, (), now=NOW)
    assert [(one.campaign.name, one.overdue) for one in both] == [("Keys for all", False), ("Any key", True)]
    assert refusal(decide_campaigns, both, SHOP, Verdicts()) is Reason.METHOD_REQUIRED


# verdicts


def test_every_rule_that_was_asked_says_what_it_said():
    said = Verdicts()
    decide_method(Policy(version=7), SignInMethod.ACCESS_PASS, ADA, said)
    demand_of(with_app(required_assurance=SELF), SignInWay.PROMPT, replace(SHOP, required_assurance=SELF), said)
    decide_campaigns((), SHOP, said)
    assert [(v.rule, v.outcome) for v in said] == [
        ("access_pass.enabled", Outcome.ALLOWED),
        ("access_pass.targets", Outcome.ALLOWED),
        ("access_pass.guest", Outcome.ALLOWED),
        ("app", Outcome.ALLOWED),
        ("request.required_assurance", Outcome.ALLOWED),
        ("phishing_resistance", Outcome.ALLOWED),
        ("campaigns", Outcome.NOT_CONCERNED),
    ]
    assert not said.refused


def test_a_rule_that_refuses_is_the_last_that_was_asked():
    said = Verdicts()
    assert refusal(decide_method, changed("approval", enabled=False), SignInMethod.APPROVAL, ADA, said)
    assert [v.outcome for v in said] == [Outcome.REFUSED]
    assert next(iter(said)).reason == Reason.METHOD_DISABLED.value


def test_verdicts_survive_their_document():
    said = Verdicts()
    said.allow("one", "because")
    said.pass_over("two")
    decide_campaigns((), SHOP, said)
    refusal(decide_method, changed("approval", enabled=False), SignInMethod.APPROVAL, ADA, said)
    again = Verdicts.load(said.document())
    assert list(again) == list(said)
    assert again.refused
    assert not list(Verdicts.load(""))
    assert not list(Verdicts.load("[]"))
    assert list(Verdicts.load('[{"rule": "x", "outcome": "allowed"}]')) == [Verdict("x", Outcome.ALLOWED)]
