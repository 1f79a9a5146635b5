"""What `keyvouch sign-in` shows at the end: the session, and beside it what its owner should know now.

A session is there before anything of this is asked: what cannot be found out is said, and nothing is lost by it.
"""

from __future__ import annotations

from keyvouch.errors import KeyvouchError
from keyvouch.v1 import security_info_pb2
from keyvouch_client.commands.explaining import rule_table
from keyvouch_client.commands.invocation import Invocation
from keyvouch_client.commands.messages import document
from keyvouch_client.commands.notices import campaign_lines, lost_or_replaced_lines, risk_line
from keyvouch_client.commands.output import inert
from keyvouch_client.session import Session

__all__ = ["show_session"]

_OF_A_PASS = "access-pass"


async def show_session(run: Invocation, session: Session) -> None:
    """Show who is signed in; campaigns, events and, with `--explain`, the rules that were asked."""
    result: dict[str, object] = {
        "event": "session",
        "session": document(session.details),
        "campaigns": [document(notice) for notice in session.campaigns],
        "open_risk_events": session.open_risk_events,
    }
    lines = [
        f"Signed in as {inert(session.details.username)} until {run.output.time(session.tokens.session_expires_at)}."
    ]
    notes = [*campaign_lines(run.output, session.campaigns), *risk_line(session.open_risk_events)]
    try:
        if run.arguments.explain:
            lines += await _explained(session, result)
        if session.details.acr == _OF_A_PASS:
            notes += await _asked_for_devices(session, result)
    except KeyvouchError as error:
        notes.append(f"More cannot be told now: {error}")
    run.output.show(result, *lines)
    for note in notes:
        run.output.note("\n".join(run.output.folded(note, 0)))


async def _explained(session: Session, result: dict[str, object]) -> list[str]:
    stub = session.connection.security_info
    told = await session.call(stub.ExplainOwnSignIn, security_info_pb2.ExplainOwnSignInRequest())
    result["explanation"] = document(told)
    if not told.rules:
        return ["", "No rules were written down for this way of signing in."]
    return ["", rule_table(told.rules), "", f"Policy version: {told.policy_version}."]


async def _asked_for_devices(session: Session, result: dict[str, object]) -> list[str]:
    stub = session.connection.security_info
    told = await session.call(stub.GetSecurityInfo, security_info_pb2.GetSecurityInfoRequest())
    result["ask_lost_or_replaced"] = told.ask_lost_or_replaced
    return lost_or_replaced_lines(told)
