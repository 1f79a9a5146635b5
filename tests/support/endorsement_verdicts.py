"""What the product says of certificates of the forge."""

from __future__ import annotations

from typing import Any

import pytest

from keyvouch.attestation.ber import split_element
from keyvouch.attestation.endorsement import (
    EndorsementCertificate,
    VerifiedEndorsement,
    verify_endorsement_certificate,
)
from keyvouch.errors import KeyvouchError, MalformedError, Reason
from support.endorsement_forge import INSTANT, PublicKey, ek, intermediate, store
from support.software_tpm import public_area


def verify(data: bytes, *, key: PublicKey | None = None, **changes: Any) -> VerifiedEndorsement:
    """Read and verify, expecting the forge's own key and authorities unless told otherwise."""
    arguments: dict[str, Any] = {
        "endorsement_key": public_area(key or ek()),
        "intermediates": [intermediate().der],
        "anchors": store(),
        "instant": INSTANT,
    }
    return verify_endorsement_certificate(EndorsementCertificate.parse(data), **arguments | changes)


def refusal(data: bytes, **changes: Any) -> Reason:
    """The reason why it is refused."""
    with pytest.raises(KeyvouchError) as caught:
        verify(data, **changes)
    return caught.value.reason


def unreadable(data: bytes) -> bool:
    """Whether reading alone refuses it, for the one reason there is."""
    with pytest.raises(MalformedError) as caught:
        EndorsementCertificate.parse(data)
    return caught.value.reason is Reason.TPM_EK_CERTIFICATE


def elements(data: bytes) -> list[bytes]:
    """The elements inside one element."""
    _, at, end = split_element(data)
    found = []
    while at < end:
        start = at
        _, _, at = split_element(data, at)
        found.append(data[start:at])
    return found
