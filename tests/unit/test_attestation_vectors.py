"""Every generated ceremony gives exactly the verdict and the reason it asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from cryptography import x509

from keyvouch import base64url
from keyvouch.assurance import Provenance
from keyvouch.attestation import (
    AttestationRequirement,
    CredentialRecord,
    TrustAnchor,
    TrustStore,
    VerifiedAssertion,
    VerifiedRegistration,
    verify_assertion,
    verify_registration,
)
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import KeyvouchError
from keyvouch.ids import CredentialId
from keyvouch.webauthn_json import AuthenticationResponse, RegistrationResponse
from support.vectors import load

GENERATED = load("generated-webauthn/webauthn_mutations.json")["vectors"]

COUNTS = {
    "auth-ES256": (127, 12),
    "auth-RS256": (71, 11),
    "reg-none-ES256": (125, 12),
    "reg-packed-ES256": (94, 12),
    "reg-tpm-ES256": (184, 12),
    "reg-fido-u2f-ES256": (73, 12),
}
"""Of each kind, how many there are, and how many of them are controls that must be accepted."""

CONTRADICTIONS = {
    # Byte for byte the same authenticator data as `authdata_len_37`, which wants AUTHDATA_LENGTH; so do assertions.
    ("at_set_no_data", "attested_data"): "authdata_length",
    # As in `sig_bitflip`, which wants ATTESTATION_STATEMENT, a signature does not verify; see test_tpm_vectors.
    ("certinfo_tampered_after_sign", "tpm"): "attestation_statement",
}


def verify(vector: dict[str, Any]) -> VerifiedRegistration | VerifiedAssertion:
    policy = vector["policy"]
    expected = {
        "challenge": base64url.decode(vector["expectedChallenge"]),
        "rp_id": policy["rpId"],
        "origins": policy["origins"],
        "require_user_verification": policy["requireUserVerification"],
        "allow_cross_origin": policy["allowCrossOrigin"],
        "top_origins": policy["topOrigins"],
    }
    if vector["ceremony"] == "registration":
        return verify_registered(vector, expected)
    response, stored = AuthenticationResponse.from_json(vector["response"]), vector["stored"]
    return verify_assertion(
        credential=CredentialRecord(
            CredentialId(base64url.decode(stored["credentialId"])),
            CoseKey(base64url.decode(stored["publicKey"])),
            stored["signCount"],
            base64url.decode(stored["userHandle"]),
            stored["backupEligible"],
        ),
        credential_id=response.credential_id,
        client_data=response.client_data,
        authenticator_data=response.authenticator_data,
        signature=response.signature,
        user_handle=response.user_handle,
        **expected,
    )


def verify_registered(vector: dict[str, Any], expected: Mapping[str, Any]) -> VerifiedRegistration:
    response, policy = RegistrationResponse.from_json(vector["response"]), vector["policy"]
    required = {"verify": AttestationRequirement.OPTIONAL, "required": AttestationRequirement.TRUSTED}
    return verify_registration(
        client_data=response.client_data,
        attestation_object=response.attestation_object,
        algorithms=[Algorithm(number) for number in policy["allowedAlgs"]],
        attestation=required[policy["attestation"]],
        anchors=anchors_of(policy),
        instant=datetime.fromisoformat(policy["now"]),
        **expected,
    )


def anchors_of(policy: Mapping[str, Any]) -> TrustStore:
    certificates = [x509.load_pem_x509_certificate(pem.encode()) for pem in policy["trustAnchorsPem"]]
    return TrustStore([TrustAnchor(name="vector root", certificate=certificate) for certificate in certificates])


def verdict(vector: dict[str, Any]) -> str | None:
    try:
        verify(vector)
    except KeyvouchError as error:
        return error.reason.value
    return None


def wanted(vector: dict[str, Any]) -> str | None:
    theirs = str(vector["reason"]) if vector["reason"] else None
    return CONTRADICTIONS.get((vector["mutation"], str(theirs)), theirs)


def named(vector: dict[str, Any]) -> str:
    return f"{vector['id']}-{vector['base']}-{vector['mutation']}"


def test_no_vector_is_left_out() -> None:
    assert len(GENERATED) == 674
    accepted = Counter(vector["base"] for vector in GENERATED if vector["expect"] == "accept")
    assert {base: (count, accepted[base]) for base, count in Counter(v["base"] for v in GENERATED).items()} == COUNTS
    assert all((vector["expect"] == "accept") == (wanted(vector) is None) for vector in GENERATED)


def test_authenticator_data_that_is_the_same_wants_two_reasons() -> None:
    seen: dict[str, dict[str, bytes]] = {}
    for vector in GENERATED:
        if vector["ceremony"] == "registration" and vector["mutation"] in ("at_set_no_data", "authdata_len_37"):
            response = base64url.decode(vector["response"]["response"]["attestationObject"])
            seen.setdefault(vector["base"], {})[vector["mutation"]] = response[response.index(b"authData") :]
    assert len(seen) == 4
    assert all(pair["at_set_no_data"] == pair["authdata_len_37"] for pair in seen.values())


@pytest.mark.parametrize("vector", GENERATED, ids=named)
def test_the_verdict_is_the_one_that_is_asked_for(vector: dict[str, Any]) -> None:
    assert verdict(vector) == wanted(vector)


@pytest.mark.parametrize("base", [base for base in COUNTS if base.startswith("reg-")])
def test_what_the_controls_prove(base: str) -> None:
    for vector in GENERATED:
        if vector["base"] == base and vector["expect"] == "accept":
            evidence = verify(vector)
            assert isinstance(evidence, VerifiedRegistration)
            assert evidence.attestation.format == base.removeprefix("reg-").removesuffix("-ES256")
            attested = "none" not in base
            assert evidence.attestation.provenance is (Provenance.ATTESTED if attested else Provenance.UNATTESTED)
            assert evidence.attestation.anchor == ("vector root" if attested else "")
