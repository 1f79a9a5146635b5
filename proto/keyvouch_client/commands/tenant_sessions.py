"""`keyvouch admin session`: the sessions of a tenant's users, and their end."""

from __future__ import annotations

from keyvouch.errors import UsageError
from keyvouch.v1 import common_pb2, oversight_pb2
from keyvouch_client.commands.asking import confirm
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document
from keyvouch_client.commands.output import Output, inert, table

__all__ = ["list_sessions", "revoke"]


async def list_sessions(run: Invocation) -> None:
    """List open sessions, with `--all` ended ones too."""
    found: list[common_pb2.Session] = []
    async with run.session() as session:
        own = session.session_id

        async def fetch(page: common_pb2.PageRequest) -> oversight_pb2.ListUserSessionsResponse:
            request = oversight_pb2.ListUserSessionsRequest(user=run.arguments.of, page=page)
            return await session.call(session.connection.oversight.ListUserSessions, request)

        async for page in pages(fetch):
            found += [item for item in page.sessions if run.arguments.all or not item.revoked]
    listing = _session_table(run.output, found, own, ended=run.arguments.all)
    lines = (listing, "", "* this session") if any(item.session_id == own for item in found) else (listing,)
    run.output.show(
        {"sessions": [document(item) for item in found], "current": own},
        *(lines if found else ("No session is open.",)),
    )


def _session_table(output: Output, sessions: list[common_pb2.Session], own: str, *, ended: bool) -> str:
    rows = [
        (
            "*" if item.session_id == own else " ",
            item.username,
            item.app_name,
            output.minute(item.created_at),
            item.address,
            item.session_id,
            item.acr,
            (item.revoke_reason or "revoked") if item.revoked else "-",
        )
        for item in sessions
    ]
    titles = (" ", "user", "app", "since", "from", "session", "label", "ended")
    return table(titles, rows) if ended else table(titles[:-2], [row[:-2] for row in rows])


async def revoke(run: Invocation) -> None:
    """End the sessions of a user, of a device, of everybody, or one."""
    arguments = run.arguments
    request = oversight_pb2.RevokeSessionsRequest()
    if arguments.of is not None:
        request.user, what = arguments.of, f"Every session of {inert(arguments.of)} ends."
    elif arguments.device is not None:
        request.device_id, what = arguments.device, f"Every session that {inert(arguments.device)} approved ends."
    elif arguments.session is not None:
        request.session_id, what = arguments.session, f"The session {inert(arguments.session)} ends."
    else:
        if not arguments.yes:
            raise UsageError(
                "Everybody in the tenant would have to sign in again.", fix="Say that you mean it, with --yes."
            )
        request.whole_tenant, what = True, ""
    await confirm(run, what)
    async with run.session() as session:
        told = await session.call(session.connection.oversight.RevokeSessions, request)
    run.output.show(document(told), f"Sessions ended: {told.revoked_sessions}. They can do nothing here any more.")
