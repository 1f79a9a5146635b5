"""The server's pure rules: the sign-in's state table, policy, names, numbers."""

from __future__ import annotations

import json
import random
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.errors import ConflictError, MalformedError, Reason, RefusedError
from keyvouch_server.domain.model import SignIn
from keyvouch_server.domain.model import SignInState as S
from keyvouch_server.domain.names import MAX_NAME, check_name, check_text, name_key
from keyvouch_server.domain.policy import (
    Policy,
    decide_assurance,
    decide_device_limit,
)
from keyvouch_server.domain.policy_check import check_policy
from keyvouch_server.domain.sign_in import OPEN, TRANSITIONS, Event, draw_number, why_not
from keyvouch_server.ports import OneOf
from keyvouch_server.stores.memory import MemoryStore
from support.sample_records import open_sign_in

# The documented moves, written down once more: (from, event, to).
MOVES = {
    (S.PENDING, Event.APPROVE, S.APPROVED),
    (S.PENDING, Event.DENY, S.DENIED),
    (S.PENDING, Event.REPORT, S.REPORTED),
    (S.PENDING, Event.MISMATCH, S.FAILED),
    (S.PENDING, Event.EXPIRE, S.EXPIRED),
    (S.PENDING, Event.SUPERSEDE, S.SUPERSEDED),
    (S.PENDING, Event.CANCEL, S.CANCELLED),
    (S.APPROVED, Event.EXPIRE, S.EXPIRED),
    (S.APPROVED, Event.SUPERSEDE, S.SUPERSEDED),
    (S.APPROVED, Event.CANCEL, S.CANCELLED),
    (S.APPROVED, Event.REDEEM, S.CONSUMED),
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", S)
async def test_every_event_in_every_state_moves_as_documented_or_changes_nothing(state: S, event: Event):
    store = MemoryStore()
    before = open_sign_in("sin_x", state=state)
    await store.write(lambda tx: tx.insert(before))
    sources, target = TRANSITIONS[event]
    where = {"id": before.id, "state": OneOf(tuple(sources))}
    moved = await store.write(lambda tx: tx.update(SignIn, where, {"state": target}))
    after = await store.read(lambda tx: tx.get(SignIn, id=before.id))
    assert after is not None
    documented = [to for start, what, to in MOVES if (start, what) == (state, event)]
    assert [m.state for m in moved] == documented
    assert after == (replace(before, state=documented[0]) if documented else before)


def test_only_open_states_have_a_way_on():
    assert {state for sources, _ in TRANSITIONS.values() for state in sources} == OPEN == {S.PENDING, S.APPROVED}
    assert TRANSITIONS.keys() == set(Event)


def test_every_state_has_its_refusal():
    reasons = {state: why_not(state) for state in S}
    assert all(error.message and error.fix for error in reasons.values())
    assert all(error.metadata["state"] == state.value for state, error in reasons.items())
    assert isinstance(reasons[S.CONSUMED], ConflictError)
    assert len({error.reason for error in reasons.values()}) == len(S) - 1  # approved and consumed share one


# numbers


@pytest.mark.parametrize("digits", range(2, 9))
def test_a_number_has_its_digits_with_leading_zeros(digits: int):
    assert draw_number(digits, bytes(16)) == "0" * digits
    assert draw_number(digits, (10**digits - 1).to_bytes(16, "big")) == "9" * digits


def test_numbers_are_uniform():
    """Chi-square over 10^5 draws: 99 degrees of freedom, the middle 99.98 percent."""
    source = random.Random(20240229)
    counts = [0] * 100
    for _ in range(100_000):
        counts[int(draw_number(2, source.randbytes(16)))] += 1
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts)
    assert 54 < chi_square < 160


def test_a_biased_source_would_be_found():
    source = random.Random(20240229)
    counts = [0] * 100
    for _ in range(100_000):
        counts[int(draw_number(2, bytes(15) + source.randbytes(1)))] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in counts) > 160


# policy


def changed(part: str, **values: Any) -> Policy:
    policy = Policy()
    return replace(policy, **{part: replace(getattr(policy, part), **values)})


RANGES = [
    ("approval", "number_digits", 2, 8),
    ("approval", "lifetime_seconds", 30, 600),
    ("approval", "number_misses", 1, 100),
    ("approval", "begins_per_minute", 1, 6000),
    ("access_pass", "length", 8, 48),
    ("registration", "devices_per_user", 1, 100),
    ("session", "access_token_seconds", 60, 3600),
    ("session", "session_seconds", 300, 90 * 86400),
]


@pytest.mark.parametrize(("part", "name", "least", "most"), RANGES)
def test_each_number_of_a_policy_has_its_range(part: str, name: str, least: int, most: int):
    for good in (least, most):
        assert check_policy(changed(part, **{name: good}))
    for bad in (least - 1, most + 1, 0, -1, 2**31):
        with pytest.raises(MalformedError) as caught:
            check_policy(changed(part, **{name: bad}))
        assert caught.value.reason is Reason.POLICY_INVALID
        assert caught.value.metadata["field"] == f"{part}.{name}"


@pytest.mark.parametrize(
    ("least", "default", "most", "good"),
    [
        (10, 10, 10, True),
        (43200, 43200, 43200, True),
        (10, 60, 43200, True),
        (9, 60, 1440, False),
        (10, 60, 43201, False),
        (61, 60, 1440, False),
        (10, 1441, 1440, False),
        (100, 50, 20, False),
    ],
)
def test_lifetimes_of_passes_are_consistent_T3(least: int, default: int, most: int, good: bool):
    policy = changed(
        "access_pass",
        minimum_lifetime_minutes=least,
        default_lifetime_minutes=default,
        maximum_lifetime_minutes=most,
    )
    if good:
        assert check_policy(policy) is policy
        return
    with pytest.raises(MalformedError) as caught:
        check_policy(policy)
    assert caught.value.reason is Reason.POLICY_INVALID


@pytest.mark.parametrize("part", ["approval", "registration"])
@pytest.mark.parametrize(
    "required", ["any/none/unattested", "hardware/none/attested", "any/software_gated/attested/" + "x" * 256]
)
def test_a_policy_cannot_ask_for_ungated_keys_nor_for_what_no_statement_can_say_PS8(part: str, required: str):
    with pytest.raises(MalformedError) as caught:
        check_policy(changed(part, required_assurance=required))
    assert caught.value.reason is Reason.POLICY_INVALID
    assert check_policy(changed(part, required_assurance="hardware/hardware_gated/attested/root"))


@pytest.mark.parametrize(
    "required", ["", "any", "any/software_gated", "x/software_gated/self", "any/software_gated/self/"]
)
def test_a_requirement_that_is_none_is_refused(required: str):
    with pytest.raises(MalformedError):
        check_policy(changed("approval", required_assurance=required))


def test_the_default_policy_is_the_documented_one():
    policy = check_policy(Policy())
    assert (policy.approval.number_digits, policy.approval.lifetime_seconds, policy.approval.enabled) == (2, 120, True)
    passes = policy.access_pass
    assert (passes.minimum_lifetime_minutes, passes.maximum_lifetime_minutes) == (60, 1440)
    assert (passes.default_lifetime_minutes, passes.one_time_required, passes.length) == (60, False, 8)


@given(
    st.builds(
        changed,
        st.just("approval"),
        number_digits=st.integers(2, 8),
        enabled=st.booleans(),
        required_assurance=st.sampled_from(["any/software_gated/self", "hardware/hardware_gated/attested/a,b%2C"]),
    ),
    st.integers(1, 10**9),
)
def test_a_policy_survives_its_document(policy: Policy, version: int):
    policy = replace(policy, version=version)
    assert Policy.load(policy.document()) == policy


def test_a_document_of_an_older_release_gets_the_defaults_of_newer_fields():
    document = json.loads(Policy(version=7).document())
    del document["session"]["access_token_seconds"]
    del document["approval"]["begins_per_minute"]
    del document["registration"]["accounts_per_device"]
    del document["health"]
    assert Policy.load(json.dumps(document)) == Policy(version=7)


def test_decisions_say_yes_by_saying_nothing_and_no_with_a_reason():
    decide_assurance("tpm/hardware_gated/attested/root", "hardware/hardware_gated/attested/root")
    with pytest.raises(RefusedError) as caught:
        decide_assurance("software/software_gated/self", "hardware/software_gated/self")
    assert caught.value.reason is Reason.ASSURANCE_TOO_LOW
    decide_device_limit(changed("registration", devices_per_user=2), ["one"])
    with pytest.raises(RefusedError) as caught:
        decide_device_limit(changed("registration", devices_per_user=2), ["laptop (dev_1)", "phone (dev_2)"])
    assert caught.value.reason is Reason.DEVICE_LIMIT
    assert caught.value.metadata == {"limit": "2", "devices": "laptop (dev_1), phone (dev_2)"}


# names


@pytest.mark.parametrize(
    "spellings",
    [
        ("ada", "Ada", "ADA", " ada ", "\u00a0ada\u3000", "\uff21\uff44\uff41"),
        ("stra\u00dfe", "STRASSE", "Strasse", "STRA\u1e9eE"),
        ("caf\u00e9", "cafe\u0301", "CAF\u00c9"),
        ("\ufb01n", "fin", "FIN"),
        ("\u03c3\u03b1\u03c2", "\u03a3\u0391\u03a3"),
        ("\u212bngstr\u00f6m", "\u00e5ngstr\u00f6m"),
    ],
)
def test_all_spellings_of_a_name_share_one_key_P10(spellings: tuple[str, ...]):
    assert len({name_key(s) for s in spellings}) == 1
    assert name_key(spellings[0]) != name_key(spellings[0] + "x")


@given(st.text(max_size=12))
def test_keys_are_stable_under_every_normal_form_and_case(name: str):
    key = name_key(name)
    assert name_key(key) == key
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert name_key(unicodedata.normalize(form, name)) == key
    assert name_key(f" {name}\t") == key


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\u00a0",
        "a" * (MAX_NAME + 1),
        "a\nda",
        "a\tda",
        "ada\0",
        "\u202eada",
        "a\u200bda",
        "a\u2066da",
        "a\u00adda",
        "\ufeffada",
        "a\ud800da",
        "a\ue000da",
        "a  b",
        "a\u00a0b",
        "a\u2028b",
        "ada\ufe0f",
        "ada\u034f",
        "\u3164",
        "ada\U000e0101",
    ],
)
def test_names_nobody_can_read_are_refused_A2(name: str):
    with pytest.raises(MalformedError) as caught:
        check_name(name, "username")
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.metadata["field"] == "username"


@pytest.mark.parametrize(
    "name", ["a", "a" * MAX_NAME, "ada.l@example.org", "Ada Lovelace", "\u5c0f\u6797", "O'Neil-Øre"]
)
def test_ordinary_names_pass(name: str):
    assert check_name(f" {name} ", "username") == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize("text", ["\x1b[0m", "a\nb", "a\u202eb", "a\u2069", "\x7f", "a\u200f"])
def test_texts_for_people_hold_no_controls_A2(text: str):
    with pytest.raises(MalformedError):
        check_text(text, "app_name", longest=64)
    assert check_text("Pay 10 € now", "app_name", longest=64)
    assert check_text("", "place", longest=3, required=False) == ""
    with pytest.raises(MalformedError):
        check_text("", "place", longest=3)
