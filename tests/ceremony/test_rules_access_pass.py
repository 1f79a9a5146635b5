"""Rules of the Temporary Access Pass on a real server: T1, T3, T6 to T8, T12, T13."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import security_info_pb2, sessions_pb2
from keyvouch_bench.device import BenchDevice
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import AccessPass
from support.live_server import LIMIT, TENANT, LiveServer, Metadata, bearer, refused
from support.reflected import REFLECTION, methods_of
from support.registering import begin, complete

U = admin_pb


async def delete_pass(live: LiveServer, username: str) -> int:
    request = admin_pb.DeleteAccessPassRequest(username=username)
    return (await live.administer("DeleteAccessPass", request)).revoked_sessions


async def test_t1_an_administrators_pass_is_enough_to_register_a_device(live: LiveServer):
    await live.create_user("ada")
    with refused(Reason.ACCESS_PASS_REFUSED, status=grpc.StatusCode.UNAUTHENTICATED):
        await live.enrol("ada", "AAAA2222")
    device = await live.enrol("ada", await live.issue_pass("ada"))
    ada = await live.connect("ada", device)
    assert (await live.signed_in(ada)).session.username == "ada"


async def test_t1_a_pass_recovers_a_user_whose_device_is_lost(live: LiveServer):
    ada = await live.person("ada")
    await live.issue_pass_again("ada")
    code = await live.issue_pass_again("ada")
    second = await live.connect("ada", await live.enrol("ada", code))
    opened = await live.begin("ada")
    prompt = await second.stream.prompt()
    assert (await second.stream.send(second.device.approve(prompt, opened.number))).accepted
    assert ada.device.device_id != second.device.device_id


async def test_t1_a_pass_ends_with_its_time(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada", lifetime_minutes=60)
    live.clock.advance(3599)
    await live.access_pass_sign_in("ada", code)
    live.clock.advance(1)
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", code)


async def test_t6_the_code_is_returned_once_and_is_nowhere_else(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    await live.access_pass_sign_in("ada", code)
    shown = await live.listed_pass("ada")
    records = await live.administer("ListAuditRecords", admin_pb.ListAuditRecordsRequest(username="ada"))
    assert code not in str(shown) + str(records)
    written = b"".join(path.read_bytes() for path in live.data.glob("keyvouch.db*"))
    assert code.encode() not in written
    assert code.lower().encode() not in written
    row = await live.app.store.read(lambda tx: tx.get(AccessPass, id=shown.access_pass_id))
    assert row is not None
    assert len(row.code_hash) == 32
    assert row.code_hash in written


async def test_t6_the_hash_is_keyed_and_bound_to_the_user(live: LiveServer):
    for name in ("ada", "bob"):
        await live.create_user(name)
    code = await live.issue_pass("ada")
    await live.issue_pass("bob")
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("bob", code)
    await live.access_pass_sign_in("ada", code)


@pytest.mark.parametrize("typed", [str.lower, lambda c: f" {c[:4]} {c[4:]} ", lambda c: f"{c[:4]}-{c[4:]}"])
async def test_t6_case_blanks_and_hyphens_do_not_matter(live: LiveServer, typed):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    await live.access_pass_sign_in(" ADA ", typed(code))


async def test_t6_start_lifetime_and_one_time_are_as_asked(live: LiveServer):
    await live.create_user("ada")
    start = live.clock.now() + 3600
    await live.issue_pass("ada", start_at=start, lifetime_minutes=120, one_time=True)
    shown = await live.listed_pass("ada")
    assert (shown.start_at, shown.lifetime_minutes, shown.one_time, shown.usable) == (start, 120, True, False)
    assert shown.usability == U.ACCESS_PASS_USABILITY_NOT_YET_VALID
    live.clock.advance(3600)
    assert (await live.listed_pass("ada")).usability == U.ACCESS_PASS_USABILITY_ENABLED_BY_POLICY


@pytest.mark.parametrize(
    "options", [{"lifetime_minutes": 59}, {"lifetime_minutes": 1441}, {"lifetime_minutes": -5}, {"start_at": 1}]
)
async def test_t3_a_pass_outside_the_policy_is_not_made(live: LiveServer, options):
    await live.create_user("ada")
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
        await live.issue_pass("ada", **options)
    assert len(await live.issue_pass("ada", lifetime_minutes=1440)) == 8


async def test_t3_one_time_by_policy_makes_every_pass_one_time(live: LiveServer):
    await live.change_policy(access_pass={"one_time_required": True, "length": 12})
    await live.create_user("ada")
    assert len(await live.issue_pass("ada", one_time=False)) == 12
    assert (await live.listed_pass("ada")).one_time is True


# what a session of a pass may do

PASS_SESSION_MAY = {
    "/keyvouch.v1.EnrolmentService/BeginRegistration",
    "/keyvouch.v1.SecurityInfoService/GetSecurityInfo",
    "/keyvouch.v1.SecurityInfoService/RemoveDevice",
    "/keyvouch.v1.SecurityInfoService/RenameDevice",
    "/keyvouch.v1.SecurityInfoService/SetDefaultMethod",
    "/keyvouch.v1.SessionService/IntrospectSession",
    "/keyvouch.v1.SessionService/RevokeSession",
}
"""Registering, security info, and looking at or ending that very session."""

NO_SESSION_NEEDED = {
    "/keyvouch.v1.SignInService/BeginSignIn",
    "/keyvouch.v1.SignInService/SignInSession",
    "/keyvouch.v1.SignInService/SignInWithAccessPass",
    "/keyvouch.v1.SessionService/RefreshSession",
    "/keyvouch.v1.SessionService/GetJwks",
    "/grpc.health.v1.Health/Check",
}


async def test_t8_a_pass_session_registers_and_reviews_and_nothing_else(live: LiveServer):
    approved = await live.admin()
    methods = await methods_of(live.connection.channel, REFLECTION[0], approved)
    session = await live.pass_session("admin", live.administrator_pass)
    admitted = set()
    for path, method in methods.items():
        try:
            await method.call(live.connection.channel, session)
        except KeyvouchError as error:
            if error.reason in (Reason.SESSION_PURPOSE, Reason.CREDENTIALS_MISSING):
                continue
        admitted.add(path)
        if path.endswith("RevokeSession"):
            session = await live.pass_session("admin", live.administrator_pass)
    assert admitted - NO_SESSION_NEEDED == PASS_SESSION_MAY
    for path in methods.keys() - admitted:
        with refused(Reason.SESSION_PURPOSE, Reason.CREDENTIALS_MISSING):
            await methods[path].call(live.connection.channel, session)


async def test_t8_a_pass_session_ends_itself_but_no_other_session(live: LiveServer):
    ada = await live.person("ada")
    approved = await live.signed_in(ada)
    code = await live.issue_pass_again("ada")
    approved = await live.signed_in(ada)
    session = await live.pass_session("ada", code)

    async def revoke(session_id: str = "") -> None:
        request = sessions_pb2.RevokeSessionRequest(session_id=session_id)
        await answer(live.connection.sessions.RevokeSession(request, metadata=session, timeout=LIMIT))

    with refused(Reason.SESSION_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
        await revoke(approved.session.session_id)
    await approved.introspect()
    await revoke()
    with refused(Reason.SESSION_REVOKED):
        await live.introspect(session)


@pytest.mark.parametrize(("minutes", "ends"), [(60, 3600), (1440, 12 * 3600)])
async def test_t8_the_session_never_outlives_the_pass_nor_the_policy(live: LiveServer, minutes: int, ends: int):
    await live.create_user("ada")
    code = await live.issue_pass("ada", lifetime_minutes=minutes)
    opened = await live.access_pass_sign_in("ada", code)
    assert opened.tokens.session_expires_at == opened.tokens.access_expires_at == live.clock.now() + ends
    assert opened.tokens.refresh_token == ""
    session = bearer(opened.tokens.access_token)
    live.clock.advance(ends - 1)
    await live.introspect(session)
    live.clock.advance(1)
    with refused(Reason.TOKEN_EXPIRED, Reason.SESSION_EXPIRED):
        await live.introspect(session)


async def test_t8_a_session_opened_late_ends_with_the_pass(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    end = live.clock.now() + 3600
    live.clock.advance(3000)
    opened = await live.access_pass_sign_in("ada", code)
    assert opened.tokens.session_expires_at == end


@pytest.mark.parametrize("how", ["delete", "overwrite"])
async def test_t8_the_session_of_a_spent_pass_ends_when_the_pass_goes(live: LiveServer, how: str):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada", one_time=True))
    await live.introspect(session)
    if how == "delete":
        assert await delete_pass(live, "ada") == 1
    else:
        await live.issue_pass("ada")
    with refused(Reason.SESSION_REVOKED):
        await live.introspect(session)


async def test_t8_a_registration_is_not_completed_after_its_session_ended(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    first, second = await begin(live, session), await begin(live, session)
    await complete(live, first)
    await delete_pass(live, "ada")
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await complete(live, second)


async def test_t13_a_one_time_pass_leaves_ten_minutes_to_register(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada", one_time=True))
    live.clock.advance(599)
    assert (await live.introspect(session)).session.username == "ada"
    live.clock.advance(1)
    with refused(Reason.TOKEN_EXPIRED, Reason.SESSION_EXPIRED):
        await BenchDevice.enrol(live.connection, metadata=session)


async def test_t8_a_one_time_pass_registers_one_device_and_of_two_at_once_one(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada", one_time=True))
    begun = [await begin(live, session) for _ in range(4)]
    results = await asyncio.gather(*(complete(live, b) for b in begun), return_exceptions=True)
    errors = [r for r in results if isinstance(r, BaseException)]
    assert len(errors) == 3
    assert {e.reason for e in errors if isinstance(e, KeyvouchError)} == {Reason.SESSION_REVOKED}
    with refused(Reason.SESSION_REVOKED):
        await begin(live, session)
    winner = next(r for r in results if not isinstance(r, BaseException))
    again = await complete(live, next(b for b in begun if b.device_id == winner.device.device_id))
    assert again.certificate_chain[0] == winner.certificate_chain[0]


async def test_t8_a_pass_that_may_be_used_again_registers_several_devices(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    first, second = await live.enrol("ada", code), await live.enrol("ada", code)
    assert first.device_id != second.device_id


# one pass per user


async def test_t12_a_valid_pass_is_not_replaced(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    with refused(Reason.ACCESS_PASS_EXISTS, status=grpc.StatusCode.ALREADY_EXISTS):
        await live.issue_pass("ada")
    await live.access_pass_sign_in("ada", code)


async def sessions_of(live: LiveServer, username: str = "ada") -> tuple[Any, Metadata]:
    """An approved session and one of a pass, with that pass's user."""
    ada = await live.person(username)
    code = await live.issue_pass_again(username)
    return await live.signed_in(ada), await live.pass_session(username, code)


async def test_t12_deleting_a_valid_pass_ends_the_users_sessions(live: LiveServer):
    approved, of_pass = await sessions_of(live)
    other = await live.signed_in(await live.person("bob"))
    assert await delete_pass(live, "ada") == 2
    for metadata in (approved.metadata, of_pass):
        with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
            await live.introspect(metadata)
    await other.introspect()
    with refused(Reason.ACCESS_PASS_NONE, status=grpc.StatusCode.NOT_FOUND):
        await delete_pass(live, "ada")
    await live.issue_pass("ada")


async def test_t12_an_approval_of_before_opens_no_session_once_a_valid_pass_is_deleted(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.approved(ada)
    assert await delete_pass(live, "ada") == 1  # the pass is valid, and its own session ends
    with refused(Reason.SIGN_IN_CANCELLED):
        await opened.redeem()
    await live.signed_in(ada)


async def test_t12_an_expired_pass_is_overwritten_and_sessions_stay(live: LiveServer):
    approved, _ = await sessions_of(live)
    live.clock.advance(3600)
    renewed = bearer((await approved.refresh()).access_token)
    code = await live.issue_pass("ada")
    await live.introspect(renewed)
    await live.access_pass_sign_in("ada", code)
    assert len(await live.app.store.read(lambda tx: tx.find(AccessPass, {}))) == 2  # the administrator's too


async def test_t12_deleting_an_expired_pass_ends_no_session(live: LiveServer):
    approved, _ = await sessions_of(live)
    live.clock.advance(3600)
    renewed = bearer((await approved.refresh()).access_token)
    assert await delete_pass(live, "ada") == 0
    await live.introspect(renewed)


async def test_t12_a_used_one_time_pass_is_overwritten_and_approved_sessions_stay(live: LiveServer):
    ada = await live.person("ada")
    code = await live.issue_pass_again("ada", one_time=True)
    await live.pass_session("ada", code)
    approved = await live.signed_in(ada)
    assert (await live.listed_pass("ada")).usability == U.ACCESS_PASS_USABILITY_ONE_TIME_USED
    await live.issue_pass("ada")
    await approved.introspect()


async def test_t7_each_reason_is_listed(live: LiveServer):
    await live.create_user("ada")
    assert await live.issue_pass("ada")
    assert (await live.listed_pass("ada")).usability == U.ACCESS_PASS_USABILITY_ENABLED_BY_POLICY
    await live.change_policy(access_pass={"enabled": False})
    shown = await live.listed_pass("ada")
    assert (shown.usable, shown.usability) == (False, U.ACCESS_PASS_USABILITY_DISABLED_BY_POLICY)
    await live.change_policy(access_pass={"enabled": True})
    live.clock.advance(3600)
    assert (await live.listed_pass("ada")).usability == U.ACCESS_PASS_USABILITY_EXPIRED


async def test_security_info_warns_of_none_and_of_one_device(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    session = await live.pass_session("ada", code)

    async def info() -> security_info_pb2.GetSecurityInfoResponse:
        request = security_info_pb2.GetSecurityInfoRequest()
        return await answer(live.connection.security_info.GetSecurityInfo(request, metadata=session, timeout=LIMIT))

    ends = "This session ends with your access pass in 60 min: register before that."
    first, _ = (await info()).warnings, await live.enrol("ada", code)
    second, _ = (await info()).warnings, await live.enrol("ada", code)
    assert [len(warnings) for warnings in (first, second)] == [2, 2]
    assert (first[1], second[1]) == (ends, ends)
    told = await info()
    assert (list(told.warnings), len(told.devices), told.tenant_name) == ([ends], 2, TENANT)
