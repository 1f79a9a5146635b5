"""Verification of a registration (WebAuthn Level 3 section 7.1). The only way to a `VerifiedRegistration`."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from keyvouch.assurance import Provenance
from keyvouch.attestation.ceremony import Expected, check_authenticator_data, check_client_data
from keyvouch.attestation.evidence import (
    AttestationEvidence,
    AttestationRequirement,
    VerifiedRegistration,
)
from keyvouch.attestation.formats import FORMATS
from keyvouch.attestation.trust import TrustStore
from keyvouch.client_data import CollectedClientData
from keyvouch.cose import Algorithm
from keyvouch.errors import EvidenceError, Reason, UsageError
from keyvouch.webauthn import AttestationObject

__all__ = ["verify_registration"]


def verify_registration(
    *,
    client_data: bytes,
    attestation_object: bytes,
    challenge: bytes,
    rp_id: str,
    origins: Collection[str],
    require_user_verification: bool,
    algorithms: Collection[Algorithm],
    attestation: AttestationRequirement,
    anchors: TrustStore,
    instant: datetime,
    allow_cross_origin: bool = False,
    top_origins: Collection[str] = (),
) -> VerifiedRegistration:
    """Verify that a new credential was made for this ceremony, and what vouches for it.

    The first two arguments are the response. The others are what is expected: `challenge` of at least 16 bytes,
    `origins` and `top_origins` compared as exact strings of any scheme, `anchors` trusted for attestation,
    `instant` (aware) at which their chains must be valid.

    Checks, in this order (steps of section 7.1):

     1. the client data is well-formed (5, 6)
     2. its type is `webauthn.create` (7)
     3. its challenge is the expected one, compared in constant time (8)
     4. its origin is one of the expected (9)
     5. a cross-origin frame and its top origin are expected (10, 11)
     6. the attestation object is well-formed (13), and so is what it holds: authenticator data with a new
        credential, BS not set without BE (17), a credential id of at most 1023 bytes (25), a public key of a
        known kind
     7. the RP ID hash is that of the expected RP ID (14)
     8. UP is set (15)
     9. UV is set, if required (16)
    10. the algorithm of the key is one of `algorithms` (20)
    11. the format of the attestation statement is known (21)
    12. the statement is correct and, where it has a chain, trusted (22 to 24)
    13. the attestation is as good as `attestation` wants it (24)

    Returns verified evidence. Whether the credential id is known already (26) is for the caller's store, and so is
    the single use of the challenge. Raises `MalformedError` or `EvidenceError` with the reason of the first check
    that fails, `UsageError` for expectations that make no sense.
    """
    expected = Expected(challenge, rp_id, origins, require_user_verification, allow_cross_origin, top_origins)
    if instant.tzinfo is None:
        raise UsageError("The instant of verification has no time zone.", fix="Pass an aware datetime.")
    collected = CollectedClientData(client_data)
    check_client_data(collected, "webauthn.create", expected)
    attested = AttestationObject(attestation_object)
    check_authenticator_data(attested.authenticator_data, expected)
    _check_algorithm(attested.attested.public_key.algorithm, algorithms)
    evidence = _verify_statement(attested, collected.sha256, anchors, instant)
    _check_requirement(evidence, attestation)
    return VerifiedRegistration(collected, attested, evidence)


def _check_algorithm(algorithm: Algorithm, allowed: Collection[Algorithm]) -> None:
    if algorithm not in allowed:
        names = ", ".join(Algorithm(known).name for known in allowed)
        raise EvidenceError(
            Reason.ALGORITHM_NOT_ALLOWED,
            f"Keys for {algorithm.name} are not allowed here.",
            fix=f"Use one of {names}." if names else "Allow at least one algorithm.",
        )


def _verify_statement(
    attested: AttestationObject, client_data_hash: bytes, anchors: TrustStore, instant: datetime
) -> AttestationEvidence:
    verify = FORMATS.get(attested.format)
    if verify is None:
        raise EvidenceError(
            Reason.ATTESTATION_FORMAT,
            "The format of the attestation statement is not supported.",
            fix=f"Use one of {', '.join(FORMATS)}.",
        )
    return verify(attested, client_data_hash=client_data_hash, anchors=anchors, instant=instant)


def _check_requirement(evidence: AttestationEvidence, required: AttestationRequirement) -> None:
    if required is AttestationRequirement.TRUSTED and evidence.provenance is not Provenance.ATTESTED:
        raise EvidenceError(
            Reason.ATTESTATION_REQUIRED,
            "Nothing trusted vouches for this authenticator, and that is required.",
            fix="Use an authenticator with an attestation that this server trusts.",
        )
