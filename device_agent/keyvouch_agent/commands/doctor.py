"""doctor: looks at everything an approval needs, and says what to do about what is missing."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Mapping
from typing import TypeAlias

from keyvouch.errors import DeviceError, KeyvouchError, Reason, UnavailableError
from keyvouch_agent import bootstrap
from keyvouch_agent.commands.output import Output
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Ledger
from keyvouch_agent.local_client import call_agent
from keyvouch_agent.pin_standing import describe_pin
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.provider_shelf import ProviderKey, ProviderShelf

__all__ = ["doctor"]

Finding: TypeAlias = Mapping[str, object]

_HARDWARE = ("tpm", "fido2", "smartcard")


def doctor(_arguments: argparse.Namespace, home: Home, output: Output) -> int:
    """Print the findings; the exit code is 1 when something is in the way of approving."""
    output.progress("Looking at the home, the key providers and the servers.")
    findings = [
        _look("home", lambda: f"{home.folder('')} is private"),
        _look("ledger", lambda: f"accounts enrolled: {len(Ledger(home).enrolments())}"),
        _agent(home),
        *_providers(home),
        *asyncio.run(_servers(home)),
    ]
    fine = all(finding["ok"] or finding["optional"] for finding in findings)
    output.result({"ok": fine, "checks": findings}, *(_line(finding) for finding in findings))
    return 0 if fine else 1


def _finding(check: str, ok: bool, detail: str, fix: str = "", *, optional: bool = False) -> Finding:
    return {"check": check, "ok": ok, "optional": optional, "detail": detail, "fix": fix}


def _look(check: str, examine: Callable[[], str]) -> Finding:
    try:
        return _finding(check, True, examine())
    except KeyvouchError as error:
        return _finding(check, False, error.message, error.fix)


def _agent(home: Home) -> Finding:
    try:
        call_agent(home, "status", seconds=5.0)
    except UnavailableError as error:
        return _finding("agent", False, error.message, error.fix, optional=True)
    except KeyvouchError as error:
        return _finding("agent", False, error.message, error.fix)
    return _finding("agent", True, "an agent is running")


def _providers(home: Home) -> list[Finding]:
    shelf = bootstrap.open_shelf(home)
    try:
        found = [_provider(kind, shelf) for kind in shelf.kinds()]
    finally:
        shelf.close()
    return found + [_absent(kind) for kind in _HARDWARE if kind not in shelf.kinds()]


def _provider(kind: str, shelf: ProviderShelf) -> Finding:
    check = f"provider {kind}"
    try:
        capabilities = shelf.get(ProviderKey(kind)).capabilities()
    except DeviceError as error:
        if error.reason is Reason.VAULT_BUSY:
            return _finding(check, True, "in use by the running agent")
        return _finding(check, False, error.message, error.fix)
    usable = capabilities.pin_retries_left != 0
    fix = "" if usable else "Its keys cannot be used any more: unregister, move the vault away, enrol again."
    return _finding(check, usable, f"{capabilities.name}: {describe_pin(capabilities)}", fix)


def _absent(kind: str) -> Finding:
    return _finding(f"provider {kind}", False, "not part of this release", optional=True)


async def _servers(home: Home) -> list[Finding]:
    try:
        enrolments = Ledger(home).enrolments()
    except KeyvouchError:
        return []  # reported under `ledger`
    findings = []
    for enrolment in enrolments:
        check = f"server {enrolment.device_endpoint}"
        try:
            name = await bootstrap.check_server(home, enrolment)
            findings.append(_finding(check, True, f"knows this device as {name}"))
        except KeyvouchError as error:
            findings.append(_finding(check, False, error.message, error.fix))
    return findings


def _line(finding: Finding) -> str:
    mark = "ok     " if finding["ok"] else "absent " if finding["optional"] else "PROBLEM"
    text = f"{mark} {inert(str(finding['check']), longest=80)}: {inert(str(finding['detail']), longest=400)}"
    fix = inert(str(finding["fix"]), longest=400)
    return text if finding["ok"] or not fix else f"{text}\n        {fix}"
