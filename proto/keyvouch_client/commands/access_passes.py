"""`keyvouch admin pass`: Temporary Access Passes. A code is shown by the call that makes it, and never again."""

from __future__ import annotations

from datetime import UTC, datetime

from keyvouch.errors import UsageError
from keyvouch.v1 import administration_pb2, common_pb2
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.output import Output, inert, table

__all__ = ["code_lines", "create", "delete", "list_passes"]


def code_lines(output: Output, made: administration_pb2.AccessPass, code: str) -> tuple[str, ...]:
    """What a person is told of a new pass, its code included: this once."""
    start, end = output.time(made.start_at), output.time(made.start_at + made.lifetime_minutes * 60)
    times = "once" if made.one_time else "any number of times"
    return (
        "",
        f"    {inert(code)}",
        "",
        f"Temporary Access Pass for {inert(made.username)}, good {times}",
        f"from {start} until {end}.",
        "It is shown this once. Hand it over in person or by a channel you trust.",
        f"They register a device with it: `keyvouch-agent enroll ... --user {inert(made.username)}`.",
    )


async def create(run: Invocation) -> None:
    """Make a pass."""
    arguments = run.arguments
    request = administration_pb2.CreateAccessPassRequest(
        username=arguments.user,
        start_at=_instant(arguments.start) if arguments.start else 0,
        lifetime_minutes=arguments.lifetime,
        one_time=arguments.one_time,
    )
    async with run.session() as session:
        told = await session.call(session.connection.administration.CreateAccessPass, request)
    run.output.show(document(told), *code_lines(run.output, told.access_pass, told.code))


def _instant(text: str) -> int:
    """Seconds since the epoch; a time without a zone is local time, as it is for people."""
    try:
        if text.isascii() and text.isdigit():
            return int(text)
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a time.", fix="Write it like 2026-03-01T09:00+01:00.") from None


async def list_passes(run: Invocation) -> None:
    """List one user's pass, or everybody's."""
    found: list[administration_pb2.AccessPass] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListAccessPassesResponse:
            request = administration_pb2.ListAccessPassesRequest(username=run.arguments.user, page=page)
            return await session.call(session.connection.administration.ListAccessPasses, request)

        async for page in pages(fetch):
            found += page.access_passes
    rows = [
        (
            item.username,
            run.output.time(item.start_at),
            item.lifetime_minutes,
            "yes" if item.one_time else "no",
            "yes" if item.usable else "no",
            spoken(administration_pb2.AccessPassUsability.Name(item.usability), "ACCESS_PASS_USABILITY_"),
            item.access_pass_id,
        )
        for item in found
    ]
    listing = table(("user", "start", "minutes", "one-time", "usable", "because", "id"), rows)
    run.output.show({"access_passes": [document(item) for item in found]}, listing)


async def delete(run: Invocation) -> None:
    """Delete a user's pass."""
    request = administration_pb2.DeleteAccessPassRequest(username=run.arguments.user)
    async with run.session() as session:
        told = await session.call(session.connection.administration.DeleteAccessPass, request)
    run.output.show(document(told), f"The pass is deleted; sessions ended: {told.revoked_sessions}.")
