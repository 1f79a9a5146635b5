"""Packed self attestation, signed by throw-away keys (WebAuthn Level 3 section 8.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pytest

from keyvouch.assurance import Provenance
from keyvouch.attestation import verify_registration
from keyvouch.cose import Algorithm
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.webauthn import AttestationObject, AuthenticatorData
from support.forge import Forge, sign

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
