"""base64url has one spelling of every byte string, and every other text is refused (RFC 4648 section 3.5)."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch import base64url

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@given(st.binary(max_size=70))
def test_there_and_back(data: bytes) -> None:
    text = base64url.encode(data)
    assert text == base64.urlsafe_b64encode(data).decode().rstrip("=")
    assert base64url.decode(text) == data


@given(st.text(alphabet=ALPHABET + "+/= \n*é\x00", max_size=12))
def test_whatever_is_taken_is_the_one_spelling(text: str) -> None:
    try:
        data = base64url.decode(text)
    except ValueError:
        return
    assert base64url.encode(data) == text


@pytest.mark.parametrize("last", ALPHABET)
def test_last_bits_that_are_not_needed_are_zero(last: str) -> None:
    for text, unneeded in (("A" + last, 4), ("AA" + last, 2), ("AAA" + last, 0)):
        if ALPHABET.index(last) % (1 << unneeded):
            with pytest.raises(ValueError, match="canonical"):
                base64url.decode(text)
        else:
            assert base64url.encode(base64url.decode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AAAAA",
        "AA==",
        "AAA=",
        "=",
        "====",
        "A===",
        "AA=",
        "A+",
        "A/A",
        "+A",
        "/A",
        "A*",
        "AA\n",
        "AA AA",
        "é",
        "AAA\x00",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="canonical"):
        base64url.decode(text)


def test_nothing_is_nothing() -> None:
    assert base64url.decode("") == b""
    assert base64url.encode(b"") == ""
