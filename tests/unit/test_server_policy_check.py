"""What a policy may say: targets, apps, campaigns, profiles; and documents of older releases."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.errors import MalformedError, Reason
from keyvouch_client.commands.policy_settings import settings_of as settings_of_message
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.policy_check import MOST_APPS, MOST_CAMPAIGNS, MOST_IDS, check_policy, targets_of
from keyvouch_server.domain.policy_differences import LONGEST, Difference, differences, settings_of
from keyvouch_server.domain.policy_parts import NIST_800_63B_4, AppPolicy, Campaign, SignInPolicy, Targets
from keyvouch_server.rpc.policy_messages import policy_from, policy_message

TARGETED = ("approval", "access_pass", "security_key")
LISTS = ("include_users", "include_groups", "exclude_users", "exclude_groups")


def changed(part: str, **values: Any) -> Policy:
    policy = Policy()
    return replace(policy, **{part: replace(getattr(policy, part), **values)})


def refused_field(policy: Policy) -> str:
    """Which field a refusal names."""
    with pytest.raises(MalformedError) as caught:
        check_policy(policy)
    assert caught.value.reason is Reason.POLICY_INVALID
    assert caught.value.metadata["field"] in caught.value.message
    assert caught.value.metadata["expected"]
    return caught.value.metadata["field"]


def ids(count: int) -> tuple[str, ...]:
    return tuple(f"usr_{n}" for n in range(count))


# targets


@pytest.mark.parametrize("part", TARGETED)
@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_targets_holds_so_many_ids_and_each_once_PS12(part: str, name: str):
    assert check_policy(changed(part, targets=Targets(**{name: ids(MOST_IDS)})))
    too_many, twice = Targets(**{name: ids(MOST_IDS + 1)}), Targets(**{name: ("usr_a", "usr_b", "usr_a")})
    for targets in (too_many, twice):
        assert refused_field(changed(part, targets=targets)) == f"{part}.targets.{name}"
        in_campaign = replace(Policy(), campaigns=(Campaign("x", 1, targets),))
        assert refused_field(in_campaign) == f"campaigns[0].targets.{name}"


def test_a_method_may_be_for_nobody():
    assert check_policy(changed("approval", targets=Targets(everybody=False)))


def test_everything_that_names_people_is_known_PS12():
    campaigns = (Campaign("a", 1), Campaign("b", 1))
    assert [name for name, _ in targets_of(replace(Policy(), campaigns=campaigns))] == [
        *(f"{part}.targets" for part in TARGETED),
        "campaigns[0].targets",
        "campaigns[1].targets",
    ]


# apps and campaigns


@pytest.mark.parametrize(
    ("apps", "field"),
    [
        ((AppPolicy(""),), "apps[0].app_id"),
        ((AppPolicy("  "),), "apps[0].app_id"),
        ((AppPolicy("x" * 257),), "apps[0].app_id"),
        ((AppPolicy("pay\x07roll"),), "apps[0].app_id"),
        ((AppPolicy("pay\u202eroll"),), "apps[0].app_id"),
        ((AppPolicy("payroll"), AppPolicy("shop"), AppPolicy("payroll")), "apps[2].app_id"),
        ((AppPolicy("payroll", "any/none/unattested"),), "apps[0].required_assurance"),
        ((AppPolicy("payroll", "any/software_gated/attested/" + "x" * 256),), "apps[0].required_assurance"),
        (tuple(AppPolicy(f"app{n}") for n in range(MOST_APPS + 1)), "apps"),
    ],
)
def test_rules_of_apps_that_are_none_are_refused_KI8(apps: tuple[AppPolicy, ...], field: str):
    assert refused_field(replace(Policy(), apps=apps)) == field


def test_rules_of_apps_at_their_limits_are_kept_KI8():
    apps = (
        AppPolicy("x" * 256, "hardware/hardware_gated/attested/root", True),
        *(AppPolicy(f"app {n}") for n in range(MOST_APPS - 1)),
    )
    policy = replace(Policy(), apps=apps)
    assert check_policy(policy) is policy
    assert Policy.load(policy.document()) == policy


@pytest.mark.parametrize(
    ("campaigns", "field"),
    [
        ((Campaign("", 1),), "campaigns[0].name"),
        ((Campaign("x" * 65, 1),), "campaigns[0].name"),
        ((Campaign("line\nbreak", 1),), "campaigns[0].name"),
        ((Campaign("Keys", 1), Campaign("KEYS ", 1)), "campaigns[1].name"),
        ((Campaign("Keys", 0),), "campaigns[0].required_by"),
        ((Campaign("Keys", -1),), "campaigns[0].required_by"),
        ((Campaign("Keys", 253_402_300_800),), "campaigns[0].required_by"),
        ((Campaign("Keys", 1, required_assurance="hardware/none/attested"),), "campaigns[0].required_assurance"),
        (tuple(Campaign(f"c{n}", 1) for n in range(MOST_CAMPAIGNS + 1)), "campaigns"),
    ],
)
def test_campaigns_that_are_none_are_refused_KI8(campaigns: tuple[Campaign, ...], field: str):
    assert refused_field(replace(Policy(), campaigns=campaigns)) == field


def test_campaigns_at_their_limits_are_kept_KI8():
    targets = Targets(everybody=False, include_groups=("grp_a",), exclude_users=("usr_a",))
    campaigns = (
        Campaign("x" * 64, 253_402_300_799, targets, "hardware/hardware_gated/attested"),
        *(Campaign(f"c{n}", 1) for n in range(MOST_CAMPAIGNS - 1)),
    )
    policy = replace(Policy(), campaigns=campaigns)
    assert check_policy(policy) is policy
    assert Policy.load(policy.document()) == policy


# the profile


def nist(**approval: Any) -> Policy:
    values = {"number_digits": 6, "lifetime_seconds": 600, "number_misses": 100, **approval}
    return replace(changed("approval", **values), sign_in=SignInPolicy(profile=NIST_800_63B_4))


def test_the_nist_profile_asks_for_six_digits_and_no_choosing_P4():
    assert check_policy(nist())
    assert check_policy(nist(number_digits=8))
    for values in ({"number_digits": 5}, {"number_digits": 2}, {"lifetime_seconds": 601}, {"number_misses": 101}):
        assert refused_field(nist(**values)) == f"approval.{next(iter(values))}"
    assert refused_field(nist(legacy_choice_of_three=True)) == "approval.legacy_choice_of_three"


def test_without_the_profile_two_digits_and_choosing_are_allowed():
    assert check_policy(changed("approval", number_digits=2, legacy_choice_of_three=True))


@pytest.mark.parametrize("profile", ["nist", "NIST-800-63B-4", "nist-800-63b-4 ", "nist-800-63b-3"])
def test_a_profile_that_nobody_knows_is_refused(profile: str):
    assert refused_field(changed("sign_in", profile=profile)) == "sign_in.profile"


# documents of older releases


def test_a_document_from_before_targets_apps_and_campaigns_loads_with_what_held_then_KI7():
    document = json.loads(Policy(version=7).document())
    for part in ("sign_in", "apps", "campaigns"):
        del document[part]
    for part in TARGETED:
        del document[part]["targets"]
    del document["approval"]["legacy_choice_of_three"]
    document["approval"]["begins_per_minute"] = 10
    loaded = Policy.load(json.dumps(document))
    assert loaded == replace(changed("approval", begins_per_minute=10), version=7, session=loaded.session)
    assert check_policy(loaded)
    assert all(targets == Targets() for _, targets in targets_of(loaded))
    assert Policy().approval.begins_per_minute == 3


# differences

ALL_OVER = replace(
    changed("approval", targets=Targets(exclude_groups=("grp_a", "grp_b"))),
    apps=(AppPolicy("pay.roll", "hardware/hardware_gated/attested/root", True),),
    campaigns=(Campaign("Keys for all", 1_900_000_000, Targets(everybody=False, include_groups=("grp_a",))),),
)


def test_differences_name_what_is_different_PS13():
    assert differences(Policy(), Policy(version=9)) == ()
    changes = replace(changed("approval", number_digits=6, enabled=False), version=2)
    assert differences(Policy(), changes) == (
        Difference("approval.enabled", "true", "false"),
        Difference("approval.number_digits", "2", "6"),
    )
    strict = changed("registration", required_assurance="hardware/hardware_gated/attested/b,a")
    assert [
        (one.setting.removeprefix("registration.required_assurance."), one.after)
        for one in differences(Policy(), strict)
    ] == [
        ("protection", "hardware"),
        ("verification", "hardware_gated"),
        ("provenance", "attested"),
        ("anchors", "a,b"),
    ]


def test_differences_of_lists_apps_and_campaigns_PS13():
    found = {one.setting: (one.before, one.after) for one in differences(Policy(), ALL_OVER)}
    assert found == {
        "approval.targets.exclude_groups": ("", "grp_a,grp_b"),
        "apps.pay.roll.required_assurance.protection": ("", "hardware"),
        "apps.pay.roll.required_assurance.verification": ("", "hardware_gated"),
        "apps.pay.roll.required_assurance.provenance": ("", "attested"),
        "apps.pay.roll.required_assurance.anchors": ("", "root"),
        "apps.pay.roll.phishing_resistant": ("", "true"),
        "campaigns.Keys for all.targets.everybody": ("", "false"),
        "campaigns.Keys for all.targets.include_groups": ("", "grp_a"),
        "campaigns.Keys for all.required_assurance.protection": ("", "any"),
        "campaigns.Keys for all.required_assurance.verification": ("", "software_gated"),
        "campaigns.Keys for all.required_assurance.provenance": ("", "unattested"),
        "campaigns.Keys for all.required_by": ("", "1900000000"),
    }
    back = {one.setting: (one.after, one.before) for one in differences(ALL_OVER, Policy())}
    assert back == found


def test_an_app_that_moves_in_its_list_is_no_difference():
    apps = (AppPolicy("a"), AppPolicy("b", phishing_resistant=True))
    assert differences(replace(Policy(), apps=apps), replace(Policy(), apps=apps[::-1])) == ()


def test_a_long_value_is_cut_and_still_a_difference():
    one, other = (changed("approval", targets=Targets(include_users=(*ids(900), last))) for last in ("usr_x", "usr_y"))
    (found,) = differences(one, other)
    assert len(found.before) <= LONGEST >= len(found.after)
    assert found.before.startswith("…")
    assert found.before.endswith(",usr_x")  # what is told is what differs
    assert found.after.endswith(",usr_y")
    (found,) = differences(one, Policy())
    assert len(found.before) == LONGEST
    assert found.before.endswith("…")
    assert found.after == ""
    (found,) = differences(one, changed("approval", targets=Targets(include_users=tuple(ids(900)))))
    assert found.before.endswith(",usr_x")
    assert found.before.startswith(found.after)


@pytest.mark.parametrize("policy", [Policy(), ALL_OVER, nist()])
def test_settings_have_the_names_that_the_protocol_and_the_command_line_have_PS13(policy: Policy):
    assert settings_of(policy) == settings_of_message(policy_message(policy))


# the wire


@given(
    st.builds(
        Targets,
        st.booleans(),
        *(
            st.lists(st.sampled_from(["a", "b", "c"]), unique=True).map(lambda ids: tuple(sorted(ids)))
            for _ in range(4)
        ),
    )
)
def test_a_policy_survives_the_wire_and_its_document(targets: Targets):
    campaigns = (Campaign("Keys", 5, targets, "hardware/hardware_gated/attested/a,b"),)
    for part in TARGETED:
        policy = replace(changed(part, targets=targets), version=3, apps=ALL_OVER.apps, campaigns=campaigns)
        assert policy_from(policy_message(policy)) == policy
        assert Policy.load(policy.document()) == policy


@pytest.mark.parametrize("part", [*TARGETED, "campaigns"])
def test_a_policy_without_targets_is_refused_for_it_would_be_for_nobody(part: str):
    message = policy_message(ALL_OVER)
    owner: Any = message.campaigns[0] if part == "campaigns" else getattr(message, part)
    owner.ClearField("targets")
    with pytest.raises(MalformedError) as caught:
        policy_from(message)
    expected = "policy.campaigns[0].targets" if part == "campaigns" else f"policy.{part}.targets"
    assert caught.value.metadata["field"] == expected
