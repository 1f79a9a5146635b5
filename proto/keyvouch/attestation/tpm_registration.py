"""Verification of what a TPM proves beyond the attestation statement: one attestation key, and a PIN the chip enforces.

The format `tpm` says that some TPM holds the credential's key. Of a registration with our own agent more is known: the
server itself fixed the attestation key, by credential activation against an endorsement key, and the PIN gate, with a
ceremony key of its own. This module holds the evidence against that transcript and against nothing else.

What is not here: the transcript's making (the server's registration ceremony), and policy.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import serialization

from keyvouch.assurance import Assurance, Provenance, Verification
from keyvouch.attestation.evidence import VerifiedRegistration, assurance_of
from keyvouch.attestation.pin_gate import INDEX_SIZE, PinCounter, PinGate
from keyvouch.attestation.tpm import verify_certify, verify_nv_certify
from keyvouch.attestation.tpm_keys import check_signing_key
from keyvouch.attestation.tpm_structures import (
    TpmAttest,
    TpmClock,
    TpmHash,
    TpmObjectAttributes,
    TpmPublic,
)
from keyvouch.errors import EvidenceError, Reason
from keyvouch.statement import Purpose, challenge

__all__ = [
    "TPM_AAGUID",
    "Certification",
    "TpmTranscript",
    "VerifiedTpm",
    "check_endorsement_primary",
    "check_gated_key",
    "verify_channel_key",
    "verify_tpm_registration",
]

TPM_AAGUID: Final = bytes.fromhex("7d5e2c0b9a4143c8b1f06a3e58d9c417")
"""Names our agent's TPM keys in every attestation; certificates of attestation keys name it too."""

_A = TpmObjectAttributes
_ENDORSEMENT = (0x4000_000B).to_bytes(4, "big")  # TPM_RH_ENDORSEMENT (Part 2 section 7.4)


@dataclass(frozen=True, slots=True)
class Certification:
    """What the TPM returned: a TPMS_ATTEST and a TPMT_SIGNATURE, without the lengths of TPM2Bs."""

    attest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class TpmTranscript:
    """What the ceremony fixed before the key was made. `certificate` is that of the attestation key, in DER.

    It is empty where nobody vouches for the endorsement key: then nothing here can be verified.
    """

    attestation_key: TpmPublic
    certificate: bytes
    gate: PinGate
    pin_limit: int


@dataclass(frozen=True, slots=True)
class VerifiedTpm:
    """A credential key that one known TPM holds and signs with only after its PIN.

    `clock` and `firmware_version` are true, not obfuscated, because the attestation key is one of the endorsement
    hierarchy (Part 1 section 36.7).
    """

    key: TpmPublic
    assurance: Assurance
    clock: TpmClock
    firmware_version: int


def verify_tpm_registration(
    registration: VerifiedRegistration, *, transcript: TpmTranscript, statement: bytes, pin_index: Certification
) -> VerifiedTpm:
    """Verify that a registration is the one of this transcript and that the TPM enforces its PIN.

    `registration` has passed `verify_registration` with the server's attestation authority among the anchors;
    `statement` is the registration statement; `pin_index` a TPM2_NV_Certify of the whole PIN index over
    `challenge(Purpose.PIN_INDEX, statement)`.

    Checks, in this order:

     1. the statement is of the format `tpm`, a trusted path leads to it, and its first certificate is the very one
        that was sealed for this TPM: `TPM_ACTIVATION`
     2. the key is behind the gate (`check_gated_key`): `TPM_KEY_ATTRIBUTES`, `TPM_KEY_POLICY`
     3. `pin_index` passes `tpm.verify_nv_certify` for the index as the gate has it once it is written: the reasons
        named there, `TPM_NAME` for an index with any other attribute or policy
     4. the attestation key is a primary key of the endorsement hierarchy: `TPM_AK_ATTRIBUTES`
     5. the index has the limit that was allowed, and is not blocked: `TPM_NV_INDEX`

    Raises `MalformedError` or `EvidenceError` with the reason of the first check that fails.
    """
    attestation = registration.attestation
    if attestation.format != "tpm" or attestation.provenance is not Provenance.ATTESTED:
        raise _other_key()
    issued = attestation.path[0].public_bytes(serialization.Encoding.DER)
    if not hmac.compare_digest(issued, transcript.certificate):
        raise _other_key()
    key = _public_area(registration)
    check_gated_key(key, transcript.gate)
    contents = verify_nv_certify(
        attestation_key=transcript.attestation_key,
        attest=pin_index.attest,
        signature=pin_index.signature,
        qualifying_data=challenge(Purpose.PIN_INDEX, statement),
        index=transcript.gate.written,
        size=INDEX_SIZE,
    )
    check_endorsement_primary(transcript.attestation_key, TpmAttest(pin_index.attest))
    counter = PinCounter.decode(contents.contents)
    if counter.limit != transcript.pin_limit or not counter.tries_left:
        raise EvidenceError(
            Reason.TPM_NV_INDEX,
            "The PIN index does not hold the limit that was allowed, or is blocked already.",
            fix="Begin the registration again.",
            metadata={"limit": str(counter.limit), "count": str(counter.count)},
        )
    return VerifiedTpm(key, _gated(registration), contents.clock, contents.firmware_version)


def check_gated_key(key: TpmPublic, gate: PinGate) -> None:
    """Check that a public area is that of a key behind `gate`.

    Checks: what `tpm_keys.check_signing_key` checks; userWithAuth and adminWithPolicy are clear, so that for signing
    there is the policy and nothing else; noDA is set, so that the TPM's own lockout is never touched
    (`TPM_KEY_ATTRIBUTES`). authPolicy is that of the gate, by SHA-256 (`TPM_KEY_POLICY`).
    """
    check_signing_key(key)
    wrong = key.attributes & (_A.USER_WITH_AUTH | _A.ADMIN_WITH_POLICY)
    if wrong or not key.attributes & _A.NO_DA:
        raise EvidenceError(
            Reason.TPM_KEY_ATTRIBUTES,
            "The TPM key is not fit for its purpose. Its policy is not the only way to sign with it.",
            fix="Make a new key from the template of this purpose.",
            metadata={"missing": "NO_DA" if not wrong else "", "forbidden": wrong.name or ""},
        )
    if key.name_algorithm is not TpmHash.SHA256 or key.auth_policy != gate.key_policy:
        raise EvidenceError(
            Reason.TPM_KEY_POLICY,
            "The policy of the TPM key is not that of its PIN.",
            fix="Make a new key with the policy of the account's PIN index.",
        )


def check_endorsement_primary(attestation_key: TpmPublic, said: TpmAttest) -> None:
    """Check that the signer of an attestation is a primary key of the endorsement hierarchy.

    Its qualified name then is the hash of the hierarchy's handle and its name (Part 1 section 26.6), and clock and
    firmware version in what it signs are true. The signature must have been verified. Raises
    `EvidenceError(TPM_AK_ATTRIBUTES)`.
    """
    algorithm, name = attestation_key.name_algorithm, attestation_key.name
    if said.qualified_signer != name[:2] + algorithm.digest(_ENDORSEMENT + name):
        raise EvidenceError(
            Reason.TPM_AK_ATTRIBUTES,
            "The attestation key is not a primary key of the endorsement hierarchy, so it may hide clock and firmware.",
            fix="Make the attestation key as a primary key under the endorsement hierarchy.",
        )


def verify_channel_key(
    *, transcript: TpmTranscript, statement: bytes, public: bytes, certification: Certification
) -> TpmPublic:
    """Verify that the TPM of the transcript holds the key of the device channel, and that it never leaves it.

    `certification` is a TPM2_Certify over `challenge(Purpose.CHANNEL_KEY, statement)`. That the key is the one of the
    channel is for the caller to compare. Raises as `TpmPublic` and `tpm.verify_certify` do.
    """
    key = TpmPublic(public)
    return verify_certify(
        attestation_key=transcript.attestation_key,
        attest=certification.attest,
        signature=certification.signature,
        subject=key,
        qualifying_data=challenge(Purpose.CHANNEL_KEY, statement),
    ).key


def _public_area(registration: VerifiedRegistration) -> TpmPublic:
    """The public area in the statement, which has been verified to be that of the credential."""
    area = registration.attestation_object.statement["pubArea"]
    assert isinstance(area, bytes)
    return TpmPublic(area)


def _gated(registration: VerifiedRegistration) -> Assurance:
    proved = assurance_of(registration)
    return Assurance(proved.protection, Verification.HARDWARE_GATED, proved.provenance, proved.anchor)


def _other_key() -> EvidenceError:
    return EvidenceError(
        Reason.TPM_ACTIVATION,
        "The key is not vouched for by the attestation key that was activated in this registration.",
        fix="Use the attestation key and certificate of this registration.",
    )
