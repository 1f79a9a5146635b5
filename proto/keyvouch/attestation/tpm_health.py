"""Verification of what a device's TPM says of itself when the device connects: clock, resets, firmware, PCRs, boot log.

A quote carries all of it under the signature of the attestation key that was activated at registration. What a change
means is for policy: this module states facts.

What is not here: comparison with what was reported before, and known flaws of firmware
(`keyvouch.attestation.tpm_firmware`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from keyvouch.attestation.event_log import EventLog
from keyvouch.attestation.event_log_replay import BootFacts, verify_event_log
from keyvouch.attestation.tpm import verify_quote
from keyvouch.attestation.tpm_registration import Certification, check_endorsement_primary
from keyvouch.attestation.tpm_structures import TpmAttest, TpmClock, TpmHash, TpmPublic
from keyvouch.statement import Purpose, challenge

__all__ = ["BANK", "VerifiedHealth", "verify_health"]

BANK: Final = TpmHash.SHA256
"""The bank of PCRs that is quoted: every TPM has it (TCG PC Client Platform TPM Profile section 4.6)."""


@dataclass(frozen=True, slots=True)
class VerifiedHealth:
    """What a TPM said when it was asked. `boot` is None where no event log came with the quote."""

    clock: TpmClock
    firmware_version: int
    pcr_values: Mapping[int, bytes]
    boot: BootFacts | None


def verify_health(
    *,
    attestation_key: TpmPublic,
    quote: Certification,
    pcrs: Collection[int],
    pcr_values: Mapping[int, bytes],
    event_log: bytes,
    statement: bytes,
) -> VerifiedHealth:
    """Verify a report of health.

    `pcrs` are those that were asked for, of the SHA-256 bank; `pcr_values` as reported; `event_log` the firmware's log
    or empty; `statement` what `statement.health_statement` made for this connection.

    Checks, in this order:

     1. `quote` is one of these PCRs over `challenge(Purpose.HEALTH, statement)` (`tpm.verify_quote`)
     2. the attestation key is a primary key of the endorsement hierarchy, so that clock and firmware are true
        (`TPM_AK_ATTRIBUTES`)
     3. the log, if there is one, is well-formed and accounts for the quoted PCRs (`event_log_replay.verify_event_log`)

    Raises `MalformedError` or `EvidenceError` with the reason of the first check that fails.
    """
    said = verify_quote(
        attestation_key=attestation_key,
        attest=quote.attest,
        signature=quote.signature,
        qualifying_data=challenge(Purpose.HEALTH, statement),
        selection={BANK: pcrs},
        pcr_values={BANK: pcr_values},
    )
    check_endorsement_primary(attestation_key, TpmAttest(quote.attest))
    boot = verify_event_log(EventLog(event_log), quote=said).facts if event_log else None
    return VerifiedHealth(said.clock, said.firmware_version, said.pcr_values, boot)
