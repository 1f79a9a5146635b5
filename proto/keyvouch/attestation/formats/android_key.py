"""The `android-key` attestation statement format (WebAuthn Level 3 section 8.4).

The key store of an Android device certifies the new credential itself and describes in the certificate how the key
may be used. Where hardware asks the user before each use, it says so there, and only there.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from cryptography import x509

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation.evidence import AndroidKeyFacts, AttestationEvidence
from keyvouch.attestation.formats.certified import (
    bad_certificate,
    bad_statement,
    check_members,
    check_not_authority,
    check_same_key,
    extension_value,
    read_algorithm,
    read_bytes,
    read_certificates,
    subject_key,
    trusted_path,
    verify_by_leaf,
)
from keyvouch.attestation.key_description import KEY_DESCRIPTION, AuthorizationList, KeyDescription, SecurityLevel
from keyvouch.attestation.trust import TrustStore
from keyvouch.webauthn import AttestationObject

__all__ = ["verify"]

MAX_AUTH_TIMEOUT = 60
"""Longest time in seconds between asking the user and using the key that still counts as asking for this use."""

_ORIGIN_GENERATED = 0
_SIGN, _VERIFY = 2, 3
_PASSWORD_OR_BIOMETRIC = 3

_PROTECTION: Mapping[SecurityLevel, Protection] = {
    SecurityLevel.SOFTWARE: Protection.SOFTWARE,
    SecurityLevel.TEE: Protection.TEE,
    SecurityLevel.STRONGBOX: Protection.SECURE_ELEMENT,
}


def verify(
    attested: AttestationObject,
    *,
    client_data_hash: bytes,
    anchors: TrustStore,
    instant: datetime,
) -> AttestationEvidence:
    """Verify an Android key statement.

    Checks, in this order (section 8.4, verification procedure, and 8.4.1):

     1. the statement has exactly alg, sig and x5c, of the right types
     2. the certificates are a valid path to an anchor for this format and model; neither the model nor a key
        in the path is distrusted
     3. the first certificate is not that of an authority, and it alone has a key description: a second one would
        mean that an attested key plays the authority
     4. sig verifies with its key and alg over authenticator data and client data hash
     5. its public key is the credential public key
     6. the key description is well-formed, of a known schema version
     7. its challenge is the client data hash
     8. the key is not for all applications, was generated inside, and is for signing alone (VERIFY, which any holder
        of the public key can do, may stand beside)

    Origin and purpose count from the hardware-enforced list; of a key in software, from both lists together.
    The protection is that of the weaker of the two security levels. The verification is hardware-gated if hardware
    asks for a password or biometric, at most 60 seconds before each use. Raises `MalformedError` or `EvidenceError`
    with `ATTESTATION_STATEMENT` (1, 4, 5, 7), `ATTESTATION_CERTIFICATE` (3, 6, 8), `TRUST_CHAIN`, `WEAK_KEY_ROCA` or
    `AUTHENTICATOR_STATUS` (2).
    """
    statement = attested.statement
    check_members(statement, ("alg", "sig", "x5c"))
    algorithm, signature = read_algorithm(statement), read_bytes(statement, "sig")
    certificates = read_certificates(statement)
    path = trusted_path(attested, certificates, anchors=anchors, instant=instant)
    encoded = _description_of(certificates)
    leaf_key = subject_key(certificates[0])
    message = attested.authenticator_data + client_data_hash
    verify_by_leaf(leaf_key, algorithm, signature=signature, message=message)
    check_same_key(leaf_key, attested.attested.public_key)
    description = KeyDescription.parse(encoded)
    if description.challenge != client_data_hash:
        raise bad_statement("The certificate was issued for another ceremony.")
    level = min(description.attestation_level, description.key_level)
    _check_use(description, level)
    return AttestationEvidence(
        "android-key",
        Provenance.ATTESTED,
        path.anchor.name,
        _PROTECTION[level],
        _verification(description, level),
        path.certificates,
        AndroidKeyFacts(level.name.lower(), description.version),
    )


def _description_of(certificates: list[x509.Certificate]) -> bytes:
    """Return the encoded key description of the leaf."""
    leaf, *others = certificates
    check_not_authority(leaf)
    encoded = extension_value(leaf, KEY_DESCRIPTION)
    if encoded is None:
        raise bad_certificate("It does not describe the key.")
    if any(extension_value(other, KEY_DESCRIPTION) is not None for other in others):
        raise bad_certificate("It was issued by a key that is itself attested.")
    return encoded


def _check_use(description: KeyDescription, level: SecurityLevel) -> None:
    software, tee = description.software_enforced, description.tee_enforced
    if software.all_applications or tee.all_applications:
        raise bad_certificate("The key can be used by every application.")
    lists = (software, tee) if level is SecurityLevel.SOFTWARE else (tee,)
    if {entries.origin for entries in lists} - {None} != {_ORIGIN_GENERATED}:
        raise bad_certificate("The key was not generated where it lives.")
    purposes = {purpose for entries in lists for purpose in entries.purposes}
    if _SIGN not in purposes or not purposes <= {_SIGN, _VERIFY}:
        raise bad_certificate("The key is not one for signing alone.")


def _verification(description: KeyDescription, level: SecurityLevel) -> Verification:
    gated = level is not SecurityLevel.SOFTWARE and _asks(description.software_enforced, description.tee_enforced)
    return Verification.HARDWARE_GATED if gated else Verification.SOFTWARE_GATED


def _asks(software: AuthorizationList, tee: AuthorizationList) -> bool:
    """Whether hardware asks the user before each use; a time limit that software keeps is none."""
    if software.no_auth_required or tee.no_auth_required or software.auth_timeout is not None:
        return False
    asked = tee.user_auth_type & _PASSWORD_OR_BIOMETRIC != 0
    return asked and (tee.auth_timeout is None or tee.auth_timeout <= MAX_AUTH_TIMEOUT)
