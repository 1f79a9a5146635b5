"""The apple format: every check from both sides (WebAuthn Level 3 section 8.8)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography import x509

from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.attestation import AttestationEvidence, TrustStore, assurance_of, verify_registration
from keyvouch.cose import Algorithm
from keyvouch.errors import Reason
from support.attestation_forge import (
    CA,
    NOT_CA,
    ROOT,
    Authority,
    anchor,
    encoded,
    key_for,
    name,
    octet_string,
    registration,
    tlv,
    unrecognized,
    verdict,
)
from support.forge import AAGUID, Forge

FORGE = Forge()
NONCE = "1.2.840.113635.100.8.2"


def wrapped(nonce: bytes) -> bytes:
    """`SEQUENCE { [1] EXPLICIT OCTET STRING }`."""
    return tlv(0x30, tlv(0xA1, octet_string(nonce)))


def apple(
    *,
    key: Any = FORGE.private_key,
    issuer: Authority = ROOT,
    der: Any = wrapped,
    critical: bool = False,
    constraints: x509.BasicConstraints | None = NOT_CA,
    over: Any = lambda data, client_data_hash: data + client_data_hash,
    chain: tuple[x509.Certificate, ...] = (),
    forge: Forge = FORGE,
    **changes: Any,
) -> dict[str, Any]:
    """A registration with an Apple statement; other changes are to the members of the statement."""
    arguments = {member: changes.pop(member) for member in ("anchors", "instant") if member in changes}

    def make(data: bytes, client_data_hash: bytes) -> dict[str, object]:
        extensions = [(constraints, True)] if constraints else []
        content = der(hashlib.sha256(over(data, client_data_hash)).digest())
        nonce = [(unrecognized(NONCE, content), critical)] if content is not None else []
        return {"x5c": encoded([issuer.issue(key, [*extensions, *nonce], name()), *chain])} | changes

    return registration(forge, "apple", make, **arguments)


def test_the_evidence_does_not_ask_the_anchor() -> None:
    trusted = anchor(protection=Protection.TPM, verification=Verification.HARDWARE_GATED)
    intermediate = ROOT.subordinate()
    arguments = apple(issuer=intermediate, chain=(intermediate.certificate,), anchors=TrustStore([trusted]))
    evidence = verify_registration(**arguments)
    leaf = evidence.attestation.path[0]
    assert leaf.public_key() == FORGE.private_key.public_key()
    assert evidence.attestation == AttestationEvidence(
        "apple",
        Provenance.ATTESTED,
        "forge",
        Protection.SECURE_ELEMENT,
        Verification.SOFTWARE_GATED,
        (leaf, intermediate.certificate),
    )
    assert assurance_of(evidence) == Assurance(
        Protection.SECURE_ELEMENT, Verification.SOFTWARE_GATED, Provenance.ATTESTED, "forge"
    )


STATEMENTS: dict[str, Any] = {
    "alg_of_another": lambda: apple(alg=-35),
    "alg_unknown": lambda: apple(alg=-65535),
    "alg_null": lambda: apple(alg=None),
    "sig": lambda: apple(sig=b"signature"),
    "alg_and_sig": lambda: apple(alg=-7, sig=b"signature"),
    "x5c_empty": lambda: apple(x5c=[]),
    "x5c_text": lambda: apple(x5c="certificate"),
    "over_authenticator_data": lambda: apple(over=lambda data, _client: data),
    "over_client_data_hash": lambda: apple(over=lambda _data, client: client),
    "over_the_reverse": lambda: apple(over=lambda data, client: client + data),
    "over_another_ceremony": lambda: apple(over=lambda data, _client: data + bytes(32)),
    "of_another_key": lambda: apple(key=key_for(Algorithm.ES256, "other")),
    "of_a_key_of_another_kind": lambda: apple(key=key_for(Algorithm.RS256, "other")),
}


@pytest.mark.parametrize("case", list(STATEMENTS))
def test_a_wrong_statement_is_refused(case: str) -> None:
    assert verdict(apple()) is None
    assert verdict(STATEMENTS[case]()) is Reason.ATTESTATION_STATEMENT


@pytest.mark.parametrize("members", [{}, {"alg": -7}])
def test_x5c_is_needed(members: dict[str, object]) -> None:
    assert verdict(registration(FORGE, "apple", lambda _data, _client: members)) is Reason.ATTESTATION_STATEMENT


def test_alg_may_be_there_as_that_of_the_credential() -> None:
    assert verdict(apple(alg=-7)) is None
    forge = Forge(Algorithm.ES384)
    assert verdict(apple(forge=forge, key=forge.private_key)) is None
    assert verdict(apple(forge=forge, key=forge.private_key, alg=-35)) is None
    assert verdict(apple(forge=forge, key=forge.private_key, alg=-7)) is Reason.ATTESTATION_STATEMENT


CERTIFICATES: dict[str, Any] = {
    "no_nonce": lambda: apple(der=lambda _nonce: None),
    "nonce_critical": lambda: apple(critical=True),
    "nonce_empty": lambda: apple(der=lambda _nonce: b""),
    "nonce_not_in_a_sequence": lambda: apple(der=lambda nonce: tlv(0xA1, octet_string(nonce))),
    "nonce_not_tagged": lambda: apple(der=lambda nonce: tlv(0x30, octet_string(nonce))),
    "nonce_tagged_otherwise": lambda: apple(der=lambda nonce: tlv(0x30, tlv(0xA2, octet_string(nonce)))),
    "nonce_not_an_octet_string": lambda: apple(der=lambda nonce: tlv(0x30, tlv(0xA1, tlv(3, nonce)))),
    "bytes_after_the_sequence": lambda: apple(der=lambda nonce: wrapped(nonce) + b"\x05\x00"),
    "bytes_in_the_sequence": lambda: apple(der=lambda nonce: tlv(0x30, tlv(0xA1, octet_string(nonce)) + b"\x05\x00")),
    "bytes_in_the_tag": lambda: apple(der=lambda nonce: tlv(0x30, tlv(0xA1, octet_string(nonce) + b"\x05\x00"))),
    "length_not_shortest": lambda: apple(der=lambda nonce: b"\x30\x81" + wrapped(nonce)[1:]),
    "authority": lambda: apple(constraints=CA),
}


@pytest.mark.parametrize("case", list(CERTIFICATES))
def test_a_wrong_leaf_is_refused(case: str) -> None:
    assert verdict(apple()) is None
    expected = Reason.TRUST_CHAIN if case == "nonce_critical" else Reason.ATTESTATION_CERTIFICATE
    assert verdict(CERTIFICATES[case]()) is expected


@pytest.mark.parametrize("nonce", [b"", bytes(32)])
def test_a_nonce_of_another_value(nonce: bytes) -> None:
    assert verdict(apple(der=lambda _nonce: wrapped(nonce))) is Reason.ATTESTATION_STATEMENT


def test_a_leaf_needs_no_basic_constraints() -> None:
    assert verdict(apple(constraints=None)) is None


def test_the_path() -> None:
    assert verdict(apple(anchors=TrustStore())) is Reason.TRUST_CHAIN
    assert verdict(apple(chain=(ROOT.certificate,))) is None
    assert verdict(apple(chain=(ROOT.subordinate().certificate,))) is Reason.TRUST_CHAIN
    assert verdict(apple(anchors=TrustStore([anchor(aaguids=frozenset({AAGUID}))]))) is None
    assert verdict(apple(anchors=TrustStore([anchor(aaguids=frozenset({bytes(16)}))]))) is Reason.TRUST_CHAIN
    assert verdict(apple(anchors=TrustStore([anchor(formats=frozenset({"packed"}))]))) is Reason.TRUST_CHAIN


def test_the_order_of_the_reasons() -> None:
    wrong: dict[str, Any] = {"constraints": CA, "key": key_for(Algorithm.ES256, "other")}
    assert verdict(apple(alg=-8, anchors=TrustStore(), **wrong)) is Reason.ATTESTATION_STATEMENT
    assert verdict(apple(anchors=TrustStore(), **wrong)) is Reason.TRUST_CHAIN
    assert verdict(apple(**wrong)) is Reason.ATTESTATION_CERTIFICATE
