"""The attestation key certificate on its way to the TPM it is for: sealed under the secret of credential activation.

Only the TPM that holds endorsement key and attestation key can open it, so whoever shows the certificate has shown
both (the certificate of a "privacy CA": TPM 2.0 Library, Part 1 section 9.5.3.3). The secret also makes a proof over
the registration statement, for registrations that get no certificate and for those who want to see it spelt out.

    seal     AES-256-GCM, key = HMAC-SHA-256(secret, "keyvouch/attestation-certificate/v1"), the name as additional data
    proof    HMAC-SHA-256(secret, "keyvouch/activation/v1" 00 statement)
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyvouch.errors import EvidenceError, Reason

__all__ = ["SECRET_SIZE", "activation_proof", "open_certificate", "seal_certificate"]

SECRET_SIZE: Final = 32
"""Bytes of the secret: what every endorsement key can carry."""

_NONCE: Final = bytes(12)  # each key seals one certificate
_SEAL: Final = b"keyvouch/attestation-certificate/v1"
_PROOF: Final = b"keyvouch/activation/v1\0"


def seal_certificate(certificate: bytes, *, secret: bytes, name: bytes) -> bytes:
    """Seal a certificate (DER) for the attestation key called `name`."""
    return AESGCM(_key(secret)).encrypt(_NONCE, certificate, name)


def open_certificate(sealed: bytes, *, secret: bytes, name: bytes) -> bytes:
    """Undo `seal_certificate`. Raises `EvidenceError(TPM_ACTIVATION)` for another secret or name, or a changed byte."""
    try:
        return AESGCM(_key(secret)).decrypt(_NONCE, sealed, name)
    except InvalidTag:
        raise EvidenceError(
            Reason.TPM_ACTIVATION,
            "The certificate of the attestation key is not sealed for this TPM.",
            fix="Nothing was enrolled. Begin the registration again.",
        ) from None


def activation_proof(statement: bytes, *, secret: bytes) -> bytes:
    """What shows that the secret is known, 32 bytes. Good for this registration statement only."""
    return hmac.digest(secret, _PROOF + statement, hashlib.sha256)


def _key(secret: bytes) -> bytes:
    return hmac.digest(secret, _SEAL, hashlib.sha256)
