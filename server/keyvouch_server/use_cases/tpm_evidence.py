"""What a TPM proves at the end of a registration or a key replacement, held against its transcript.

The attestation authority is a trust anchor here and nowhere else: for one registration, under the name of the anchor
that the endorsement key certificate led to. So no key gets in by one of its certificates without this transcript.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from keyvouch import cbor
from keyvouch.assurance import Protection, Provenance
from keyvouch.attestation import TrustAnchor, TrustStore, VerifiedRegistration, assurance_of
from keyvouch.attestation.tpm_firmware import firmware_text, known_flaws
from keyvouch.attestation.tpm_registration import (
    TPM_AAGUID,
    Certification,
    VerifiedTpm,
    verify_channel_key,
    verify_tpm_registration,
)
from keyvouch.errors import EvidenceError, Reason, RefusedError
from keyvouch.ids import DeviceId
from keyvouch_server.domain.model import Registration
from keyvouch_server.use_cases.tpm_ceremony import PreparedTpm, read_transcript, subject_public_key
from keyvouch_server.use_cases.world import World

__all__ = ["ProvedTpm", "TpmAnswer", "anchors_for", "expected_tpm", "verify_gated_key", "verify_tpm_answer"]


@dataclass(frozen=True, slots=True)
class TpmAnswer:
    """What a device sends of its TPM with its credential; see TpmEvidence in enrolment.proto.

    `channel_key` is a TPMT_PUBLIC, empty where the channel key is not in the TPM.
    """

    activation: bytes
    pin_index: Certification
    channel_key: bytes
    channel_certification: Certification

    def encode(self) -> bytes:
        """All of it in one byte string, for comparison with the same answer sent again."""
        index, channel = self.pin_index, self.channel_certification
        parts = [index.attest, index.signature, self.channel_key, channel.attest, channel.signature]
        return cbor.encode([self.activation, *parts])


@dataclass(frozen=True, slots=True)
class ProvedTpm:
    """What was proved. `verified` is None where nobody vouches for the TPM: then it opened a challenge, no more."""

    prepared: PreparedTpm
    assurance: str
    verified: VerifiedTpm | None
    channel_key_in_tpm: bool


def expected_tpm(row: Registration, *, shown: bool) -> PreparedTpm | None:
    """The transcript that an answer is held against, None for a registration without a TPM.

    `shown`: evidence of a TPM came with the answer. Raises `RefusedError(TPM_NOT_PREPARED)` where it came without a
    transcript, or where a TPM was announced and never shown.
    """
    if not row.tpm and not shown:
        return None
    found = read_transcript(row.tpm) if row.tpm else None
    if isinstance(found, PreparedTpm):
        return found
    raise RefusedError(
        Reason.TPM_NOT_PREPARED,
        "The TPM of this device has not been shown in this registration.",
        fix="Prepare it first, or begin a registration without a TPM.",
    )


def anchors_for(world: World, prepared: PreparedTpm | None) -> TrustStore:
    """The anchors of one registration: the server's, and its attestation authority for the TPM of the transcript."""
    if prepared is None or prepared.tpm is None:
        return world.anchors
    own = TrustAnchor(
        prepared.tpm.anchor,
        world.keys.attestation_root,
        formats=frozenset({"tpm"}),
        aaguids=frozenset({TPM_AAGUID}),
        protection=Protection.TPM,
        manufacturers=world.endorsers.manufacturers,
    )
    return world.anchors.including(own)


def verify_tpm_answer(
    registration: VerifiedRegistration, answer: TpmAnswer | None, *, prepared: PreparedTpm, row: Registration
) -> ProvedTpm:
    """Verify what came with a registration whose TPM was prepared.

    Checks, in this order: the challenge was opened, compared in constant time (`TPM_ACTIVATION`); where a certificate
    was issued, `tpm_registration.verify_tpm_registration`, no known flaw that disqualifies the TPM
    (`AUTHENTICATOR_STATUS`), and the channel key, if it is certified; where none was, that the key claims no hardware
    (`TPM_EK_CERTIFICATE_MISSING`).
    """
    _check_activation(answer.activation if answer else b"", prepared.activation)
    assert answer is not None
    if prepared.tpm is None:
        _check_claims_no_hardware(registration)
        return ProvedTpm(prepared, assurance_of(registration).text(), None, channel_key_in_tpm=False)
    verified = verify_gated_key(
        registration,
        prepared,
        device_id=row.device_id,
        certificate=prepared.certificate,
        statement=row.statement,
        pin_index=answer.pin_index,
    )
    in_tpm = _verify_channel_key(answer, prepared, row)
    return ProvedTpm(prepared, verified.assurance.text(), verified, in_tpm)


def verify_gated_key(
    registration: VerifiedRegistration,
    prepared: PreparedTpm,
    *,
    device_id: DeviceId,
    certificate: bytes,
    statement: bytes,
    pin_index: Certification,
) -> VerifiedTpm:
    """Verify a key behind the PIN gate of a transcript, in a TPM whose firmware is not known to give keys away.

    `certificate` is the one issued for the attestation key in this ceremony, `statement` that of the ceremony.
    """
    verified = verify_tpm_registration(
        registration,
        transcript=prepared.transcript(device_id, certificate),
        statement=statement,
        pin_index=pin_index,
    )
    _check_firmware(prepared, verified.firmware_version)
    return verified


_ACTIVATION_FIX: Final = "Send what TPM2_ActivateCredential gave for the challenge of this registration."


def _check_activation(shown: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(shown, expected):
        raise EvidenceError(
            Reason.TPM_ACTIVATION,
            "Nothing shows that the TPM opened the challenge, so endorsement key and attestation key may be of two.",
            fix=_ACTIVATION_FIX,
        )


def _check_claims_no_hardware(registration: VerifiedRegistration) -> None:
    """`none` and self attestation are left: any chain would be that of another authenticator."""
    if registration.attestation.provenance is Provenance.ATTESTED:
        raise EvidenceError(
            Reason.TPM_EK_CERTIFICATE_MISSING,
            "Nobody vouches for the TPM of this registration, so its key cannot come with a certificate.",
            fix="Register the other authenticator by itself, or give the agent the certificate of the TPM's maker.",
        )


def _check_firmware(prepared: PreparedTpm, version: int) -> None:
    assert prepared.tpm is not None
    maker = prepared.tpm.manufacturer
    for flaw in known_flaws(maker, version):
        if flaw.disqualifying:
            raise EvidenceError(
                Reason.AUTHENTICATOR_STATUS,
                f"The firmware {firmware_text(maker, version)} of this TPM has a known flaw, {flaw.advisories[0]}: "
                f"{flaw.description}",
                fix="Update the TPM's firmware, clear the TPM, and register again.",
                metadata={"advisories": ", ".join(flaw.advisories), "firmware": firmware_text(maker, version)},
            )


def _verify_channel_key(answer: TpmAnswer, prepared: PreparedTpm, row: Registration) -> bool:
    if not answer.channel_key:
        return False
    key = verify_channel_key(
        transcript=prepared.transcript(row.device_id, prepared.certificate),
        statement=row.statement,
        public=answer.channel_key,
        certification=answer.channel_certification,
    )
    if subject_public_key(key) != row.channel_key:
        raise EvidenceError(
            Reason.CHANNEL_KEY,
            "The TPM certified another key than that of the device channel.",
            fix="Certify the key that the registration was begun with.",
        )
    return True
