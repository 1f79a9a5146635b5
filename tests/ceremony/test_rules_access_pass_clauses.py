"""Clauses of the rules of the Temporary Access Pass that stand by themselves: T3, T5 to T7, T11 to T14."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2
from keyvouch_server.domain.model import AccessPass, Role
from support.directory_desk import rows, update
from support.live_server import LiveServer, refused

U = admin_pb
KEEP, REVOKE = admin_pb.SESSIONS_ON_REPLACE_KEEP, admin_pb.SESSIONS_ON_REPLACE_REVOKE


async def test_t3_a_new_tenant_begins_with_the_defaults(live: LiveServer):
    policy = (await live.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy.access_pass
    assert (policy.minimum_lifetime_minutes, policy.default_lifetime_minutes, policy.maximum_lifetime_minutes) == (
        60,
        60,
        1440,
    )
    assert (policy.enabled, policy.one_time_required, policy.length) == (True, False, 8)
    await live.create_user("ada")
    assert len(await live.issue_pass("ada")) == 8
    shown = await live.listed_pass("ada")
    assert (shown.lifetime_minutes, shown.one_time) == (60, False)


@pytest.mark.parametrize(("length", "minutes"), [(8, 10), (48, 43200)])
async def test_t3_passes_at_either_end_of_what_policy_may_say_open_a_session(
    live: LiveServer, length: int, minutes: int
):
    await live.create_user("ada")
    lifetimes = dict.fromkeys(
        ("minimum_lifetime_minutes", "default_lifetime_minutes", "maximum_lifetime_minutes"), minutes
    )
    await live.change_policy(access_pass={"length": length, **lifetimes})
    code = await live.issue_pass("ada")
    assert len(code) == length
    await live.access_pass_sign_in("ada", code)
    live.clock.advance(60 * minutes)
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", code)


async def test_t5_t6_a_reader_sees_all_of_every_pass_and_never_a_code(live: LiveServer):
    await live.create_user("ada")
    person = await live.person("reader", Role.GLOBAL_READER)
    codes = [await live.issue_pass("ada"), await live.issue_pass_again("reader")]
    reader = (await live.signed_in(person)).metadata
    told = await live.administer("ListAccessPasses", admin_pb.ListAccessPassesRequest(), reader)
    assert {one.username for one in told.access_passes} >= {"ada", "reader"}
    assert not any(code in str(told) for code in codes)
    for method, request in (
        ("CreateAccessPass", admin_pb.CreateAccessPassRequest(username="ada")),
        ("ReplaceAccessPass", admin_pb.ReplaceAccessPassRequest(username="ada", sessions=KEEP)),
        ("DeleteAccessPass", admin_pb.DeleteAccessPassRequest(username="ada")),
    ):
        with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
            await live.administer(method, request, reader)
    await live.access_pass_sign_in("ada", codes[0])


async def test_t7_all_that_is_told_of_a_pass(live: LiveServer):
    user_id = await live.create_user("ada")
    created, start = live.clock.now(), live.clock.now() + 60
    await live.issue_pass("ada", start_at=start, lifetime_minutes=90, one_time=True)
    live.clock.advance(30)
    (row,) = await rows(live, AccessPass, {"user_id": user_id})
    assert await live.listed_pass("ada") == admin_pb.AccessPass(
        access_pass_id=row.id,
        user_id=user_id,
        username="ada",
        created_at=created,
        start_at=start,
        lifetime_minutes=90,
        one_time=True,
        usable=False,
        usability=U.ACCESS_PASS_USABILITY_NOT_YET_VALID,
    )
    assert "code" not in admin_pb.AccessPass.DESCRIPTOR.fields_by_name


async def test_t7_whether_it_is_usable_and_why_not_follow_the_moment(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada", start_at=live.clock.now() + 60, one_time=True)

    async def listed() -> tuple[bool, Any]:
        shown = await live.listed_pass("ada")
        return shown.usable, shown.usability

    assert await listed() == (False, U.ACCESS_PASS_USABILITY_NOT_YET_VALID)
    live.clock.advance(60)
    assert await listed() == (True, U.ACCESS_PASS_USABILITY_ENABLED_BY_POLICY)
    for kind, said in (
        (common_pb2.USER_KIND_GUEST, (False, U.ACCESS_PASS_USABILITY_DISABLED_BY_POLICY)),
        (common_pb2.USER_KIND_MEMBER, (True, U.ACCESS_PASS_USABILITY_ENABLED_BY_POLICY)),
    ):
        await update(live, "ada", kind=kind)
        assert await listed() == said
    await live.access_pass_sign_in("ada", code)
    assert await listed() == (False, U.ACCESS_PASS_USABILITY_ONE_TIME_USED)
    live.clock.advance(3600)
    assert (await listed())[0] is False


async def test_t11_a_pass_that_strangers_killed_is_listed_and_deleted_and_sessions_stay_P18(live: LiveServer):
    ada = await live.person("ada")
    code = await live.issue_pass_again("ada")
    approved = await live.signed_in(ada)
    for _ in range(5):
        with refused(Reason.ACCESS_PASS_REFUSED):
            await live.access_pass_sign_in("ada", "AAAA2222")
    shown = await live.listed_pass("ada")
    assert (shown.usable, shown.usability) == (False, U.ACCESS_PASS_USABILITY_EXPIRED)
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", code)
    gone = await live.administer("DeleteAccessPass", admin_pb.DeleteAccessPassRequest(username="ada"))
    assert gone.revoked_sessions == 0
    await approved.introspect()


@pytest.mark.parametrize("how", ["delete", "replace"])
async def test_t12_what_was_approved_becomes_no_session_any_more(live: LiveServer, how: str):
    """Else whoever stole the device, and for whom the pass was deleted, would have a session a moment later."""
    ada = await live.person("ada")
    await live.issue_pass_again("ada")
    opened = await live.approved(ada)
    if how == "delete":
        await live.administer("DeleteAccessPass", admin_pb.DeleteAccessPassRequest(username="ada"))
    else:
        request = admin_pb.ReplaceAccessPassRequest(username="ada", sessions=REVOKE)
        await live.administer("ReplaceAccessPass", request)
    with refused(Reason.SIGN_IN_CANCELLED):
        await opened.redeem()
    await live.issue_pass_again("ada")
    opened = await live.approved(ada)
    await live.administer("ReplaceAccessPass", admin_pb.ReplaceAccessPassRequest(username="ada", sessions=KEEP))
    await opened.redeem()  # the control: KI11


async def test_t13_ten_minutes_too_where_policy_makes_it_one_time(live: LiveServer):
    await live.create_user("ada")
    await live.change_policy(access_pass={"one_time_required": True})
    opened = await live.access_pass_sign_in("ada", await live.issue_pass("ada", one_time=False))
    assert opened.tokens.session_expires_at == live.clock.now() + 600


async def test_t14_who_becomes_a_guest_cannot_sign_in_until_that_is_over(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    await update(live, "ada", kind=common_pb2.USER_KIND_GUEST)
    with refused(Reason.ACCESS_PASS_REFUSED, status=grpc.StatusCode.UNAUTHENTICATED):
        await live.access_pass_sign_in("ada", code)
    assert (await live.audit("access_pass.sign_in"))[-1].outcome == Reason.ACCESS_PASS_GUEST.value
    await update(live, "ada", kind=common_pb2.USER_KIND_MEMBER)
    await live.access_pass_sign_in("ada", code)
