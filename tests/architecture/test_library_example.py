"""The example of the attestation library on its page does what the page says."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch.cose import Algorithm
from keyvouch.errors import EvidenceError, Reason
from keyvouch.webauthn import AttestationObject, AuthenticatorData, CollectedClientData, Flags
from support.attestation_forge import NOT_CA, ROOT, Authority, aaguid_extension, signed_by
from support.forge import Forge
from support.repository import ROOT as REPOSITORY

PAGE = (REPOSITORY / "proto" / "README.md").read_text("utf-8").partition("## Attestation")[2]
CHALLENGE = b"c" * 32


def example() -> Any:
    found = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert found
    names: dict[str, Any] = {}
    exec(found[1], names)
    return names["register"]


def test_the_example_runs():
    forge, key = Forge(), ec.generate_private_key(ec.SECP256R1())
    client_data = bytes(CollectedClientData.build("webauthn.create", CHALLENGE, "https://example.org"))
    rp_id_hash = hashlib.sha256(b"example.org").digest()
    data = AuthenticatorData.build(rp_id_hash, Flags.UP | Flags.UV, 0, attested=forge.attested())
    leaf = ROOT.issue(key, [(NOT_CA, True), (aaguid_extension(), False)])
    statement = signed_by(key, Algorithm.ES256, [leaf])(data, hashlib.sha256(client_data).digest())
    response = client_data, bytes(AttestationObject.build("packed", data, statement)), CHALLENGE
    pem = ROOT.certificate.public_bytes(Encoding.PEM)
    proved = example()(*response, pem)
    assert proved == "secure_element/hardware_gated/attested/Example Keys"
    assert f"# {proved}" in PAGE
    with pytest.raises(EvidenceError) as caught:
        example()(*response, Authority.root().certificate.public_bytes(Encoding.PEM))
    assert caught.value.reason is Reason.TRUST_CHAIN
