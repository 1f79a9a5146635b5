"""`keyvouch admin audit`: the audit log and its signed checkpoints, newest first."""

from __future__ import annotations

from collections.abc import Iterator

from keyvouch.v1 import administration_pb2, common_pb2, oversight_pb2
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document
from keyvouch_client.commands.output import Output, inert, table

__all__ = ["checkpoints", "record_entries", "record_table", "show"]


async def show(run: Invocation) -> None:
    """Show at most `--limit` records."""
    found: list[administration_pb2.AuditRecord] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListAuditRecordsResponse:
            request = administration_pb2.ListAuditRecordsRequest(page=page, username=run.arguments.user)
            return await session.call(session.connection.administration.ListAuditRecords, request)

        async for page in pages(fetch, limit=run.arguments.limit):
            found += page.records
    shown = record_entries(run.output, found) if run.output.is_screen() else record_table(run.output, found)
    run.output.show({"records": [document(item) for item in found]}, shown or "There is no such record.")


_Records = list[administration_pb2.AuditRecord]


def record_table(output: Output, records: _Records) -> str:
    """A line for each record, for pipes and files."""
    rows = [
        (
            item.sequence,
            output.time(item.at),
            item.action,
            item.outcome,
            item.actor,
            item.subject,
            item.user_id,
            _details(item),
        )
        for item in records
    ]
    return table(("number", "time", "action", "outcome", "actor", "subject", "user", "details"), rows) if rows else ""


def record_entries(output: Output, records: _Records) -> str:
    """The same for a screen, where the ids of a record have no room beside each other."""
    rows = [(item.sequence, output.time(item.at), item.action, item.outcome) for item in records]
    lines = table(("number", "time", "action", "outcome"), rows).splitlines()[1:]
    return "\n".join(part for line, item in zip(lines, records, strict=True) for part in (line, *_particulars(item)))


def _particulars(item: administration_pb2.AuditRecord) -> Iterator[str]:
    about = item.user_id if item.user_id not in (item.actor, item.subject) else ""
    for name, value in (("by", item.actor), ("on", item.subject), ("user", about), ("with", _details(item))):
        if value:
            yield f"        {name:<4}  {inert(value)}"


def _details(item: administration_pb2.AuditRecord) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(item.details.items()))


async def checkpoints(run: Invocation) -> None:
    """Show at most `--limit` checkpoints. Keep them elsewhere: a log that was changed does not fit them."""
    found: list[oversight_pb2.AuditCheckpoint] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> oversight_pb2.ListAuditCheckpointsResponse:
            request = oversight_pb2.ListAuditCheckpointsRequest(page=page)
            return await session.call(session.connection.oversight.ListAuditCheckpoints, request)

        async for page in pages(fetch, limit=run.arguments.limit):
            found += page.checkpoints
    rows = [(item.chain_number, run.output.minute(item.at), item.hash.hex()) for item in found]
    listing = table(("number", "time", "hash of that record"), rows) if rows else "There is no checkpoint yet."
    run.output.show({"checkpoints": [document(item) for item in found]}, listing)
