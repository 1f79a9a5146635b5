"""Who am I, my sessions, signing out; and the public keys. One's own devices are in `security_info`."""

from __future__ import annotations

import json

from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError, UnavailableError
from keyvouch.v1 import common_pb2, sessions_pb2
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.output import inert, table

__all__ = ["jwks", "sessions", "sign_out", "whoami"]

_OVER = (Reason.SESSION_REVOKED, Reason.SESSION_EXPIRED, Reason.SESSION_UNKNOWN, Reason.CREDENTIALS_INVALID)


async def whoami(run: Invocation) -> None:
    """Show the session as the server knows it now."""
    stored = run.file.read()
    async with run.session(stored) as session:
        told = await session.call(
            session.connection.sessions.IntrospectSession, sessions_pb2.IntrospectSessionRequest()
        )
    details = told.session
    rows = (
        ("user", details.username),
        ("tenant", stored.target.tenant),
        ("role", told.role),
        ("server", stored.target.server),
        ("app", details.app_name),
        ("label", details.acr),
        ("factors", " ".join(details.amr)),
        ("approved", run.output.time(details.auth_time)),
        ("key", _key_words(details.assurance)),
        ("until", run.output.time(details.expires_at)),
        ("session", details.session_id),
    )
    result = {
        "session": document(details),
        "role": told.role,
        "tenant": stored.target.tenant,
        "server": stored.target.server,
    }
    run.output.show(result, *(f"{name:<9} {inert(str(value)) or '-'}" for name, value in rows))


def _key_words(proved: common_pb2.Assurance) -> str:
    words = (
        ("in", spoken(common_pb2.Protection.Name(proved.protection), "PROTECTION_")),
        ("PIN", spoken(common_pb2.Verification.Name(proved.verification), "VERIFICATION_")),
        ("proof", spoken(common_pb2.Provenance.Name(proved.provenance), "PROVENANCE_")),
    )
    return ", ".join(f"{title} {word}" for title, word in words if word)


async def sessions(run: Invocation) -> None:
    """List the caller's sessions, the present one marked."""
    found: list[common_pb2.Session] = []
    async with run.session() as session:
        own = session.session_id

        async def fetch(page: common_pb2.PageRequest) -> sessions_pb2.ListSessionsResponse:
            request = sessions_pb2.ListSessionsRequest(page=page)
            return await session.call(session.connection.sessions.ListSessions, request)

        async for page in pages(fetch):
            found += [item for item in page.sessions if run.arguments.all or not item.revoked]
    rows = [
        (
            "*" if item.session_id == own else " ",
            item.session_id,
            item.app_name,
            item.acr,
            run.output.time(item.created_at),
            "ended" if item.revoked else run.output.time(item.expires_at),
        )
        for item in found
    ]
    listing = table((" ", "session", "app", "label", "since", "until"), rows)
    run.output.show({"sessions": [document(item) for item in found], "current": own}, listing, "", "* this session")


async def sign_out(run: Invocation) -> None:
    """End the present session, or another one of the caller's."""
    other = run.arguments.session
    try:
        session_id, is_own = await _revoke(run, other)
    except KeyvouchError as error:
        ended_already = isinstance(error, UnauthenticatedError) and error.reason in _OVER
        if other is None and isinstance(error, UnavailableError) and not run.arguments.forget:
            raise _may_forget(error) from error
        if other is not None or not (ended_already or run.arguments.forget):
            raise
        session_id, is_own = "", True
        if not ended_already:
            run.output.note(f"The server was not told, and the session lasts there until it expires: {error.message}")
    if is_own:
        run.file.forget_session()
    run.output.show(
        {"signed_out": is_own, "session_id": session_id}, "Signed out." if is_own else "The session has ended."
    )


def _may_forget(error: UnavailableError) -> UnavailableError:
    fix = f"{error.fix} `keyvouch sign-out --forget` drops the session here alone."
    return UnavailableError(error.reason, error.message, fix=fix, metadata=error.metadata)


async def _revoke(run: Invocation, other: str | None) -> tuple[str, bool]:
    """End a session; returns its id and whether it is the stored one."""
    async with run.session() as session:
        session_id = other or session.session_id
        request = sessions_pb2.RevokeSessionRequest(session_id=session_id)
        await session.call(session.connection.sessions.RevokeSession, request)
        return session_id, session_id == session.session_id


async def jwks(run: Invocation) -> None:
    """Print the JWK Set. Needs no session."""
    async with run.connection(run.target(run.file.read().target)) as connection:
        identity = await connection.identity()
    keys = json.loads(identity.jwks)
    result = {"issuer": identity.issuer, "server_id": identity.server_id.hex(), "jwks": keys}
    run.output.note(f"Issuer: {inert(identity.issuer)}")
    run.output.show(result, json.dumps(keys, indent=2))
