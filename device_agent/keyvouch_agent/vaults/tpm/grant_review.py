"""What a server grants to a registration with a TPM, looked through before the TPM is asked to do anything with it.

A first write that the ceremony key did not sign would leave an index that nobody can write; an approval that it did not
sign, a PIN that nobody can change. What is not here: the challenge, which only the TPM can open.
"""

from __future__ import annotations

import hmac
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from keyvouch.attestation.pin_gate import PinCounter, PinGate, first_write_message
from keyvouch.attestation.tpm_structures import TpmSignature
from keyvouch.errors import EvidenceError, KeyvouchError, Reason
from keyvouch.statement import RegistrationStatement
from keyvouch_agent.ports import TpmGrant

__all__ = ["review_grant"]

_LONGEST_CREDENTIAL: Final = 132
_LONGEST_SECRET: Final = 512
"""Bytes of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET (Part 2 sections 12.4.3 and 11.4.33) as the TSS takes them."""
_HASH: Final = hashes.SHA256()


def review_grant(grant: TpmGrant, *, gate: PinGate, counter: PinCounter, nonce: bytes, name: bytes) -> None:
    """Check a grant for the gate, the session whose nonce this is, and the attestation key called `name`.

    Raises `MalformedError(STATEMENT_MALFORMED)`, or `EvidenceError`: STATEMENT_MISMATCH for another attestation key,
    TPM_ACTIVATION for a challenge that no TPM takes, SIGNATURE where the ceremony key did not sign the first write or
    the approval of PIN changes.
    """
    if not hmac.compare_digest(RegistrationStatement.parse(grant.statement).ak_name, name):
        raise EvidenceError(
            Reason.STATEMENT_MISMATCH,
            "The server's statement names another attestation key than this TPM's.",
            fix="Nothing was signed. Tell your administrator.",
        )
    if len(grant.credential_blob) > _LONGEST_CREDENTIAL or len(grant.encrypted_secret) > _LONGEST_SECRET:
        raise EvidenceError(
            Reason.TPM_ACTIVATION,
            "The server's challenge is longer than any that a TPM takes.",
            fix="Nothing was made. Tell your administrator.",
        )
    write = first_write_message(gate, nonce=nonce, counter=counter)
    if not _signed(gate, write, grant.first_write) or not _signed(gate, gate.change_message, grant.pin_change):
        raise EvidenceError(
            Reason.SIGNATURE,
            "The server's leave to set a PIN in this TPM is not signed by the key of this registration.",
            fix="Nothing was made. Tell your administrator.",
        )


def _signed(gate: PinGate, message: bytes, signature: bytes) -> bool:
    key = gate.ceremony_key.key
    try:
        value = TpmSignature(signature).value
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(value, message, ec.ECDSA(_HASH))
        else:
            key.verify(value, message, padding.PKCS1v15(), _HASH)
    except (KeyvouchError, InvalidSignature):
        return False
    return True
