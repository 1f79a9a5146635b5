"""Statements and proofs: what is signed, and that nothing else passes for it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from keyvouch import cbor
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason
from keyvouch.ids import CredentialId, DeviceId, RegistrationId, ServerId, SignInId, TenantId, UserId
from keyvouch.proofs import jwk_of, load_proof_key, sign_proof, spki_of, spki_sha256, thumbprint, verify_proof
from keyvouch.statement import (
    MAX_STATEMENT,
    Decision,
    DecisionStatement,
    Purpose,
    RegistrationStatement,
    SignInOffer,
    challenge,
    check_offer,
    check_registration,
    health_statement,
    proof_statement,
    redeem_statement,
    signed_message,
)

REGISTRATION = RegistrationStatement(
    server_id=ServerId(bytes(range(32))),
    tenant_id=TenantId("ten_example"),
    user_id=UserId("usr_ada"),
    device_id=DeviceId("dev_laptop"),
    registration_id=RegistrationId("reg_one"),
    nonce=b"\x11" * 32,
    expires_at=1_800_000_000,
    channel_key=b"\x22" * 32,
)
WITH_TPM = replace(REGISTRATION, ak_name=b"\x00\x0b" + b"\x33" * 32)
OFFER = SignInOffer(
    server_id=ServerId(bytes(range(32))),
    tenant_id=TenantId("ten_example"),
    user_id=UserId("usr_ada"),
    device_id=DeviceId("dev_laptop"),
    credential_id=CredentialId(b"\x44" * 16),
    sign_in_id=SignInId("sin_one"),
    nonce=b"\x11" * 32,
    app_id="shop",
    app_name="Shop",
    audience="https://orders.test",
    proof_key=b"\x55" * 32,
    place="",
    address="192.0.2.1",
    binding_message="",
    issued_at=1_800_000_000,
    expires_at=1_800_000_120,
    policy_version=7,
    required_assurance="any",
)
APPROVAL = DecisionStatement(offer=OFFER.encode(), decision=Decision.APPROVE, number="07")
DENIAL = DecisionStatement(offer=OFFER.encode(), decision=Decision.DENY)

GOLDEN_REGISTRATION = (
    "a8"
    "015820000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "026b74656e5f6578616d706c65"
    "03677573725f616461"
    "046a6465765f6c6170746f70"
    "05677265675f6f6e65"
    "0658201111111111111111111111111111111111111111111111111111111111111111"
    "071a6b49d200"
    "0858202222222222222222222222222222222222222222222222222222222222222222"
)
GOLDEN_REGISTRATION_CHALLENGE = "ab51aa3d1089327b0b8e1119b68f5aa008ad563c49e7702f30628c0116d43390"

Statement = RegistrationStatement | SignInOffer | DecisionStatement
EVERY: dict[str, Statement] = {
    "registration": REGISTRATION,
    "registration with tpm": WITH_TPM,
    "offer": OFFER,
    "approval": APPROVAL,
    "denial": DENIAL,
}


@pytest.mark.parametrize("name", EVERY)
def test_a_statement_comes_back_as_it_went_and_keeps_its_bytes(name: str) -> None:
    statement = EVERY[name]
    encoded = statement.encode()
    parsed = type(statement).parse(encoded)
    assert parsed == replace(statement, encoded=encoded)
    assert parsed.encoded == encoded == parsed.encode()


def test_a_golden_registration() -> None:
    assert REGISTRATION.encode().hex() == GOLDEN_REGISTRATION
    assert challenge(Purpose.REGISTRATION, REGISTRATION.encode()).hex() == GOLDEN_REGISTRATION_CHALLENGE


def test_a_golden_decision() -> None:
    statement = DecisionStatement(offer=b"offer", decision=Decision.APPROVE, number="07")
    assert statement.encode().hex() == "a301456f66666572020103623037"
    assert replace(statement, decision=Decision.REPORT, number="").encode().hex() == "a201456f666665720203"


def test_field_n_of_an_offer_is_key_n() -> None:
    document = cbor.decode(OFFER.encode())
    assert isinstance(document, dict)
    names = [field.name for field in fields(SignInOffer) if field.name != "encoded"]
    assert document == {n: getattr(OFFER, name) for n, name in enumerate(names, start=1)}


def document_of(statement: Statement) -> dict[Any, Any]:
    document = cbor.decode(statement.encode())
    assert isinstance(document, dict)
    return document


def refuse(statement: Statement, encoded: bytes) -> None:
    assert type(statement).parse(statement.encode())
    with pytest.raises(MalformedError) as caught:
        type(statement).parse(encoded)
    assert caught.value.reason is Reason.STATEMENT_MALFORMED


@pytest.mark.parametrize("name", EVERY)
def test_every_missing_field_is_refused(name: str) -> None:
    statement = EVERY[name]
    optional = {9} if isinstance(statement, RegistrationStatement) else set()
    for key in document_of(statement).keys() - optional:
        document = document_of(statement)
        del document[key]
        refuse(statement, cbor.encode(document))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("key", [0, -1, 10, 19, 255, "1", "nonce", b"\x01"])
def test_every_extra_field_is_refused(name: str, key: int | str | bytes) -> None:
    document: dict[Any, Any] = document_of(EVERY[name])
    assert key not in document or key == 10
    document[key if key not in document else 99] = 1
    refuse(EVERY[name], cbor.encode(document))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "wrong", [None, True, [], {}, -1, 1 << 63, "", b"", "x" * 257, b"x" * 2000, "text", b"octets", 5]
)
def test_every_field_of_the_wrong_type_or_length_is_refused(name: str, wrong: Any) -> None:
    statement = EVERY[name]
    for key, value in document_of(statement).items():
        if fits(statement, key, value, wrong):
            continue
        refuse(statement, cbor.encode({**document_of(statement), key: wrong}))


def fits(statement: Statement, key: int, value: object, wrong: object) -> bool:
    """Whether `wrong` happens to be a fine value for the field."""
    if isinstance(value, str) and isinstance(wrong, str):
        may_be_empty = isinstance(statement, SignInOffer) and key in (12, 13, 14)
        digits_only = isinstance(statement, DecisionStatement)
        return not digits_only and (may_be_empty if not wrong else len(wrong) <= 256)
    if isinstance(value, bytes) and isinstance(wrong, bytes):
        free = {SignInOffer: (5, 1023), RegistrationStatement: (9, 68), DecisionStatement: (1, MAX_STATEMENT)}
        free_key, longest = free[type(statement)]
        return key == free_key and 0 < len(wrong) <= longest
    is_count = type(value) is int and type(wrong) is int and wrong >= 0
    return is_count and not isinstance(statement, DecisionStatement)


@pytest.mark.parametrize("name", EVERY)
def test_every_prefix_and_every_longer_encoding_is_refused(name: str) -> None:
    encoded = EVERY[name].encode()
    for end in range(len(encoded)):
        refuse(EVERY[name], encoded[:end])
    refuse(EVERY[name], encoded + b"\x00")


@pytest.mark.parametrize(
    "encoded", [b"", b"\x80", b"\xa0", b"\xf6", b"\x01", b"\xbf\xff", b"\xff", b"\xa1\x01\xa1\x01\x01"]
)
def test_what_is_no_map_is_refused(encoded: bytes) -> None:
    for statement in EVERY.values():
        refuse(statement, encoded)


def test_another_spelling_of_the_same_statement_is_refused() -> None:
    encoded = REGISTRATION.encode()
    longer = encoded.replace(bytes.fromhex("071a6b49d200"), bytes.fromhex("071b000000006b49d200"))
    assert longer != encoded
    refuse(REGISTRATION, longer)
    unsorted = b"\xa8" + encoded[36:49] + encoded[1:36] + encoded[49:]
    assert len(unsorted) == len(encoded)
    refuse(REGISTRATION, unsorted)


def test_a_statement_longer_than_any_is_refused() -> None:
    document = document_of(APPROVAL)
    refuse(APPROVAL, cbor.encode({**document, 1: b"x" * MAX_STATEMENT}))


def test_one_kind_of_statement_is_no_other_kind() -> None:
    for one, other in itertools.permutations((REGISTRATION, OFFER, APPROVAL), 2):
        refuse(one, other.encode())


@pytest.mark.parametrize(
    "document",
    [
        {1: b"offer", 2: 0},
        {1: b"offer", 2: 4},
        {1: b"offer", 2: 1},
        {1: b"offer", 2: 2, 3: "07"},
        {1: b"offer", 2: 3, 3: "07"},
        {1: b"offer", 2: 1, 3: ""},
        {1: b"offer", 2: 1, 3: "7 "},
        {1: b"offer", 2: 1, 3: "seven"},
        {1: b"offer", 2: 1, 3: "\u0660\u0667"},
        {1: b"offer", 2: 1, 3: 7},
        {1: b"", 2: 2},
    ],
)
def test_decisions_that_do_not_exist_are_refused(document: dict[int, object]) -> None:
    refuse(APPROVAL, cbor.encode(document))


# purposes


def test_purposes_are_all_distinct_P5() -> None:
    statement = OFFER.encode()
    for one, other in itertools.combinations(Purpose, 2):
        assert challenge(one, statement) != challenge(other, statement)
        assert not signed_message(one, b"").startswith(signed_message(other, b""))
        assert not signed_message(other, b"").startswith(signed_message(one, b""))


def test_a_challenge_is_the_hash_of_the_signed_message() -> None:
    for purpose in Purpose:
        message = signed_message(purpose, b"statement")
        assert message == f"keyvouch/{purpose.value}/v1".encode() + b"\x00statement"
        assert challenge(purpose, b"statement") == hashlib.sha256(message).digest()


KEY = ec.generate_private_key(ec.SECP256R1())


def test_a_proof_for_one_purpose_is_worthless_for_every_other_P5() -> None:
    for made_for, presented_for in itertools.product(Purpose, Purpose):
        proof = sign_proof(KEY, made_for, b"statement")
        if made_for is presented_for:
            verify_proof(KEY.public_key(), presented_for, b"statement", signature=proof)
            continue
        with pytest.raises(EvidenceError) as caught:
            verify_proof(KEY.public_key(), presented_for, b"statement", signature=proof)
        assert caught.value.reason is Reason.PROOF_INVALID


def test_a_proof_holds_for_its_key_and_its_bytes_alone() -> None:
    proof = sign_proof(KEY, Purpose.REDEEM, b"statement")
    verify_proof(KEY.public_key(), Purpose.REDEEM, b"statement", signature=proof)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    changed: list[tuple[ec.EllipticCurvePublicKey, bytes, bytes]] = [
        (other, b"statement", proof),
        (KEY.public_key(), b"statement2", proof),
        (KEY.public_key(), b"", proof),
        (KEY.public_key(), b"statement", b""),
        (KEY.public_key(), b"statement", proof[:-1]),
        (KEY.public_key(), b"statement", proof + b"\x00"),
        (KEY.public_key(), b"statement", bytes(len(proof))),
    ]
    for key, statement, signature in changed:
        with pytest.raises(EvidenceError):
            verify_proof(key, Purpose.REDEEM, statement, signature=signature)


def test_what_clients_prove_names_server_and_secret() -> None:
    server = ServerId(bytes(range(32)))
    redeem = cbor.decode(redeem_statement(server, SignInId("sin_one"), "token"))
    assert redeem == {1: server, 2: "sin_one", 3: hashlib.sha256(b"token").digest()}
    assert cbor.decode(proof_statement(server, b"nonce")) == {1: server, 2: b"nonce"}
    assert cbor.decode(health_statement(server, DeviceId("dev_a"), b"nonce")) == {1: server, 2: "dev_a", 3: b"nonce"}


# proof keys


def spki(key: Any) -> bytes:
    der: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return der


def compressed_spki() -> bytes:
    point = KEY.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    return bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point


BAD_KEYS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "another curve": lambda: spki(ec.generate_private_key(ec.SECP384R1()).public_key()),
    "secp256k1": lambda: spki(ec.generate_private_key(ec.SECP256K1()).public_key()),
    "ed25519": lambda: spki(ed25519.Ed25519PrivateKey.generate().public_key()),
    "trailing byte": lambda: spki_of(KEY.public_key()) + b"\x00",
    "one byte short": lambda: spki_of(KEY.public_key())[:-1],
    "compressed point": compressed_spki,
    "off the curve": lambda: spki_of(KEY.public_key())[:-1] + bytes([spki_of(KEY.public_key())[-1] ^ 1]),
    "too long": lambda: bytes(5000),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_key_that_is_no_plain_p256_key_is_refused(name: str) -> None:
    assert spki_of(load_proof_key(spki_of(KEY.public_key()))) == spki_of(KEY.public_key())
    with pytest.raises(MalformedError) as caught:
        load_proof_key(BAD_KEYS[name](), reason=Reason.CHANNEL_KEY)
    assert caught.value.reason is Reason.CHANNEL_KEY


def test_the_names_of_a_known_key() -> None:
    # The P-256 key of RFC 7517 appendix A.1; its thumbprint was computed by hand from RFC 7638 section 3.
    x = int.from_bytes(bytes.fromhex("30a0424cd21c2944838a2d75c92b37e76ea20d9f00893a3b4eee8a3c0aafec3e"), "big")
    y = int.from_bytes(bytes.fromhex("e04b65e92456d9888b52b379bdfbd51ee869ef1f0fc65b6659695b6cce081723"), "big")
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    jwk = jwk_of(key)
    assert (jwk["x"], jwk["y"]) == (
        "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    )
    text = f'{{"crv":"P-256","kty":"EC","x":"{jwk["x"]}","y":"{jwk["y"]}"}}'
    assert thumbprint(key) == hashlib.sha256(text.encode()).digest()
    assert spki_sha256(key) == hashlib.sha256(spki(key)).digest()


# the device's own record


RECORD: dict[str, Any] = {
    "server_id": OFFER.server_id,
    "tenant_id": OFFER.tenant_id,
    "user_id": OFFER.user_id,
    "device_id": OFFER.device_id,
}


@pytest.mark.parametrize(
    ("name", "other", "reason"),
    [
        ("server_id", bytes(32), Reason.WRONG_SERVER),
        ("tenant_id", "ten_other", Reason.WRONG_TENANT),
        ("user_id", "usr_eve", Reason.WRONG_USER),
        ("device_id", "dev_other", Reason.WRONG_DEVICE),
    ],
)
def test_an_offer_for_somebody_else_is_refused(name: str, other: object, reason: Reason) -> None:
    check_offer(OFFER, **RECORD)
    with pytest.raises(EvidenceError) as caught:
        check_offer(OFFER, **{**RECORD, name: other})
    assert caught.value.reason is reason


def test_a_registration_with_another_server_or_channel_is_refused() -> None:
    check_registration(REGISTRATION, server_id=REGISTRATION.server_id, channel_key=REGISTRATION.channel_key)
    with pytest.raises(KeyvouchError) as caught:
        check_registration(REGISTRATION, server_id=ServerId(bytes(32)), channel_key=REGISTRATION.channel_key)
    assert caught.value.reason is Reason.WRONG_SERVER
    with pytest.raises(KeyvouchError) as caught:
        check_registration(REGISTRATION, server_id=REGISTRATION.server_id, channel_key=bytes(32))
    assert caught.value.reason is Reason.CHANNEL_KEY
