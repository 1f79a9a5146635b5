"""Text of a peer on a terminal: shown, never acting (security A2)."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch_agent.prompts.card import prompt_card, utc
from keyvouch_agent.prompts.inert import columns, fixed, inert


@pytest.mark.parametrize("text", ["Payroll", "Zürich", "東京", "שלום", "Zoë's app (beta)", "a < b > c", ""])
def test_honest_text_is_left_alone(text: str) -> None:
    assert inert(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abc\u202etxt.exe", "abc<U+202E>txt.exe"),
        ("\u2066x\u2069", "<U+2066>x<U+2069>"),
        ("line\nTenant [example]", "line<U+000A>Tenant [example]"),
        ("\r\x1b[2J\x1b[1;1HApproved", "<U+000D><U+001B>[2J<U+001B>[1;1HApproved"),
        ("\x9b31m", "<U+009B>31m"),
        ("\u2028\u2029\x00\x7f\x85", "<U+2028><U+2029><U+0000><U+007F><U+0085>"),
        ("zero\u200bwidth\ufeff", "zero<U+200B>width<U+FEFF>"),
        ("\u3164\u2800\ufe0f", "<U+3164><U+2800><U+FE0F>"),
        ("\U000e0041", "<U+E0041>"),
        ("far      away\u00a0\u2003here", "far away here"),
        ("e" + "\u0301" * 5, "e\u0301\u0301<U+0301><U+0301><U+0301>"),
        ("\ud800", "<U+D800>"),
    ],
)
def test_what_could_act_is_written_out(text: str, shown: str) -> None:
    assert inert(text) == shown


def test_ten_kilobytes_are_cut_and_cost_nothing() -> None:
    started = time.thread_time()
    for character in ("A", "\u202e", "東", "\u0301", " "):
        assert columns(inert(character * 10_000, longest=40)) <= 40
    assert inert("A" * 10_000, longest=40) == "A" * 37 + "..."
    assert time.thread_time() - started < 1


@given(st.text(max_size=300), st.integers(min_value=3, max_value=60))
def test_nothing_active_is_left_and_the_width_holds(text: str, width: int) -> None:
    shown = inert(text, longest=width)
    assert columns(shown) <= width
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in shown)
    assert columns(fixed(text, width)) == width


def test_a_name_cannot_pretend_to_be_a_field() -> None:
    prompt = {"tenant": "example] \n  User     [root", "username": "ada", "server": "s" * 500, "number_digits": 2}
    card = prompt_card(prompt, {"pin_is_set": True, "retries_left": 3})
    lines = card.splitlines()
    assert len(lines) == 11
    assert [line[:11].strip() for line in lines[1:]] == [
        "Tenant", "User", "Server", "App", "For", "From", "When", "Message", "Key", "Prompt",
    ]  # fmt: skip
    assert {len(line) for line in lines[1:4]} == {len("  Tenant   ") + 42}
    assert "3 PIN tries left" in card


@pytest.mark.parametrize(
    ("instant", "shown"),
    [
        (0, "1970-01-01 00:00:00 UTC"),
        (253402300799, "9999-12-31 23:59:59 UTC"),
        (1 << 62, "unknown"),
        (None, "unknown"),
    ],
)
def test_instants_of_any_size(instant: object, shown: str) -> None:
    assert utc(instant) == shown
