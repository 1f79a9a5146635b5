"""What a TPM makes, and what a platform says about its boot."""

from __future__ import annotations

from keyvouch.attestation.endorsement_certificate import EndorsementCertificate, split_certificates
from keyvouch.attestation.event_log import EventLog
from keyvouch.attestation.event_log_replay import replay
from keyvouch.attestation.tpm_public import TpmNvPublic, TpmPublic
from keyvouch.attestation.tpm_structures import TpmAttest, TpmCreationData, TpmSignature
from keyvouch.attestation.tpm_wire import TpmHash

from .target import Shape, Target

__all__ = ["TARGETS"]


def _event_log(data: bytes) -> None:
    log = EventLog(data)
    for bank in TpmHash:
        if bank in log.banks:
            replay(log, bank)


TARGETS = (
    Target("tpm-public", TpmPublic, max_length=1024),
    Target("tpm-nv-public", TpmNvPublic, max_length=256),
    Target("tpm-attest", TpmAttest, max_length=1024),
    Target("tpm-creation-data", TpmCreationData, max_length=1024),
    Target("tpm-signature", TpmSignature, max_length=1024),
    Target("event-log", _event_log, max_length=16384),
    Target("endorsement-certificate", EndorsementCertificate.parse, Shape.DER, nests=True),
    Target("endorsement-chain", split_certificates, Shape.DER, nests=True),
)
