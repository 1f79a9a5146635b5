"""Health of devices with a TPM: what a report means beside what was known before. Pure; `use_cases.health` keeps it.

    unknown ──report──► good ◄──────────► drifted     something changed, or is not as it should be: an administrator
                          │                  │        looks at it and may accept it as the new baseline
                          └────► failed ◄────┘        the report is false, or the key cannot count as one in hardware

Every report is judged anew against the baseline, which is what registration proved, what was seen first, and what an
administrator has accepted since. So a change that nobody accepts stays a finding. A finding is one sentence; the code
in front of its colon is stable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.attestation.tpm_firmware import firmware_text, known_flaws
from keyvouch.attestation.tpm_health import VerifiedHealth
from keyvouch.attestation.tpm_structures import TpmClock
from keyvouch.errors import KeyvouchError, Reason, RefusedError
from keyvouch_server.domain.model import DeviceTpm, Health
from keyvouch_server.domain.policy_parts import HealthPolicy

NO_HARDWARE: Final = Assurance(Protection.SOFTWARE, Verification.SOFTWARE_GATED, Provenance.UNATTESTED).text()
"""What a key counts for while its device's health is `failed`."""

_LOST: Final = frozenset({Reason.TPM_CLEARED, Reason.DEVICE_KEY_LOST})
_TROUBLES: Final = frozenset(
    {
        Reason.TPM_UNAVAILABLE,
        Reason.TPM_PERMISSION,
        Reason.TPM_BUSY,
        Reason.TPM_MEMORY,
        Reason.TPM_LOCKOUT,
        Reason.TPM_OWNER_AUTH,
        Reason.TPM_FAILED,
        Reason.UNSUPPORTED,
        Reason.INTERNAL,
    }
)
_SILENT: Final = "The device says that it could not ask its TPM."
_CHANGES: Final = frozenset({"firmware_changed", "pcr_changed"})
_STANDING: Final = frozenset({"firmware_flaw", "secure_boot_off", "debugger_allowed", "platform_error", "event_log"})


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a report leads to; `columns` are those of the device's TPM record that it changes beside these two."""

    state: Health
    findings: tuple[str, ...]
    columns: Mapping[str, object]

    @property
    def codes(self) -> tuple[str, ...]:
        """The stable codes of the findings."""
        return tuple(finding.partition(":")[0] for finding in self.findings)

    def changes(self) -> dict[str, object]:
        """All columns that change."""
        return {**self.columns, "health": self.state, "findings": json.dumps(self.findings)}


def heard(record: DeviceTpm, clock: TpmClock, firmware_version: int) -> DeviceTpm:
    """The record with what the TPM attested at registration as its baseline."""
    firmware = _digits(firmware_version)
    baseline = {"firmware": firmware, "pcrs": {}, "accepted": []}
    return replace(record, **_clock(clock), firmware_version=firmware, baseline=json.dumps(baseline, sort_keys=True))


def is_copy(record: DeviceTpm, said: VerifiedHealth) -> bool:
    """Whether this report has been taken already: at one instant, a TPM says one thing."""
    clock = said.clock
    if not record.reported_at or _moment(record) != (clock.reset_count, clock.restart_count, clock.clock):
        return False
    return (record.firmware_version, record.pcr_values) == (_digits(said.firmware_version), _pcrs(said))


def judge_report(record: DeviceTpm, said: VerifiedHealth, *, now: int, log_trouble: str = "") -> Judgement:
    """Judge what a TPM said. `now` is in seconds; `log_trouble` says why the event log with it is not believed."""
    if _went_back(record, said.clock):
        told = "state_rolled_back: The clock or the counts of the TPM are behind what it reported before."
        return Judgement(Health.FAILED, (told,), {"reported_at": now})
    baseline: dict[str, Any] = json.loads(record.baseline)
    # A register that was not asked for before is taken as it is.
    baseline["pcrs"] = {**json.loads(_pcrs(said)), **baseline["pcrs"]}
    columns = {
        **_clock(said.clock),
        "reported_at": now,
        "firmware_version": _digits(said.firmware_version),
        "pcr_values": _pcrs(said),
    }
    fatal = tuple(_disqualifying(record.manufacturer, said.firmware_version))
    if fatal:
        return Judgement(Health.FAILED, fatal, columns)
    found = (*_changed(record, said, baseline), *_standing(record, said, log_trouble))
    findings = tuple(finding for finding in found if finding not in baseline["accepted"])
    columns["baseline"] = json.dumps(baseline, sort_keys=True)
    return Judgement(Health.DRIFTED if findings else Health.GOOD, findings, columns)


def judge_trouble(record: DeviceTpm, trouble: str) -> Judgement:
    """Judge that a device has nothing to report, for this reason. Its last report grows older.

    Who says nothing proves nothing: a device that has failed stays failed, for the reasons it failed for.
    """
    known = {reason.value: reason for reason in _LOST | _TROUBLES}.get(trouble, Reason.INTERNAL)
    if known in _LOST:
        return Judgement(Health.FAILED, (f"{known.value}: The device says that it has lost the key in its TPM.",), {})
    told = f"{known.value}: {_SILENT}"
    if record.health is not Health.FAILED:
        return Judgement(Health.DRIFTED, (told,), {})
    before = [finding for finding in json.loads(record.findings) if not finding.endswith(_SILENT)]
    return Judgement(Health.FAILED, (*before, told), {})


def judge_false(refusal: KeyvouchError) -> Judgement:
    """Judge a report that does not hold."""
    return Judgement(Health.FAILED, (f"{refusal.reason.value}: The report does not hold. {refusal.message}",), {})


def accepted(record: DeviceTpm) -> Mapping[str, object]:
    """The columns that change when an administrator accepts what a device drifted to.

    Raises `RefusedError(DEVICE_HEALTH)` where there is nothing that can be accepted: no drift, or one that is none of
    the TPM's own words.
    """
    findings = json.loads(record.findings)
    codes = {finding.partition(":")[0] for finding in findings}
    if record.health is not Health.DRIFTED or not codes <= _CHANGES | _STANDING:
        raise RefusedError(
            Reason.DEVICE_HEALTH,
            f"There is nothing to accept: the health of this device is {record.health.value}.",
            fix="Look at its findings. A device that failed has to report again, or be registered again.",
            metadata={"health": record.health.value},
        )
    baseline = json.loads(record.baseline)
    baseline["firmware"] = record.firmware_version
    baseline["pcrs"] = {**baseline["pcrs"], **json.loads(record.pcr_values)}
    standing = [finding for finding in findings if finding.partition(":")[0] in _STANDING]
    baseline["accepted"] = sorted({*baseline["accepted"], *standing})
    return {"health": Health.GOOD, "findings": "[]", "baseline": json.dumps(baseline, sort_keys=True)}


def assurance_now(record: DeviceTpm) -> str:
    """What the key of this device counts for, by its health."""
    return NO_HARDWARE if record.health is Health.FAILED else record.proved_assurance


def decide_health(record: DeviceTpm | None, policy: HealthPolicy, *, now: int) -> None:
    """Whether policy lets this device approve. None, and a TPM that nobody vouches for, are not asked for their health.

    Raises `RefusedError(DEVICE_HEALTH)`.
    """
    if not policy.required or record is None or not record.anchor:
        return
    age = (now - record.reported_at) // 60
    if record.health in (Health.GOOD, Health.DRIFTED) and age < policy.max_age_minutes:
        return
    why = "has not been told" if not record.reported_at else f"is {record.health.value}, told {age} minutes ago"
    raise RefusedError(
        Reason.DEVICE_HEALTH,
        f"Policy asks for the health of the device's TPM, which {why}; it may be {policy.max_age_minutes} minutes old.",
        fix="Start the agent on the device, so that it reports; or use another device, or ask an administrator.",
        metadata={"health": record.health.value},
    )


# Comparison


def _went_back(record: DeviceTpm, clock: TpmClock) -> bool:
    """After a shutdown without notice the clock may have been seen before, and says so (Part 2 section 10.11.1)."""
    resets, restarts, instant = _moment(record)
    counts, before = (clock.reset_count, clock.restart_count), (resets, restarts)
    unsafe = not clock.safe and counts > before
    return counts < before if unsafe else counts < before or clock.clock < instant


def _moment(record: DeviceTpm) -> tuple[int, int, int]:
    return record.reset_count, record.restart_count, int(record.clock or "0")


def _disqualifying(manufacturer: str, version: int) -> Iterable[str]:
    for flaw in known_flaws(manufacturer, version):
        if flaw.disqualifying:
            yield _flaw(manufacturer, version, flaw.advisories, flaw.description)


def _flaw(manufacturer: str, version: int, advisories: tuple[str, ...], description: str) -> str:
    return f"firmware_flaw: Firmware {firmware_text(manufacturer, version)}, {', '.join(advisories)}: {description}"


def _changed(record: DeviceTpm, said: VerifiedHealth, baseline: Mapping[str, Any]) -> Iterable[str]:
    before = int(baseline["firmware"], 16)
    if said.firmware_version != before:
        maker = record.manufacturer
        now, then = firmware_text(maker, said.firmware_version), firmware_text(maker, before)
        yield f"firmware_changed: The firmware of the TPM is {now} and was {then}."
    other = [pcr for pcr, value in sorted(said.pcr_values.items()) if baseline["pcrs"][str(pcr)] != value.hex()]
    if other:
        yield f"pcr_changed: The measurements of the boot are others than before, in PCR {_listed(other)}."


def _standing(record: DeviceTpm, said: VerifiedHealth, log_trouble: str) -> Iterable[str]:
    """What is not as it should be, whether it changed or not."""
    for flaw in known_flaws(record.manufacturer, said.firmware_version):
        yield _flaw(record.manufacturer, said.firmware_version, flaw.advisories, flaw.description)
    if log_trouble:
        yield f"event_log: The firmware's log of the boot is not believed. {log_trouble}"
    if said.boot is None:
        return
    if said.boot.secure_boot is False:
        yield "secure_boot_off: The device was booted without Secure Boot."
    if said.boot.debugger:
        yield "debugger_allowed: The device was booted with a firmware debugger allowed."
    if said.boot.platform_errors:
        yield f"platform_error: The firmware reported an error in PCR {_listed(sorted(said.boot.platform_errors))}."


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _clock(clock: TpmClock) -> dict[str, Any]:
    return {"clock": str(clock.clock), "reset_count": clock.reset_count, "restart_count": clock.restart_count}


def _pcrs(said: VerifiedHealth) -> str:
    return json.dumps({str(pcr): value.hex() for pcr, value in sorted(said.pcr_values.items())})


def _digits(firmware_version: int) -> str:
    return f"{firmware_version:016x}"
