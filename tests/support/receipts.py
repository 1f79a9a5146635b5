"""Receipts of a made-up server and a made-up key, whole or spoiled in one place and signed all the same."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from keyvouch.client_data import CollectedClientData
from keyvouch.ids import CredentialId, DeviceId, ServerId, SessionId, SignInId, TenantId, UserId
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.receipt import Receipt, seal
from keyvouch.statement import Decision, DecisionStatement, Purpose, SignInOffer, challenge
from keyvouch.webauthn import AuthenticatorData
from support.audit_logs import KEY, SERVER_ID
from support.forge import UP_UV, Forge

FORGE = Forge()
RP_ID = "keys.example"
NUMBER = "42"
CREDENTIAL = CredentialId(b"credential-of-ada")

OFFER = SignInOffer(
    server_id=SERVER_ID,
    tenant_id=TenantId("ten_example"),
    user_id=UserId("usr_ada"),
    device_id=DeviceId("dev_laptop"),
    credential_id=CREDENTIAL,
    sign_in_id=SignInId("sin_one"),
    nonce=b"n" * 32,
    app_id="shop",
    app_name="Shop",
    audience="keyvouch",
    proof_key=b"p" * 32,
    place="",
    address="192.0.2.7",
    binding_message="",
    issued_at=1_800_000_000,
    expires_at=1_800_000_120,
    policy_version=3,
    required_assurance="software/software_gated/unattested",
)
DECISION = DecisionStatement(OFFER.encode(), Decision.APPROVE, NUMBER).encode()


def receipt(
    decision: bytes = DECISION, *, origin: str = f"keyvouch-agent://{RP_ID}", flags: int = UP_UV, **changes: Any
) -> Receipt:
    """A receipt over a decision that the key signed; `changes` replace fields afterwards."""
    client_data = CollectedClientData.build("webauthn.get", challenge(Purpose.SIGN_IN, decision), origin)
    data = AuthenticatorData.build(hashlib.sha256(RP_ID.encode()).digest(), flags, 7)
    made = Receipt(
        server_id=SERVER_ID,
        identity_key=spki_of(KEY.public_key()),
        tenant_id=OFFER.tenant_id,
        user_id=OFFER.user_id,
        username="ada",
        device_id=OFFER.device_id,
        session_id=SessionId("ses_one"),
        sign_in_id=OFFER.sign_in_id,
        decision=decision,
        credential_id=CREDENTIAL,
        client_data=bytes(client_data),
        authenticator_data=bytes(data),
        signature=FORGE.sign(data + hashlib.sha256(client_data).digest()),
        user_handle=b"h" * 32,
        public_key=bytes(FORGE.public_key),
        number=NUMBER,
        assurance="software/software_gated/unattested",
        acr="number-matched",
        amr="pop pin mfa",
        policy_version=3,
        rp_id=RP_ID,
        decided_at=1_800_000_020,
        consumed_at=1_800_000_021,
        audit_number=12,
        audit_hash=b"a" * 32,
    )
    return replace(made, **changes)


def sealed(made: Receipt | bytes) -> bytes:
    """A receipt as the server hands it out."""
    statement = made if isinstance(made, bytes) else made.encode()
    return seal(statement, sign_proof(KEY, Purpose.RECEIPT, statement))


def offered(**changes: Any) -> bytes:
    """An approval of another offer than the one of the sign-in."""
    return DecisionStatement(replace(OFFER, **changes).encode(), Decision.APPROVE, NUMBER).encode()


def other_server(server_id: bytes) -> ServerId:
    """The id of another server."""
    return ServerId(hashlib.sha256(server_id).digest())
