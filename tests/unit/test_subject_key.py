"""The key of a certificate is found in every edition of it, of whatever kind it is."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch.attestation import certificates
from keyvouch.attestation.subject_key import key_identifier, public_key_bits
from support.certificate_forge import Issued, element, leaf, resign, root, rsa_key

TOP = root()
LEAF, OTHER = leaf(TOP), leaf(TOP, "Other")


@pytest.mark.parametrize("issued", [LEAF, OTHER, leaf(TOP, key=rsa_key(2048))])
def test_the_bits_are_those_of_the_key(issued: Issued) -> None:
    encoded = issued.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert element(0x30, public_key_bits(issued.certificate)) == encoded
    stated = x509.SubjectKeyIdentifier.from_public_key(issued.key.public_key())
    assert key_identifier(issued.certificate) == stated.digest


def test_editions_share_their_bits_and_others_do_not() -> None:
    renewed = leaf(TOP, "Renewed", key=LEAF.key)
    first_version = resign(LEAF, TOP, lambda fields: fields[1:7])
    assert len({LEAF.certificate, renewed.certificate, first_version.certificate}) == 3
    for edition in (renewed, first_version):
        assert public_key_bits(edition.certificate) == public_key_bits(LEAF.certificate)
    assert public_key_bits(OTHER.certificate) != public_key_bits(LEAF.certificate)


def test_path_validation_offers_the_same() -> None:
    assert certificates.public_key_bits is public_key_bits
    assert certificates.key_identifier is key_identifier
