"""The attestation statement formats (WebAuthn Level 3 section 8), one module each, behind one table.

A format's `verify` takes a parsed attestation object, the client data hash, the anchors and the instant. It
returns what the statement proves, or raises: `ATTESTATION_STATEMENT` for a statement that is wrong in itself,
`TRUST_CHAIN` for a chain nobody trusts.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from keyvouch.attestation.evidence import AttestationEvidence
from keyvouch.attestation.formats import android_key, apple, fido_u2f, none, packed, piv, tpm
from keyvouch.attestation.trust import TrustStore
from keyvouch.webauthn import AttestationObject

__all__ = ["FORMATS", "StatementVerifier"]


class StatementVerifier(Protocol):
    """Verify the attestation statement of one format."""

    def __call__(
        self,
        attested: AttestationObject,
        *,
        client_data_hash: bytes,
        anchors: TrustStore,
        instant: datetime,
    ) -> AttestationEvidence:
        """Return what the statement proves; raise `EvidenceError` or `MalformedError` otherwise."""
        ...


FORMATS: Mapping[str, StatementVerifier] = {
    "none": none.verify,
    "packed": packed.verify,
    "fido-u2f": fido_u2f.verify,
    "android-key": android_key.verify,
    "apple": apple.verify,
    "piv": piv.verify,
    "tpm": tpm.verify,
}
"""The verifier of each format, by its identifier in the IANA registry (case-sensitive)."""
