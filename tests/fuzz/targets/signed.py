"""Keyvouch's own signed things: statements, access tokens, proof keys, receipts, lines of an audit log."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import base64url
from keyvouch.audit_lines import parse_line
from keyvouch.proofs import load_proof_key, sign_proof, verify_proof
from keyvouch.receipt import seal, verify_receipt
from keyvouch.statement import DecisionStatement, Purpose, RegistrationStatement, SignInOffer
from keyvouch.tokens import verify_access_token

from .target import Shape, Target

__all__ = ["PROOF_KEY", "TARGETS"]

PROOF_KEY = base64url.decode(
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li_hp_m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q"
)
"""The base point of P-256, whose private key is one."""


def _token(data: bytes) -> None:
    key = load_proof_key(PROOF_KEY)
    verify_access_token(data.decode("latin-1"), keys={"key": key}, issuer="https://i", audience="a", now=1_000)


def _proof(data: bytes) -> None:
    verify_proof(load_proof_key(PROOF_KEY), Purpose.REDEEM, b"statement", signature=data)


_IDENTITY_KEY = ec.derive_private_key(1, ec.SECP256R1())


def _receipt(data: bytes) -> None:
    verify_receipt(data, server_id=None)


def _receipt_statement(data: bytes) -> None:
    """What comes after the server's signature."""
    verify_receipt(seal(data, sign_proof(_IDENTITY_KEY, Purpose.RECEIPT, data)), server_id=None)


TARGETS = (
    Target("registration-statement", RegistrationStatement.parse, Shape.CBOR),
    Target("sign-in-offer", SignInOffer.parse, Shape.CBOR),
    Target("decision-statement", DecisionStatement.parse, Shape.CBOR),
    Target("access-token", _token, nests=True),
    Target("proof-key", load_proof_key, Shape.DER, 300),
    Target("proof", _proof, Shape.DER, 200),
    Target("receipt", _receipt, Shape.CBOR),
    Target("receipt-statement", _receipt_statement, Shape.CBOR),
    Target("audit-line", parse_line, nests=True),
)
