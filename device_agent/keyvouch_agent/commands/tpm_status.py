"""tpm status: the TPM in a few lines, and every account that has its key in it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from cryptography import x509

from keyvouch_agent import bootstrap
from keyvouch_agent.channel_keys import is_tpm_key
from keyvouch_agent.commands.output import Output
from keyvouch_agent.commands.table import table
from keyvouch_agent.commands.tpm_words import (
    EMULATED,
    certificate_words,
    describe_tpm,
    firmware_of,
    lockout_words,
    maker_of,
    reached,
)
from keyvouch_agent.home import Home
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.tpm_report import AccountReport, TpmReport, look
from keyvouch_agent.views import error_document

if TYPE_CHECKING:  # it loads libtss2
    from keyvouch_agent.vaults.tpm.survey import TpmSurvey

__all__ = ["status"]

_NONE = "No account of this home has its key in the TPM. `keyvouch-agent enroll --provider tpm` makes one."


def status(_arguments: argparse.Namespace, home: Home, output: Output) -> int:
    """Show the TPM and the accounts; the exit code is 1 where a key cannot be used."""
    report = look(bootstrap.key_holders(home), home)
    output.result(_document(report), *_lines(report))
    return 1 if any(account.problem for account in report.accounts) else 0


def _document(report: TpmReport) -> Mapping[str, object]:
    return {
        "tcti": report.access.configuration,
        "origin": report.access.origin,
        "resource_manager": report.access.managed,
        "error": error_document(report.trouble) if report.trouble else None,
        "tpm": _tpm_document(report),
        "accounts": [_account_document(account) for account in report.accounts],
        "abandoned": list(report.abandoned),
    }


def _tpm_document(report: TpmReport) -> Mapping[str, object] | None:
    found = report.survey
    if found is None:
        return None
    lockout = found.lockout
    return {
        "manufacturer": found.profile.manufacturer,
        "maker": maker_of(found.profile),
        "vendor": found.profile.vendor,
        "firmware": firmware_of(found.profile),
        "emulated": found.profile.is_emulated,
        "algorithms": [kind.algorithm.name for kind in found.profile.kinds],
        "certificates": [
            {
                "place": c.place,
                "key": c.key,
                "manufacturer": c.manufacturer,
                "model": c.model,
                "is_der": c.is_der,
                "trouble": c.trouble,
            }
            for c in found.certificates
        ],
        "lockout": {"active": lockout.in_lockout, "counted": lockout.counter, "limit": lockout.limit},
        "passwords": {
            "owner": lockout.owner_auth_set,
            "endorsement": lockout.endorsement_auth_set,
            "lockout": lockout.lockout_auth_set,
        },
        "nv_indices": found.nv_indices,
    }


def _account_document(account: AccountReport) -> Mapping[str, object]:
    e, standing, problem = account.enrolment, account.standing, account.problem
    until = _valid_until(standing.certificate) if standing else None
    return {
        "username": e.username,
        "tenant": e.tenant_name,
        "device_id": e.device_id,
        "account": e.account,
        "usable": problem is None,
        "error": error_document(problem) if problem else None,
        "pin_tries_left": standing.tries_left if standing else None,
        "pin_limit": standing.limit if standing else None,
        "pin_tries_remembered": standing.remembered if standing else False,
        "nv_index": f"0x{standing.handle:08X}" if standing and standing.handle else None,
        "attestation_certificate_until": until.isoformat() if until else None,
        "channel_key_in_tpm": is_tpm_key(e.channel_key),
    }


def _lines(report: TpmReport) -> list[str]:
    pairs = _tpm_pairs(report.survey) if report.survey else []
    pairs.append(("reached", reached(report.access)))
    if report.trouble:
        pairs.append(("problem", str(report.trouble)))
    return [*(f"{label:<10}{inert(words, longest=400)}" for label, words in pairs), "", *_account_lines(report)]


def _tpm_pairs(found: TpmSurvey) -> list[tuple[str, str]]:
    vouched = [certificate_words(c) for c in found.certificates] or ["by nobody: there is no certificate of its maker"]
    pairs = [("TPM", describe_tpm(found.profile)), *(("vouched", words) for words in vouched)]
    if found.profile.is_emulated:
        pairs.append(("note", EMULATED))
    return [*pairs, ("lockout", lockout_words(found.lockout))]


def _account_lines(report: TpmReport) -> list[str]:
    lines = table(_HEAD, [_row(account) for account in report.accounts]) if report.accounts else [_NONE]
    for account in report.accounts:
        if account.problem:
            lines += ["", inert(f"{account.enrolment.username}: {account.problem}", longest=600)]
    if report.abandoned:
        count = len(report.abandoned)
        lines += ["", f"Left by interrupted enrolments: {count}. `keyvouch-agent tpm forget --abandoned` removes them."]
    return lines


_HEAD = ("user", "device", "key", "PIN tries", "NV index", "certificate until", "channel key")


def _row(account: AccountReport) -> tuple[str, ...]:
    e, standing = account.enrolment, account.standing
    until = _valid_until(standing.certificate) if standing else None
    tries = standing is not None and standing.tries_left is not None
    return (
        f"{e.username} of {inert(e.tenant_name)}",
        e.device_id,
        account.problem.reason.value if account.problem else "usable",
        f"{standing.tries_left} of {standing.limit}" if standing and tries else "unknown",
        f"0x{standing.handle:08X}" if standing and standing.handle else "unknown",
        until.strftime("%Y-%m-%d") if until else "none" if standing else "unknown",
        "in the TPM" if is_tpm_key(e.channel_key) else "in software",
    )


def _valid_until(certificate: bytes) -> datetime | None:
    """When the certificate of the attestation key ends; None without one."""
    return x509.load_der_x509_certificate(certificate).not_valid_after_utc if certificate else None
