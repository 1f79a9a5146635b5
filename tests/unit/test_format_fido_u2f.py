"""The fido-u2f format: every check from both sides (WebAuthn Level 3 section 8.6)."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.attestation import AttestationEvidence, Distrust, TrustStore, assurance_of, verify_registration
from keyvouch.cose import Algorithm
from keyvouch.errors import Reason
from support.attestation_forge import (
    CA,
    CERTIFIED_KEYS,
    NOT_CA,
    ROOT,
    aaguid_extension,
    anchor,
    encoded,
    key_for,
    name,
    registration,
    verdict,
)
from support.forge import AAGUID, CREDENTIAL_ID, RP_ID_HASH, Forge, sign

FORGE = Forge()
MODEL_OF_LEAF = bytes(range(100, 116))
KEY = key_for(Algorithm.ES256, "leaf")
LEAF = ROOT.issue(KEY, [(NOT_CA, True)])


def point(forge: Forge) -> bytes:
    return forge.private_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def signed_parts(client_data_hash: bytes) -> dict[str, bytes]:
    return {
        "zero": b"\x00",
        "rp_id_hash": RP_ID_HASH,
        "client_data_hash": client_data_hash,
        "credential_id": CREDENTIAL_ID,
        "point": point(FORGE),
    }


def u2f(*chain: x509.Certificate | bytes, key: Any = KEY, parts: Any = None, **changes: Any) -> dict[str, Any]:
    """A registration with a U2F statement; `parts` replace what is signed."""
    arguments = {member: changes.pop(member) for member in ("anchors", "instant") if member in changes}

    def make(_data: bytes, client_data_hash: bytes) -> dict[str, object]:
        message = b"".join((signed_parts(client_data_hash) | (parts or {})).values())
        algorithm = Algorithm.ES384 if key.curve.key_size == 384 else Algorithm.ES256
        statement = {"sig": sign(key, algorithm, message), "x5c": encoded(chain or (LEAF,))} | changes
        return {member: value for member, value in statement.items() if value is not None}

    return registration(FORGE, "fido-u2f", make, **arguments)


def test_the_evidence_verifies_no_user() -> None:
    trusted = anchor(protection=Protection.SECURE_ELEMENT, verification=Verification.HARDWARE_GATED)
    evidence = verify_registration(**u2f(anchors=TrustStore([trusted])))
    assert evidence.attestation == AttestationEvidence(
        "fido-u2f", Provenance.ATTESTED, "forge", Protection.SECURE_ELEMENT, Verification.NONE, (LEAF,)
    )
    assert assurance_of(evidence) == Assurance(
        Protection.SECURE_ELEMENT, Verification.NONE, Provenance.ATTESTED, "forge"
    )


@pytest.mark.parametrize("kind", list(CERTIFIED_KEYS))
def test_a_key_that_is_certified_for_its_user_does_not_attest(kind: str) -> None:
    assert verdict(u2f(ROOT.issue(KEY, [(NOT_CA, True)]))) is None
    assert verdict(u2f(ROOT.issue(KEY, [(NOT_CA, True), CERTIFIED_KEYS[kind]]))) is Reason.ATTESTATION_CERTIFICATE


def test_a_distrusted_model_is_known_by_its_certificate() -> None:
    """A newer token answers as a U2F token too, by the same attestation certificate."""
    refused, other = (Distrust({model: "Its status is REVOKED."}) for model in (MODEL_OF_LEAF, bytes(16)))
    chain = ROOT.issue(KEY, [(NOT_CA, True), (aaguid_extension(MODEL_OF_LEAF), False)])
    assert verdict(u2f(chain)) is None
    assert verdict(u2f(chain, anchors=TrustStore([anchor()], refused))) is Reason.AUTHENTICATOR_STATUS
    assert verdict(u2f(chain, anchors=TrustStore([anchor()], other))) is Reason.AUTHENTICATOR_STATUS
    assert verdict(u2f(anchors=TrustStore([anchor()], refused))) is None


def test_an_anchor_that_says_nothing_proves_no_hardware() -> None:
    assert verify_registration(**u2f()).attestation.protection is Protection.SOFTWARE


CASES: dict[str, Any] = {
    "sig_missing": lambda: u2f(sig=None),
    "sig_empty": lambda: u2f(sig=b""),
    "sig_text": lambda: u2f(sig="signature"),
    "sig_of_another_key": lambda: u2f(key=key_for(Algorithm.ES256, "other")),
    "x5c_missing": lambda: u2f(x5c=None),
    "x5c_empty": lambda: u2f(x5c=[]),
    "x5c_of_two": lambda: u2f(LEAF, ROOT.certificate),
    "x5c_twice": lambda: u2f(LEAF, LEAF),
    "x5c_trailing": lambda: u2f(encoded([LEAF])[0] + b"\x00"),
    "alg": lambda: u2f(alg=-7),
    "another_member": lambda: u2f(ver="U2F_V2"),
    "over_five": lambda: u2f(parts={"zero": b"\x05"}),
    "over_no_zero": lambda: u2f(parts={"zero": b""}),
    "over_another_rp": lambda: u2f(parts={"rp_id_hash": bytes(32)}),
    "over_another_ceremony": lambda: u2f(parts={"client_data_hash": bytes(32)}),
    "over_another_credential": lambda: u2f(parts={"credential_id": CREDENTIAL_ID[::-1]}),
    "over_another_key": lambda: u2f(parts={"point": point(Forge())}),
    "over_a_compressed_point": lambda: u2f(parts={"point": point(FORGE)[:33]}),
    "over_the_cose_key": lambda: u2f(parts={"point": bytes(FORGE.public_key)}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_wrong_statement_is_refused(case: str) -> None:
    assert verdict(u2f()) is None
    assert verdict(CASES[case]()) is Reason.ATTESTATION_STATEMENT


def test_the_key_of_the_leaf_lies_on_p256() -> None:
    key = key_for(Algorithm.ES384, "leaf")
    assert verdict(u2f(ROOT.issue(key, [(NOT_CA, True)]), key=key)) is Reason.ATTESTATION_CERTIFICATE
    other = ROOT.issue(key_for(Algorithm.RS256, "leaf"), [(NOT_CA, True)])
    assert verdict(u2f(other)) is Reason.ATTESTATION_CERTIFICATE


def test_the_leaf_is_not_an_authority() -> None:
    assert verdict(u2f(ROOT.issue(KEY, [(CA, True)]))) is Reason.ATTESTATION_CERTIFICATE
    assert verdict(u2f(ROOT.issue(KEY, []))) is None
    assert verdict(u2f(ROOT.issue(KEY, [(NOT_CA, False)], name()))) is None


@pytest.mark.parametrize("algorithm", [Algorithm.ES384, Algorithm.EDDSA, Algorithm.RS256], ids=lambda a: a.name)
def test_the_credential_is_one_for_es256(algorithm: Algorithm) -> None:
    forge = Forge(algorithm)

    def make(_data: bytes, client_data_hash: bytes) -> dict[str, object]:
        message = b"".join(signed_parts(client_data_hash).values())
        return {"sig": sign(KEY, Algorithm.ES256, message), "x5c": encoded([LEAF])}

    assert verdict(registration(forge, "fido-u2f", make)) is Reason.ATTESTATION_STATEMENT


def test_the_path() -> None:
    assert verdict(u2f(anchors=TrustStore())) is Reason.TRUST_CHAIN
    assert verdict(u2f(anchors=TrustStore([anchor(LEAF)]))) is None
    intermediate = ROOT.subordinate()
    leaf = intermediate.issue(KEY, [(NOT_CA, True)])
    assert verdict(u2f(leaf)) is Reason.TRUST_CHAIN
    assert verdict(u2f(leaf, anchors=TrustStore([anchor(intermediate.certificate)]))) is None


def test_the_aaguid_is_only_a_claim() -> None:
    """Nothing signs it, so it finds no anchor; the identifier of the attestation key does."""
    key_id = x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()).digest

    def judged(**changes: Any) -> Reason | None:
        return verdict(u2f(anchors=TrustStore([anchor(**changes)])))

    assert judged(aaguids=frozenset({AAGUID})) is Reason.TRUST_CHAIN
    assert judged(aaguids=frozenset({bytes(16)})) is None
    assert judged(key_ids=frozenset({key_id})) is None
    assert judged(key_ids=frozenset({bytes(20)})) is Reason.TRUST_CHAIN
    assert judged(formats=frozenset({"fido-u2f"})) is None
    assert judged(formats=frozenset({"packed"})) is Reason.TRUST_CHAIN
    assert verdict(u2f(ROOT.issue(KEY, [(aaguid_extension(bytes(15)), False)]))) is None


def test_the_order_of_the_reasons() -> None:
    authority, other = ROOT.issue(KEY, [(CA, True)]), key_for(Algorithm.ES256, "other")
    assert verdict(u2f(authority, sig=None, anchors=TrustStore())) is Reason.ATTESTATION_STATEMENT
    assert verdict(u2f(authority, key=other, anchors=TrustStore())) is Reason.TRUST_CHAIN
    assert verdict(u2f(authority, key=other)) is Reason.ATTESTATION_CERTIFICATE
