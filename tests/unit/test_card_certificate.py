"""Certificates of an organisation: whose key it is, and everything that does not say so."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import CertificatePoliciesOID, ExtendedKeyUsageOID, ObjectIdentifier

from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.attestation.card_certificate import CARD_AUTHENTICATION, CardAuthority, NameMatch
from keyvouch.errors import EvidenceError, MalformedError, Reason, UsageError
from support.card_certificates import (
    BADGES,
    DAY,
    GOOD,
    HARDWARE_POLICY,
    LOGON,
    ORGANISATION,
    UPN,
    authority,
    badge,
    crl,
    policies,
    purposes,
    refused,
    upn,
    verify,
    verify_ders,
)
from support.certificate_forge import (
    AUTHORITY,
    DIGITAL_SIGNATURE,
    INSTANT,
    NOT_AFTER,
    NOT_BEFORE,
    Issued,
    intermediate,
    new_key,
    root,
    rsa_key,
)
from support.roca_keys import weak_modulus

MAIL, ADDRESS = x509.RFC822Name, x509.UniformResourceIdentifier
ANY = CertificatePoliciesOID.ANY_POLICY
ENCIPHERMENT = x509.KeyUsage(False, True, True, False, False, False, False, False, False)


# What is good


def test_a_badge_says_whose_key_it_is():
    verified = verify()
    assert verified.authority.name == "Example Badges"
    assert verified.path == (GOOD.certificate, BADGES.certificate)
    assert verified.name == UPN


def test_what_a_certificate_proves_is_software_unless_the_organisation_promises_more():
    assert verify().authority.assurance == Assurance(
        Protection.SOFTWARE, Verification.SOFTWARE_GATED, Provenance.CERTIFIED, "Example Badges"
    )
    promise = authority(protection=Protection.SMARTCARD, verification=Verification.HARDWARE_GATED)
    promised = verify(authorities=[promise]).authority.assurance
    assert promised.text() == "smartcard/hardware_gated/certified/Example Badges"


def test_what_stands_between_may_come_in_any_order_with_what_does_not_belong_there():
    second = intermediate(BADGES, "Branch")
    stranger = root("Stranger")
    verified = verify(badge(second), ORGANISATION, stranger, second, BADGES)
    assert [one.subject.rfc4514_string() for one in verified.path[1:]] == ["CN=Branch", "CN=Example Badges"]
    assert verify(GOOD, authorities=[authority(BADGES)]).path == (GOOD.certificate,)


@pytest.mark.parametrize("key", [new_key(), ec.generate_private_key(ec.SECP384R1()), rsa_key(2048)])
def test_every_kind_of_key_of_a_card(key: Any):
    assert verify(badge(key=key), BADGES, key=key).name == UPN


# Reading


@pytest.mark.parametrize(
    "certificates",
    [
        [],
        [b""],
        [b"certificate"],
        [GOOD.der + b"\x00"],
        [GOOD.der[:-1]],
        [GOOD.der, b"\x30\x00"],
        [GOOD.der] * 9,
        [GOOD.der, bytes(32 * 1024)],
    ],
    ids=["none", "empty", "text", "one byte more", "one byte less", "one that is empty", "nine", "too long"],
)
def test_what_cannot_be_read_is_refused_as_such(certificates: list[bytes]):
    with pytest.raises(MalformedError) as caught:
        verify_ders(certificates)
    assert caught.value.reason is Reason.CARD_CERTIFICATE
    assert caught.value.fix


def test_as_many_certificates_and_bytes_as_are_taken():
    eight = [GOOD.der, *(intermediate(ORGANISATION, f"{number}").der for number in range(6)), BADGES.der]
    assert verify_ders(eight).name
    room = 32 * 1024 - len(GOOD.der) - len(BADGES.der)
    assert verify_ders([GOOD.der, BADGES.der, a_certificate_of(room)]).name
    with pytest.raises(MalformedError):
        verify_ders([GOOD.der, BADGES.der, a_certificate_of(room + 1)])


def a_certificate_of(size: int) -> bytes:
    """A certificate of so many bytes; serial numbers and signatures are not all of one length."""
    content = size
    while True:
        padding = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.5"), bytes(content))
        made = root("Padding", extensions=[(padding, False)]).der
        if len(made) == size:
            return made
        content -= len(made) - size


def test_expectations_that_make_no_sense():
    for authorities in ([], [authority()]):
        with pytest.raises(UsageError):
            verify(instant=datetime(2026, 8, 1), authorities=authorities)  # noqa: DTZ001
    for members in ({"name": ""}, {"anchors": ()}):
        with pytest.raises(UsageError):
            authority(**members)  # type: ignore[arg-type]


# The path

NAMESAKE = root("Example Organisation")
BELOW_NAMESAKE = intermediate(NAMESAKE, "Example Badges")
SHORT = intermediate(ORGANISATION, "No more", path_length=0)
BELOW_SHORT = intermediate(SHORT, "Too many")
NOT_SIGNING = intermediate(ORGANISATION, "Not signing", key_usage=DIGITAL_SIGNATURE)
STRANGE = (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b""), True)
NO_CA = badge(ORGANISATION, key=new_key())
OUTLIVED = intermediate(ORGANISATION, "Outlived", not_after=INSTANT - DAY)


@pytest.mark.parametrize(
    ("chain", "detail"),
    [
        ((badge(not_after=INSTANT - DAY), BADGES), "validity"),
        ((badge(not_before=INSTANT + DAY), BADGES), "validity"),
        ((badge(OUTLIVED), OUTLIVED), "validity"),
        ((badge(root("Stranger")),), "anchor"),
        ((GOOD,), "anchor"),
        ((badge(NAMESAKE),), "signature"),
        ((badge(BELOW_NAMESAKE), BELOW_NAMESAKE), "signature"),
        ((badge(BELOW_SHORT), BELOW_SHORT, SHORT), "path_length"),
        ((badge(NOT_SIGNING), NOT_SIGNING), "key_usage"),
        ((badge(NO_CA), NO_CA), "not_a_ca"),
        (
            (badge(more=[STRANGE]), BADGES),
            "critical_extension",
        ),
        ((badge(key=rsa_key(1024)), BADGES), "weak_key"),
    ],
)
def test_a_certificate_that_leads_to_no_authority(chain: tuple[Issued, ...], detail: str):
    assert verify(badge(), BADGES).name
    assert refused(*chain) == detail


def test_the_last_second_and_the_one_after():
    assert verify(instant=NOT_AFTER).name
    assert refused(instant=NOT_AFTER + DAY / 86400) == "validity"
    assert verify(instant=NOT_BEFORE).name
    assert refused(instant=NOT_BEFORE - DAY / 86400) == "validity"


def test_an_authority_that_has_expired_itself_certifies_nobody():
    old = root("Old", not_after=INSTANT - DAY)
    assert refused(badge(old), authorities=[authority(old)]) == "validity"


def test_a_certificate_of_an_issuer_by_somebody_else_is_no_way_around():
    by_a_stranger = intermediate(root("Stranger"), "Example Badges", key=BADGES.key)
    assert refused(GOOD, by_a_stranger) == "anchor"
    assert verify(GOOD, by_a_stranger, BADGES).name
    lists = (crl(ORGANISATION, BADGES), crl(BADGES))
    assert refused(GOOD, by_a_stranger, BADGES, authorities=[authority(revocation=lists)]) == "revoked"


def test_without_an_authority_nobody_certifies_anything():
    assert refused(authorities=[]) == "anchor"


def test_a_weak_key_is_named_as_such():
    public = rsa.RSAPublicNumbers(65537, weak_modulus()).public_key()
    refused(badge(public_key=public), BADGES, reason=Reason.WEAK_KEY_ROCA)


# Revocation


def test_with_revocation_lists_each_certificate_needs_one_that_is_current():
    lists = (crl(ORGANISATION), crl(BADGES, badge()))
    assert verify(authorities=[authority(revocation=lists)]).name
    for less in (lists[:1], lists[1:]):
        assert refused(authorities=[authority(revocation=less)]) == "crl_missing"
    old = (crl(ORGANISATION), crl(BADGES, age=9 * DAY))
    assert refused(authorities=[authority(revocation=old)]) == "crl_missing"
    forged = (crl(ORGANISATION), crl(intermediate(ORGANISATION, "Example Badges")))
    assert refused(authorities=[authority(revocation=forged)]) == "crl_missing"


def test_a_list_is_judged_by_the_key_of_each_issuer():
    namesake = intermediate(ORGANISATION, "Example Badges")
    lists = (crl(ORGANISATION), crl(BADGES))
    of_both = authority(revocation=lists)
    for _ in range(2):
        assert verify(authorities=[of_both]).name
        assert refused(badge(namesake), namesake, authorities=[of_both]) == "crl_missing"


@pytest.mark.parametrize("lists", [(crl(ORGANISATION), crl(BADGES, GOOD)), (crl(ORGANISATION, BADGES), crl(BADGES))])
def test_what_was_revoked(lists: tuple[Any, ...]):
    assert refused(authorities=[authority(revocation=lists)]) == "revoked"


# The certificate of the key


@pytest.mark.parametrize("key", [new_key(), ed25519.Ed25519PrivateKey.generate(), rsa_key(3072)])
def test_a_certificate_of_another_key(key: Any):
    assert refused(key=key) == "other_key"


@pytest.mark.parametrize(
    ("certificate", "detail"),
    [
        (badge(**AUTHORITY), "authority"),
        (badge(ca=True), "authority"),
        (badge(key_usage=None), "key_usage"),
        (badge(key_usage=ENCIPHERMENT), "key_usage"),
        (badge(extensions=[upn(UPN), purposes(CARD_AUTHENTICATION)]), "card_authentication"),
        (badge(extensions=[upn(UPN), purposes(LOGON, CARD_AUTHENTICATION)]), "card_authentication"),
    ],
)
def test_a_certificate_that_is_for_something_else(certificate: Issued, detail: str):
    assert verify(badge(), BADGES).name
    assert refused(certificate, BADGES) == detail


def test_a_certificate_without_basic_constraints_and_without_purposes():
    assert verify(badge(ca=None, extensions=[upn(UPN)]), BADGES).name


@pytest.mark.parametrize(
    ("stated", "is_good"),
    [
        ([purposes(LOGON)], True),
        ([purposes(ExtendedKeyUsageOID.CLIENT_AUTH, LOGON)], True),
        ([purposes(ExtendedKeyUsageOID.CLIENT_AUTH)], False),
        ([purposes(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)], False),
        ([], False),
    ],
)
def test_a_purpose_that_is_required(stated: list[Any], is_good: bool):
    certificate, wanting = badge(extensions=[upn(UPN), *stated]), authority(purposes=frozenset({LOGON}))
    if is_good:
        assert verify(certificate, BADGES, authorities=[wanting]).name
    else:
        assert refused(certificate, BADGES, authorities=[wanting]) == "purpose"


OTHER_POLICY = ObjectIdentifier("1.2.3.4.2")
INHIBIT = (x509.InhibitAnyPolicy(0), True)


@pytest.mark.parametrize(
    ("leaf", "above", "is_good"),
    [
        ([policies(HARDWARE_POLICY)], [policies(HARDWARE_POLICY)], True),
        ([policies(HARDWARE_POLICY, OTHER_POLICY)], [policies(OTHER_POLICY, HARDWARE_POLICY)], True),
        ([policies(HARDWARE_POLICY)], [policies(ANY)], True),
        ([policies(ANY)], [policies(HARDWARE_POLICY)], False),
        ([policies(ANY)], [policies(ANY)], False),
        ([policies(OTHER_POLICY)], [policies(HARDWARE_POLICY)], False),
        ([policies(HARDWARE_POLICY)], [policies(OTHER_POLICY)], False),
        ([policies(HARDWARE_POLICY)], [], False),
        ([], [policies(HARDWARE_POLICY)], False),
        ([policies(HARDWARE_POLICY)], [policies(ANY), INHIBIT], False),
        ([policies(HARDWARE_POLICY)], [policies(HARDWARE_POLICY), INHIBIT], True),
    ],
)
def test_a_policy_that_is_required_down_the_path(leaf: list[Any], above: list[Any], is_good: bool):
    issuer = intermediate(ORGANISATION, "Policies", extensions=above)
    certificate, wanting = badge(issuer, more=leaf), authority(policies=frozenset({HARDWARE_POLICY}))
    assert verify(certificate, issuer).name
    if is_good:
        assert verify(certificate, issuer, authorities=[wanting]).name
    else:
        assert refused(certificate, issuer, authorities=[wanting]) == "policy"


def test_every_required_policy_is_required():
    both = authority(BADGES, policies=frozenset({HARDWARE_POLICY, OTHER_POLICY}))
    assert verify(badge(more=[policies(HARDWARE_POLICY, OTHER_POLICY)]), authorities=[both]).name
    assert refused(badge(more=[policies(HARDWARE_POLICY)]), authorities=[both]) == "policy"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"instant": NOT_AFTER + DAY}, "has expired or is not valid yet"),
        ({"authorities": []}, "no authority that this server believes"),
        ({"authorities": [authority(NAMESAKE)]}, "breaks a rule of certification paths"),
        ({"authorities": [authority(revocation=(crl(ORGANISATION), crl(BADGES, GOOD)))]}, "was revoked"),
        ({"authorities": [authority(revocation=(crl(ORGANISATION),))]}, "No current revocation list"),
        ({"username": "eve"}, "It names somebody else"),
        ({"authorities": [authority(match=NameMatch.EMAIL)]}, "It has no name of the kind"),
    ],
)
def test_what_is_said_to_people(changes: dict[str, Any], said: str):
    with pytest.raises(EvidenceError, match=said):
        verify(**changes)


# Several authorities


def test_the_first_authority_that_will_do_and_what_is_said_if_none_will():
    elsewhere, by_mail = authority(root("Elsewhere"), name="Elsewhere"), authority(name="Mail", match=NameMatch.EMAIL)
    strict = authority(name="Strict", purposes=frozenset({ObjectIdentifier("1.2.3")}))
    assert verify(authorities=[elsewhere, by_mail, strict, authority()]).authority.name == "Example Badges"
    assert refused(authorities=[elsewhere, strict, by_mail]) == "purpose"
    refused(authorities=[elsewhere, by_mail, strict], reason=Reason.CARD_USER)
    assert refused(authorities=[elsewhere]) == "anchor"


def test_an_authority_vouches_for_its_own_keys_only():
    other = intermediate(root("Elsewhere"), "Example Badges")
    own: CardAuthority = authority(BADGES)
    assert verify(GOOD, authorities=[own]).name
    assert refused(badge(other), authorities=[own]) == "signature"
