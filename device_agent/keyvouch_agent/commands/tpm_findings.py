"""What `doctor` finds about the TPM, from the library to each account's PIN. A TPM nobody needs is never a problem."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from keyvouch.errors import KeyvouchError, Reason
from keyvouch_agent.commands.findings import Finding, good, note, problem, trouble
from keyvouch_agent.commands.tpm_words import (
    EMULATED,
    certificate_words,
    describe_tpm,
    key_words,
    lockout_words,
    reached,
)
from keyvouch_agent.home import Home
from keyvouch_agent.key_holders import KeyHolderSet
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.tpm_report import AccountReport, TpmReport, look
from keyvouch_agent.vaults.tpm.connection import DEFAULT_DEVICE, JOIN_GROUP, TpmAccess, TpmSettings

if TYPE_CHECKING:  # it loads libtss2
    from keyvouch_agent.vaults.tpm.profile import LockoutState
    from keyvouch_agent.vaults.tpm.survey import TpmSurvey

__all__ = ["tpm_findings"]

_WITHOUT = (
    "Switch it on in the computer's firmware settings (TPM, fTPM, PTT, Security Device), or use another provider."
)


def tpm_findings(holders: KeyHolderSet, home: Home) -> list[Finding]:
    """Everything about the TPM."""
    try:
        report = look(holders, home)
    except KeyvouchError as error:
        return [trouble("tpm settings", error)]
    return list(_findings(report))


def _findings(report: TpmReport) -> Iterator[Finding]:
    way = [_library(report), _device(report)]
    yield from way
    if report.survey is not None:
        yield from _survey(report.survey, report.access)
    elif report.trouble is not None and all(finding.ok for finding in way):
        yield _told("tpm", report.trouble, optional=not report.is_needed)
    yield from (_account(account) for account in report.accounts)
    if report.abandoned:
        names = ", ".join(report.abandoned)
        yield note(
            "tpm leftovers",
            f"accounts of interrupted enrolments: {names}",
            "`keyvouch-agent tpm forget --abandoned` removes them.",
        )


def _library(report: TpmReport) -> Finding:
    try:
        report.access.require_library()
    except KeyvouchError as error:
        return trouble("tpm library", error, optional=not report.is_needed)
    return good("tpm library", "tpm2-pytss and libtss2 are there")


def _device(report: TpmReport) -> Finding:
    """How the TPM is reached, and whether the device is there for this user where it is one."""
    access, path = report.access, Path(report.access.configuration.removeprefix("device:"))
    if not access.configuration.startswith("device:"):
        return good("tpm device", reached(access))
    if not path.exists():
        return Finding("tpm device", False, _absent(path), _WITHOUT, optional=not report.is_needed)
    if not os.access(path, os.R_OK | os.W_OK):
        detail = f"{path} is there, and this user may not use it"
        return Finding("tpm device", False, detail, JOIN_GROUP, optional=not report.is_needed)
    if not access.managed:
        detail = f"{reached(access)}: it serves one program at a time"
        return note("tpm device", detail, f"Use device:{DEFAULT_DEVICE}, the kernel's resource manager.")
    return good("tpm device", reached(access))


def _absent(path: Path) -> str:
    if str(path) == DEFAULT_DEVICE and Path("/dev/tpm0").exists():
        return f"there is /dev/tpm0 but no {path}: the kernel is older than 4.12"
    return f"there is no {path}: this computer has no TPM, or it is switched off"


def _survey(found: TpmSurvey, access: TpmAccess) -> Iterator[Finding]:
    yield good("tpm", describe_tpm(found.profile))
    if found.profile.is_emulated:
        yield note("tpm", EMULATED)
    yield from _flaws(found)
    yield _keys(found)
    yield from _certificates(found)
    yield from _passwords(found.lockout, access.settings)
    yield _lockout(found.lockout)
    yield good("tpm room", _room(found))


def _flaws(found: TpmSurvey) -> Iterator[Finding]:
    from keyvouch.attestation.tpm_firmware import known_flaws  # noqa: PLC0415 - the core, and not for every command

    for flaw in known_flaws(found.profile.manufacturer, found.profile.firmware_version):
        detail = f"{', '.join(flaw.advisories)}: {flaw.description}"
        fix = (
            "Update the TPM's firmware with the tools of the computer's maker, then `keyvouch-agent enroll --replace`."
        )
        yield problem("tpm firmware", detail, fix) if flaw.disqualifying else note("tpm firmware", detail, fix)


def _keys(found: TpmSurvey) -> Finding:
    kinds = [kind.algorithm.name for kind in found.profile.kinds]
    if not kinds:
        return note(
            "tpm keys", "it makes none of the keys Keyvouch uses: P-256, P-384, RSA-2048", "Use another provider."
        )
    return good("tpm keys", f"it makes {', '.join(kinds)}")


def _certificates(found: TpmSurvey) -> Iterator[Finding]:
    check = "tpm maker's certificate"
    for certificate in found.certificates:
        words = certificate_words(certificate)
        if certificate.trouble:
            yield note(check, words, "It counts as none. Get one from the maker, and name the file in agent.toml.")
        else:
            yield good(check, words)
    if not found.certificates:
        yield note(
            check,
            "there is none, so a server cannot know who made this TPM: where policy wants attested keys, it refuses",
            "Get it from the maker and name the file in agent.toml: [tpm] endorsement_certificate.",
        )
    elif found.issuers:
        yield good(check, f"the TPM also holds {found.issuers} of its issuers")


def _passwords(lockout: LockoutState, settings: TpmSettings) -> Iterator[Finding]:
    sets = (
        ("owner", lockout.owner_auth_set, settings.owner_auth, "keys can be made and PIN tries read"),
        ("endorsement", lockout.endorsement_auth_set, settings.endorsement_auth, "the TPM can prove what it is"),
    )
    for name, is_set, known, purpose in sets:
        if is_set and not known:
            yield note(
                f"tpm {name} password",
                f"the {name} hierarchy has a password, and agent.toml does not name it: only with it {purpose}",
                f"Put it into a file only you can read, and name that in agent.toml: [tpm] {name}_auth_file.",
            )
        elif known and not is_set:
            yield note(
                f"tpm {name} password", "agent.toml names one, and the TPM has none", "Take it out of agent.toml."
            )


def _lockout(lockout: LockoutState) -> Finding:
    words = lockout_words(lockout)
    if lockout.in_lockout:
        return note("tpm lockout", words, "Keyvouch's keys go on. To reset it: `keyvouch-agent tpm unlock`.")
    return good("tpm lockout", words)


def _room(found: TpmSurvey) -> str:
    root = "a storage root key at 0x81000001" if found.has_root_key else "no persistent storage root key"
    return f"{found.nv_indices} NV indices, {root}; loaded now: {found.objects} objects, {found.sessions} sessions"


def _account(account: AccountReport) -> Finding:
    e = account.enrolment
    check = f"key of {e.username} of {inert(e.tenant_name)}"
    return good(check, key_words(account)) if account.problem is None else _told(check, account.problem)


def _told(check: str, error: KeyvouchError, *, optional: bool = False) -> Finding:
    """An error in words that do not send the reader to where she is."""
    if error.reason is not Reason.TPM_UNAVAILABLE:
        return trouble(check, error, optional=optional)
    fix = "Start it, or correct how it is reached: [tpm] tcti in agent.toml, else $TSS2_TCTI."
    return Finding(check, False, error.message, fix, optional=optional)
