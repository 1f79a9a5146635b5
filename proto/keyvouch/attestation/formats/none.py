"""The `none` attestation statement format: nothing is said, so nothing is proved (WebAuthn Level 3 section 8.7)."""

from __future__ import annotations

from datetime import datetime

from keyvouch.assurance import Provenance
from keyvouch.attestation.evidence import AttestationEvidence
from keyvouch.attestation.trust import TrustStore
from keyvouch.errors import MalformedError, Reason
from keyvouch.webauthn import AttestationObject

__all__ = ["verify"]


def verify(
    attested: AttestationObject,
    *,
    client_data_hash: bytes,  # noqa: ARG001  # a format that signs nothing
    anchors: TrustStore,  # noqa: ARG001
    instant: datetime,  # noqa: ARG001
) -> AttestationEvidence:
    """Check that the statement is an empty map. Raises `MalformedError` with `ATTESTATION_STATEMENT` if not."""
    if attested.statement:
        raise MalformedError(
            Reason.ATTESTATION_STATEMENT,
            "A statement of the format none has to be empty.",
            fix="Name the format that the statement has.",
        )
    return AttestationEvidence("none", Provenance.UNATTESTED)
