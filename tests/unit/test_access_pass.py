"""The pure rules of the Temporary Access Pass: codes, lifetimes, why one cannot be used, whose device it is for."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.assurance import Protection, Provenance
from keyvouch.errors import MalformedError, Reason, RefusedError
from keyvouch_server.domain.access_pass import (
    ALPHABET,
    ATTEMPTS,
    aaguid_binding,
    access_pass_end,
    access_pass_refusal,
    as_typed,
    bound_aaguid,
    bound_key_hash,
    decide_binding,
    draw_code,
    endorsement_key_binding,
    lifetime_of,
    start_of,
)
from keyvouch_server.domain.authenticators import Model
from keyvouch_server.domain.evaluation import Subject
from keyvouch_server.domain.model import AccessPass, UserKind
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.policy_parts import Targets

PASS = AccessPass("tap_x", "ten_x", "usr_x", bytes(32), 1000, 1000, 60, one_time=False)  # type: ignore[arg-type]
ADA = Subject("usr_x", groups=frozenset({"grp_x"}))  # type: ignore[arg-type]
LATER: dict[str, Any] = {"start_at": 2000}


def changed(**values: Any) -> Policy:
    return replace(Policy(), access_pass=replace(Policy().access_pass, **values))


@pytest.mark.parametrize(
    ("policy", "changes", "now", "reason"),
    [
        (Policy(), {}, 1000, None),
        (Policy(), {}, 4599, None),
        (Policy(), {"used_at": 1100}, 2000, None),
        (Policy(), {"attempts": ATTEMPTS - 1}, 1000, None),
        (Policy(), {}, 999, None),
        (Policy(), LATER, 1999, Reason.ACCESS_PASS_NOT_YET_VALID),
        (Policy(), LATER, 2000, None),
        (Policy(), {}, 4600, Reason.ACCESS_PASS_EXPIRED),
        (Policy(), {"one_time": True, "used_at": 1100}, 2000, Reason.ACCESS_PASS_USED),
        (Policy(), {"attempts": ATTEMPTS}, 1000, Reason.ACCESS_PASS_ATTEMPTS),
        (changed(enabled=False), {}, 1000, Reason.ACCESS_PASS_NOT_IN_POLICY),
        (changed(one_time_required=True), {}, 1000, Reason.ACCESS_PASS_ONE_TIME_REQUIRED),
        (changed(one_time_required=True), {"one_time": True}, 1000, None),
        (changed(targets=Targets(everybody=False)), {}, 1000, Reason.ACCESS_PASS_NOT_IN_POLICY),
        (changed(targets=Targets(everybody=False, include_users=("usr_x",))), {}, 1000, None),
        (changed(targets=Targets(everybody=False, include_groups=("grp_x",))), {}, 1000, None),
        (changed(targets=Targets(exclude_users=("usr_x",))), {}, 1000, Reason.ACCESS_PASS_NOT_IN_POLICY),
        (
            changed(targets=Targets(include_users=("usr_x",), exclude_groups=("grp_x",))),
            {},
            1000,
            Reason.ACCESS_PASS_NOT_IN_POLICY,
        ),
    ],
)
def test_why_a_pass_cannot_be_used_T2_T7_T17(policy: Policy, changes: dict[str, Any], now: int, reason: Reason | None):
    assert access_pass_refusal(policy, replace(PASS, **changes), ADA, now=now) is reason
    assert access_pass_end(PASS) == 4600


def test_guests_never_use_one_T14():
    guest = replace(ADA, kind=UserKind.GUEST)
    assert access_pass_refusal(Policy(), PASS, guest, now=1000) is Reason.ACCESS_PASS_GUEST
    assert access_pass_refusal(Policy(), PASS, ADA, now=1000) is None


@pytest.mark.parametrize("behind", [0, 1, 5, 3600])
def test_a_pass_that_starts_at_once_is_valid_on_a_node_whose_clock_is_behind_T18(behind: int):
    assert access_pass_refusal(Policy(), PASS, ADA, now=1000 - behind) is None
    assert access_pass_refusal(Policy(), replace(PASS, **LATER), ADA, now=1000 - behind) is not None


def test_codes_are_of_uniform_characters_that_nobody_mistakes():
    assert len(set(ALPHABET)) == len(ALPHABET) == 31
    assert not set(ALPHABET) & set("0O1IL")  # I and 1, O and 0 are not told apart; L is, in capitals
    counts = Counter(draw_code(62_000, secrets.token_bytes))
    assert set(counts) == set(ALPHABET)
    assert sum((n - 2000) ** 2 / 2000 for n in counts.values()) < 80  # chi-square of 30 degrees: 80 is one in 500,000


@pytest.mark.parametrize("length", [8, 48])
def test_bytes_that_would_favour_a_character_are_thrown_away(length: int):
    drawn = iter([bytes([255, 248] * 32), bytes(64)])
    assert draw_code(length, lambda _: next(drawn)) == "A" * length


@given(st.text())
def test_spaces_and_hyphens_are_nowhere(text: str):
    assert not {" ", "-"} & set(as_typed(text))
    assert as_typed(f" {text}-") == as_typed(text) or len(text) > 254


def test_what_is_too_long_to_be_a_code_is_not_folded():
    assert as_typed("A" * 257) == ""
    assert as_typed("ab cd-12") == "ABCD12"


def test_lifetimes_and_starts_T3_T6():
    assert lifetime_of(changed(default_lifetime_minutes=90), 0) == 90
    assert [lifetime_of(Policy(), m) for m in (60, 1440)] == [60, 1440]
    for minutes in (-1, 1, 59, 1441):
        with pytest.raises(MalformedError):
            lifetime_of(Policy(), minutes)
    assert [start_of(s, now=10_000) for s in (0, 9_940, 10_000, 20_000)] == [10_000, 9_940, 10_000, 20_000]
    for start in (-1, 9_939, 10_001 + 366 * 86400):
        with pytest.raises(MalformedError):
            start_of(start, now=10_000)


# the one device

HASH = bytes(range(32))
MODEL = "2fc0579f-8113-47ea-b116-bb5a8db9202a"
PROVED = Model(bytes.fromhex(MODEL.replace("-", "")), "packed", Provenance.ATTESTED, Protection.SECURE_ELEMENT)
NOTHING = Model(bytes(16), "packed", Provenance.SELF)


def test_bindings_are_read_back():
    assert bound_key_hash(endorsement_key_binding(HASH)) == HASH
    assert bound_aaguid(aaguid_binding(MODEL.upper())) == MODEL
    assert (bound_key_hash(""), bound_aaguid("")) == (b"", "")
    assert bound_key_hash(aaguid_binding(MODEL)) == b""
    assert bound_aaguid(endorsement_key_binding(HASH)) == ""


@pytest.mark.parametrize("wrong", [b"", bytes(31), bytes(33)])
def test_an_endorsement_key_hash_has_32_bytes(wrong: bytes):
    with pytest.raises(MalformedError, match="32 bytes"):
        endorsement_key_binding(wrong)


@pytest.mark.parametrize("wrong", ["", "x", MODEL[:-1], f"{{{MODEL}}}", MODEL.replace("-", ""), str(PROVED), "0" * 36])
def test_a_model_is_a_uuid(wrong: str):
    with pytest.raises(MalformedError, match="AAGUID"):
        aaguid_binding(wrong)
    with pytest.raises(MalformedError, match="AAGUID"):
        aaguid_binding("00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize(
    ("binding", "key_hash", "model", "found"),
    [
        ("", b"", NOTHING, None),
        ("", HASH, PROVED, None),
        (endorsement_key_binding(HASH), HASH, NOTHING, None),
        (endorsement_key_binding(HASH), b"", PROVED, f"aaguid:{MODEL}"),
        (endorsement_key_binding(HASH), b"", NOTHING, "nothing"),
        (endorsement_key_binding(HASH), bytes(32), NOTHING, "ek:" + "00" * 32),
        (aaguid_binding(MODEL), b"", PROVED, None),
        (aaguid_binding(MODEL), b"", NOTHING, "nothing"),
        (aaguid_binding(MODEL), HASH, NOTHING, "ek:" + HASH.hex()),
        (aaguid_binding(MODEL), b"", replace(PROVED, provenance=Provenance.SELF), "nothing"),
        (aaguid_binding(MODEL), b"", replace(PROVED, format="none"), "nothing"),
        (aaguid_binding(MODEL), b"", replace(PROVED, aaguid=HASH[:16]), f"aaguid:{HASH[:4].hex()}"),
        ("something newer", HASH, PROVED, "ek:"),
    ],
)
def test_a_bound_pass_is_for_its_device_as_proved_P8(binding: str, key_hash: bytes, model: Model, found: str | None):
    if found is None:
        decide_binding(binding, endorsement_key_hash=key_hash, model=model)
        return
    with pytest.raises(RefusedError) as caught:
        decide_binding(binding, endorsement_key_hash=key_hash, model=model)
    assert caught.value.reason is Reason.ACCESS_PASS_DEVICE
    assert caught.value.metadata["detail"] == binding
    assert caught.value.metadata["found"].startswith(found)
