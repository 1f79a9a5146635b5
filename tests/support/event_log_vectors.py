"""The published event logs, the PCR values known for them, and a sweep that flips their bits."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any

from keyvouch.attestation.event_log import EventLog
from keyvouch.attestation.event_log_replay import replay, verify_event_log
from keyvouch.attestation.tpm import VerifiedQuote
from keyvouch.attestation.tpm_structures import TpmHash
from keyvouch.errors import EvidenceError, MalformedError
from support.event_logs import quote_with
from support.vectors import ROOT, load

LOGS: list[dict[str, Any]] = load("event-logs/expected.json")["logs"]
BY_FILE = {str(vector["file"]): vector for vector in LOGS}
SOUND = [vector for vector in LOGS if "malformed" not in vector]
WINDOWS = "go-attestation/windows_gcp_shielded_vm.json"
LINUX_TPM12 = "go-eventlog/linux_tpm12.json"
SWEPT = [str(vector["file"]) for vector in SOUND if "verified" in vector["quote_of"].values()] + [WINDOWS, LINUX_TPM12]
FRAGMENTS = [str(vector["file"]) for vector in SOUND if str(vector["file"]) not in SWEPT]
IMA_PCR = 10
"""Extended by the kernel of Linux, which keeps a log of its own."""


@cache
def raw(file: str) -> bytes:
    """The bytes of an event log."""
    data = (ROOT / "event-logs" / file).read_bytes()
    if file.endswith(".json"):
        return base64.b64decode(json.loads(data)["Log"]["Raw"])
    return base64.b64decode(data) if file.endswith(".b64") else data


def published_values(file: str, bank: str) -> dict[int, bytes]:
    """The PCR values of a bank as others publish or compute them, as far as they do."""
    vector = BY_FILE[file]
    values = vector.get("pcrs_published", {}).get(bank) or vector.get("pcrs_computed", {}).get(bank) or {}
    return {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}


def known_values(file: str, bank: str) -> dict[int, bytes]:
    """The same, with what our own replay leads to where nobody says."""
    return dict(replay(EventLog(raw(file)), TpmHash[bank])) | published_values(file, bank)


def accountable(file: str, bank: str) -> VerifiedQuote:
    """A quote of the PCRs that the log accounts for, in the way that is asked for here."""
    values = known_values(file, bank)
    values.pop(IMA_PCR, None)
    if file == WINDOWS:  # an old firmware, which did not end its other PCRs
        values = {pcr: values[pcr] for pcr in (7, 11, 12, 13, 14)}
    return quote_with(values, TpmHash[bank])


def sweep(file: str, flips: int) -> tuple[int, int]:
    """Flip some bits of a log, one at a time: how many are refused, and how many mean the same. No other is allowed."""
    bank = next(bank for bank in ("SHA256", "SHA1") if bank in BY_FILE[file]["quote_of"])
    quote, data, refused, same = accountable(file, bank), bytearray(raw(file)), 0, 0
    good = verify_event_log(EventLog(raw(file)), quote=quote)
    for bit in range(0, 8 * len(data), 8 * len(data) // flips | 1):
        data[bit >> 3] ^= 1 << (bit & 7)
        try:
            found = verify_event_log(EventLog(bytes(data)), quote=quote)
        except (MalformedError, EvidenceError):
            refused += 1
        else:
            assert found == good
            same += 1
        data[bit >> 3] ^= 1 << (bit & 7)
    return refused, same
