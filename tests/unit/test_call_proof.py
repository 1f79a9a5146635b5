"""Proofs of possession of calls: the one that fits, and all those that do not (P15)."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from keyvouch import cbor
from keyvouch.call_proof import NONCE_BYTES, WINDOW_SECONDS, VerifiedCall, make_call_proof, verify_call_proof
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason
from keyvouch.ids import ServerId
from keyvouch.proofs import sign_proof, spki_of, thumbprint
from keyvouch.statement import Purpose

KEY = ec.generate_private_key(ec.SECP256R1())
SERVER = ServerId(bytes(range(32)))
METHOD = "/keyvouch.v1.SessionService/ListSessions"
SPKI = spki_of(KEY.public_key())
TOKEN, NOW, NONCE = "a.b.c", 1_800_000_000, b"n" * NONCE_BYTES
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
FIELDS: dict[int, Any] = {1: SERVER, 2: METHOD, 3: hashlib.sha256(TOKEN.encode()).digest(), 4: NOW, 5: NONCE}


def made(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {"server_id": SERVER, "method": METHOD, "access_token": TOKEN, "now": NOW}
    key = changes.pop("key", KEY)
    return make_call_proof(key, nonce=NONCE, **{**arguments, **changes})


def verify(proof: bytes, **changes: Any) -> VerifiedCall:
    arguments: dict[str, Any] = {"server_id": SERVER, "method": METHOD, "access_token": TOKEN, "now": NOW}
    return verify_call_proof(proof, **{"key_thumbprint": thumbprint(KEY.public_key()), **arguments, **changes})


def signed(statement: bytes, purpose: Purpose = Purpose.CALL) -> bytes:
    return cbor.encode([statement, sign_proof(KEY, purpose, statement), SPKI])


def refusal_of(proof: bytes, **changes: Any) -> KeyvouchError:
    with pytest.raises(KeyvouchError) as caught:
        verify(proof, **changes)
    assert caught.value.reason is Reason.PROOF_INVALID
    return caught.value


def test_a_proof_is_good_for_its_own_call():
    statement = cbor.encode(FIELDS)
    assert verify(made()) == verify(signed(statement)) == VerifiedCall(hashlib.sha256(statement).digest(), NOW)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"server_id": ServerId(bytes(32))}, "another server"),
        ({"method": "/keyvouch.v1.SessionService/RevokeSession"}, "another method"),
        ({"method": METHOD.lower()}, "another method"),
        ({"access_token": "a.b.d"}, "another access token"),
        ({"access_token": ""}, "another access token"),
    ],
)
def test_a_proof_for_something_else_is_refused_P15(changes: dict[str, Any], what: str):
    assert what in refusal_of(made(**changes)).message
    assert what in refusal_of(made(), **changes).message
    verify(made(**changes), **changes)


def test_another_key_proves_nothing_P15():
    other = ec.generate_private_key(ec.SECP256R1())
    assert isinstance(refusal_of(made(key=other)), EvidenceError)
    assert isinstance(refusal_of(made(), key_thumbprint=b""), EvidenceError)
    statement, signature = cbor.encode(FIELDS), sign_proof(other, Purpose.CALL, cbor.encode(FIELDS))
    refusal_of(cbor.encode([statement, signature, SPKI]))
    verify(made(key=other), key_thumbprint=thumbprint(other.public_key()))


@pytest.mark.parametrize("spki", [b"", b"key", SPKI[:-1], SPKI + b"0"], ids=["none", "a word", "cut", "longer"])
def test_what_is_no_key_proves_nothing(spki: bytes):
    statement = cbor.encode(FIELDS)
    refusal_of(cbor.encode([statement, sign_proof(KEY, Purpose.CALL, statement), spki]))


@pytest.mark.parametrize("purpose", [p for p in Purpose if p is not Purpose.CALL])
def test_a_signature_for_another_purpose_is_refused_P5(purpose: Purpose):
    refusal_of(signed(cbor.encode(FIELDS), purpose))


def test_a_proof_lasts_a_minute_and_says_what_time_it_is_P20():
    for apart in (-WINDOW_SECONDS, 0, WINDOW_SECONDS):
        assert verify(made(now=NOW + apart)).issued_at == NOW + apart
    for apart in (-WINDOW_SECONDS - 1, WINDOW_SECONDS + 1, -NOW - 5, 2**63):
        assert refusal_of(made(now=NOW + apart)).metadata == {"server_time": str(NOW)}


def test_only_a_wrong_instant_tells_the_time():
    for refusal in (refusal_of(made(), method="/x"), refusal_of(b""), refusal_of(made()[:-1])):
        assert "server_time" not in refusal.metadata


def test_another_spelling_of_the_signature_is_no_other_proof():
    statement, signature = FIELDS, sign_proof(KEY, Purpose.CALL, cbor.encode(FIELDS))
    r, s = decode_dss_signature(signature)
    other = encode_dss_signature(r, P256_ORDER - s)
    assert other != signature
    encoded = cbor.encode(statement)
    assert verify(cbor.encode([encoded, signature, SPKI])).id == verify(cbor.encode([encoded, other, SPKI])).id


def test_every_flipped_bit_is_refused():
    proof = bytearray(made())
    for at in range(len(proof) * 8):
        proof[at // 8] ^= 1 << at % 8
        refusal_of(bytes(proof))
        proof[at // 8] ^= 1 << at % 8
    verify(bytes(proof))


@pytest.mark.parametrize(
    "fields",
    [
        {1: SERVER},
        {**FIELDS, 6: 0},
        {k: v for k, v in FIELDS.items() if k != 5} | {6: NONCE},
        {**FIELDS, 4: "now"},
        {**FIELDS, 4: True},
        {**FIELDS, 5: "n" * NONCE_BYTES},
        {**FIELDS, 5: NONCE[:-1]},
        {**FIELDS, 5: NONCE + b"n"},
        [SERVER, METHOD, TOKEN, NOW, NONCE],
        "statement",
    ],
)
def test_a_statement_of_another_shape_is_refused(fields: object):
    assert isinstance(refusal_of(signed(cbor.encode(fields))), MalformedError)


@pytest.mark.parametrize(
    "proof",
    [
        b"",
        b"\xff",
        b"x" * 2000,
        cbor.encode([]),
        cbor.encode([cbor.encode(FIELDS)]),
        cbor.encode([cbor.encode(FIELDS), "signature", SPKI]),
        cbor.encode([cbor.encode(FIELDS), b"signature"]),
        cbor.encode([FIELDS[1]] * 4),
        cbor.encode({1: cbor.encode(FIELDS), 2: b""}),
        cbor.encode(cbor.encode(FIELDS)),
        made() + b"\x00",
    ],
    ids=itertools.count(),
)
def test_what_is_no_proof_is_refused(proof: bytes):
    assert isinstance(refusal_of(proof), MalformedError)


@pytest.mark.parametrize(("key", "value"), [(1, "text"), (1, SERVER[:-1]), (2, 7), (3, b""), (3, TOKEN)])
def test_fields_of_another_kind_are_those_of_another_call(key: int, value: object):
    refusal_of(signed(cbor.encode({**FIELDS, key: value})))
