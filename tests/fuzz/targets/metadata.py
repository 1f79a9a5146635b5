"""The FIDO Metadata Service's BLOB: as it comes, and what is in it once its signature is verified."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from functools import cache

from keyvouch.attestation.certificates import parse_certificate
from keyvouch.attestation.metadata_blob import verify_metadata_blob
from keyvouch.attestation.metadata_payload import parse_payload
from keyvouch.attestation.metadata_revocation import parse_crl
from keyvouch.attestation.trust import TrustAnchor
from support.vectors import load

from .target import Shape, Target

__all__ = ["TARGETS"]


@cache
def _anchor() -> TrustAnchor:
    root = load("python-fido2/mds3_example_blob.json")["trust_anchor_der_b64"]
    return TrustAnchor("example", parse_certificate(base64.b64decode(root)))


def _blob(data: bytes) -> None:
    verify_metadata_blob(
        data,
        anchors=[_anchor()],
        instant=datetime(2026, 8, 1, tzinfo=UTC),
        expected_name=None,
        minimum_number=None,
        grace=timedelta(days=3000),
        crls=[],
        require_crls=False,
    )


TARGETS = (
    Target("metadata-blob", _blob, max_length=16384, nests=True),
    Target("metadata-payload", parse_payload, max_length=16384, nests=True),
    Target("crl", parse_crl, Shape.DER, nests=True),
)
