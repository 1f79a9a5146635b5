"""Proof keys: P-256 keys by which a client or a device channel proves itself, outside WebAuthn.

Keys travel as DER SubjectPublicKeyInfo, signatures as DER ECDSA with SHA-256 (ES256's parameters). Two
names of a key are in use: its RFC 7638 thumbprint (`jkt`, RFC 9449 section 6) and the SHA-256 of its DER.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import base64url
from keyvouch.errors import EvidenceError, MalformedError, Reason
from keyvouch.statement import Purpose, signed_message

__all__ = [
    "jwk_of",
    "load_proof_key",
    "sign_proof",
    "spki_of",
    "spki_sha256",
    "thumbprint",
    "verify_proof",
]

_ES256 = ec.ECDSA(hashes.SHA256())


def load_proof_key(spki: bytes, *, reason: Reason = Reason.PROOF_INVALID) -> ec.EllipticCurvePublicKey:
    """Load a P-256 public key from DER SubjectPublicKeyInfo; its own DER must give the same bytes back.

    Raises `MalformedError` with `reason` for anything else.
    """
    try:
        key = serialization.load_der_public_key(spki) if len(spki) <= 200 else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1" or spki_of(key) != spki:
        raise MalformedError(
            reason,
            "The public key is not a P-256 key in DER SubjectPublicKeyInfo form.",
            fix="Make an EC key on curve P-256 and send its SubjectPublicKeyInfo in DER.",
        )
    return key


def spki_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """DER SubjectPublicKeyInfo of a key."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of the key's DER SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(spki_of(key)).digest()


def jwk_of(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """The required members of a P-256 key's JWK (RFC 7518 section 6.2.1), in thumbprint order."""
    numbers = key.public_numbers()
    return {
        "crv": "P-256",
        "kty": "EC",
        "x": base64url.encode(numbers.x.to_bytes(32, "big")),
        "y": base64url.encode(numbers.y.to_bytes(32, "big")),
    }


def thumbprint(key: ec.EllipticCurvePublicKey) -> bytes:
    """RFC 7638 SHA-256 thumbprint, 32 bytes."""
    jwk = jwk_of(key)
    canonical = f'{{"crv":"{jwk["crv"]}","kty":"{jwk["kty"]}","x":"{jwk["x"]}","y":"{jwk["y"]}"}}'
    return hashlib.sha256(canonical.encode("ascii")).digest()


def sign_proof(key: ec.EllipticCurvePrivateKey, purpose: Purpose, statement: bytes) -> bytes:
    """Sign `statement` for `purpose`. Entropy comes from the cryptographic library (it must, for ECDSA)."""
    return key.sign(signed_message(purpose, statement), _ES256)


def verify_proof(key: ec.EllipticCurvePublicKey, purpose: Purpose, statement: bytes, *, signature: bytes) -> None:
    """Verify a proof signature. Raises `EvidenceError(PROOF_INVALID)`."""
    try:
        key.verify(signature, signed_message(purpose, statement), _ES256)
    except InvalidSignature:
        raise EvidenceError(
            Reason.PROOF_INVALID,
            "The signature does not prove possession of the key this request is bound to.",
            fix="Use the key with which the request was begun, and sign the statement the protocol names.",
        ) from None
