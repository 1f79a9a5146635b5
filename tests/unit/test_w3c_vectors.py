"""The published ceremonies of WebAuthn Level 3 section 16, with the attestation root that is published with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from cryptography import x509

from keyvouch.assurance import Provenance
from keyvouch.attestation import (
    AttestationRequirement,
    CredentialRecord,
    TrustAnchor,
    TrustStore,
    verify_assertion,
    verify_registration,
)
from keyvouch.cose import Algorithm
from keyvouch.errors import KeyvouchError, MalformedError, Reason
from keyvouch.webauthn import AttestationObject
from support.attestation_forge import verdict
from support.forge import INSTANT
from support.vectors import load

W3C = load("w3c-webauthn-l3/webauthn-l3-public.json")
ROOT = x509.load_der_x509_certificate(bytes.fromhex(W3C["cases"][0]["attestation_ca_cert"]))
TRUST = TrustStore([TrustAnchor("W3C", ROOT)])

PROVENANCES = {
    "sctn-test-vectors-none-es256": Provenance.UNATTESTED,
    "sctn-test-vectors-packed-self-es256": Provenance.SELF,
    "sctn-test-vectors-none-es256-crossOrigin": Provenance.UNATTESTED,
    "sctn-test-vectors-packed-es256": Provenance.ATTESTED,
    "sctn-test-vectors-packed-rs256": Provenance.ATTESTED,
    "sctn-test-vectors-packed-eddsa": Provenance.ATTESTED,
    "sctn-test-vectors-fido-u2f-es256": Provenance.ATTESTED,
}
TPM = "sctn-test-vectors-tpm-es256"
"""Refused: no TPM makes such a clock, its key does not claim to be made inside, its maker `id:00000000` is nobody."""

ATTESTED = [section for section, provenance in PROVENANCES.items() if provenance is Provenance.ATTESTED]
CEREMONIES = [case["section"] for case in W3C["cases"] if case["authentication"]]


def w3c(section: str) -> dict[str, Any]:
    (case,) = [case for case in W3C["cases"] if case["section"] == section]
    return dict(case)


def w3c_expected(part: Mapping[str, str]) -> dict[str, Any]:
    return {
        "client_data": bytes.fromhex(part["clientDataJSON"]),
        "challenge": bytes.fromhex(part["challenge"]),
        "rp_id": W3C["rpId"],
        "origins": {W3C["origin"]},
        "require_user_verification": False,
        "allow_cross_origin": b'"crossOrigin":true' in bytes.fromhex(part["clientDataJSON"]),
    }


def w3c_registration(section: str) -> dict[str, Any]:
    part = w3c(section)["registration"]
    return w3c_expected(part) | {
        "attestation_object": bytes.fromhex(part["attestationObject"]),
        "algorithms": list(Algorithm),
        "attestation": AttestationRequirement.OPTIONAL,
        "anchors": TRUST,
        "instant": INSTANT,
    }


def w3c_assertion(section: str) -> dict[str, Any]:
    part = w3c(section)["authentication"]
    registered = AttestationObject(bytes.fromhex(w3c(section)["registration"]["attestationObject"]))
    attested = registered.attested
    return w3c_expected(part) | {
        "credential": CredentialRecord(
            attested.credential_id,
            attested.public_key,
            registered.authenticator_data.sign_count,
            b"user",
            registered.authenticator_data.backup_eligible,
        ),
        "credential_id": attested.credential_id,
        "authenticator_data": bytes.fromhex(part["authenticatorData"]),
        "signature": bytes.fromhex(part["signature"]),
        "user_handle": None,
    }


def test_no_published_ceremony_is_left_out() -> None:
    assert sorted([*PROVENANCES, TPM]) == sorted(CEREMONIES)


def test_the_published_tpm_statement_is_not_what_a_tpm_makes() -> None:
    with pytest.raises(MalformedError) as caught:
        verify_registration(**w3c_registration(TPM))
    assert caught.value.reason is Reason.TPM
    assert caught.value.metadata == {"check": "tpm_parse"}


@pytest.mark.parametrize("section", list(PROVENANCES))
def test_published_registrations(section: str) -> None:
    arguments = w3c_registration(section)
    evidence = verify_registration(**arguments)
    assert evidence.attestation.provenance is PROVENANCES[section]
    assert evidence.attestation.anchor == ("W3C" if section in ATTESTED else "")
    assert evidence.credential_id.hex() == w3c(section)["registration"]["credential_id"]
    assert evidence.aaguid.hex() == w3c(section)["registration"]["aaguid"]
    if PROVENANCES[section] is Provenance.SELF:
        assert every_bit_flip_is_refused(arguments, "attestation_object", verify_registration)
    assert every_bit_flip_is_refused(arguments, "challenge", verify_registration)


@pytest.mark.parametrize("section", ATTESTED)
def test_published_chains_need_their_root(section: str) -> None:
    arguments = w3c_registration(section)
    assert verdict(arguments | {"anchors": TrustStore()}) is Reason.TRUST_CHAIN


@pytest.mark.parametrize("section", ATTESTED)
def test_a_flipped_bit_of_a_published_attestation(section: str) -> None:
    """Whatever a token signs is protected; a U2F token does not sign its flags, counter and AAGUID."""
    arguments = w3c_registration(section)
    encoded = arguments["attestation_object"]
    authenticator_data = AttestationObject(encoded).authenticator_data
    unsigned = range(32, 53) if "u2f" in section else range(0)
    start = encoded.index(bytes(authenticator_data))
    for index in range(len(encoded)):
        flipped = bytearray(encoded)
        flipped[index] ^= 1 << index % 8
        refused = verdict(arguments | {"attestation_object": bytes(flipped)}) is not None
        assert refused or index - start in unsigned


@pytest.mark.parametrize("section", CEREMONIES)
def test_published_assertions(section: str) -> None:
    arguments = w3c_assertion(section)
    assert verify_assertion(**arguments).sign_count == 0
    for name in ("client_data", "authenticator_data", "signature", "challenge", "credential_id"):
        assert every_bit_flip_is_refused(arguments, name, verify_assertion)


def every_bit_flip_is_refused(arguments: dict[str, Any], name: str, verify: Any) -> bool:
    """Flip one bit of every byte of one argument."""
    for index in range(len(arguments[name])):
        flipped = bytearray(arguments[name])
        flipped[index] ^= 1 << index % 8
        with pytest.raises(KeyvouchError):
            verify(**arguments | {name: bytes(flipped)})
    return True
