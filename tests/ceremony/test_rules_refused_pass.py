"""T17 on a real server: the audit log says precisely why a pass was refused, the caller cannot tell."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, sign_in_pb2
from keyvouch_server.domain.model import AccessPass
from keyvouch_server.domain.oversight_model import RiskEvent, RiskKind
from keyvouch_server.use_cases.access_pass_sign_in import OF_USER
from support.live_server import LIMIT, TENANT, LiveServer


async def raw_refusal(live: LiveServer, username: str, code: str, tenant: str = TENANT) -> tuple[Any, ...]:
    """Everything the caller is told: status, message and the details' bytes."""
    request = sign_in_pb2.SignInWithAccessPassRequest(tenant=tenant, username=username, access_pass=code)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await live.connection.sign_ins.SignInWithAccessPass(request, timeout=LIMIT)
    error = caught.value
    return error.code(), error.details(), tuple(error.trailing_metadata() or ())


async def expired(live: LiveServer) -> str:
    code = await live.issue_pass("ada")
    live.clock.advance(3600)
    return code


async def not_in_policy(live: LiveServer) -> str:
    code = await live.issue_pass("ada")
    await live.change_policy(access_pass={"enabled": False})
    return code


async def not_a_target(live: LiveServer) -> str:
    code = await live.issue_pass("ada")
    await live.change_policy(access_pass={"targets": admin_pb.Targets()})
    return code


async def of_a_guest(live: LiveServer) -> str:
    await live.administer("DeleteUser", admin_pb.DeleteUserRequest(username="ada"))
    guest = admin_pb.CreateUserRequest(username="ada", kind=common_pb2.USER_KIND_GUEST)
    await live.administer("CreateUser", guest)
    return await live.issue_pass("ada")


async def not_yet_valid(live: LiveServer) -> str:
    return await live.issue_pass("ada", start_at=live.clock.now() + 600)


async def already_used(live: LiveServer) -> str:
    code = await live.issue_pass("ada", one_time=True)
    await live.access_pass_sign_in("ada", code)
    return code


async def one_time_required(live: LiveServer) -> str:
    code = await live.issue_pass("ada")
    await live.change_policy(access_pass={"one_time_required": True})
    return code


async def wrong_code(live: LiveServer) -> str:
    await live.issue_pass("ada")
    return "AAAA2222"


async def no_pass(live: LiveServer) -> str:
    return "AAAA2222"


async def too_many_tries(live: LiveServer) -> str:
    code = await live.issue_pass("ada")
    for _ in range(5):
        await raw_refusal(live, "ada", "AAAA2222")
    return code


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (not_in_policy, Reason.ACCESS_PASS_NOT_IN_POLICY),
        (not_a_target, Reason.ACCESS_PASS_NOT_IN_POLICY),
        (of_a_guest, Reason.ACCESS_PASS_GUEST),
        (not_yet_valid, Reason.ACCESS_PASS_NOT_YET_VALID),
        (expired, Reason.ACCESS_PASS_EXPIRED),
        (already_used, Reason.ACCESS_PASS_USED),
        (one_time_required, Reason.ACCESS_PASS_ONE_TIME_REQUIRED),
        (wrong_code, Reason.ACCESS_PASS_WRONG),
        (no_pass, Reason.ACCESS_PASS_NONE),
        (too_many_tries, Reason.ACCESS_PASS_ATTEMPTS),
    ],
)
async def test_t17_the_log_says_why_and_the_caller_cannot_tell(live: LiveServer, prepare, reason):
    await live.create_user("ada")
    user_id = await live.create_user("bob")
    code = await prepare(live)
    unknown = await raw_refusal(live, "nobody", code)
    elsewhere = await raw_refusal(live, "ada", code, tenant="elsewhere")
    told = await raw_refusal(live, "ada", code)
    assert told == unknown == elsewhere
    assert told[0] is grpc.StatusCode.UNAUTHENTICATED
    assert reason.value.encode() not in dict(told[2])["grpc-status-details-bin"]
    outcomes = [r for r in await live.audit("access_pass.sign_in") if r.outcome != "ok"]
    assert outcomes[-1].outcome == reason.value
    assert outcomes[-1].user_id not in ("", user_id)
    assert [r.outcome for r in outcomes[-3:-1]] == [Reason.ACCESS_PASS_NONE.value] * 2
    assert code not in str(outcomes)


async def test_t17_administrators_read_the_reason(live: LiveServer):
    await live.create_user("ada")
    code = await not_yet_valid(live)
    await raw_refusal(live, "ada", code)
    request = admin_pb.ListAuditRecordsRequest(username="ada")
    newest = (await live.administer("ListAuditRecords", request)).records[0]
    assert (newest.action, newest.outcome) == ("access_pass.sign_in", Reason.ACCESS_PASS_NOT_YET_VALID.value)
    assert newest.details["address"] == "127.0.0.1"


async def test_t17_five_wrong_tries_kill_the_pass_and_four_do_not(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    for _ in range(4):
        await raw_refusal(live, "ada", "AAAA2222")
    await live.access_pass_sign_in("ada", code)
    for spelling in ("ada", "ADA", " ada", "\uff21da", "ada "):
        await raw_refusal(live, spelling, "AAAA2222")
    await raw_refusal(live, "ada", code)
    row = await live.app.store.read(lambda tx: tx.find(AccessPass, {"attempts": 5}))
    assert len(row) == 1
    assert (await live.listed_pass("ada")).usable is False
    fresh = await live.issue_pass("ada")
    await live.access_pass_sign_in("ada", fresh)


async def test_t17_tries_made_at_once_are_all_counted(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    tries = [raw_refusal(live, "ada", f"AAAA22{i:02}".replace("0", "A").replace("1", "B")) for i in range(20)]
    await asyncio.gather(*tries)
    outcomes = [r.outcome for r in await live.audit("access_pass.sign_in") if r.outcome != "ok"]
    assert outcomes.count(Reason.ACCESS_PASS_WRONG.value) == 5
    assert outcomes.count(Reason.ACCESS_PASS_ATTEMPTS.value) == 15
    await raw_refusal(live, "ada", code)


async def test_t17_too_many_tries_look_alike_for_known_and_unknown_names_P12(live: LiveServer):
    await live.create_user("ada")
    await live.issue_pass("ada")
    told = {}
    for name in ("ada", "xyz"):
        tries = [raw_refusal(live, name, "AAAA2222") for _ in range(OF_USER.burst)]
        assert {said[0] for said in await asyncio.gather(*tries)} == {grpc.StatusCode.UNAUTHENTICATED}
        told[name] = await raw_refusal(live, name, "AAAA2222")
    assert told["ada"] == told["xyz"]
    assert told["ada"][0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    outcomes = [r.outcome for r in await live.audit("access_pass.sign_in")]
    assert outcomes.count(Reason.THROTTLED.value) == 2


async def test_t17_administrators_are_told_of_a_pass_that_strangers_killed_P9(live: LiveServer):
    user_id = await live.create_user("ada")
    await live.issue_pass("ada")
    for _ in range(6):
        await raw_refusal(live, "ada", "AAAA2222")
    noted = await live.app.store.read(lambda tx: tx.find(RiskEvent, {"user_id": user_id}))
    assert [(event.kind, event.address) for event in noted] == [(RiskKind.PASS_GUESSED, "127.0.0.1")]
    assert "AAAA" not in str(noted)
