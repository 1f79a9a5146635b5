"""Kill -9 of the server at every point of what administrators do: each act once, with its audit record, or not at all.

The administrator repeats a request under its `request_id` until there is a reply. Only an answer that has a secret, or
was lost before it was kept, is not given again; the act is done all the same.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import directory_pb2, oversight_pb2
from keyvouch_client import Connection, sign_in_with_access_pass
from keyvouch_client.errors import answer
from support.crash_stage import Account, Stage
from support.killable_server import AFTER_COMMIT, BEFORE_COMMIT, BEFORE_MESSAGE
from support.stubborn import insist

ACTS = {
    "UpdatePolicy": ("administration", "policy.update"),
    "ReplaceAccessPass": ("administration", "access_pass.replace"),
    "UpdateUser": ("directory", "user.update"),
    "CreateGroup": ("directory", "group.create"),
    "RevokeSessions": ("oversight", "session.revoke"),
}
PROOF, ACT, ANSWER = 1, 2, 3
"""The commits of a call: its proof of possession is used, the act is done, its answer is kept."""
KINDS = [f"{kind} {{}} {number}" for kind in (BEFORE_COMMIT, AFTER_COMMIT) for number in (PROOF, ACT, ANSWER)]
POINTS = [kind.format(method) for method in ACTS for kind in (*KINDS, f"{BEFORE_MESSAGE} {{}} 1")]
NEVER = {f"{kind} ReplaceAccessPass {ANSWER}" for kind in (BEFORE_COMMIT, AFTER_COMMIT)}
"""The answer holds the code of a pass: no second transaction keeps it."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("acts"), killable=True) as made:
        yield made


@pytest.fixture(autouse=True)
async def running(stage: Stage) -> None:
    await stage.ensure_running()


@pytest.fixture
async def connection(stage: Stage) -> AsyncIterator[Connection]:
    async with stage.connect() as made:
        yield made


async def request_for(stage: Stage, connection: Connection, method: str, account: Account) -> Any:
    request_id = secrets.token_hex(12)
    if method == "UpdatePolicy":
        call = connection.administration.GetPolicy(pb.GetPolicyRequest(), metadata=stage.administrator, timeout=15)
        policy = (await answer(call)).policy
        policy.approval.lifetime_seconds = 60 + policy.version
        return pb.UpdatePolicyRequest(policy=policy, request_id=request_id)
    name = account.username
    return {
        "ReplaceAccessPass": pb.ReplaceAccessPassRequest(
            username=name, sessions=pb.SESSIONS_ON_REPLACE_KEEP, request_id=request_id
        ),
        "UpdateUser": directory_pb2.UpdateUserRequest(user=name, display_name="Somebody", request_id=request_id),
        "CreateGroup": directory_pb2.CreateGroupRequest(name=f"of {name}", request_id=request_id),
        "RevokeSessions": oversight_pb2.RevokeSessionsRequest(user=name, request_id=request_id),
    }[method]


async def send(stage: Stage, connection: Connection, method: str, request: Any) -> str:
    """Until there is a reply; returns the reason of a refusal."""
    stub = getattr(connection, ACTS[method][0])
    try:
        await insist(
            connection,
            lambda: answer(getattr(stub, method)(request, metadata=stage.administrator, timeout=15)),
        )
    except KeyvouchError as refusal:
        return refusal.reason.value
    return ""


def records_of(stage: Stage, action: str) -> int:
    query = "SELECT count(*) FROM audit_record WHERE action = ? AND outcome = 'ok'"
    return int(stage.rows(query, action)[0][0])


async def signed_in_by_pass(stage: Stage, connection: Connection, account: Account) -> None:

    who = {"tenant": stage.server.tenant, "username": account.username, "access_pass": account.access_pass}
    await sign_in_with_access_pass(connection, **who)


@pytest.mark.parametrize("point", [point for point in POINTS if point not in NEVER])
async def test_killed_anywhere_each_act_is_done_once_and_audited_P6_G11(
    stage: Stage, connection: Connection, point: str
) -> None:
    method = point.split()[1]
    action = ACTS[method][1]
    account = await stage.new_account(connection)
    await signed_in_by_pass(stage, connection, account)
    request = await request_for(stage, connection, method, account)
    before, restarts = records_of(stage, action), stage.restarts
    await stage.arm(point)
    async with stage.reviving():
        refusal = await send(stage, connection, method, request)
    assert stage.restarts == restarts + 1, "the server was not killed"
    assert refusal == (Reason.REQUEST_COMPLETED.value if is_done_and_not_told(point, method) else "")
    assert records_of(stage, action) == before + 1
    assert stage.rows("SELECT count(*) FROM done_request WHERE request_id = ?", request.request_id) == [(1,)]
    stage.check()


def is_done_and_not_told(point: str, method: str) -> bool:
    """Whether a kill at this point comes after the act, and before its answer is kept, if it ever is."""
    kind, _, number = point.split()
    if kind == BEFORE_MESSAGE:
        return method == "ReplaceAccessPass"
    return (kind, int(number)) in {(AFTER_COMMIT, ACT), (BEFORE_COMMIT, ANSWER)}


async def test_without_a_kill_every_point_is_passed(stage: Stage, connection: Connection) -> None:
    """The control: the points are real ones."""
    for method in ACTS:
        account = await stage.new_account(connection)
        await signed_in_by_pass(stage, connection, account)
        request = await request_for(stage, connection, method, account)
        await stage.arm("")
        assert await send(stage, connection, method, request) == ""
        own = {point for point in POINTS if point.split()[1] == method} - NEVER
        assert own <= set(stage.reached_points())
