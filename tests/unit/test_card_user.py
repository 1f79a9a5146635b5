"""The name in an organisation's certificate: exactly one of the kind that is looked at, exactly the login name."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from keyvouch.attestation.card_certificate import NameMatch
from keyvouch.errors import EvidenceError, Reason
from support.card_certificates import BADGES, UPN, authority, badge, nameless, names, refused, upn, utf8, verify
from support.certificate_forge import Issued, element

MAIL, ADDRESS = x509.RFC822Name, x509.UniformResourceIdentifier


@pytest.mark.parametrize(
    ("match", "certificate", "username"),
    [
        (NameMatch.UPN, badge(), UPN),
        (NameMatch.UPN, badge(named=names(MAIL("eve@corp.example"), *upn(UPN)[0])), UPN),  # type: ignore[misc]
        (NameMatch.EMAIL, badge(named=names(MAIL("Ada@Corp.example"), *upn("eve")[0])), UPN),  # type: ignore[misc]
        (NameMatch.URI, badge(named=names(ADDRESS("urn:example:ada"), MAIL("eve@x"))), "urn:example:ada"),
        (NameMatch.SUBJECT_CN, badge(name="Ada Lovelace"), "ada lovelace"),
        (NameMatch.SUBJECT_CN, nameless(), "ada"),
    ],
)
def test_each_kind_of_name_that_can_be_the_login_name(match: NameMatch, certificate: Issued, username: str):
    assert verify(certificate, BADGES, username=username, authorities=[authority(match=match)]).name


@pytest.mark.parametrize(
    ("name", "username"),
    [
        ("ADA@Corp.Example", UPN),
        (UPN, "Ada@CORP.example"),
        (unicodedata.normalize("NFD", "zoë@corp.example"), "Zoë@corp.example"),
        ("STRASSE@corp.example", "straße@corp.example"),
    ],
)
def test_names_are_compared_after_nfc_and_case_folding(name: str, username: str):
    assert verify(badge(named=upn(name)), BADGES, username=username).name == name


@pytest.mark.parametrize(
    "named",
    [
        upn("eve@corp.example"),
        upn("ada"),
        upn("ada@corp.example.evil"),
        upn("ada@evil.corp.example"),
        upn("xada@corp.example"),
        upn("ada@corp.example."),
        upn("ada@corp.example "),
        upn("ada@corp.example\0"),
        upn("ada@corp.example\0.evil"),
        upn("\u0430da@corp.example"),
        upn("ada@corp\u3002example"),
        upn("ad\u00ada@corp.example"),
        upn("\uff41da@corp.example"),
        upn(""),
        upn(UPN * 20),
        upn(UPN, UPN),
        upn(UPN, "eve@corp.example"),
        upn("eve@corp.example", UPN),
        upn("\u202eada@corp.example"),
        upn("\ufeffada@corp.example"),
        upn("ada@corp.example\u200b"),
        upn(element(0x13, UPN.encode())),
        upn(element(0x16, UPN.encode())),
        upn(element(0x1E, UPN.encode("utf-16-be"))),
        upn(element(0x2C, utf8(UPN))),
        upn(utf8(b"ada\xff")),
        names(MAIL(UPN)),
        names(x509.OtherName(ObjectIdentifier("1.3.6.1.4.1.311.20.2.4"), utf8(UPN))),
    ],
    ids=lambda named: ascii(str(named[0])[24:90]),
)
def test_a_name_that_is_not_the_users(named: Any):
    assert verify(badge(named=upn(UPN)), BADGES).name
    refused(badge(named=named), BADGES, reason=Reason.CARD_USER)


@pytest.mark.parametrize(("value", "is_good"), [(utf8(UPN), True), (b"", False), (utf8(UPN) + utf8(UPN), False)])
def test_a_name_that_is_not_one_value(value: bytes, is_good: bool):
    identifier = bytes.fromhex("060a2b060104018237140203")
    der = element(0x30, element(0xA0, identifier, element(0xA0, value)))
    certificate = badge(named=(x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.17"), der), False))
    if is_good:
        assert verify(certificate, BADGES).name == UPN
    else:
        assert refused(certificate, BADGES) == "unreadable"


def test_a_certificate_without_alternative_names_is_nobodys_by_upn():
    refused(nameless(), BADGES, reason=Reason.CARD_USER)


def test_a_name_of_another_users_length_is_not_looked_at():
    long = "a" * 257
    refused(badge(named=upn(long)), BADGES, username=long, reason=Reason.CARD_USER)
    assert verify(badge(named=upn("a" * 256)), BADGES, username="a" * 256).name


@pytest.mark.parametrize(
    ("match", "certificate"),
    [
        (NameMatch.EMAIL, badge(named=names(MAIL(UPN), MAIL("ada@home.example")))),
        (NameMatch.EMAIL, badge(named=upn(UPN))),
        (NameMatch.URI, badge(named=names(ADDRESS(UPN), ADDRESS(UPN)))),
        (NameMatch.URI, badge(named=names(MAIL(UPN)))),
        (NameMatch.SUBJECT_CN, badge(name=x509.Name([]))),
        (NameMatch.SUBJECT_CN, badge(name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, UPN)] * 2))),
        (NameMatch.SUBJECT_CN, badge(name=x509.Name([x509.NameAttribute(NameOID.GIVEN_NAME, UPN)]))),
    ],
)
def test_several_names_of_the_kind_or_none_are_nobodys(match: NameMatch, certificate: Issued):
    refused(certificate, BADGES, reason=Reason.CARD_USER, authorities=[authority(match=match)])


def test_what_is_said_to_programs_of_a_name():
    for match in NameMatch:
        certificate = badge(named=upn("a", "b"), name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")] * 2))
        with pytest.raises(EvidenceError) as caught:
            verify(certificate, BADGES, authorities=[authority(match=match)])
        assert caught.value.metadata == {"match": match.value}
        assert ("several" in caught.value.message) is (match in (NameMatch.UPN, NameMatch.SUBJECT_CN))
    assert [match.value for match in NameMatch] == ["upn", "email", "uri", "subject_cn"]
