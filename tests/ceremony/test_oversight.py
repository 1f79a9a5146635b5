"""Administrators see and end other people's sessions, and look at what seemed to be an attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, directory_pb2
from keyvouch.v1 import oversight_pb2 as pb
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Role, Session, User
from keyvouch_server.domain.oversight_model import RiskEvent, RiskKind
from keyvouch_server.use_cases.risks import Risks
from support.live_server import LIMIT, LiveServer, Metadata, Person, SignedIn, refused


async def oversee(live: LiveServer, method: str, request: Any, metadata: Metadata | None = None) -> Any:
    """Call the service, as the first administrator where nobody else is named."""
    session = await live.admin() if metadata is None else metadata
    return await answer(getattr(live.connection.oversight, method)(request, metadata=session, timeout=LIMIT))


async def sessions_of(live: LiveServer, user: str = "", metadata: Metadata | None = None) -> list[common_pb2.Session]:
    """All sessions, page by page of two."""
    found: list[common_pb2.Session] = []
    token = ""
    while True:
        request = pb.ListUserSessionsRequest(user=user, page=common_pb2.PageRequest(size=2, token=token))
        told: pb.ListUserSessionsResponse = await oversee(live, "ListUserSessions", request, metadata)
        found += told.sessions
        token = told.next_token
        if not token:
            return found


async def events(live: LiveServer, size: int = 50, **asked: Any) -> list[pb.RiskEvent]:
    """All risk events, page by page."""
    found: list[pb.RiskEvent] = []
    token = ""
    while True:
        request = pb.ListRiskEventsRequest(page=common_pb2.PageRequest(size=size, token=token), **asked)
        told: pb.ListRiskEventsResponse = await oversee(live, "ListRiskEvents", request)
        found += told.events
        token = told.next_token
        if not token:
            return found


async def revoke(live: LiveServer, metadata: Metadata | None = None, **of: Any) -> int:
    """End sessions; returns how many."""
    request = pb.RevokeSessionsRequest(**of)
    ended: pb.RevokeSessionsResponse = await oversee(live, "RevokeSessions", request, metadata)
    return ended.revoked_sessions


async def is_over(signed_in: SignedIn) -> None:
    """Neither the access token nor the refresh token is worth anything."""
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await signed_in.introspect()
    with refused(Reason.SESSION_REVOKED):
        await signed_in.refresh()


async def note(live: LiveServer, kind: RiskKind, user_id: str = "", subject: str = "") -> RiskEvent:
    """Something looked like an attack."""
    tenant = (await live.app.store.read(lambda tx: tx.find(User, {"username_key": "admin"})))[0].tenant_id
    noted = await live.app.world.store.write(
        lambda tx: Risks(live.app.world).note(
            tx, kind, "A sentence for people.", tenant_id=tenant, user_id=user_id, subject=subject
        )
    )
    assert noted is not None
    return noted


@dataclass(slots=True)
class Two:
    """Two users with a device and two sessions each."""

    ada: Person
    bob: Person
    sessions: Mapping[str, list[SignedIn]]


@pytest.fixture
async def two(live: LiveServer) -> Two:
    """Ada and Bob."""
    ada, bob = await live.person("ada"), await live.person("bob")
    sessions = {p.username: [await live.signed_in(p) for _ in range(2)] for p in (ada, bob)}
    return Two(ada, bob, sessions)


# -- sessions ---------------------------------------------------------------------------------------


async def test_sessions_of_a_user_are_listed_by_any_name(live: LiveServer, two: Two):
    own = {s.session.session_id for s in two.sessions["ada"]}
    user_id = two.sessions["ada"][0].session.user_id
    request = directory_pb2.AddAliasRequest(user="ada", alias="a.lovelace")
    await answer(live.connection.directory.AddAlias(request, metadata=await live.admin(), timeout=LIMIT))
    for name in ("ada", "ADA", "a.lovelace", user_id):
        told = await sessions_of(live, name)
        assert own < {s.session_id for s in told}
        assert len(told) == 3  # and that of the pass
        assert {s.username for s in told} == {"ada"}
    assert [s.session_id for s in told] == sorted(s.session_id for s in told)


async def test_sessions_of_the_tenant_are_listed_with_those_that_ended(live: LiveServer, two: Two):
    gone = two.sessions["bob"][0].session.session_id
    await revoke(live, session_id=gone)
    told = {s.session_id: s for s in await sessions_of(live)}
    assert {s.session.session_id for sessions in two.sessions.values() for s in sessions} < told.keys()
    assert (told[gone].revoked, told[gone].revoke_reason) == (True, "ended_by_administrator")
    other = told[two.sessions["ada"][0].session.session_id]
    assert (other.revoked, other.revoke_reason, other.address) == (False, "", "127.0.0.1")


async def test_a_users_sessions_end_and_nobody_elses(live: LiveServer, two: Two):
    assert await revoke(live, user="ada") == 3  # that of the pass too
    for ended in two.sessions["ada"]:
        await is_over(ended)
    for other in two.sessions["bob"]:
        await other.introspect()
    assert await revoke(live, user="ada") == 0
    records = await live.audit("session.revoke")
    admin = next(s.user_id for s in await sessions_of(live, "admin"))
    assert {(r.actor, r.user_id) for r in records} == {(admin, two.sessions["ada"][0].session.user_id)}
    assert len(records) == 3


async def test_sessions_of_a_device_end(live: LiveServer, two: Two):
    assert await revoke(live, device_id=two.ada.device.device_id) == 2
    for ended in two.sessions["ada"]:
        await is_over(ended)
    await two.sessions["bob"][0].introspect()
    await live.signed_in(two.ada)  # the device itself stays


async def test_one_session_ends(live: LiveServer, two: Two):
    first, second = two.sessions["ada"]
    assert await revoke(live, session_id=first.session.session_id) == 1
    await is_over(first)
    await second.introspect()
    assert await revoke(live, session_id=first.session.session_id) == 0


async def test_all_sessions_of_the_tenant_end_but_for_the_callers(live: LiveServer, two: Two):
    _, elsewhere = await live.tenant("other")
    session = await live.admin()
    expected = [s for s in await sessions_of(live) if not s.revoked]
    assert await revoke(live, whole_tenant=True) == len(expected) - 1
    for ended in (*two.sessions["ada"], *two.sessions["bob"]):
        await is_over(ended)
    await live.introspect(session)
    await elsewhere.introspect()


@pytest.mark.parametrize("of", ["user", "device_id"])
async def test_an_approval_that_is_not_redeemed_opens_no_session_after_the_end(live: LiveServer, two: Two, of: str):
    approved, control = await live.approved(two.ada), await live.approved(two.bob)
    await revoke(live, **{of: "ada" if of == "user" else two.ada.device.device_id})
    with refused(Reason.SIGN_IN_CANCELLED):
        await approved.redeem()
    await control.redeem()


async def test_what_does_not_exist_or_is_another_tenants_is_not_found(live: LiveServer, two: Two):
    other_admin, theirs = await live.tenant("other")
    for of, reason in (
        ({"user": "nobody"}, Reason.USER_UNKNOWN),
        ({"user": theirs.session.user_id}, Reason.USER_UNKNOWN),
        ({"device_id": "dev_x"}, Reason.DEVICE_UNKNOWN),
        ({"device_id": other_admin.device.device_id}, Reason.DEVICE_UNKNOWN),
        ({"session_id": "ses_x"}, Reason.SESSION_UNKNOWN),
        ({"session_id": theirs.session.session_id}, Reason.SESSION_UNKNOWN),
    ):
        with refused(reason, status=grpc.StatusCode.NOT_FOUND):
            await revoke(live, **of)
    for nothing in ({}, {"user": ""}, {"whole_tenant": False}):
        with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
            await revoke(live, **nothing)
    with refused(Reason.USER_UNKNOWN):
        await sessions_of(live, "nobody")
    await theirs.introspect()
    assert {s.username for s in await sessions_of(live, metadata=theirs.metadata)} == {"admin"}


async def test_who_may_end_whose_sessions(live: LiveServer, two: Two):
    reader = await live.signed_in(await live.person("reader", Role.GLOBAL_READER))
    helper = await live.signed_in(await live.person("helper", Role.AUTHENTICATION_ADMINISTRATOR))
    assert await sessions_of(live, "ada", reader.metadata)
    for of in ({"user": "ada"}, {"session_id": two.sessions["ada"][0].session.session_id}, {"whole_tenant": True}):
        with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
            await revoke(live, reader.metadata, **of)
    for of in ({"user": "admin"}, {"session_id": reader.session.session_id}, {"whole_tenant": True}):
        with refused(Reason.ROLE_REQUIRED):
            await revoke(live, helper.metadata, **of)
    assert await revoke(live, helper.metadata, user="ada") == 3
    with refused(Reason.ROLE_REQUIRED):
        await sessions_of(live, "ada", two.sessions["bob"][0].metadata)


# -- risk events ------------------------------------------------------------------------------------


async def test_a_reused_refresh_token_is_told_the_administrators_once(live: LiveServer, two: Two):
    signed_in = two.sessions["ada"][0]
    first = signed_in.tokens
    second = await signed_in.refresh()
    await signed_in.refresh(second.refresh_token)
    for _ in range(2):
        with refused(Reason.SESSION_REVOKED):
            await signed_in.refresh(first.refresh_token)
    [event] = await events(live, open_only=True)
    assert event.kind == pb.RISK_KIND_TOKEN_REUSED
    assert (event.username, event.subject, event.closed_at) == ("ada", signed_in.session.session_id, 0)
    assert await events(live, user="ada") == [event]
    assert await events(live, user="bob") == []


async def test_events_come_the_newest_first_page_by_page_also_those_of_one_second(live: LiveServer):
    made = []
    for second in range(4):
        made += [await note(live, RiskKind.PASS_BUDGET, subject=f"{second}-{n}") for n in range(second + 1)]
        live.clock.advance(1)
    expected = [e.id for e in sorted(made, key=lambda e: (e.at, e.id), reverse=True)]
    for size in (1, 2, 3, 7, 50):
        assert [e.risk_event_id for e in await events(live, size)] == expected


async def test_closing_an_event_says_who_looked_at_it_and_may_be_repeated(live: LiveServer, two: Two):
    user_id = two.sessions["ada"][0].session.user_id
    event, other = await note(live, RiskKind.TOKEN_REUSED, user_id), await note(live, RiskKind.NEW_PLACE, user_id)
    live.clock.advance(30)
    request = pb.CloseRiskEventRequest(risk_event_id=event.id)
    closed = (await oversee(live, "CloseRiskEvent", request)).event
    assert closed.closed_at == live.clock.now()
    assert closed.closed_by == next(s.user_id for s in await sessions_of(live, "admin"))
    live.clock.advance(30)
    assert (await oversee(live, "CloseRiskEvent", request)).event == closed
    assert [e.risk_event_id for e in await events(live, open_only=True)] == [other.id]
    assert len(await live.audit("risk.close")) == 1


async def test_the_flag_of_a_user_goes_with_the_last_open_event_PS5(live: LiveServer, two: Two):
    user_id = two.sessions["ada"][0].session.user_id

    async def flagged() -> bool:
        user = await live.app.store.read(lambda tx: tx.get(User, id=user_id))
        assert user is not None
        return bool(user.flagged_at)

    noted = [await note(live, RiskKind.REPORTED, user_id, f"sgn_{n}") for n in range(2)]
    for event in noted:
        assert await flagged()
        await oversee(live, "CloseRiskEvent", pb.CloseRiskEventRequest(risk_event_id=event.id))
    assert not await flagged()


async def test_who_may_close_whose_events(live: LiveServer, two: Two):
    helper = await live.signed_in(await live.person("helper", Role.AUTHENTICATION_ADMINISTRATOR))
    reader = await live.signed_in(await live.person("reader", Role.GLOBAL_READER))
    of_admin = await note(live, RiskKind.TOKEN_REUSED, reader.session.user_id)
    of_ada = await note(live, RiskKind.TOKEN_REUSED, two.sessions["ada"][0].session.user_id)
    of_nobody = await note(live, RiskKind.PASS_BUDGET)
    for event, who in ((of_admin, helper), (of_ada, reader), (of_nobody, reader)):
        with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
            await oversee(live, "CloseRiskEvent", pb.CloseRiskEventRequest(risk_event_id=event.id), who.metadata)
    for event in (of_ada, of_nobody):
        await oversee(live, "CloseRiskEvent", pb.CloseRiskEventRequest(risk_event_id=event.id), helper.metadata)
    _, theirs = await live.tenant("other")
    for unknown, session in ((of_admin.id, theirs.metadata), ("rsk_x", theirs.metadata), ("", None)):
        with refused(Reason.RISK_EVENT_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
            await oversee(live, "CloseRiskEvent", pb.CloseRiskEventRequest(risk_event_id=unknown), session)


async def test_events_outlive_their_user_and_name_nobody_then(live: LiveServer, two: Two):
    event = await note(live, RiskKind.TOKEN_REUSED, two.sessions["ada"][0].session.user_id)
    await live.administer("DeleteUser", admin_pb.DeleteUserRequest(username="ada"))
    told = next(e for e in await events(live) if e.risk_event_id == event.id)
    assert (told.user_id, told.username) == ("", "")
    await oversee(live, "CloseRiskEvent", pb.CloseRiskEventRequest(risk_event_id=event.id))


async def test_a_session_knows_its_sign_in_and_its_address(live: LiveServer, two: Two):
    opened = await live.approved(two.ada)
    signed_in = await opened.redeem()
    row = await live.app.store.read(lambda tx: tx.get(Session, id=signed_in.session.session_id))
    assert row is not None
    assert (row.sign_in_id, row.address) == (opened.begun.sign_in_id, "127.0.0.1")
    assert signed_in.session.address == "127.0.0.1"
