"""What a TPM key must be for its purpose: attestation key, key to sign in with, WebAuthn credential, endorsement key.

The attributes of an object never change and its name covers them, so they need to be judged once per name (TPM 2.0
Library, Part 1 sections 25 and 27, Part 2 section 8.3). Every function takes a parsed public area, returns nothing
and raises `EvidenceError`.

What is not here: proof that a TPM holds the key, without which attributes are only claims. Certification
(`keyvouch.attestation.tpm`) proves all of a public area; credential activation that of the attestation key it names.
Of the endorsement key that opens a challenge, only key, name algorithm and cipher are proved: its name identifies
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from keyvouch.attestation.tpm_public import TpmObjectAttributes, TpmPublic, TpmScheme
from keyvouch.attestation.tpm_wire import TpmAlgorithm, TpmHash
from keyvouch.errors import EvidenceError, Reason

__all__ = ["check_attestation_key", "check_credential_key", "check_endorsement_key", "check_signing_key"]

_A = TpmObjectAttributes
_MADE_INSIDE = _A.FIXED_TPM | _A.FIXED_PARENT | _A.SENSITIVE_DATA_ORIGIN
"""The private key was drawn by the TPM and never leaves it (Part 1 section 23.4)."""


def check_attestation_key(public: TpmPublic) -> None:
    """Check that a key signs only what the TPM itself says (Part 1 section 25.1.5).

    Checks: made inside and fixed there; restricted, sign, not decrypt; names are not hashed by SHA-1; it has a scheme,
    of RSASSA, RSAPSS or ECDSA, not with SHA-1. Raises `EvidenceError` with `TPM_AK_ATTRIBUTES`.
    """
    reason = Reason.TPM_AK_ATTRIBUTES
    _check(public, reason, required=_MADE_INSIDE | _A.RESTRICTED | _A.SIGN, forbidden=_A.DECRYPT)
    if public.scheme is None or not _is_good(public.scheme):
        raise _refuse(reason, "It has no signing scheme that is good for attestations.")


def check_signing_key(public: TpmPublic) -> None:
    """Check that a key is good to sign in with.

    Checks: made inside and fixed there; sign, not decrypt, not restricted; not under encrypted duplication; names are
    not hashed by SHA-1; a scheme, if it has one, is for signing and without SHA-1; userWithAuth is set, or there is an
    authPolicy that is not the one of a fresh session. Nothing is said of a PIN: an authorization value may be empty,
    and what a policy demands has to be compared with the policy that was expected. Raises `EvidenceError` with
    `TPM_KEY_ATTRIBUTES`.
    """
    reason = Reason.TPM_KEY_ATTRIBUTES
    forbidden = _A.DECRYPT | _A.RESTRICTED | _A.ENCRYPTED_DUPLICATION
    _check(public, reason, required=_MADE_INSIDE | _A.SIGN, forbidden=forbidden)
    if public.scheme is not None and not _is_good(public.scheme):
        raise _refuse(reason, "Its scheme is not one of good signatures.")
    if not (public.attributes & _A.USER_WITH_AUTH or any(public.auth_policy)):
        raise _refuse(reason, "Neither an authorization value nor a policy stands before its use.")


def check_credential_key(public: TpmPublic) -> None:
    """Check that a key is good for a WebAuthn credential: what `check_signing_key` checks, but two things.

    It may decrypt too, as RSA keys of Windows Hello may, and nothing is asked about its authorization. Raises
    `EvidenceError` with `TPM_KEY_ATTRIBUTES`.
    """
    forbidden = _A.RESTRICTED | _A.ENCRYPTED_DUPLICATION
    _check(public, Reason.TPM_KEY_ATTRIBUTES, required=_MADE_INSIDE | _A.SIGN, forbidden=forbidden)


def check_endorsement_key(public: TpmPublic) -> None:
    """Check that a key follows a template of the TCG EK Credential Profile (version 2.5, annex B).

    Checks: made inside and fixed there; restricted, decrypt, adminWithPolicy, not sign; names are not hashed by SHA-1;
    AES-128 or AES-256 in CFB mode, no scheme; an authPolicy of the profile (PolicyA of the low range, PolicyB of the
    high range), or none where userWithAuth is set. Raises `EvidenceError` with `TPM_EK_ATTRIBUTES`.
    """
    reason = Reason.TPM_EK_ATTRIBUTES
    required = _MADE_INSIDE | _A.RESTRICTED | _A.DECRYPT | _A.ADMIN_WITH_POLICY
    _check(public, reason, required=required, forbidden=_A.SIGN)
    cipher = public.symmetric
    if cipher is None or (cipher.algorithm, cipher.mode) != _AES_CFB or cipher.key_bits not in (128, 256):
        raise _refuse(reason, "It does not protect secrets by AES in CFB mode.")
    if public.scheme is not None:
        raise _refuse(reason, "A storage key has no scheme.")
    if public.auth_policy:
        known = public.auth_policy in _EK_POLICIES[public.name_algorithm]
    else:
        known = bool(public.attributes & _A.USER_WITH_AUTH)
    if not known:
        raise _refuse(reason, "Its policy is not one of an endorsement key.")


_SIGNING = (TpmAlgorithm.RSASSA, TpmAlgorithm.RSAPSS, TpmAlgorithm.ECDSA)
_AES_CFB = (TpmAlgorithm.AES, TpmAlgorithm.CFB)

_EK_POLICIES: Mapping[TpmHash, tuple[bytes, bytes]] = {  # PolicyA, PolicyB (EK profile annex B.6.2 and B.6.5)
    TpmHash.SHA256: (
        bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"),
        bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"),
    ),
    TpmHash.SHA384: (
        bytes.fromhex(
            "8bbf2266537c171cb56e403c4dc1d4b64f432611dc386e6f532050c3278c930e143e8bb1133824ccb431053871c6db53"
        ),
        bytes.fromhex(
            "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
        ),
    ),
    TpmHash.SHA512: (
        bytes.fromhex(
            "1e3b76502c8a1425aa0b7b3fc646a1b0fae063b03b5368f9c4cddecaff0891dd"
            "682bac1a85d4d832b781ea451915de5fc5bf0dc4a1917cd42fa041e3f998e0ee"
        ),
        bytes.fromhex(
            "b8221ca69e8550a4914de3faa6a18c072cc01208073a928d5d66d59ef79e49a4"
            "29c41a6b269571d57edb25fbdb1838425608b413cd616a5f6db5b6071af99bea"
        ),
    ),
}


def _is_good(scheme: TpmScheme) -> bool:
    """Whether a scheme makes signatures that still bind."""
    return scheme.algorithm in _SIGNING and scheme.hash is not TpmHash.SHA1


def _check(public: TpmPublic, reason: Reason, *, required: _A, forbidden: _A) -> None:
    """Check the attributes, and that nobody can make two keys of one name."""
    missing, wrong = required & ~public.attributes, forbidden & public.attributes
    if missing or wrong:
        names = {"missing": missing.name or "", "forbidden": wrong.name or ""}
        raise _refuse(reason, "It does not have the attributes that its purpose needs.", names)
    if public.name_algorithm is TpmHash.SHA1:
        raise _refuse(reason, "Its name is a SHA-1 digest.")


def _refuse(reason: Reason, why: str, metadata: Mapping[str, str] | None = None) -> EvidenceError:
    return EvidenceError(
        reason,
        f"The TPM key is not fit for its purpose. {why}",
        fix="Make a new key from the template of this purpose.",
        metadata=metadata,
    )
