"""`keyvouch admin risk`: what looked like an attack, and saying that somebody has looked at it."""

from __future__ import annotations

from keyvouch.v1 import common_pb2, oversight_pb2
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.output import Output, inert

__all__ = ["close", "list_events"]


async def list_events(run: Invocation) -> None:
    """List risk events, the newest first."""
    found: list[oversight_pb2.RiskEvent] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> oversight_pb2.ListRiskEventsResponse:
            request = oversight_pb2.ListRiskEventsRequest(
                open_only=run.arguments.open, user=run.arguments.of, page=page
            )
            return await session.call(session.connection.oversight.ListRiskEvents, request)

        async for page in pages(fetch, limit=run.arguments.limit):
            found += page.events
    lines = [line for event in found for line in _told(run.output, event)]
    none = "Nobody has to look at anything." if run.arguments.open else "Nothing has looked like an attack."
    run.output.show({"events": [document(event) for event in found]}, *(lines or [none]))


def _told(output: Output, event: oversight_pb2.RiskEvent) -> list[str]:
    """An event in a few lines: what, whose, when, from where; the sentence; the way on."""
    kind = spoken(oversight_pb2.RiskKind.Name(event.kind), "RISK_KIND_")
    whose = f"  {event.username or event.user_id}" if event.user_id else ""
    place = f"  from {event.address}" if event.address else ""
    state = (
        f"looked at by {event.closed_by or 'somebody'}, {output.minute(event.closed_at)}"
        if event.closed_at
        else f"open: `keyvouch admin risk close {event.risk_event_id}`"
    )
    lines = [f"{output.minute(event.at)}  {kind}{whose}{place}", *output.folded(event.message, 4)]
    lines += [f"    about {event.subject}"] if event.subject else []
    return [*(inert(line) for line in (*lines, f"    {state}")), ""]


async def close(run: Invocation) -> None:
    """Somebody has looked at it."""
    request = oversight_pb2.CloseRiskEventRequest(risk_event_id=run.arguments.event)
    async with run.session() as session:
        told = await session.call(session.connection.oversight.CloseRiskEvent, request)
    who = inert(told.event.username)
    ends = f" The mark on {who} goes with the last open one." if who else ""
    run.output.show(document(told), f"Closed.{ends}")
