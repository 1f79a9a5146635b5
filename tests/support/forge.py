"""A forge of WebAuthn evidence: properly signed by a throw-away key, good unless a test bends one thing.

`Forge` holds one credential. Its `registration` and `assertion` return keyword arguments for the verifiers; a test
replaces one of them, or passes another part to be signed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

from keyvouch.attestation import AttestationRequirement, CredentialRecord, TrustStore
from keyvouch.client_data import CollectedClientData
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData, Flags

RP_ID = "login.example"
ORIGIN = f"keyvouch-agent://{RP_ID}"
RP_ID_HASH = hashlib.sha256(RP_ID.encode()).digest()
CHALLENGE = bytes(range(32))
INSTANT = datetime(2026, 8, 1, tzinfo=UTC)
AAGUID = bytes(range(16))
USER_HANDLE = b"user-handle-0001"
CREDENTIAL_ID = CredentialId(b"credential-id-01")
UP_UV = Flags.UP | Flags.UV

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey

_CURVES: Mapping[Algorithm, tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
    Algorithm.ES256: (ec.SECP256R1(), hashes.SHA256()),
    Algorithm.ES384: (ec.SECP384R1(), hashes.SHA384()),
    Algorithm.ES512: (ec.SECP521R1(), hashes.SHA512()),
}


def new_key(algorithm: Algorithm) -> PrivateKey:
    """Make a throw-away private key."""
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm][0])
    if algorithm is Algorithm.ED448:
        return ed448.Ed448PrivateKey.generate()
    if algorithm is Algorithm.EDDSA:
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 2048)


def sign(key: PrivateKey, algorithm: Algorithm, message: bytes) -> bytes:
    """Sign `message` as a WebAuthn authenticator does."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(_CURVES[algorithm][1]))
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return key.sign(message)
    if algorithm is Algorithm.PS256:
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
        return key.sign(message, scheme, hashes.SHA256())
    return key.sign(message, padding.PKCS1v15(), hashes.SHA256())


class Forge:
    """One throw-away credential."""

    def __init__(self, algorithm: Algorithm = Algorithm.ES256) -> None:
        self.algorithm = algorithm
        self.private_key = new_key(algorithm)
        self.public_key = CoseKey.from_public_key(self.private_key.public_key(), algorithm)

    def sign(self, message: bytes) -> bytes:
        """Sign with the credential's key."""
        return sign(self.private_key, self.algorithm, message)

    def attested(self) -> AttestedCredentialData:
        """The credential as attested credential data."""
        return AttestedCredentialData.build(AAGUID, CREDENTIAL_ID, self.public_key)

    def self_statement(self, data: bytes, client_data: bytes, **changes: object) -> dict[str, object]:
        """A packed self attestation over `data`; a change to None drops the member."""
        signature = self.sign(data + hashlib.sha256(client_data).digest())
        statement: dict[str, object] = {"alg": int(self.algorithm), "sig": signature} | changes
        return {name: value for name, value in statement.items() if value is not None}

    def registration(
        self,
        *,
        client_data: bytes | None = None,
        flags: int = UP_UV,
        sign_count: int = 0,
        format: str = "packed",  # noqa: A002
        statement: Mapping[str, object] | None = None,
        **changes: object,
    ) -> dict[str, Any]:
        """Arguments of `verify_registration`. `changes` replace any of them, after signing."""
        collected = client_data or CollectedClientData.build("webauthn.create", CHALLENGE, ORIGIN)
        data = AuthenticatorData.build(RP_ID_HASH, flags, sign_count, attested=self.attested())
        if statement is None:
            statement = self.self_statement(data, collected) if format == "packed" else {}
        return {
            "client_data": bytes(collected),
            "attestation_object": bytes(AttestationObject.build(format, data, statement)),
            "algorithms": list(Algorithm),
            "attestation": AttestationRequirement.OPTIONAL,
            "anchors": TrustStore(),
            "instant": INSTANT,
            **_expected(),
            **changes,
        }

    def record(self, **changes: Any) -> CredentialRecord:
        """The stored record of the credential."""
        members: dict[str, Any] = {
            "credential_id": CREDENTIAL_ID,
            "public_key": self.public_key,
            "sign_count": 5,
            "user_handle": USER_HANDLE,
            "backup_eligible": False,
        }
        return CredentialRecord(**members | changes)

    def assertion(
        self,
        *,
        client_data: bytes | None = None,
        authenticator_data: bytes | None = None,
        flags: int = UP_UV,
        sign_count: int = 6,
        **changes: object,
    ) -> dict[str, Any]:
        """Arguments of `verify_assertion`. `changes` replace any of them, after signing."""
        collected = client_data or CollectedClientData.build("webauthn.get", CHALLENGE, ORIGIN)
        data = authenticator_data or AuthenticatorData.build(RP_ID_HASH, flags, sign_count)
        return {
            "credential": self.record(),
            "credential_id": CREDENTIAL_ID,
            "client_data": bytes(collected),
            "authenticator_data": bytes(data),
            "signature": self.sign(data + hashlib.sha256(collected).digest()),
            "user_handle": USER_HANDLE,
            **_expected(),
            **changes,
        }


def _expected() -> dict[str, object]:
    return {
        "challenge": CHALLENGE,
        "rp_id": RP_ID,
        "origins": frozenset({ORIGIN}),
        "require_user_verification": True,
    }
