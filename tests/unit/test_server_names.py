"""Canonical names: which spellings are one name, and which names there cannot be (P10)."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.errors import MalformedError, Reason
from keyvouch_server.domain.names import MAX_NAME, MAX_TYPED, check_name, is_group_id, is_user_id, name_key

ONE_NAME = [
    ["ada", "Ada", "ADA", " ada ", "ada\t", "\uff21\uff24\uff21", "\u00a0ada"],
    ["stra\u00dfe", "STRASSE", "Strasse", "stra\u1e9ee"],
    ["caf\u00e9", "cafe\u0301", "CAFE\u0301", "CAF\u00c9"],
    ["\u03c3\u03c3", "\u03a3\u03a3", "\u03c3\u03c2"],
    ["fi", "\ufb01", "FI"],
    ["k", "\u212a"],
]

# What looks alike is not the same: who makes users sees both names side by side.
HOMOGRAPHS = [
    ("ada", "\u0430d\u0430"),
    ("paypal", "p\u0430ypal"),
    ("l1", "ll"),
    ("o", "\u03bf"),
    ("admin", "adm\u0131n"),
]


@pytest.mark.parametrize("spellings", ONE_NAME)
def test_spellings_of_one_name_share_its_key_P10(spellings: list[str]):
    assert len({name_key(spelling) for spelling in spellings}) == 1


@pytest.mark.parametrize(("one", "other"), HOMOGRAPHS)
def test_names_that_only_look_alike_are_two_P10(one: str, other: str):
    assert name_key(one) != name_key(other)
    assert check_name(one, "username") != check_name(other, "username")


@given(st.text(max_size=MAX_TYPED))
def test_a_key_is_its_own_key(name: str):
    assert name_key(name_key(name)) == name_key(name)


@given(st.text(max_size=80))
def test_what_is_shown_is_canonical_and_leads_to_the_same_key(name: str):
    try:
        shown = check_name(name, "username")
    except MalformedError:
        return
    assert unicodedata.is_normalized("NFC", shown)
    assert name_key(shown) == name_key(name) != ""
    assert check_name(shown, "username") == shown


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a  b",
        "a\x00b",
        "a\nb",
        "a\u200bb",
        "a\u202eb",
        "\u3164",
        "\ue000",
        "a\u2028b",
        "x" * (MAX_NAME + 1),
        "x" * (MAX_TYPED + 1),
        "usr_" + "a" * 26,
        "USR_" + "A" * 26,
        "grp_" + "a" * 26,
        "\uff27RP_" + "b" * 26,
    ],
)
def test_names_that_there_cannot_be(name: str):
    with pytest.raises(MalformedError) as caught:
        check_name(name, "username")
    assert (caught.value.reason, caught.value.metadata["field"]) == (Reason.FIELD_INVALID, "username")


def test_ids_are_no_names_and_names_no_ids():
    assert is_user_id("usr_" + "a" * 26)
    assert is_group_id("grp_" + "z" * 26)
    for text in ("usr_" + "a" * 25, "usr_" + "A" * 26, "grp_" + "a" * 27, "usr_" + "1" * 26, "", "ada"):
        assert not is_user_id(text)
        assert not is_group_id(text)
    assert check_name("usr_short", "username") == "usr_short"


def test_what_is_too_long_to_be_folded_is_nobodys_name():
    assert name_key("\u0301" * (MAX_TYPED + 1)) == ""
    assert name_key("x" * MAX_TYPED) != ""
