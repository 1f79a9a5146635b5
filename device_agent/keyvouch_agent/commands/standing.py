"""status and keys: what this device is enrolled in, from the ledger and, where one runs, from the agent."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from keyvouch.errors import Reason, UnavailableError
from keyvouch_agent.channel_keys import protection_of
from keyvouch_agent.commands.output import Output
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.local_client import call_agent
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.views import Document, enrolment_document

__all__ = ["keys", "status"]

_NONE = "This device is not enrolled. Begin with `keyvouch-agent enroll --server HOST:PORT --tenant T --user U`."


def status(_arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Enrolments, and how their streams fare."""
    ledger = Ledger(home)
    staged = [s.registration_id for s in ledger.staged()]
    replacing = [e.device_id for e in ledger.enrolments() if ledger.replacement(e.device_id)]
    try:
        found = call_agent(home, "status").get("enrolments")
        running = True
    except UnavailableError as error:
        if error.reason is not Reason.AGENT_NOT_RUNNING:
            raise
        found = [{**_document(e), "state": "agent not running"} for e in ledger.enrolments()]
        running = False
    enrolments = [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []
    lines = [_status_lines(e) for e in enrolments] or [_NONE]
    if not running:
        lines.append("No agent is running: prompts do not reach this device. Start it with `keyvouch-agent run`.")
    if staged:
        lines.append("A registration was interrupted: run the same `keyvouch-agent enroll` again to finish it.")
    lines += [f"A replacement of its key was interrupted: `keyvouch-agent rekey {d}` finishes it." for d in replacing]
    document = {"home": str(home.path), "running": running, "enrolments": enrolments, "interrupted": staged}
    output.result({**document, "replacing": replacing}, *lines)


def keys(_arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """The keys this device approves with."""
    documents = [_document(e) for e in Ledger(home).enrolments()]
    lines = [
        f"{str(d['credential_id'])[:16]}...  {_who(d)}  {inert(str(d['key']))}  (channel key: {d['channel_key']})"
        for d in documents
    ]
    output.result({"keys": documents}, *(lines or [_NONE]))


def _document(enrolment: Enrolment) -> Document:
    return enrolment_document(enrolment, channel_key=protection_of(enrolment.channel_key))


def _status_lines(enrolment: Mapping[str, object]) -> str:
    text = f"{_who(enrolment)}: {enrolment.get('state')}"
    if detail := enrolment.get("detail"):
        text += f"\n  {inert(str(detail), longest=400)}"
    text += f"\n  device {enrolment.get('device_id')}, key: {inert(str(enrolment.get('key')))}"
    findings = enrolment.get("findings")
    for finding in findings if isinstance(findings, list) else []:
        text += f"\n  {enrolment.get('health')}: {inert(str(finding), longest=300)}"
    if waiting := enrolment.get("pending"):
        text += f"\n  {waiting} prompts wait: `keyvouch-agent pending`"
    return text


def _who(document: Mapping[str, object]) -> str:
    user, tenant, server = (inert(str(document.get(n)), longest=60) for n in ("username", "tenant", "server"))
    return f"{user} of {tenant} at {server}"
