"""Every generated and published ceremony in scope gives exactly the verdict and the reason it asks for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from keyvouch import base64url
from keyvouch.assurance import Provenance
from keyvouch.attestation import (
    AttestationRequirement,
    CredentialRecord,
    VerifiedAssertion,
    VerifiedRegistration,
    verify_assertion,
    verify_registration,
)
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AttestationObject, AuthenticatorData
from keyvouch.webauthn_json import AuthenticationResponse, RegistrationResponse
from support.forge import INSTANT, Forge, sign
from support.vectors import load

GENERATED = load("generated-webauthn/webauthn_mutations.json")["vectors"]
W3C = load("w3c-webauthn-l3/webauthn-l3-public.json")

COMPLETE = {"auth-ES256": 127, "auth-RS256": 71, "reg-none-ES256": 125}
"""Every vector of these must come out exactly, accepted or refused."""

BEFORE_THE_STATEMENT = {"reg-packed-ES256": 56, "reg-tpm-ES256": 111, "reg-fido-u2f-ES256": 56}
"""Of these, the ones in whose refusal the attestation statement has no say."""

STATEMENT_CLASSES = ("control", "att-", "chain-")

# Byte for byte the same authenticator data as `authdata_len_37`, which wants AUTHDATA_LENGTH; so do assertions.
CONTRADICTION = ("at_set_no_data", "attested_data", "authdata_length")


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
        anchors=(),
        instant=datetime.fromisoformat(policy["now"]),
        **expected,
    )


def verdict(vector: dict[str, Any]) -> str | None:
    try:
        verify(vector)
    except KeyvouchError as error:
        return error.reason.value
    return None


def wanted(vector: dict[str, Any]) -> str | None:
    mutation, theirs, ours = CONTRADICTION
    if (vector["mutation"], vector["reason"]) == (mutation, theirs):
        return ours
    return str(vector["reason"]) if vector["reason"] else None


def named(vector: dict[str, Any]) -> str:
    return f"{vector['id']}-{vector['base']}-{vector['mutation']}"


def is_about_the_statement(vector: dict[str, Any]) -> bool:
    name: str = vector["class"]
    return name.startswith(STATEMENT_CLASSES)


IN_SCOPE = [vector for vector in GENERATED if vector["base"] in COMPLETE]
EARLY = [v for v in GENERATED if v["base"] in BEFORE_THE_STATEMENT and not is_about_the_statement(v)]
LATE = [v for v in GENERATED if v["base"] in BEFORE_THE_STATEMENT and is_about_the_statement(v)]


def test_no_vector_is_left_out() -> None:
    assert len(GENERATED) == 674
    assert Counter(vector["base"] for vector in IN_SCOPE) == COMPLETE
    assert Counter(vector["base"] for vector in EARLY) == BEFORE_THE_STATEMENT
    assert len(IN_SCOPE) + len(EARLY) + len(LATE) == len(GENERATED)
    assert sum(vector["expect"] == "accept" for vector in IN_SCOPE) == 35


def test_the_contradiction_is_one() -> None:
    seen: dict[str, dict[str, bytes]] = {}
    for vector in GENERATED:
        if vector["ceremony"] == "registration" and vector["mutation"] in ("at_set_no_data", "authdata_len_37"):
            response = base64url.decode(vector["response"]["response"]["attestationObject"])
            seen.setdefault(vector["base"], {})[vector["mutation"]] = response[response.index(b"authData") :]
    assert len(seen) == 4
    assert all(pair["at_set_no_data"] == pair["authdata_len_37"] for pair in seen.values())


@pytest.mark.parametrize("vector", IN_SCOPE, ids=named)
def test_none_attestation_and_assertions(vector: dict[str, Any]) -> None:
    assert verdict(vector) == wanted(vector)


@pytest.mark.parametrize("vector", EARLY, ids=named)
def test_refusals_before_the_attestation_statement(vector: dict[str, Any]) -> None:
    assert wanted(vector) is not None
    assert verdict(vector) == wanted(vector)


def test_no_bad_attestation_statement_is_accepted() -> None:
    bad = [vector for vector in LATE if vector["expect"] == "reject"]
    assert len(bad) == 92
    assert [named(vector) for vector in bad if verdict(vector) is None] == []


# The published ceremonies of WebAuthn Level 3 section 16

NONE_OR_SELF = [
    "sctn-test-vectors-none-es256",
    "sctn-test-vectors-packed-self-es256",
    "sctn-test-vectors-none-es256-crossOrigin",
]
ASSERTIONS = [case["section"] for case in W3C["cases"] if case["authentication"]]


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
        "anchors": (),
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
    assert len(ASSERTIONS) == 8
    assert set(NONE_OR_SELF) <= set(ASSERTIONS)


@pytest.mark.parametrize("section", NONE_OR_SELF)
def test_published_registrations(section: str) -> None:
    arguments = w3c_registration(section)
    evidence = verify_registration(**arguments)
    self_attested = "self" in section
    assert evidence.attestation.provenance is (Provenance.SELF if self_attested else Provenance.UNATTESTED)
    assert evidence.credential_id.hex() == w3c(section)["registration"]["credential_id"]
    assert evidence.aaguid.hex() == w3c(section)["registration"]["aaguid"]
    if self_attested:
        assert every_bit_flip_is_refused(arguments, "attestation_object", verify_registration)
    assert every_bit_flip_is_refused(arguments, "challenge", verify_registration)


@pytest.mark.parametrize("section", ASSERTIONS)
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


# Packed self attestation, signed by throw-away keys

FORGE = Forge()
OTHER = Forge()


def packed(**changes: object) -> dict[str, Any]:
    """A registration whose statement is changed, its signature being right for what it holds."""
    arguments = FORGE.registration()
    data = AttestationObject(arguments["attestation_object"]).authenticator_data
    statement = FORGE.self_statement(data, arguments["client_data"], **changes)
    return FORGE.registration(statement=statement)


def signed_over(message: bytes) -> dict[str, Any]:
    return packed(sig=FORGE.sign(message))


def message() -> bytes:
    arguments = FORGE.registration()
    data = AttestationObject(arguments["attestation_object"]).authenticator_data
    return data + hashlib.sha256(arguments["client_data"]).digest()


@pytest.mark.parametrize("algorithm", list(Algorithm), ids=lambda algorithm: algorithm.name)
def test_self_attestation_of_every_algorithm(algorithm: Algorithm) -> None:
    evidence = verify_registration(**Forge(algorithm).registration(sign_count=9))
    assert evidence.algorithm is algorithm
    assert evidence.attestation.provenance is Provenance.SELF
    assert evidence.attestation.format == "packed"
    assert evidence.sign_count == 9


GOOD_SIGNATURE = FORGE.sign(message())

SELF_MUTATIONS = {
    "alg_missing": lambda: packed(alg=None),
    "alg_text": lambda: packed(alg="ES256"),
    "alg_true": lambda: packed(alg=True),
    "alg_of_another_curve": lambda: packed(alg=-35),
    "alg_eddsa": lambda: packed(alg=-8),
    "alg_rs256": lambda: packed(alg=-257),
    "alg_rs1": lambda: packed(alg=-65535),
    "alg_hs256": lambda: packed(alg=5),
    "alg_unknown": lambda: packed(alg=0),
    "sig_missing": lambda: packed(sig=None),
    "sig_empty": lambda: packed(sig=b""),
    "sig_text": lambda: packed(sig="signature"),
    "sig_list": lambda: packed(sig=[GOOD_SIGNATURE]),
    "sig_truncated": lambda: packed(sig=GOOD_SIGNATURE[:-1]),
    "sig_trailing": lambda: packed(sig=GOOD_SIGNATURE + b"\x00"),
    "sig_of_another_key": lambda: packed(sig=OTHER.sign(message())),
    "sig_leading_zero": lambda: packed(sig=with_leading_zero(GOOD_SIGNATURE)),
    "sig_over_authenticator_data_only": lambda: signed_over(message()[:-32]),
    "sig_over_client_data_hash_only": lambda: signed_over(message()[-32:]),
    "sig_over_another_hash": lambda: signed_over(message()[:-32] + bytes(32)),
    "sig_over_the_reverse": lambda: signed_over(message()[-32:] + message()[:-32]),
    "sig_over_other_authenticator_data": lambda: signed_over(b"\x00" + message()[1:]),
    "sig_over_nothing": lambda: signed_over(b""),
    "sig_over_a_digest": lambda: signed_over(hashlib.sha256(message()).digest()),
    "ecdaa": lambda: packed(ecdaaKeyId=b"key"),
    "extra_text_member": lambda: packed(ver="2.0"),
    "x5c_null": lambda: with_members({"x5c": None}),
    "x5c_empty": lambda: packed(x5c=[]),
    "x5c_bytes": lambda: packed(x5c=b"certificate"),
    "x5c_of_text": lambda: packed(x5c=["certificate"]),
    "x5c_of_empty": lambda: packed(x5c=[b""]),
    "extra_number_member": lambda: with_members({1: b""}),
    "statement_empty": lambda: FORGE.registration(statement={}, format="packed"),
}


def with_members(members: Mapping[Any, object]) -> dict[str, Any]:
    statement: dict[Any, object] = {"alg": -7, "sig": GOOD_SIGNATURE}
    return FORGE.registration(statement=statement | dict(members))


def with_leading_zero(signature: bytes) -> bytes:
    length = signature[3]
    r, rest = signature[4 : 4 + length], signature[4 + length :]
    return b"\x30" + bytes([signature[1] + 1, 0x02, length + 1, 0]) + r + rest


@pytest.mark.parametrize("mutation", list(SELF_MUTATIONS))
def test_bad_self_attestation_is_refused(mutation: str) -> None:
    verify_registration(**packed())  # the control
    with pytest.raises(KeyvouchError) as caught:
        verify_registration(**SELF_MUTATIONS[mutation]())
    assert caught.value.reason is Reason.ATTESTATION_STATEMENT


def test_every_bit_of_a_self_attestation_counts() -> None:
    for index in range(len(GOOD_SIGNATURE) * 8):
        flipped = bytearray(GOOD_SIGNATURE)
        flipped[index // 8] ^= 1 << index % 8
        with pytest.raises(KeyvouchError) as caught:
            verify_registration(**packed(sig=bytes(flipped)))
        assert caught.value.reason is Reason.ATTESTATION_STATEMENT


def test_a_key_that_signs_with_another_algorithm_than_it_names() -> None:
    arguments = FORGE.registration()
    data = AttestationObject(arguments["attestation_object"]).authenticator_data
    stranger = Forge(Algorithm.ES384)
    signature = sign(stranger.private_key, Algorithm.ES384, message())
    statement = {"alg": -35, "sig": signature}
    bad = bytes(AttestationObject.build("packed", AuthenticatorData(bytes(data)), statement))
    with pytest.raises(KeyvouchError) as caught:
        verify_registration(**arguments | {"attestation_object": bad})
    assert caught.value.reason is Reason.ATTESTATION_STATEMENT


def test_a_chain_without_an_anchor_is_not_trusted() -> None:
    with pytest.raises(KeyvouchError) as caught:
        verify_registration(**packed(x5c=[b"certificate"]))
    assert caught.value.reason is Reason.TRUST_CHAIN
