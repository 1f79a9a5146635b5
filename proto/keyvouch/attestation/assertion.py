"""Verification of an assertion (WebAuthn Level 3 section 7.2). The only way to a `VerifiedAssertion`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from keyvouch.attestation.ceremony import Expected, check_authenticator_data, check_client_data
from keyvouch.attestation.evidence import CredentialRecord, VerifiedAssertion
from keyvouch.client_data import CollectedClientData
from keyvouch.errors import EvidenceError, Reason
from keyvouch.webauthn import AuthenticatorData

__all__ = ["verify_assertion"]


def verify_assertion(
    *,
    credential: CredentialRecord,
    credential_id: bytes,
    client_data: bytes,
    authenticator_data: bytes,
    signature: bytes,
    user_handle: bytes | None,
    challenge: bytes,
    rp_id: str,
    origins: Collection[str],
    require_user_verification: bool,
    allow_cross_origin: bool = False,
    top_origins: Collection[str] = (),
) -> VerifiedAssertion:
    """Verify that `credential` signed this ceremony.

    The first six arguments are the stored record and the parts of the response; `user_handle` is None where
    the response has none. The others are what is expected: `challenge` of at least 16 bytes, `origins` and
    `top_origins` compared as exact strings of any scheme.

    Checks, in this order (steps of section 7.2):

     1. the credential id is that of the record (5)
     2. the user handle, if there is one, is that of the record (6)
     3. the client data is well-formed (8, 9)
     4. its type is `webauthn.get` (10)
     5. its challenge is the expected one, compared in constant time (11)
     6. its origin is one of the expected (12)
     7. a cross-origin frame and its top origin are expected (13, 14)
     8. the authenticator data is well-formed, BS is not set without BE, no credential is attested (18, 6.1)
     9. the RP ID hash is that of the expected RP ID (15)
    10. UP is set (16)
    11. UV is set, if required (17)
    12. BE is what it was at registration (19)
    13. the signature verifies over authenticator data and client data hash (20, 21)
    14. the counter is greater than the stored one, or both are zero (22)

    Returns the verified assertion; the caller stores its counter and looks after the single use of the challenge.
    Raises `MalformedError` or `EvidenceError` with the reason of the first check that fails, `UsageError` for
    expectations that make no sense.
    """
    expected = Expected(challenge, rp_id, origins, require_user_verification, allow_cross_origin, top_origins)
    _check_identity(credential, credential_id, user_handle)
    collected = CollectedClientData(client_data)
    check_client_data(collected, "webauthn.get", expected)
    data = AuthenticatorData(authenticator_data)
    _check_not_attested(data)
    check_authenticator_data(data, expected)
    _check_backup_eligible(credential, data)
    credential.public_key.verify_signature(
        signature=signature, message=authenticator_data + hashlib.sha256(client_data).digest()
    )
    _check_counter(credential, data)
    return VerifiedAssertion(credential.credential_id, collected, data)


def _check_identity(credential: CredentialRecord, credential_id: bytes, user_handle: bytes | None) -> None:
    if credential_id != credential.credential_id:
        raise EvidenceError(
            Reason.CREDENTIAL_ID, "This is not the credential that was asked for.", fix="Use the registered credential."
        )
    if user_handle is not None and user_handle != credential.user_handle:
        raise EvidenceError(
            Reason.USER_HANDLE, "The credential belongs to another user.", fix="Use a credential of this user."
        )


def _check_not_attested(data: AuthenticatorData) -> None:
    if data.attested is not None:
        raise EvidenceError(
            Reason.ATTESTED_DATA,
            "An assertion does not carry a new credential.",
            fix="Send the authenticator data of an assertion.",
        )


def _check_backup_eligible(credential: CredentialRecord, data: AuthenticatorData) -> None:
    if data.backup_eligible is not credential.backup_eligible:
        raise EvidenceError(
            Reason.BACKUP_ELIGIBLE_CHANGED,
            "The credential says otherwise than at its registration whether it can be backed up.",
            fix="Register a new credential.",
        )


def _check_counter(credential: CredentialRecord, data: AuthenticatorData) -> None:
    stored, new = credential.sign_count, data.sign_count
    if new <= stored and (new or stored):
        raise EvidenceError(
            Reason.SIGN_COUNT,
            "The signature counter did not rise; the authenticator may have been cloned.",
            fix="Remove the credential and register a new one.",
            metadata={"stored": str(stored), "received": str(new)},
        )
