"""doctor: looks at everything an approval needs, and says what to do about what is missing."""

from __future__ import annotations

import argparse
import asyncio

from keyvouch.errors import DeviceError, KeyvouchError, Reason, UnavailableError
from keyvouch_agent import bootstrap
from keyvouch_agent.commands.card_findings import card_findings
from keyvouch_agent.commands.findings import Finding, good, look, problem, trouble
from keyvouch_agent.commands.output import Output
from keyvouch_agent.commands.security_key_findings import security_key_findings
from keyvouch_agent.commands.tpm_findings import tpm_findings
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.local_client import call_agent
from keyvouch_agent.pin_standing import describe_pin
from keyvouch_agent.ports import ProviderKind
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.provider_shelf import ProviderKey, ProviderShelf
from keyvouch_client.security_keys.pcsc import PcscReaders

__all__ = ["doctor"]


def doctor(_arguments: argparse.Namespace, home: Home, output: Output) -> int:
    """Print the findings; the exit code is 1 when something is in the way of approving."""
    output.progress("Looking at the home, the key providers and the servers.")
    findings = [
        look("home", lambda: f"{home.folder('')} is private"),
        look("ledger", lambda: f"accounts enrolled: {len(Ledger(home).enrolments())}"),
        _agent(home),
        _software(home),
        *tpm_findings(bootstrap.key_holders(home), home),
        *_security_keys(home),
        *_smartcards(home),
        *_replacements(home),
        *asyncio.run(_servers(home)),
    ]
    fine = all(finding.ok or finding.optional for finding in findings)
    document = {"ok": fine, "checks": [finding.document for finding in findings]}
    output.result(document, *(finding.line for finding in findings))
    return 0 if fine else 1


def _agent(home: Home) -> Finding:
    try:
        call_agent(home, "status", seconds=5.0)
    except UnavailableError as error:
        return trouble("agent", error, optional=True)
    except KeyvouchError as error:
        return trouble("agent", error)
    return good("agent", "an agent is running")


def _software(home: Home) -> Finding:
    shelf = bootstrap.open_shelf(home)
    try:
        return _provider(ProviderKind.SOFTWARE.value, shelf)
    finally:
        shelf.close()


def _security_keys(home: Home) -> list[Finding]:
    holders = bootstrap.key_holders(home)
    shelf = bootstrap.open_shelf(home)
    try:
        return security_key_findings(holders.security_keys(), PcscReaders(), shelf, _enrolments(home))
    finally:
        shelf.close()


def _smartcards(home: Home) -> list[Finding]:
    shelf = bootstrap.open_shelf(home)
    try:
        wish = bootstrap.key_holders(home).card_wish()
        return card_findings(wish, shelf, _enrolments(home))
    except KeyvouchError as error:
        return [trouble("provider smartcard", error)]
    finally:
        shelf.close()


def _provider(kind: str, shelf: ProviderShelf) -> Finding:
    check = f"provider {kind}"
    try:
        capabilities = shelf.get(ProviderKey(kind)).capabilities()
    except DeviceError as error:
        if error.reason is Reason.VAULT_BUSY:
            return good(check, "in use by the running agent")
        return trouble(check, error)
    words = f"{capabilities.name}: {describe_pin(capabilities)}"
    if capabilities.pin_retries_left == 0:
        return problem(check, words, "Its keys cannot be used any more: unregister, move the vault away, enrol again.")
    return good(check, words)


def _enrolments(home: Home) -> tuple[Enrolment, ...]:
    try:
        return Ledger(home).enrolments()
    except KeyvouchError:
        return ()  # reported under `ledger`


def _replacements(home: Home) -> list[Finding]:
    """A server may have a new key already that this device does not know yet."""
    findings = []
    for e in _enrolments(home):
        check = f"key replacement of {e.username} of {inert(e.tenant_name)}"
        try:
            if Ledger(home).replacement(e.device_id):
                fix = f"Run `keyvouch-agent rekey {e.device_id}`: it finishes it."
                findings.append(problem(check, "it was interrupted", fix))
        except KeyvouchError as error:
            findings.append(trouble(check, error))
    return findings


async def _servers(home: Home) -> list[Finding]:
    findings = []
    for enrolment in _enrolments(home):
        check = f"server {enrolment.device_endpoint}"
        try:
            name = await bootstrap.check_server(home, enrolment)
            findings.append(good(check, f"knows this device as {name}"))
        except KeyvouchError as error:
            findings.append(trouble(check, error))
    return findings
