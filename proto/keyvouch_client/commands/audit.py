"""`keyvouch admin audit`: the audit log, newest first."""

from __future__ import annotations

from keyvouch.v1 import administration_pb2, common_pb2
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document
from keyvouch_client.commands.output import table

__all__ = ["show"]


async def show(run: Invocation) -> None:
    """Show at most `--limit` records."""
    found: list[administration_pb2.AuditRecord] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListAuditRecordsResponse:
            request = administration_pb2.ListAuditRecordsRequest(page=page, username=run.arguments.user)
            return await session.call(session.connection.administration.ListAuditRecords, request)

        async for page in pages(fetch, limit=run.arguments.limit):
            found += page.records
    rows = [
        (
            item.sequence,
            run.output.time(item.at),
            item.action,
            item.outcome,
            item.actor,
            item.subject,
            " ".join(f"{name}={value}" for name, value in sorted(item.details.items())),
        )
        for item in found
    ]
    listing = table(("number", "time", "action", "outcome", "actor", "subject", "details"), rows)
    run.output.show({"records": [document(item) for item in found]}, listing)
