"""T12, KI11: a pass is replaced in one step, and what becomes of the user's sessions is said."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch_server.domain.model import AccessPass, Role
from support.live_server import LiveServer, Metadata, SignedIn, refused

KEEP, REVOKE = admin_pb.SESSIONS_ON_REPLACE_KEEP, admin_pb.SESSIONS_ON_REPLACE_REVOKE


async def replace(
    live: LiveServer, sessions: int = KEEP, metadata: Metadata | None = None, username: str = "ada", **options: Any
) -> admin_pb.ReplaceAccessPassResponse:
    request = admin_pb.ReplaceAccessPassRequest(username=username, sessions=sessions, **options)  # type: ignore[arg-type]
    told: admin_pb.ReplaceAccessPassResponse = await live.administer("ReplaceAccessPass", request, metadata)
    return told


async def ada_at_work(live: LiveServer) -> tuple[str, SignedIn, Metadata]:
    """A valid pass, an approved session, and one of the pass."""
    ada = await live.person("ada")
    code = await live.issue_pass_again("ada")
    return code, await live.signed_in(ada), await live.pass_session("ada", code)


async def test_t12_ki11_sessions_stay_where_that_is_chosen(live: LiveServer):
    old, approved, of_pass = await ada_at_work(live)
    told = await replace(live, KEEP)
    assert told.revoked_sessions == 1
    await approved.introspect()
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await live.introspect(of_pass)  # T8: no session outlives the pass that opened it
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", old)
    await live.access_pass_sign_in("ada", told.code)


async def test_t12_ki11_sessions_end_where_that_is_chosen(live: LiveServer):
    old, approved, of_pass = await ada_at_work(live)
    other = await live.signed_in(await live.person("bob"))
    told = await replace(live, REVOKE)
    assert told.revoked_sessions == 2
    for metadata in (approved.metadata, of_pass):
        with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
            await live.introspect(metadata)
    with refused(Reason.SESSION_REVOKED):
        await approved.refresh()
    await other.introspect()
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", old)
    await live.access_pass_sign_in("ada", told.code)


@pytest.mark.parametrize("sessions", [0, 3])
async def test_ki11_whoever_replaces_a_pass_says_which(live: LiveServer, sessions: int):
    code, approved, of_pass = await ada_at_work(live)
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await replace(live, sessions)
    assert refusal.error.metadata["field"] == "sessions"
    await approved.introspect()
    await live.introspect(of_pass)
    await live.access_pass_sign_in("ada", code)


@pytest.mark.parametrize(("sessions", "said"), [(KEEP, "keep"), (REVOKE, "revoke")])
async def test_ki11_the_audit_log_says_what_became_of_the_sessions(live: LiveServer, sessions: int, said: str):
    await ada_at_work(live)
    old = (await live.listed_pass("ada")).access_pass_id
    told = await replace(live, sessions)
    record = (await live.audit("access_pass.replace"))[-1]
    details = json.loads(record.details)
    assert record.subject == told.access_pass.access_pass_id != old
    assert (details["sessions"], details["replaced"]) == (said, old)
    assert details["ended_sessions"] == str(told.revoked_sessions)
    assert told.code not in record.details


async def test_t12_there_has_to_be_one_to_replace(live: LiveServer):
    await live.create_user("ada")
    with refused(Reason.ACCESS_PASS_NONE, status=grpc.StatusCode.NOT_FOUND):
        await replace(live)
    with refused(Reason.USER_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
        await replace(live, username="nobody")
    await live.issue_pass("ada")
    await replace(live)


async def test_t12_one_that_cannot_be_used_any_more_is_replaced_too(live: LiveServer):
    _, approved, _ = await ada_at_work(live)
    live.clock.advance(3600)
    approved.tokens = await approved.refresh()
    assert (await replace(live, KEEP)).revoked_sessions == 0
    await approved.introspect()


async def test_t12_a_new_pass_that_policy_does_not_allow_leaves_the_old_one(live: LiveServer):
    code, approved, of_pass = await ada_at_work(live)
    for wrong in ({"lifetime_minutes": 59}, {"start_at": 1}, {"binding": admin_pb.DeviceBinding(aaguid="x")}):
        with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
            await replace(live, REVOKE, **wrong)
    await approved.introspect()
    await live.introspect(of_pass)
    await live.access_pass_sign_in("ada", code)


async def test_t12_the_new_one_is_as_asked(live: LiveServer):
    await live.create_user("ada")
    await live.issue_pass("ada")
    shown = (await replace(live, lifetime_minutes=90, one_time=True)).access_pass
    assert (shown.lifetime_minutes, shown.one_time, shown.usable) == (90, True, True)
    assert shown == await live.listed_pass("ada")


async def test_t12_replaced_by_many_at_once_one_pass_is_left(live: LiveServer):
    await live.create_user("ada")
    await live.issue_pass("ada")
    codes = [told.code for told in await asyncio.gather(*(replace(live) for _ in range(16)))]
    assert len(set(codes)) == 16
    rows = await live.app.store.read(lambda tx: tx.find(AccessPass, {}))
    assert len(rows) == 2  # the administrator's too
    opened = await asyncio.gather(
        *(live.access_pass_sign_in("ada", code) for code in codes[:4]), return_exceptions=True
    )
    assert sum(not isinstance(o, KeyvouchError) for o in opened) <= 1


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        (Role.AUTHENTICATION_ADMINISTRATOR, None),
        (Role.PRIVILEGED_AUTHENTICATION_ADMINISTRATOR, None),
        (Role.GLOBAL_ADMINISTRATOR, None),
        (Role.GLOBAL_READER, Reason.ROLE_REQUIRED),
        (Role.AUTHENTICATION_POLICY_ADMINISTRATOR, Reason.ROLE_REQUIRED),
        (Role.USER, Reason.ROLE_REQUIRED),
    ],
)
async def test_t5_who_may_replace_a_members_pass(live: LiveServer, role: Role, reason: Reason | None):
    await live.create_user("ada")
    await live.issue_pass("ada")
    clerk = await live.signed_in(await live.person("clerk", role), app_id="console")
    if reason is None:
        await replace(live, metadata=clerk.metadata)
        return
    with refused(reason, status=grpc.StatusCode.PERMISSION_DENIED):
        await replace(live, metadata=clerk.metadata)


async def test_t5_nobody_replaces_their_own(live: LiveServer):
    await live.admin()
    with refused(Reason.SELF_FORBIDDEN, status=grpc.StatusCode.PERMISSION_DENIED):
        await replace(live, username="admin")
