"""The `apple` attestation statement format (WebAuthn Level 3 section 8.8): anonymous attestation by Apple.

There is no signature of the authenticator. Apple's authority issues a certificate for the new credential itself, and
puts a hash of the ceremony into it.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from cryptography import x509

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation.der import OCTET_STRING, SEQUENCE, DerError, DerReader, explicit
from keyvouch.attestation.evidence import AttestationEvidence
from keyvouch.attestation.formats.certified import (
    bad_certificate,
    bad_statement,
    check_members,
    check_not_authority,
    check_same_key,
    extension_value,
    read_algorithm,
    read_certificates,
    subject_key,
    trusted_path,
)
from keyvouch.attestation.trust import TrustStore
from keyvouch.webauthn import AttestationObject

__all__ = ["verify"]

_NONCE = x509.ObjectIdentifier("1.2.840.113635.100.8.2")


def verify(
    attested: AttestationObject,
    *,
    client_data_hash: bytes,
    anchors: TrustStore,
    instant: datetime,
) -> AttestationEvidence:
    """Verify an Apple statement.

    Checks, in this order (section 8.8, verification procedure):

     1. the statement has exactly x5c, of the right type; devices of the first releases send alg too, which then is
        the algorithm of the credential public key (1)
     2. the certificates are a valid path to an anchor for this format and model (6.5.4); neither the model nor a key in
        the path is distrusted
     3. the first certificate is not that of an authority and has Apple's nonce extension (4)
     4. the nonce in it is the SHA-256 of authenticator data and client data hash (2 to 4)
     5. its public key is the credential public key (5)

    Raises `MalformedError` or `EvidenceError` with `ATTESTATION_STATEMENT` (1, 4, 5), `ATTESTATION_CERTIFICATE`
    (3), `TRUST_CHAIN`, `WEAK_KEY_ROCA` or `AUTHENTICATOR_STATUS` (2).
    """
    statement, credential = attested.statement, attested.attested.public_key
    check_members(statement, ("x5c",), ("alg", "x5c"))
    if "alg" in statement and read_algorithm(statement) is not credential.algorithm:
        raise bad_statement("Its alg is not that of the credential.")
    certificates = read_certificates(statement)
    path = trusted_path(attested, certificates, anchors=anchors, instant=instant)
    leaf = certificates[0]
    check_not_authority(leaf)
    if _nonce(leaf) != hashlib.sha256(attested.authenticator_data + client_data_hash).digest():
        raise bad_statement("The certificate was issued for another ceremony.")
    check_same_key(subject_key(leaf), credential)
    return AttestationEvidence(
        "apple",
        Provenance.ATTESTED,
        path.anchor.name,
        Protection.SECURE_ELEMENT,
        Verification.SOFTWARE_GATED,
        path.certificates,
    )


def _nonce(leaf: x509.Certificate) -> bytes:
    """Read `SEQUENCE { [1] EXPLICIT OCTET STRING }`."""
    value = extension_value(leaf, _NONCE)
    if value is None:
        raise bad_certificate("It has no nonce of Apple.")
    reader = DerReader(value)
    try:
        sequence = reader.enter(SEQUENCE)
        reader.end()
        tagged = sequence.enter(explicit(1))
        sequence.end()
        nonce = tagged.read(OCTET_STRING)
        tagged.end()
    except DerError:
        raise bad_certificate("Its nonce is not a sequence of one octet string.") from None
    return nonce
