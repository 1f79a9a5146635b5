"""The `tpm` attestation statement format (WebAuthn Level 3 section 8.3): Windows Hello, and our own agent.

An attestation key certifies the new key by TPM2_Certify; a certification authority certifies the attestation key.

What is not here: the structures (`keyvouch.attestation.tpm_structures`) and the evidence that goes beyond the format:
endorsement keys, quotes, PIN indices (`keyvouch.attestation.tpm`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime

from cryptography import x509

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation.evidence import AttestationEvidence, TpmFacts
from keyvouch.attestation.formats.certified import (
    AIK_CERTIFICATE,
    bad_certificate,
    bad_statement,
    check_aaguid,
    check_end_entity,
    check_members,
    malformed_statement,
    read_algorithm,
    read_bytes,
    read_certificates,
    subject_key,
    trusted_path,
    verify_by_leaf,
)
from keyvouch.attestation.tpm import parse_attest
from keyvouch.attestation.tpm_keys import check_credential_key
from keyvouch.attestation.tpm_structures import TpmAttest, TpmAttestType, TpmCertified, TpmPublic
from keyvouch.attestation.tpm_vendors import find_vendor
from keyvouch.attestation.trust import TrustStore
from keyvouch.cose import Algorithm
from keyvouch.errors import EvidenceError, KeyvouchError, Reason
from keyvouch.webauthn import AttestationObject

__all__ = ["verify"]


_MANUFACTURER = x509.ObjectIdentifier("2.23.133.2.1")
_MODEL = x509.ObjectIdentifier("2.23.133.2.2")
_VERSION = x509.ObjectIdentifier("2.23.133.2.3")
_TPM_ATTRIBUTES = (_MANUFACTURER, _MODEL, _VERSION)

_HASHES: Mapping[Algorithm, str] = {
    Algorithm.ES256: "sha256",
    Algorithm.ES384: "sha384",
    Algorithm.ES512: "sha512",
    Algorithm.PS256: "sha256",
    Algorithm.RS256: "sha256",
}
"""The hash that the algorithm of a statement employs. TPMs have no EdDSA; SHA-1 (RS1) is refused."""


def verify(
    attested: AttestationObject,
    *,
    client_data_hash: bytes,
    anchors: TrustStore,
    instant: datetime,
) -> AttestationEvidence:
    """Verify a TPM statement.

    Checks, in this order (section 8.3, verification procedure):

     1. the statement has exactly ver, alg, x5c, sig, certInfo and pubArea, of the right types, and ver is 2.0
     2. pubArea is a well-formed public area of the credential public key
     3. certInfo is a well-formed attestation of the type certify, made inside a TPM; it holds the hash, by that of
        alg, of authenticator data and client data hash, and certifies the name of pubArea
     4. the key was made inside the TPM, is fixed there and signs (`tpm_keys.check_credential_key`)
     5. the certificates are a valid path to an anchor for this format and model; neither the model nor a key
        in the path is distrusted
     6. the first certificate fits section 8.3.1: version 3, no subject, a subject alternative name with maker, model
        and version of the TPM and a maker that is registered or that the anchor allows, the extended key usage of
        attestation keys, not an authority; its AAGUID extension, if there is one, names the AAGUID of the authenticator
     7. sig verifies with its key and alg over certInfo

    Raises `MalformedError` or `EvidenceError` with `ATTESTATION_STATEMENT` (1, 7), `TPM` and the finer reason as
    `check` in its metadata (2, 3), `TPM_KEY_ATTRIBUTES` (4), `TRUST_CHAIN`, `WEAK_KEY_ROCA` or
    `AUTHENTICATOR_STATUS` (5), `ATTESTATION_CERTIFICATE` (6).
    """
    statement = attested.statement
    check_members(statement, ("ver", "alg", "x5c", "sig", "certInfo", "pubArea"))
    if statement["ver"] != "2.0":
        raise malformed_statement("Its ver is not 2.0.")
    algorithm, signature = _read_algorithm(attested), read_bytes(statement, "sig")
    certify_info, public_area = read_bytes(statement, "certInfo"), read_bytes(statement, "pubArea")
    certificates = read_certificates(statement)
    nonce = hashlib.new(_HASHES[algorithm], attested.authenticator_data + client_data_hash).digest()
    public = _check_binding(attested, certify_info, public_area, nonce)
    check_credential_key(public)
    path = trusted_path(attested, certificates, anchors=anchors, instant=instant)
    leaf = certificates[0]
    check_end_entity(leaf)
    facts = _read_facts(leaf, path.anchor.manufacturers)
    check_aaguid(leaf, attested.attested.aaguid)
    verify_by_leaf(subject_key(leaf), algorithm, signature=signature, message=certify_info)
    return AttestationEvidence(
        "tpm",
        Provenance.ATTESTED,
        path.anchor.name,
        Protection.TPM,
        Verification.SOFTWARE_GATED,  # the platform asks for the PIN; what the TPM enforces is proved elsewhere
        path.certificates,
        facts,
    )


def _read_algorithm(attested: AttestationObject) -> Algorithm:
    algorithm = read_algorithm(attested.statement)
    if algorithm not in _HASHES:
        raise bad_statement(f"A TPM does not sign by {algorithm.name}.")
    return algorithm


# The key and what the TPM says of it


def _check_binding(attested: AttestationObject, certify_info: bytes, public_area: bytes, nonce: bytes) -> TpmPublic:
    """Check that certInfo is about pubArea, pubArea about the credential, and both about this ceremony."""
    public, said = _parse(certify_info, public_area)
    certified = said.attested
    assert isinstance(certified, TpmCertified)
    if public.key != attested.attested.public_key.key_object():
        raise _refuse(Reason.TPM_PUBLIC_KEY, "The public area is not one of the new credential.")
    if not hmac.compare_digest(said.extra_data, nonce):
        raise _refuse(Reason.TPM_NONCE, "The certification was not made for this ceremony.")
    if certified.name != public.name:
        raise _refuse(Reason.TPM_NAME, "The TPM certified another key.")
    return public


def _parse(certify_info: bytes, public_area: bytes) -> tuple[TpmPublic, TpmAttest]:
    """Parse, all reasons of TPM structures becoming one."""
    try:
        return TpmPublic(public_area), parse_attest(certify_info, TpmAttestType.CERTIFY)
    except KeyvouchError as error:
        kind = type(error)
        raise kind(Reason.TPM, error.message, fix=error.fix, metadata={"check": error.reason.value}) from None


def _refuse(check: Reason, message: str) -> EvidenceError:
    fix = "Send what the TPM made in this ceremony."
    return EvidenceError(Reason.TPM, message, fix=fix, metadata={"check": check.value})


# The certificate of the attestation key


def _read_facts(leaf: x509.Certificate, unregistered: frozenset[str]) -> TpmFacts:
    """Check what only section 8.3.1 asks of a certificate, and read what it says of the TPM."""
    if leaf.subject.rdns:
        raise bad_certificate("It has a subject.")
    known = {type(extension.value): extension.value for extension in leaf.extensions}
    usage = known.get(x509.ExtendedKeyUsage)
    if not isinstance(usage, x509.ExtendedKeyUsage) or AIK_CERTIFICATE not in usage:
        raise bad_certificate("It is not for an attestation key.")
    names = known.get(x509.SubjectAlternativeName)
    if not isinstance(names, x509.SubjectAlternativeName):
        raise bad_certificate("It does not name the TPM.")
    manufacturer, model, version = _read_attributes(names)
    vendor = find_vendor(manufacturer)
    if vendor is None and manufacturer not in unregistered:
        raise bad_certificate("The maker of the TPM is not registered with the TCG.")
    return TpmFacts(vendor.name if vendor else manufacturer, model, version)


def _read_attributes(names: x509.SubjectAlternativeName) -> list[str]:
    """Read maker, model and version out of the one directory name, however they are spread over it.

    The profile gives each a relative name of its own; certificates of Windows Hello have all three in one.
    """
    directories = names.get_values_for_type(x509.DirectoryName)
    if len(directories) != 1:
        raise bad_certificate("It does not name exactly one TPM.")
    found = [directories[0].get_attributes_for_oid(oid) for oid in _TPM_ATTRIBUTES]
    values = [attribute.value for attributes in found for attribute in attributes]
    texts = [value for value in values if isinstance(value, str) and value]
    if any(len(attributes) != 1 for attributes in found) or len(texts) != len(_TPM_ATTRIBUTES):
        raise bad_certificate("It does not state maker, model and version of the TPM.")
    return texts
