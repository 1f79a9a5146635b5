"""The `packed` attestation statement format (WebAuthn Level 3 section 8.2).

With certificates, a key of the authenticator's maker vouches for the new credential and for the model. In self
attestation the new key signs for itself, which proves that its holder can use it and nothing about where it lives.
ECDAA, which Level 2 dropped, is refused for good.
"""

from __future__ import annotations

import re
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import NameOID

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation.evidence import AttestationEvidence
from keyvouch.attestation.formats.certified import (
    bad_certificate,
    bad_statement,
    check_aaguid,
    check_attests,
    check_end_entity,
    check_members,
    read_algorithm,
    read_bytes,
    read_certificates,
    subject_key,
    trusted_path,
    verify_by,
    verify_by_leaf,
)
from keyvouch.attestation.trust import TrustStore
from keyvouch.webauthn import AttestationObject

__all__ = ["verify"]


def verify(
    attested: AttestationObject,
    *,
    client_data_hash: bytes,
    anchors: TrustStore,
    instant: datetime,
) -> AttestationEvidence:
    """Verify a packed statement.

    Checks, in this order (section 8.2, verification procedure):

     1. the statement has exactly alg, sig and, with certificates, x5c, of the right types

    with x5c:

     2. the AAGUID extension of the first certificate, if there is one, names the AAGUID of the authenticator
     3. the certificates are a valid path to an anchor for this format and model; neither the model nor a key
        in the path is distrusted
     4. the first certificate fits section 8.2.1: version 3, a subject with C, O, OU and CN, not an authority;
        and its key makes attestations, it is not a certified key of an application, a user or a TPM
     5. sig verifies with its key and alg over authenticator data and client data hash

    without x5c:

     6. alg is the algorithm of the credential public key
     7. sig verifies with that key over authenticator data and client data hash

    Protection and verification are what the anchor says, but of a key that can be backed up they are those of software:
    the authenticator itself says that this key may leave it. Raises `MalformedError` or `EvidenceError` with
    `ATTESTATION_STATEMENT` (1, 5 to 7), `ATTESTATION_CERTIFICATE` (2, 4), `TRUST_CHAIN`, `WEAK_KEY_ROCA` or
    `AUTHENTICATOR_STATUS` (3).
    """
    statement = attested.statement
    check_members(statement, ("alg", "sig"), ("alg", "sig", "x5c"))
    algorithm, signature = read_algorithm(statement), read_bytes(statement, "sig")
    message = attested.authenticator_data + client_data_hash
    if "x5c" not in statement:
        return _verify_self(attested, algorithm, signature, message)
    certificates = read_certificates(statement)
    leaf = certificates[0]
    check_aaguid(leaf, attested.attested.aaguid)
    path = trusted_path(attested, certificates, anchors=anchors, instant=instant)
    check_end_entity(leaf)
    check_attests(leaf)
    _check_subject(leaf.subject)
    verify_by_leaf(subject_key(leaf), algorithm, signature=signature, message=message)
    anchor, protection, verification = path.anchor, path.anchor.protection, path.anchor.verification
    if attested.authenticator_data.backup_eligible:
        protection, verification = Protection.SOFTWARE, min(verification, Verification.SOFTWARE_GATED)
    return AttestationEvidence("packed", Provenance.ATTESTED, anchor.name, protection, verification, path.certificates)


def _verify_self(attested: AttestationObject, algorithm: int, signature: bytes, message: bytes) -> AttestationEvidence:
    key = attested.attested.public_key
    if algorithm != key.algorithm:
        raise bad_statement("The algorithm of the self attestation is not that of the credential.")
    verify_by(key, signature=signature, message=message)
    return AttestationEvidence("packed", Provenance.SELF)


def _check_subject(subject: x509.Name) -> None:
    """Check the subject of an attestation certificate (section 8.2.1): each of four attributes exactly once."""
    attributes = [(attribute.oid, str(attribute.value)) for attribute in subject if attribute.oid in _ATTRIBUTES]
    values = dict(attributes)
    if len(attributes) != len(_ATTRIBUTES) or values.keys() != _ATTRIBUTES:
        raise bad_certificate("Its subject does not have exactly one country, organisation, unit and common name.")
    if not re.fullmatch("[A-Z]{2}", values[NameOID.COUNTRY_NAME]):
        raise bad_certificate("Its subject does not name a country by two letters.")
    if values[NameOID.ORGANIZATIONAL_UNIT_NAME] != "Authenticator Attestation":
        raise bad_certificate("The unit in its subject is not that of an authenticator.")
    if not (values[NameOID.ORGANIZATION_NAME] and values[NameOID.COMMON_NAME]):
        raise bad_certificate("Its subject names nobody.")


_ATTRIBUTES = frozenset(
    {
        NameOID.COUNTRY_NAME,
        NameOID.ORGANIZATION_NAME,
        NameOID.ORGANIZATIONAL_UNIT_NAME,
        NameOID.COMMON_NAME,
    }
)
