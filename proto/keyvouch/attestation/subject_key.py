"""The subject public key of a certificate as its bytes: what two certificates of one key have in common.

A key outlives its certificate: makers renew a certificate and keep the key. So whatever is known of a key, such as
that strangers have it, is compared by the key and never by the certificate.

What is not here: keys that compute. These bytes are compared and looked up, whatever kind of key they are of.
"""

from __future__ import annotations

import hashlib

from cryptography import x509

from keyvouch.attestation.der import SEQUENCE, DerReader, Tag, explicit

__all__ = ["key_identifier", "public_key_bits"]


def public_key_bits(certificate: x509.Certificate) -> bytes:
    """Return algorithm and key: all that is inside of subjectPublicKeyInfo (RFC 5280 section 4.1.2.7), in DER."""
    fields = DerReader(certificate.tbs_certificate_bytes).enter(SEQUENCE)
    tag, _ = fields.any()
    for _ in range(4 + (tag == _VERSION)):  # serial number, signature, issuer, validity and subject come before it
        fields.any()
    return fields.read(SEQUENCE)


def key_identifier(certificate: x509.Certificate) -> bytes:
    """Return the 20 bytes that identify the key: SHA-1 of its bits (RFC 5280 section 4.2.1.2 method 1).

    An identifier is for looking things up; it proves nothing. The key itself may be of any kind.
    """
    key = DerReader(public_key_bits(certificate))
    key.read(SEQUENCE)
    return hashlib.sha1(key.read(_BIT_STRING)[1:], usedforsecurity=False).digest()


_VERSION = explicit(0)
_BIT_STRING = Tag(3)
