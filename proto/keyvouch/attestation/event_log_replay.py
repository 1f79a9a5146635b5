"""Holding an event log against a quote, and the few facts about the boot that follow from it.

An optional signal beside a quote (TCG PC Client Platform Firmware Profile, PFP, 1.06). A log is written by whoever
sends it. What a quote protects is, for each quoted PCR, the sequence of digests that were extended into it: another
sequence with the same result would be a collision of the hash. No digest covers an event's type, the order of events
of different PCRs, the digests of other banks, or data that the digest is not the hash of. So:

* the verified result holds nothing but the digests of quoted PCRs, PCR by PCR;
* the facts follow from digests and their order alone. Each fact is a comparison with the hash of a byte string that
  the specification fixes, so neither an event's type nor its data is believed. In particular no variable, signature
  list or device path of the log is interpreted;
* types and data may only make a log be refused.

Who controls the log can have it refused, and can mislabel events; neither changes an accepted result. Who controls
the operating system can extend PCRs once more. The facts allow for that: Secure Boot is what comes first in its PCR,
an error or a debugger is believed wherever it stands, and `exit_boot_services` is no more than a sign that the boot
is over. Limits stay. PCRs say nothing about firmware that lies in its measurements. An error that the firmware measured
into PCR 1 can be hidden by a separator after it, for there it looks like a setting. And a PCR that the firmware leaves
unextended, alone or with its whole bank (TPM Carte Blanche, CVE-2021-42299), can be extended by a program as if it
were the firmware: an unextended PCR is refused here, a forged one cannot be told from a good one. So never rest a
decision on PCRs alone.

What is not here: quotes (`keyvouch.attestation.tpm`), and policies about digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from keyvouch.attestation.event_log import Event, EventLog, EventType
from keyvouch.attestation.tpm import VerifiedQuote
from keyvouch.attestation.tpm_wire import TpmHash
from keyvouch.errors import EvidenceError, Reason

__all__ = ["BootFacts", "VerifiedEventLog", "replay", "verify_event_log"]

_BOOT_PCRS = range(16)
"""PCRs that only a reset of the platform clears (TCG PC Client Platform TPM Profile section 4.6.2)."""
_FIRMWARE_PCRS = range(8)
"""PCRs that the firmware ends with a separator (PFP section 3.3.4)."""
_CONFIGURATION_PCR, _BOOT_MANAGER_PCR, _SECURE_BOOT_PCR = 1, 5, 7

# What is measured by a separator, one after an error, and by events with fixed data (PFP sections 10.4.1, 10.4.4).
_SEPARATORS = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff")
_ERROR = b"\x01\x00\x00\x00"
_DEBUGGER = b"UEFI Debug Mode"
_EXIT_BOOT_SERVICES = b"Exit Boot Services Invocation"

_GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")  # EFI_GLOBAL_VARIABLE (UEFI section 3.3)
_SECURE_BOOT_VALUES: Mapping[bytes, bool] = {b"\x01": True, b"\x00": False, b"": False}


@dataclass(frozen=True, slots=True)
class BootFacts:
    """What the quoted PCRs say about the boot. None means that they do not tell.

    `secure_boot`: the firmware measured the variable SecureBoot as 1, or as 0 or absent, before anything else in
    PCR 7. `debugger`: a firmware debugger was allowed, by PCR 7. `exit_boot_services`: an operating system has taken
    over from the boot services, by PCR 5; not all firmware measures that, and a program may say so too early.
    `platform_errors`: the quoted PCRs from 0 to 7 with an error of the firmware; PCR 1 only if no separator ends it,
    as a configuration flag looks the same there.
    """

    secure_boot: bool | None
    debugger: bool | None
    exit_boot_services: bool | None
    platform_errors: frozenset[int]


@dataclass(frozen=True, slots=True)
class VerifiedEventLog:
    """What a quote proves of an event log: for each quoted PCR of the boot, what was extended, in order.

    PCRs 16 to 23 are left out, quoted or not, as a log of the boot does not account for them.
    """

    bank: TpmHash
    digests: Mapping[int, tuple[bytes, ...]]
    facts: BootFacts


def replay(log: EventLog, bank: TpmHash) -> Mapping[int, bytes]:
    """Compute the PCR values, 0 to 15, that a log claims for a bank; PCRs without events are left out.

    A claim, which proves nothing without a quote. Raises `EvidenceError` with `TPM_EVENT_LOG_REPLAY` if an event has
    no digest of that bank.
    """
    measured = {pcr: _digests(events, bank) for pcr, events in _by_pcr(log, _BOOT_PCRS).items() if events}
    return {pcr: _value(pcr, digests, log, bank) for pcr, digests in measured.items()}


def verify_event_log(log: EventLog, *, quote: VerifiedQuote) -> VerifiedEventLog:
    """Verify that a log accounts for every quoted PCR of the boot.

    `quote` is what `tpm.verify_quote` returned; it is never of the SHA-1 bank. A kernel's own measurements (PCR 10 of
    Linux) are not in the log, so do not ask for that PCR.

    Checks in this order; all raise `EvidenceError` with `TPM_EVENT_LOG_REPLAY`, with `check` and mostly `pcr` in the
    metadata:

     1. the log declares the quoted bank (`bank`)
     2. at least one quoted PCR from 0 to 15 has events: a bank that nobody extended proves nothing (`unextended`)
     3. every event of a quoted PCR has a digest of the bank, else it was not extended there (`digest`)
     4. no quoted PCR with events still has its first value (`unextended`), and every one has the value that the log
        replays to (`value`; PFP section 10.4.5.3 for the first value of PCR 0)
     5. each quoted PCR from 0 to 7 has exactly one event of the type EV_SEPARATOR, and it measures 00000000 or
        FFFFFFFF, which is its data too, or that there was an error (`separator`; PFP section 10.4.1)
    """
    if quote.bank not in log.banks:
        raise _refuse("bank", f"The event log has no digests of the bank {quote.bank.name}.")
    events = _by_pcr(log, sorted(quote.pcr_values.keys() & set(_BOOT_PCRS)))
    if not any(events.values()):
        raise _refuse("unextended", "No event of the log is about a quoted PCR.")
    digests = {pcr: _digests(of_pcr, quote.bank) for pcr, of_pcr in events.items()}
    for pcr, measured in digests.items():
        _check_value(pcr, measured, log, quote)
    for pcr, of_pcr in events.items():
        if pcr in _FIRMWARE_PCRS:
            _check_separator(pcr, of_pcr, quote.bank)
    return VerifiedEventLog(quote.bank, MappingProxyType(digests), _facts(digests, quote.bank))


# Replay


def _by_pcr(log: EventLog, pcrs: Iterable[int]) -> dict[int, list[Event]]:
    """Sort the extended events of some PCRs by PCR, and keep their order."""
    events: dict[int, list[Event]] = {pcr: [] for pcr in pcrs}
    for event in log.events:
        if event.extends and event.register in events:
            events[event.register].append(event)
    return events


def _digests(events: Iterable[Event], bank: TpmHash) -> tuple[bytes, ...]:
    return tuple(_digest(event, bank) for event in events)


def _digest(event: Event, bank: TpmHash) -> bytes:
    digest = event.digests.get(bank)
    if digest is None:
        raise _refuse("digest", f"An event of the log was not extended into the bank {bank.name}.", event.register)
    return digest


def _first_value(pcr: int, log: EventLog, bank: TpmHash) -> bytes:
    return (log.startup_locality if pcr == 0 else 0).to_bytes(bank.digest_size, "big")


def _value(pcr: int, digests: Iterable[bytes], log: EventLog, bank: TpmHash) -> bytes:
    value = _first_value(pcr, log, bank)
    for digest in digests:
        value = bank.digest(value + digest)
    return value


def _check_value(pcr: int, digests: tuple[bytes, ...], log: EventLog, quote: VerifiedQuote) -> None:
    quoted = quote.pcr_values[pcr]
    if digests and quoted == _first_value(pcr, log, quote.bank):
        raise _refuse("unextended", f"The log has events of PCR {pcr}, but nobody extended it in this bank.", pcr)
    if quoted != _value(pcr, digests, log, quote.bank):
        raise _refuse("value", f"The event log does not lead to the quoted value of PCR {pcr}.", pcr)


def _check_separator(pcr: int, events: list[Event], bank: TpmHash) -> None:
    separators = [event for event in events if event.type == EventType.SEPARATOR]
    if len(separators) != 1:
        raise _refuse("separator", f"PCR {pcr} has {len(separators)} separators instead of one.", pcr)
    data, digest = separators[0].data, separators[0].digests[bank]
    if digest != bank.digest(data if data in _SEPARATORS else _ERROR):
        raise _refuse("separator", f"The separator of PCR {pcr} measures something else.", pcr)


# Facts, from digests only


def _facts(digests: Mapping[int, tuple[bytes, ...]], bank: TpmHash) -> BootFacts:
    ends = [bank.digest(data) for data in _SEPARATORS]
    secure_boot = digests.get(_SECURE_BOOT_PCR)
    boot_manager = digests.get(_BOOT_MANAGER_PCR)
    return BootFacts(
        secure_boot=None if secure_boot is None else _secure_boot(_before(secure_boot, ends), bank),
        debugger=None if secure_boot is None else bank.digest(_DEBUGGER) in secure_boot,
        exit_boot_services=None if boot_manager is None else bank.digest(_EXIT_BOOT_SERVICES) in boot_manager,
        platform_errors=_platform_errors(digests, bank.digest(_ERROR), ends),
    )


def _before(measured: tuple[bytes, ...], ends: list[bytes]) -> tuple[bytes, ...]:
    """What the firmware measured before its separator; everything, if it ended with an error."""
    return measured[: min((measured.index(end) for end in ends if end in measured), default=None)]


def _secure_boot(measured: tuple[bytes, ...], bank: TpmHash) -> bool | None:
    """The value of SecureBoot, if it is the first thing in PCR 7 but for a debugger, and the only value.

    Firmware without Secure Boot measures just that first (PFP section 3.3.4.8), before it runs anybody else's code;
    so nobody else's measurement can pass for it.
    """
    values = {bank.digest(_variable("SecureBoot", data)): value for data, value in _SECURE_BOOT_VALUES.items()}
    settings = [digest for digest in measured if digest != bank.digest(_DEBUGGER)]
    found = [values[digest] for digest in settings if digest in values]
    return found[0] if len(found) == 1 and settings[0] in values else None


def _variable(name: str, data: bytes) -> bytes:
    """UEFI_VARIABLE_DATA of a global variable (PFP section 10.2.6)."""
    sizes = len(name).to_bytes(8, "little") + len(data).to_bytes(8, "little")
    return _GLOBAL_VARIABLE + sizes + name.encode("utf-16-le") + data


def _platform_errors(digests: Mapping[int, tuple[bytes, ...]], error: bytes, ends: list[bytes]) -> frozenset[int]:
    return frozenset(
        pcr
        for pcr, measured in digests.items()
        if pcr in _FIRMWARE_PCRS
        and error in measured
        and (pcr != _CONFIGURATION_PCR or not any(end in measured for end in ends))
    )


def _refuse(check: str, message: str, pcr: int | None = None) -> EvidenceError:
    metadata = {"check": check} if pcr is None else {"check": check, "pcr": str(pcr)}
    fix = "Send the log of the running boot and a quote of a bank that the firmware extends, such as SHA-256."
    return EvidenceError(Reason.TPM_EVENT_LOG_REPLAY, message, fix=fix, metadata=metadata)
