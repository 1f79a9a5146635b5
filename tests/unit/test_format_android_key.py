"""The android-key format: every check from both sides (WebAuthn Level 3 sections 8.4 and 8.4.1)."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509

from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.attestation import TrustStore, assurance_of, verify_registration
from keyvouch.attestation.evidence import AndroidKeyFacts, AttestationEvidence
from keyvouch.cose import Algorithm
from keyvouch.errors import Reason
from support.attestation_forge import (
    CA,
    NOT_CA,
    ROOT,
    Authority,
    anchor,
    key_for,
    name,
    registration,
    signed_by,
    tlv,
    unrecognized,
    verdict,
)
from support.forge import AAGUID, Forge
from support.key_description import NULL, description, entry, integer, integers

FORGE = Forge()
OTHER = key_for(Algorithm.ES256, "other")
OID = "1.3.6.1.4.1.11129.2.1.17"
SIGN, GENERATED = entry(1, integers(2)), entry(702, integer(0))
SOFTWARE, TEE, STRONGBOX = (tlv(10, bytes([level])) for level in range(3))


def levels(attestation: bytes, key: bytes) -> dict[str, bytes]:
    return {"attestation_level": attestation, "key_level": key}


def lists(software: bytes = b"", tee: bytes = b"") -> dict[str, bytes]:
    return {"software": tlv(0x30, software), "tee": tlv(0x30, tee)}


def android(
    *,
    forge: Forge = FORGE,
    certified: Any = None,
    signer: Any = None,
    issuer: Authority = ROOT,
    chain: tuple[x509.Certificate, ...] = (),
    extensions: Any = None,
    parts: dict[str, bytes] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A registration with an Android key statement; `parts` are of the key description, changes of the statement."""
    arguments = {member: changes.pop(member) for member in ("anchors", "instant") if member in changes}

    def make(data: bytes, client_data_hash: bytes) -> Any:
        described = description(**{"challenge": tlv(4, client_data_hash)} | (parts or {}))
        own = [(unrecognized(OID, described), False)] if extensions is None else extensions(described)
        leaf = issuer.issue(certified or forge.private_key, own, name())
        key, algorithm = signer or forge.private_key, forge.algorithm
        return signed_by(key, algorithm, (leaf, *chain), **changes)(data, client_data_hash)

    return registration(forge, "android-key", make, **arguments)


def evidence_of(**parts: bytes) -> AttestationEvidence:
    return verify_registration(**android(parts=parts)).attestation


def test_the_evidence_does_not_ask_the_anchor() -> None:
    trusted = anchor(protection=Protection.TPM, verification=Verification.NONE)
    intermediate = ROOT.subordinate()
    arguments = android(issuer=intermediate, chain=(intermediate.certificate,), anchors=TrustStore([trusted]))
    evidence = verify_registration(**arguments)
    leaf = evidence.attestation.path[0]
    assert leaf.public_key() == FORGE.private_key.public_key()
    assert evidence.attestation == AttestationEvidence(
        "android-key",
        Provenance.ATTESTED,
        "forge",
        Protection.TEE,
        Verification.HARDWARE_GATED,
        (leaf, intermediate.certificate),
        AndroidKeyFacts("tee", 300),
    )
    assert assurance_of(evidence) == Assurance(
        Protection.TEE, Verification.HARDWARE_GATED, Provenance.ATTESTED, "forge"
    )


@pytest.mark.parametrize("algorithm", list(Algorithm), ids=lambda algorithm: algorithm.name)
def test_a_credential_of_every_algorithm(algorithm: Algorithm) -> None:
    forge = Forge(algorithm)
    assert verdict(android(forge=forge)) is None
    assert verdict(android(forge=forge, alg=-7 if algorithm != -7 else -8)) is Reason.ATTESTATION_STATEMENT


STATEMENTS: dict[str, Any] = {
    "alg_missing": lambda: android(alg=None),
    "alg_rs1": lambda: android(alg=-65535),
    "alg_of_another_curve": lambda: android(alg=-35),
    "sig_missing": lambda: android(sig=None),
    "sig_empty": lambda: android(sig=b""),
    "sig_of_another_key": lambda: android(signer=OTHER),
    "x5c_missing": lambda: android(x5c=None),
    "x5c_empty": lambda: android(x5c=[]),
    "another_member": lambda: android(ver="1"),
    "certified_another_key": lambda: android(certified=OTHER, signer=OTHER),
    "another_ceremony": lambda: android(parts={"challenge": tlv(4, bytes(32))}),
    "no_challenge": lambda: android(parts={"challenge": tlv(4, b"")}),
}


@pytest.mark.parametrize("case", list(STATEMENTS))
def test_a_wrong_statement_is_refused(case: str) -> None:
    assert verdict(android()) is None
    assert verdict(STATEMENTS[case]()) is Reason.ATTESTATION_STATEMENT


LEAVES: dict[str, Any] = {
    "no_description": lambda _described: [],
    "description_is_not_der": lambda described: [(unrecognized(OID, described[:-1]), False)],
    "authority": lambda described: [(CA, True), (unrecognized(OID, described), False)],
}


@pytest.mark.parametrize("case", list(LEAVES))
def test_a_wrong_leaf_is_refused(case: str) -> None:
    assert verdict(android(extensions=LEAVES[case])) is Reason.ATTESTATION_CERTIFICATE


def test_a_leaf_may_have_basic_constraints() -> None:
    def constrained(described: bytes) -> Any:
        return [(NOT_CA, True), (unrecognized(OID, described), False)]

    assert verdict(android(extensions=constrained)) is None


def test_an_attested_key_is_no_authority() -> None:
    attested = ROOT.subordinate(extensions=[(unrecognized(OID, description()), False)])
    other = ROOT.subordinate(extensions=[(unrecognized("1.3.6.1.4.1.11129.2.1.30", b"\x05\x00"), False)])
    assert verdict(android(issuer=other, chain=(other.certificate,))) is None
    refused = verdict(android(issuer=attested, chain=(attested.certificate,)))
    assert refused is Reason.ATTESTATION_CERTIFICATE


# Use of the key


@pytest.mark.parametrize("part", ["software", "tee"])
def test_a_key_for_all_applications(part: str) -> None:
    entries = {"software": b"", "tee": SIGN, part: (SIGN if part == "tee" else b"") + entry(600, NULL)}
    entries["tee"] += GENERATED
    assert verdict(android(parts=lists(**entries))) is Reason.ATTESTATION_CERTIFICATE


HARDWARE_USES = [
    (b"", SIGN + GENERATED, True),
    (b"", entry(1, integers(2, 3)) + GENERATED, True),
    (entry(1, integers(1)) + entry(702, integer(2)), SIGN + GENERATED, True),
    (SIGN + GENERATED, b"", False),
    (SIGN, GENERATED, False),
    (GENERATED, SIGN, False),
    (b"", entry(1, integers(3)) + GENERATED, False),
    (b"", entry(1, integers()) + GENERATED, False),
    (b"", entry(1, integers(1, 2)) + GENERATED, False),
    (b"", entry(1, integers(2, 7)) + GENERATED, False),
    (b"", SIGN + entry(702, integer(1)), False),
    (b"", SIGN + entry(702, integer(2)), False),
]


@pytest.mark.parametrize(("software", "tee", "good"), HARDWARE_USES)
@pytest.mark.parametrize("level", [TEE, STRONGBOX], ids=["tee", "strongbox"])
def test_what_hardware_enforces_counts_of_a_key_in_hardware(
    level: bytes, software: bytes, tee: bytes, good: bool
) -> None:
    refused = verdict(android(parts=lists(software, tee) | levels(level, level)))
    assert refused is (None if good else Reason.ATTESTATION_CERTIFICATE)


SOFTWARE_USES = [
    (SIGN + GENERATED, b"", True),
    (b"", SIGN + GENERATED, True),
    (SIGN, GENERATED, True),
    (SIGN + GENERATED, SIGN + GENERATED, True),
    (entry(1, integers(3)) + GENERATED, SIGN, True),
    (SIGN, b"", False),
    (GENERATED, b"", False),
    (SIGN + GENERATED, entry(702, integer(2)), False),
    (SIGN + GENERATED, entry(1, integers(1)), False),
]


@pytest.mark.parametrize(("software", "tee", "good"), SOFTWARE_USES)
@pytest.mark.parametrize("pair", [(SOFTWARE, SOFTWARE), (SOFTWARE, TEE), (TEE, SOFTWARE)], ids=["s-s", "s-t", "t-s"])
def test_both_lists_count_of_a_key_in_software(
    pair: tuple[bytes, bytes], software: bytes, tee: bytes, good: bool
) -> None:
    refused = verdict(android(parts=lists(software, tee) | levels(*pair)))
    assert refused is (None if good else Reason.ATTESTATION_CERTIFICATE)


LEVELS = [
    (SOFTWARE, SOFTWARE, "software", Protection.SOFTWARE),
    (SOFTWARE, STRONGBOX, "software", Protection.SOFTWARE),
    (STRONGBOX, SOFTWARE, "software", Protection.SOFTWARE),
    (TEE, TEE, "tee", Protection.TEE),
    (TEE, STRONGBOX, "tee", Protection.TEE),
    (STRONGBOX, TEE, "tee", Protection.TEE),
    (STRONGBOX, STRONGBOX, "strongbox", Protection.SECURE_ELEMENT),
]


@pytest.mark.parametrize(("attestation", "key", "level", "protection"), LEVELS)
def test_the_weaker_level_counts(attestation: bytes, key: bytes, level: str, protection: Protection) -> None:
    evidence = evidence_of(**levels(attestation, key), version=integer(4))
    assert evidence.facts == AndroidKeyFacts(level, 4)
    assert evidence.protection is protection
    gated = Verification.SOFTWARE_GATED if level == "software" else Verification.HARDWARE_GATED
    assert evidence.verification is gated


def asked(number: int) -> bytes:
    return entry(504, integer(number))


def within(seconds: int) -> bytes:
    return entry(505, integer(seconds))


GATES = [
    (b"", asked(1), True),
    (b"", asked(2), True),
    (b"", asked(3), True),
    (b"", asked(0xFFFFFFFF), True),
    (b"", asked(2) + within(0), True),
    (b"", asked(2) + within(60), True),
    (asked(4), asked(2), True),
    (b"", b"", False),
    (b"", asked(0), False),
    (b"", asked(4), False),
    (b"", asked(2) + within(61), False),
    (asked(2), b"", False),
    (within(10), asked(2), False),
    (entry(503, NULL), asked(2), False),
    (b"", entry(503, NULL) + asked(2), False),
]


@pytest.mark.parametrize(("software", "tee", "gated"), GATES)
def test_when_hardware_asks_the_user(software: bytes, tee: bytes, gated: bool) -> None:
    evidence = evidence_of(**lists(software, SIGN + tee + GENERATED), **levels(STRONGBOX, STRONGBOX))
    assert evidence.verification is (Verification.HARDWARE_GATED if gated else Verification.SOFTWARE_GATED)


# The path


def test_the_path() -> None:
    assert verdict(android(anchors=TrustStore())) is Reason.TRUST_CHAIN
    assert verdict(android(chain=(ROOT.certificate,))) is None
    assert verdict(android(chain=(ROOT.subordinate().certificate,))) is Reason.TRUST_CHAIN
    assert verdict(android(anchors=TrustStore([anchor(aaguids=frozenset({AAGUID}))]))) is None
    assert verdict(android(anchors=TrustStore([anchor(aaguids=frozenset({bytes(16)}))]))) is Reason.TRUST_CHAIN
    assert verdict(android(anchors=TrustStore([anchor(formats=frozenset({"packed"}))]))) is Reason.TRUST_CHAIN


def test_the_order_of_the_reasons() -> None:
    wrong: dict[str, Any] = {"signer": OTHER, "extensions": LEAVES["no_description"]}
    assert verdict(android(alg=None, anchors=TrustStore(), **wrong)) is Reason.ATTESTATION_STATEMENT
    assert verdict(android(anchors=TrustStore(), **wrong)) is Reason.TRUST_CHAIN
    assert verdict(android(**wrong)) is Reason.ATTESTATION_CERTIFICATE
    assert verdict(android(signer=OTHER, parts={"version": NULL})) is Reason.ATTESTATION_STATEMENT
