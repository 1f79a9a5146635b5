"""The attestation statement format `piv`: forged cards, each good but for the one thing a test bends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation import TrustStore, assurance_of, verify_registration
from keyvouch.attestation.certificates import key_identifier
from keyvouch.attestation.evidence import PivFacts
from keyvouch.cose import Algorithm
from keyvouch.errors import Reason
from support.attestation_forge import (
    CA,
    END,
    NOT_CA,
    ROOT,
    Authority,
    Extensions,
    anchor,
    encoded,
    name,
    registration,
    signed_by,
    unrecognized,
    verdict,
)
from support.forge import AAGUID, Forge

STATEMENT, CERTIFICATE, CHAIN = Reason.ATTESTATION_STATEMENT, Reason.ATTESTATION_CERTIFICATE, Reason.TRUST_CHAIN

FORGE, OTHER = Forge(), Forge()
CARD = ROOT.subordinate("Forged PIV Attestation")
ELSEWHERE = Authority.root("Another Root")

FIRMWARE, SERIAL, POLICIES, FORM_FACTOR = (f"1.3.6.1.4.1.41482.3.{number}" for number in (3, 7, 8, 9))
STATED: Mapping[str, bytes | None] = {
    FIRMWARE: bytes((5, 4, 3)),
    SERIAL: bytes.fromhex("020400f00f14"),
    POLICIES: bytes((2, 1)),
    FORM_FACTOR: bytes((4,)),
}
"""What a real card states: its extensions hold bytes, and only the serial number is DER."""


def subject(slot: str) -> x509.Name:
    return name((NameOID.COMMON_NAME, f"YubiKey PIV Attestation {slot}"))


def leaf(
    stated: Mapping[str, bytes | None] | None = None,
    *,
    named: x509.Name | None = None,
    forge: Forge = FORGE,
    issuer: Authority = CARD,
    more: Extensions = (),
    critical: str = "",
) -> x509.Certificate:
    """The certificate of a slot; None for an extension leaves it out."""
    extensions = [
        (unrecognized(oid, value), oid == critical)
        for oid, value in (dict(STATED) | dict(stated or {})).items()
        if value is not None
    ]
    return issuer.issue(forge.private_key, [*extensions, *more], subject("9a") if named is None else named)


GOOD = leaf()


def piv(
    certificate: x509.Certificate = GOOD,
    *,
    rest: Sequence[x509.Certificate | bytes] = (CARD.certificate,),
    forge: Forge = FORGE,
    signer: Forge | None = None,
    members: Mapping[str, object] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Arguments of `verify_registration`."""
    signer = signer or forge
    make = signed_by(signer.private_key, signer.algorithm, [certificate, *rest], **dict(members or {}))
    return registration(forge, "piv", make, **changes)


def facts_of(**stated: object) -> PivFacts:
    found = verify_registration(**piv(leaf(**stated))).attestation.facts  # type: ignore[arg-type]
    assert isinstance(found, PivFacts)
    return found


# What is good


def test_a_key_in_a_card() -> None:
    attestation = verify_registration(**piv()).attestation
    assert attestation.format == "piv"
    assert attestation.provenance is Provenance.ATTESTED
    assert attestation.anchor == "forge"
    assert attestation.protection is Protection.SMARTCARD
    assert attestation.verification is Verification.HARDWARE_GATED
    assert attestation.path == (GOOD, CARD.certificate)
    assert attestation.facts == PivFacts(
        slot="9a", firmware="5.4.3", serial=15732500, pin_policy="once", touch_policy="never", form_factor=4
    )


@pytest.mark.parametrize("algorithm", [Algorithm.ES256, Algorithm.ES384, Algorithm.RS256, Algorithm.EDDSA])
def test_every_kind_of_key_of_a_card(algorithm: Algorithm) -> None:
    forge = Forge(algorithm)
    assert verdict(piv(leaf(forge=forge), forge=forge)) is None


def test_intermediates_between_card_and_root() -> None:
    maker = ROOT.subordinate("Forged Maker")
    card = maker.subordinate("Forged PIV Attestation B")
    rest = [card.certificate, maker.certificate]
    assert len(verify_registration(**piv(leaf(issuer=card), rest=rest)).attestation.path) == 3
    assert verdict(piv(leaf(issuer=card), rest=rest[:1])) is CHAIN


@pytest.mark.parametrize(
    ("policy", "pin", "verification"),
    [
        (1, "never", Verification.NONE),
        (2, "once", Verification.HARDWARE_GATED),
        (3, "always", Verification.HARDWARE_GATED),
    ],
)
def test_what_a_pin_policy_is_worth_A7(policy: int, pin: str, verification: Verification) -> None:
    verified = verify_registration(**piv(leaf({POLICIES: bytes((policy, 1))})))
    assert isinstance(verified.attestation.facts, PivFacts)
    assert verified.attestation.facts.pin_policy == pin
    assert verified.attestation.verification is verification
    assert assurance_of(verified).verification is verification


@pytest.mark.parametrize(("policy", "touch"), [(1, "never"), (2, "always"), (3, "cached")])
def test_touch_policies(policy: int, touch: str) -> None:
    assert facts_of(stated={POLICIES: bytes((3, policy))}).touch_policy == touch


RETIRED = [f"{number:02x}" for number in range(0x82, 0x96)]


@pytest.mark.parametrize("slot", ["9a", "9c", "9d", "9e", *RETIRED])
def test_slots_for_keys_of_users(slot: str) -> None:
    assert facts_of(named=subject(slot)).slot == slot


def test_serial_and_form_factor_may_be_missing() -> None:
    facts = facts_of(stated={SERIAL: None, FORM_FACTOR: None})
    assert (facts.serial, facts.form_factor) == (None, None)
    facts = facts_of(stated={SERIAL: b"\x02\x01\x00", FORM_FACTOR: b"\x00"})
    assert (facts.serial, facts.form_factor) == (0, 0)


def test_basic_constraints_may_be_there_and_say_no() -> None:
    assert verdict(piv(leaf(more=[(NOT_CA, True)]))) is None


# The statement


@pytest.mark.parametrize(
    "members",
    [
        {"alg": None},
        {"sig": None},
        {"x5c": None},
        {"ver": "1"},
        {"alg": "ES256"},
        {"alg": -65535},
        {"sig": b""},
        {"sig": "text"},
        {"x5c": []},
        {"x5c": b"certificate"},
        {"x5c": ["certificate"]},
        {"x5c": [b"certificate"]},
    ],
    ids=str,
)
def test_a_statement_of_another_shape(members: dict[str, object]) -> None:
    assert verdict(piv(members={})) is None
    assert verdict(piv(members=members)) is STATEMENT


def test_an_algorithm_that_is_not_that_of_the_credential() -> None:
    assert verdict(piv(members={"alg": -7})) is None
    assert verdict(piv(members={"alg": -35})) is STATEMENT


def test_a_signature_of_another_key_proves_no_possession() -> None:
    assert verdict(piv(signer=OTHER)) is STATEMENT
    assert verdict(piv(members={"sig": FORGE.sign(b"another ceremony")})) is STATEMENT


def test_a_certificate_of_another_key_of_the_card() -> None:
    """The chain is good, and so is the signature: only they are not about one key."""
    assert verdict(piv(leaf(forge=OTHER), signer=FORGE)) is STATEMENT


def test_a_statement_cannot_be_used_in_another_ceremony() -> None:
    """A card's certificate holds no challenge; the signature does."""
    client_data = FORGE.registration()["client_data"]
    assert verdict(piv(client_data=client_data)) is None
    assert verdict(piv(client_data=client_data.replace(b"}", b',"x":1}'))) is STATEMENT


@pytest.mark.parametrize(("signed", "wanted"), [("both", None), ("data", STATEMENT), ("hash", STATEMENT)])
def test_the_signature_is_over_authenticator_data_and_client_data_hash(signed: str, wanted: Reason | None) -> None:
    def make(data: bytes, client_data_hash: bytes) -> dict[str, object]:
        message = {"both": data + client_data_hash, "data": data, "hash": client_data_hash}[signed]
        return {"alg": -7, "sig": FORGE.sign(message), "x5c": encoded([GOOD, CARD.certificate])}

    assert verdict(registration(FORGE, "piv", make)) is wanted


# The path


def test_cards_that_no_anchor_vouches_for() -> None:
    assert verdict(piv(anchors=TrustStore())) is CHAIN
    assert verdict(piv(anchors=TrustStore([anchor(ELSEWHERE.certificate)]))) is CHAIN
    assert verdict(piv(rest=[])) is CHAIN
    assert verdict(piv(rest=[CARD.certificate, CARD.certificate])) is CHAIN
    assert verdict(piv(rest=[ELSEWHERE.certificate])) is CHAIN


def test_anchors_are_found_by_format() -> None:
    assert verdict(piv(anchors=TrustStore([anchor(formats=frozenset({"piv"}))]))) is None
    assert verdict(piv(anchors=TrustStore([anchor(formats=frozenset({"packed"}))]))) is CHAIN


def test_the_aaguid_finds_no_anchor_W4() -> None:
    """Who makes the authenticator data chooses the AAGUID; the anchor of that model has no say in a card."""
    assert verdict(piv(anchors=TrustStore([anchor(aaguids=frozenset({AAGUID, bytes(16)}))]))) is CHAIN
    assert verdict(piv(anchors=TrustStore([anchor(key_ids=frozenset({key_identifier(CARD.certificate)}))]))) is None


def test_the_instant_counts() -> None:
    assert verdict(piv(instant=END)) is None
    assert verdict(piv(instant=END + timedelta(seconds=1))) is CHAIN


def test_an_attestation_certificate_of_a_card_without_basic_constraints() -> None:
    """Some cards were made so; they get no exception."""
    certificate = ROOT.issue(CARD.key, [], CARD.subject)
    assert certificate.subject == CARD.certificate.subject
    assert verdict(piv(rest=[certificate])) is CHAIN
    assert verdict(piv(rest=[ROOT.issue(CARD.key, [(CA, True)], CARD.subject)])) is None


# The leaf certificate


def test_an_authority_is_no_slot() -> None:
    assert verdict(piv(leaf(more=[(CA, True)]))) is CERTIFICATE


def common_names(*texts: str) -> x509.Name:
    return name(*((NameOID.COMMON_NAME, text) for text in texts))


@pytest.mark.parametrize(
    "named",
    [
        *map(subject, ("f9", "81", "96", "99", "9b", "9f", "9A", "8a9", "9", "", "9a ", "9a\n")),
        common_names("Yubico PIV Attestation"),
        common_names("yubikey piv attestation 9a"),
        common_names("xYubiKey PIV Attestation 9a"),
        common_names("YubiKey PIV Attestation 9a", "YubiKey PIV Attestation 9a"),
        name((NameOID.ORGANIZATION_NAME, "YubiKey PIV Attestation 9a")),
        name(),
    ],
    ids=str,
)
def test_subjects_that_name_no_slot_for_keys_of_users(named: x509.Name) -> None:
    assert verdict(piv(leaf(named=named))) is CERTIFICATE


@pytest.mark.parametrize(
    "stated",
    [
        {FIRMWARE: None},
        {FIRMWARE: b""},
        {FIRMWARE: bytes((5, 4))},
        {FIRMWARE: bytes((5, 4, 3, 0))},
        {POLICIES: None},
        {POLICIES: b""},
        {POLICIES: bytes((2,))},
        {POLICIES: bytes((2, 1, 0))},
        {POLICIES: bytes((0, 1))},
        {POLICIES: bytes((4, 1))},
        {POLICIES: bytes((2, 0))},
        {POLICIES: bytes((2, 4))},
        {FORM_FACTOR: b""},
        {FORM_FACTOR: bytes((4, 0))},
        {SERIAL: b""},
        {SERIAL: b"\x02\x00"},
        {SERIAL: b"\x02\x02\x00\x01"},
        {SERIAL: b"\x02\x01\x01\x00"},
        {SERIAL: b"\x04\x01\x01"},
        {SERIAL: b"\x02\x01\xff"},
    ],
    ids=str,
)
def test_what_a_card_would_not_state(stated: dict[str, bytes | None]) -> None:
    assert verdict(piv(leaf(stated))) is CERTIFICATE


@pytest.mark.parametrize("oid", list(STATED))
def test_extensions_that_are_critical(oid: str) -> None:
    """Nobody may rely on a path with a critical extension that the validation of paths does not understand."""
    assert verdict(piv(leaf(critical=oid))) is CHAIN
