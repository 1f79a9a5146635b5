"""Receipts: what one proves, and that nothing else passes for one: every byte, every claim, every signature (H8)."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import cbor
from keyvouch.errors import EvidenceError, Reason
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.receipt import MAX_RECEIPT, Receipt, seal, verify_receipt
from keyvouch.statement import Decision, DecisionStatement, Purpose
from support.audit_logs import KEY, SERVER_ID
from support.forge import Forge
from support.receipts import NUMBER, OFFER, RP_ID, offered, other_server, receipt, sealed

OTHER = ec.generate_private_key(ec.SECP256R1())
GOOD = sealed(receipt())


def refusal_of(data: bytes) -> EvidenceError:
    with pytest.raises(EvidenceError) as caught:
        verify_receipt(data, server_id=SERVER_ID)
    assert caught.value.reason is Reason.RECEIPT
    assert caught.value.fix
    return caught.value


# Controls


def test_h8_a_receipt_holds_what_the_key_signed_and_what_the_server_says() -> None:
    verified = verify_receipt(GOOD, server_id=SERVER_ID)
    assert verified.receipt == receipt(signature=verified.receipt.signature)
    assert verified.offer.app_name == "Shop"
    assert verified.assertion.credential_id == OFFER.credential_id
    assert verified.pinned
    assert Receipt.parse(verified.receipt.encode()) == verified.receipt


def test_without_a_server_to_expect_it_is_one_of_whichever_has_the_key() -> None:
    assert not verify_receipt(GOOD, server_id=None).pinned


def test_a_security_key_at_the_client_signs_there() -> None:
    client = f"keyvouch-client://{RP_ID}"
    assert verify_receipt(sealed(receipt(origin=client, acr="phishing-resistant")), server_id=SERVER_ID)
    assert verify_receipt(sealed(receipt(acr="phishing-resistant")), server_id=SERVER_ID)
    assert verify_receipt(sealed(receipt(user_handle=b"")), server_id=SERVER_ID)
    assert refusal_of(sealed(receipt(origin=client))).metadata["cause"] == Reason.ORIGIN


# Mutations


def test_h8_no_byte_of_a_receipt_can_be_another() -> None:
    for position in range(len(GOOD)):
        for bit in (0x01, 0x20, 0x80):
            refusal_of(GOOD[:position] + bytes([GOOD[position] ^ bit]) + GOOD[position + 1 :])


def test_h8_no_receipt_is_shorter_or_longer() -> None:
    for end in range(0, len(GOOD), 7):
        refusal_of(GOOD[:end])
    refusal_of(GOOD + b"\x00")
    refusal_of(b"\x00" * (MAX_RECEIPT + 1))


# What the server signed and yet does not hold


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"server_id": other_server(SERVER_ID)}, "another server"),
        ({"decision": b"\xa0"}, "not a decision"),
        ({"decision": DecisionStatement(b"\xa0", Decision.APPROVE, NUMBER).encode()}, "not a decision"),
        ({"decision": DecisionStatement(OFFER.encode(), Decision.DENY).encode()}, "not an approval"),
        ({"decision": DecisionStatement(OFFER.encode(), Decision.REPORT).encode()}, "not an approval"),
        ({"number": "43"}, "number"),
        ({"tenant_id": "ten_other"}, "tenant id"),
        ({"user_id": "usr_eve"}, "user id"),
        ({"device_id": "dev_other"}, "device id"),
        ({"credential_id": b"other"}, "credential id"),
        ({"sign_in_id": "sin_two"}, "sign in id"),
        ({"policy_version": 4}, "policy version"),
        ({"decided_at": OFFER.expires_at}, "run out"),
        ({"consumed_at": OFFER.expires_at}, "run out"),
        ({"signature": b"\x30\x00"}, "did not sign"),
        ({"public_key": bytes(Forge().public_key)}, "did not sign"),
        ({"public_key": b"\xa0"}, "did not sign"),
        ({"authenticator_data": b"short"}, "did not sign"),
        ({"client_data": b"{}"}, "did not sign"),
        ({"rp_id": "evil.example"}, "did not sign"),
        ({"identity_key": spki_of(OTHER.public_key())}, "key"),
        ({"identity_key": b"\x30\x00"}, "key"),
    ],
)
def test_h8_what_does_not_fit_together_is_refused_though_the_server_signed_it(made: dict[str, Any], why: str) -> None:
    assert why in refusal_of(sealed(receipt(**made))).message


def test_an_offer_of_another_server_is_not_an_approval_here() -> None:
    assert "server id" in refusal_of(sealed(receipt(offered(server_id=other_server(SERVER_ID))))).message


def test_a_key_that_looked_away_proves_nothing() -> None:
    assert refusal_of(sealed(receipt(flags=0x01))).metadata["cause"] == Reason.USER_VERIFICATION
    assert refusal_of(sealed(receipt(flags=0x04))).metadata["cause"] == Reason.USER_PRESENCE


def test_p5_a_signature_for_another_purpose_or_by_another_key_is_none() -> None:
    statement = receipt().encode()
    for purpose in Purpose:
        if purpose is not Purpose.RECEIPT:
            assert "did not sign" in refusal_of(seal(statement, sign_proof(KEY, purpose, statement))).message
    assert "did not sign" in refusal_of(seal(statement, sign_proof(OTHER, Purpose.RECEIPT, statement))).message


# Statements that are none


FIELDS = cbor.decode(receipt().encode(), max_depth=1)


@pytest.mark.parametrize(
    "changes", [{1: 2}, {1: True}, {1: b""}, {4: b"ten"}, {21: True}, {21: "3"}, {10: "text"}, {27: 1}, {"1": 1}]
)
def test_a_statement_of_another_form_is_refused(changes: dict[Any, Any]) -> None:
    assert isinstance(FIELDS, dict)
    refusal_of(sealed(cbor.encode({**{k: v for k, v in FIELDS.items() if k not in changes}, **changes})))


def test_a_statement_without_a_field_is_refused() -> None:
    assert isinstance(FIELDS, dict)
    for left_out in FIELDS:
        refusal_of(sealed(cbor.encode({k: v for k, v in FIELDS.items() if k != left_out})))


@pytest.mark.parametrize("envelope", [{1: "text", 2: b""}, {1: b"", 2: "text"}, {1: b""}, {1: b"", 2: b"", 3: b""}, []])
def test_an_envelope_of_another_form_is_refused(envelope: Any) -> None:
    refusal_of(cbor.encode(envelope))
