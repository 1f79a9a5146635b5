"""The example of the FIDO Metadata Service specification."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from keyvouch import base64url
from keyvouch.attestation import TrustAnchor
from keyvouch.attestation.metadata_blob import verify_metadata_blob
from keyvouch.errors import Reason
from support.metadata_forge import (
    ANCHOR,
    expectations,
)
from support.metadata_forge import (
    blob_reason as reason,
)
from support.vectors import load

MALFORMED, UNTRUSTED, STALE = Reason.METADATA_MALFORMED, Reason.METADATA_UNTRUSTED, Reason.METADATA_STALE


EXAMPLE = load("python-fido2/mds3_example_blob.json")
EXAMPLE_ROOT = x509.load_der_x509_certificate(base64.b64decode(EXAMPLE["trust_anchor_der_b64"]))
EXAMPLE_EXPECTED: dict[str, Any] = {
    "anchors": [TrustAnchor("example", EXAMPLE_ROOT)],
    "instant": datetime(2021, 5, 1, tzinfo=UTC),
    "expected_name": "EXAMPLE MDS3 SIGNING CERTIFICATE",
    "grace": timedelta(days=400),
}


def original() -> bytes:
    """The example with its signature as JWS has it; the source encoded it as DER."""
    message, _, text = EXAMPLE["blob_jwt"].rpartition(".")
    r, s = decode_dss_signature(base64url.decode(text))
    return f"{message}.{base64url.encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}".encode()


def test_the_example_of_the_specification() -> None:
    metadata = verify_metadata_blob(original(), **expectations(**EXAMPLE_EXPECTED))
    assert (metadata.number, metadata.next_update.isoformat(), metadata.ignored) == (15, "2020-03-30", 1)
    assert [item.name for item in metadata.entries] == ["mds:0132d110-bf4e-4208-a403-ab4f5f12efe5"]
    assert metadata.rejected == ()


def test_the_example_with_a_signature_in_der_is_no_jws() -> None:
    assert reason(EXAMPLE["blob_jwt"].encode(), **EXAMPLE_EXPECTED) == (MALFORMED, "")


def test_the_example_is_out_of_date_and_its_root_not_ours() -> None:
    assert reason(original(), **EXAMPLE_EXPECTED | {"grace": timedelta(0)}) == (STALE, "next_update")
    assert reason(original(), **EXAMPLE_EXPECTED | {"anchors": [ANCHOR]}) == (UNTRUSTED, "path")
