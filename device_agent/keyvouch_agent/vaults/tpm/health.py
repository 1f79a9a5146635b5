"""What the TPM says of itself when the device connects: a quote, and the firmware's log of the boot beside it.

The quote has clock, resets and firmware version in it. The log is the kernel's copy of what the firmware wrote; reading
it needs root or a rule of the administrator's, and it is left out where it may not be read or is too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from keyvouch.errors import DeviceError
from keyvouch_agent.ports import HealthReport, TpmCertification
from keyvouch_agent.vaults.tpm import attestation_key
from keyvouch_agent.vaults.tpm.account import TpmAccount

__all__ = ["LONGEST_LOG", "report"]

LONGEST_LOG: Final = 192 * 1024
"""Bytes; see HealthReport in prompts.proto."""


def report(account: TpmAccount, qualifying_data: bytes, pcrs: Sequence[int], *, event_log: str) -> HealthReport:
    """A report over `qualifying_data`. Never raises: what is in the way is the report then."""
    try:
        with account.linked() as link:
            quote, values = attestation_key.quote(link.tpm, link.attestation_key, pcrs, qualifying_data)
    except DeviceError as error:
        return HealthReport(trouble=error.reason.value)
    return HealthReport(TpmCertification(quote.attest, quote.signature), values, _read(event_log))


def _read(path: str) -> bytes:
    if not path:
        return b""
    try:
        with Path(path).open("rb") as file:
            log = file.read(LONGEST_LOG + 1)
    except OSError:
        return b""
    return log if len(log) <= LONGEST_LOG else b""
