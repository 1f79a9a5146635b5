"""Damaged endorsement key certificates: each is refused by an error of the tree, or says what the good one says."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TypeVar

import pytest
from cryptography import x509
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyvouch.attestation.ber import to_der
from keyvouch.attestation.der import DerError
from keyvouch.attestation.endorsement import (
    EndorsementCertificate,
    VerifiedEndorsement,
    read_anchor_certificate,
    split_certificates,
    verify_endorsement_certificate,
)
from keyvouch.attestation.endorsement_certificate import MAX_CHAIN
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.errors import EvidenceError, MalformedError, Reason
from support.endorsement_forge import (
    INSTANT,
    PublicKey,
    certificate,
    ek,
    intermediate,
    root,
    rsa_ek,
    signed_part,
    store,
    stretched,
)
from support.mutations import damaged
from support.software_tpm import public_area
from support.vectors import ROOT

Result = TypeVar("Result")

GOOD = certificate()
GOOD_RSA = certificate(rsa_ek())
ODD = certificate(change=stretched)
REAL = base64.b64decode((ROOT / "go-tpm-tools/uca_tpm_rsa_enc_cert.pem").read_bytes().split(b"-----")[2])
EK = public_area(ek())
REASONS = {Reason.TPM_EK_CERTIFICATE, Reason.TRUST_CHAIN, Reason.WEAK_KEY_ROCA}


def verify(data: bytes, intermediates: list[bytes], endorsement_key: TpmPublic = EK) -> VerifiedEndorsement:
    return verify_endorsement_certificate(
        EndorsementCertificate.parse(data),
        endorsement_key=endorsement_key,
        intermediates=intermediates,
        anchors=store(),
        instant=INSTANT,
    )


def outcome(action: Callable[[], Result]) -> Result | Reason:
    """What comes out, or the reason of an error of the tree. Any other error is a failure of the test."""
    try:
        return action()
    except (MalformedError, EvidenceError) as error:
        return error.reason


def test_the_good_ones_are_good():
    assert verify(GOOD, [intermediate().der])
    assert verify(ODD, [intermediate().der])
    assert EndorsementCertificate.parse(REAL)
    assert EndorsementCertificate.parse(GOOD_RSA)


@pytest.mark.parametrize("good", [GOOD, ODD], ids=["DER", "BER"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_certificate_is_refused_or_is_the_signed_one(good: bytes, data: st.DataObject):
    """Lengths and wrappings around the signed part are not signed: what is inside counts."""
    bad = data.draw(damaged(good))
    found = outcome(lambda: verify(bad, [intermediate().der]))
    if isinstance(found, VerifiedEndorsement):
        assert found.certificate.signed == EndorsementCertificate.parse(good).signed
    else:
        assert found in REASONS


@pytest.mark.parametrize("key", [ek, rsa_ek])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_maker_that_signs_nonsense_does_no_harm(key: Callable[[], PublicKey], data: st.DataObject):
    """The damage is inside the signature, so that it gets past it."""
    bad = data.draw(damaged(signed_part(key(), intermediate())))
    found = outcome(lambda: verify(certificate(change=lambda _: bad), [intermediate().der], public_area(key())))
    if isinstance(found, VerifiedEndorsement):
        assert found.certificate.key == key().public_numbers()
    else:
        assert found in REASONS


@settings(max_examples=300, deadline=None)
@given(damaged(REAL))
def test_a_damaged_real_one_is_read_or_refused(bad: bytes):
    found = outcome(lambda: EndorsementCertificate.parse(bad))
    assert isinstance(found, EndorsementCertificate) or found is Reason.TPM_EK_CERTIFICATE


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(damaged(intermediate().der), damaged(root().der), st.binary(max_size=64)), max_size=4))
def test_damaged_intermediates_never_hurt_and_only_end_in_refusals(bad: list[bytes]):
    assert verify(GOOD, [*bad, intermediate().der])
    found = outcome(lambda: verify(GOOD, bad))
    assert isinstance(found, VerifiedEndorsement) or found in REASONS


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), damaged(root().der + intermediate().der)))
@example(b"\x30\x00" * (MAX_CHAIN + 1))
@example(b"\x30\x84\xff\xff\xff\xff")
def test_a_chain_is_taken_apart_or_refused(blob: bytes):
    found = outcome(lambda: split_certificates(blob))
    if isinstance(found, tuple):
        assert len(found) <= MAX_CHAIN
        assert all(part in blob for part in found)
    else:
        assert found is Reason.TPM_EK_CERTIFICATE


@settings(max_examples=200, deadline=None)
@given(damaged(root().der))
def test_an_anchor_is_read_or_refused(bad: bytes):
    found = outcome(lambda: read_anchor_certificate(bad))
    assert isinstance(found, x509.Certificate) or found is Reason.ATTESTATION_STATEMENT


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), damaged(ODD)))
@example(b"\x30\x80" * 1000)
@example(b"\x30\x02\x31\x00" * 5000)
def test_putting_right_is_done_once(data: bytes):
    try:
        der = to_der(data)
    except DerError:
        return
    assert to_der(der) == der
    assert len(der) <= len(data)
