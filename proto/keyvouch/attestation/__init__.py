"""Verification of WebAuthn ceremonies: one entry for registrations, one for assertions.

    parse    bytes to structure         keyvouch.webauthn
    verify   structure to evidence      verify_registration, verify_assertion
    decide   evidence to allow/refuse   keyvouch.assurance and the server's policy

Nothing here returns a bool, reads a clock, draws entropy or touches a file or a network.
"""

from keyvouch.attestation.assertion import verify_assertion
from keyvouch.attestation.evidence import (
    AttestationEvidence,
    AttestationRequirement,
    CredentialRecord,
    VerifiedAssertion,
    VerifiedRegistration,
    assurance_of,
)
from keyvouch.attestation.registration import verify_registration
from keyvouch.attestation.trust import Distrust, TrustAnchor, TrustStore

__all__ = [
    "AttestationEvidence",
    "AttestationRequirement",
    "CredentialRecord",
    "Distrust",
    "TrustAnchor",
    "TrustStore",
    "VerifiedAssertion",
    "VerifiedRegistration",
    "assurance_of",
    "verify_assertion",
    "verify_registration",
]
