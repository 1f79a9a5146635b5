"""PKCS#11 URIs (RFC 7512): which are read, and as what; which are refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.errors import MalformedError, Reason
from keyvouch_agent.vaults.pkcs11.uri import TokenName, TokenUri

NAME = TokenName("Ada Lovelace", "9d10dd95", "piv_II", "PKCS#15 emulated")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("pkcs11:", TokenUri()),
        ("pkcs11:token=Ada%20Lovelace", TokenUri(token="Ada Lovelace")),
        ("pkcs11:serial=9d10;manufacturer=piv_II;model=PKCS%2315%20emulated",
         TokenUri(serial="9d10", manufacturer="piv_II", model="PKCS#15 emulated")),
        ("pkcs11:id=%01%FF;type=private", TokenUri(id=b"\x01\xff")),
        ("pkcs11:object=sign-key;type=cert;slot-id=327", TokenUri(object="sign-key", slot_id=327)),
        ("pkcs11:token=", TokenUri(token="")),
        ("pkcs11:token=%C3%84", TokenUri(token="Ä")),
        ("pkcs11:id=a%3Bb", TokenUri(id=b"a;b")),
    ],
)  # fmt: skip
def test_uri_is_read(text: str, read: TokenUri) -> None:
    assert TokenUri.parse(text) == read
    assert TokenUri.parse(str(read)) == read


@pytest.mark.parametrize(
    "text",
    [
        "", "token=a", "PKCS11:token=a", "pkcs11", "pkcs11:token", "pkcs11:token=a;", "pkcs11:;token=a",
        "pkcs11:token=a;token=b", "pkcs11:token=a b", "pkcs11:token=%", "pkcs11:token=%4", "pkcs11:token=%GG",
        "pkcs11:token=%FF", "pkcs11:token=a/b", "pkcs11:library-version=3", "pkcs11:x-vendor=1", "pkcs11:Token=a",
        "pkcs11:slot-id=-1", "pkcs11:slot-id=01", "pkcs11:slot-id=", "pkcs11:slot-id=1e3", "pkcs11:type=public",
        "pkcs11:token=a?module-path=/tmp/x.so", "pkcs11:token=a?module-name=x", "pkcs11:token=a?x-y=z",
        "pkcs11:token=" + "a" * 2000, "pkcs11:token=Ä", "pkcs11:token=a\n",
    ],
)  # fmt: skip
def test_uri_is_refused(text: str) -> None:
    with pytest.raises(MalformedError) as caught:
        TokenUri.parse(text)
    assert caught.value.reason is Reason.CONFIGURATION


@pytest.mark.parametrize("text", ["pkcs11:token=a?pin-value=864209", "pkcs11:pin-value=864209",
                                  "pkcs11:token=a?x=1&pin-source=file:/864209"])  # fmt: skip
def test_pin_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(MalformedError) as caught:
        TokenUri.parse(text)
    assert "864209" not in str(caught.value)
    assert "pin-value" in caught.value.fix


@given(st.text(max_size=60).map("pkcs11:".__add__))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(MalformedError):
        read = TokenUri.parse(text)
        assert TokenUri.parse(str(read)) == read


@pytest.mark.parametrize(
    ("uri", "means"),
    [
        (TokenUri(), True),
        (TokenUri(token="Ada Lovelace", serial="9d10dd95"), True),
        (TokenUri(slot_id=4), True),
        (TokenUri(id=b"\x02"), True),
        (TokenUri(token="Ada"), False),
        (TokenUri(serial="9D10DD95"), False),
        (TokenUri(manufacturer="OpenSC"), False),
        (TokenUri(model=""), False),
        (TokenUri(slot_id=5), False),
    ],
)
def test_which_token_is_meant(uri: TokenUri, means: bool) -> None:
    assert uri.matches(NAME, 4) is means


def test_same_token_by_its_serial_number_whatever_its_label() -> None:
    assert NAME.same_token(TokenName("Ada King", "9d10dd95", "piv_II", "PKCS#15 emulated"))
    assert not NAME.same_token(TokenName("Ada Lovelace", "9d10dd96", "piv_II", "PKCS#15 emulated"))
    assert not NAME.same_token(TokenName("Ada Lovelace", "9d10dd95", "OpenSC", "PKCS#15 emulated"))
    blank = TokenName("one", "0000", "m", "x")
    assert blank.same_token(blank)
    assert not blank.same_token(TokenName("two", "0000", "m", "x"))
