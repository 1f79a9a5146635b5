"""A request under a `request_id` is done once, however often it arrives."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import directory_pb2, security_info_pb2, sessions_pb2
from keyvouch_client.errors import answer
from keyvouch_client.session import Session
from keyvouch_server.domain.model import Role, User
from keyvouch_server.domain.oversight_model import DoneRequest
from keyvouch_server.use_cases.requests import KEPT_SECONDS
from support.live_server import LIMIT, LiveServer, refused


def fresh_id() -> str:
    return secrets.token_hex(12)


async def users(live: LiveServer) -> list[str]:
    found = (await live.administer("ListUsers", pb.ListUsersRequest())).users
    return sorted(user.username for user in found)


async def test_a_repetition_gets_the_answer_of_the_first_call_byte_for_byte(live: LiveServer):
    request = pb.CreateUserRequest(username="ada", request_id=fresh_id())
    first = await live.administer("CreateUser", request)
    live.clock.advance(5)
    again = await live.administer("CreateUser", request)
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert await users(live) == ["ada", "admin"]
    assert len(await live.audit("user.create")) == 2
    with refused(Reason.USER_EXISTS):  # the control: without the id it is another request
        await live.administer("CreateUser", pb.CreateUserRequest(username="ada"))


async def test_another_request_under_the_same_id_is_refused(live: LiveServer):
    request_id = fresh_id()
    await live.administer("CreateUser", pb.CreateUserRequest(username="ada", request_id=request_id))
    for other in (
        ("CreateUser", pb.CreateUserRequest(username="bob", request_id=request_id)),
        ("DeleteUser", pb.DeleteUserRequest(username="ada", request_id=request_id)),
    ):
        with refused(Reason.REQUEST_ID_REUSED, status=grpc.StatusCode.ALREADY_EXISTS):
            await live.administer(*other)
    assert await users(live) == ["ada", "admin"]


@pytest.mark.parametrize("request_id", ["short", "x" * 65, "with blank in it", "naïve-but-long", "semi;colon;1"])
async def test_an_id_that_is_none_is_refused_and_nothing_is_done(live: LiveServer, request_id: str):
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
        await live.administer("CreateUser", pb.CreateUserRequest(username="ada", request_id=request_id))
    assert await users(live) == ["admin"]


async def test_a_secret_is_given_once_and_not_kept_T6(live: LiveServer):
    await live.create_user("ada")
    request = pb.CreateAccessPassRequest(username="ada", request_id=fresh_id())
    made = await live.administer("CreateAccessPass", request)
    with refused(Reason.REQUEST_COMPLETED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await live.administer("CreateAccessPass", request)
    rows = await live.app.store.read(lambda tx: tx.find(DoneRequest, {"request_id": request.request_id}))
    assert [row.response for row in rows] == [b""]
    assert (await live.access_pass_sign_in("ada", made.code)).tokens.access_token


async def test_a_refused_request_may_be_tried_again_under_its_id(live: LiveServer):
    request = pb.CreateAccessPassRequest(username="ada", request_id=fresh_id())
    with refused(Reason.USER_UNKNOWN):
        await live.administer("CreateAccessPass", request)
    await live.create_user("ada")
    assert (await live.administer("CreateAccessPass", request)).code


async def test_many_at_once_are_one_act(live: LiveServer):
    request = pb.CreateUserRequest(username="ada", request_id=fresh_id())
    metadata = await live.admin()

    async def attempt() -> Any:
        try:
            return await live.administer("CreateUser", request, metadata)
        except KeyvouchError as error:
            return error

    results = await asyncio.gather(*(attempt() for _ in range(64)))
    told = {r.SerializeToString(deterministic=True) for r in results if not isinstance(r, KeyvouchError)}
    late = {r.reason for r in results if isinstance(r, KeyvouchError)}
    assert len(told) == 1
    assert late <= {Reason.REQUEST_COMPLETED}  # and never that the user is there already, whom they all made
    assert await users(live) == ["ada", "admin"]
    assert len(await live.audit("user.create")) == 2
    again = await live.administer("CreateUser", request, metadata)
    assert {again.SerializeToString(deterministic=True)} == told


async def test_ids_of_one_caller_are_not_those_of_another(live: LiveServer):
    deputy = (await live.signed_in(await live.person("deputy", Role.GLOBAL_ADMINISTRATOR))).metadata
    request_id = fresh_id()
    await live.administer("CreateUser", pb.CreateUserRequest(username="ada", request_id=request_id))
    made = await live.administer("CreateUser", pb.CreateUserRequest(username="bob", request_id=request_id), deputy)
    assert made.user.username == "bob"


async def test_two_requests_at_once_under_one_id_are_not_taken_for_one(live: LiveServer):
    request_id, metadata = fresh_id(), await live.admin()

    async def attempt(at: int) -> Reason | None:
        try:
            request = pb.CreateUserRequest(username=f"user-{at}", request_id=request_id)
            await live.administer("CreateUser", request, metadata)
        except KeyvouchError as error:
            return error.reason
        return None

    told = await asyncio.gather(*(attempt(at) for at in range(16)))
    assert sorted(told, key=str) == [None, *[Reason.REQUEST_ID_REUSED] * 15]
    assert len(await users(live)) == 2


async def test_an_answer_is_not_given_to_somebody_whose_rights_are_gone_P16(live: LiveServer):
    ada = await live.person("ada", Role.GLOBAL_ADMINISTRATOR)
    request = pb.CreateUserRequest(username="bob", request_id=fresh_id())
    before = await live.signed_in(ada)
    made = await live.administer("CreateUser", request, before.metadata)
    again = await live.signed_in(ada)  # another session of the same person gets the answer
    assert await live.administer("CreateUser", request, again.metadata) == made
    await change_role(live, "ada", pb.ROLE_USER)
    after = await live.signed_in(ada)
    with refused(Reason.REQUEST_COMPLETED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await live.administer("CreateUser", request, after.metadata)
    with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
        await live.administer("CreateUser", pb.CreateUserRequest(username="bob"), after.metadata)
    await change_role(live, "ada", pb.ROLE_GLOBAL_ADMINISTRATOR)
    restored = await live.signed_in(ada)
    assert await live.administer("CreateUser", request, restored.metadata) == made


async def change_role(live: LiveServer, user: str, role: pb.Role) -> None:
    request = directory_pb2.UpdateUserRequest(user=user, role=role)
    await answer(live.connection.directory.UpdateUser(request, metadata=await live.admin(), timeout=LIMIT))


async def test_an_act_without_its_answer_is_not_done_again(live: LiveServer):
    """What a crash between the act and the keeping of its answer leaves."""
    request = pb.CreateUserRequest(username="ada", request_id=fresh_id())
    await live.administer("CreateUser", request)
    where = {"request_id": request.request_id}
    await live.app.store.write(lambda tx: tx.update(DoneRequest, where, {"response": b""}))
    with refused(Reason.REQUEST_COMPLETED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await live.administer("CreateUser", request)
    assert await users(live) == ["ada", "admin"]


async def test_the_row_is_in_the_transaction_of_the_act_G11(live: LiveServer):
    """A work that fails leaves neither, whichever of both it was that failed."""
    request = pb.CreateUserRequest(username="ada", request_id=fresh_id())
    await live.administer("CreateUser", request)
    user, done = await live.app.store.read(both(request.request_id))
    assert (user is not None, done is not None) == (True, True)
    refusal = pb.CreateUserRequest(username="ADA", request_id=fresh_id())
    with refused(Reason.USER_EXISTS):
        await live.administer("CreateUser", refusal)
    _, done = await live.app.store.read(both(refusal.request_id))
    assert done is None


def both(request_id: str) -> Callable[[Any], Awaitable[tuple[Any, Any]]]:
    async def work(tx: Any) -> tuple[Any, Any]:
        return await tx.get(User, username="ada"), await tx.get(DoneRequest, request_id=request_id)

    return work


async def test_what_was_done_long_ago_is_forgotten(live: LiveServer):
    await live.administer("CreateUser", pb.CreateUserRequest(username="ada", request_id=fresh_id()))
    await live.app.requests.forget_old()
    live.clock.advance(KEPT_SECONDS)
    await live.app.requests.forget_old()
    assert await live.app.store.read(lambda tx: tx.find(DoneRequest, {})) == []


async def test_the_present_session_ends_once(live: LiveServer):
    ada = await live.signed_in(await live.person("ada"))
    other = await live.signed_in(live.people["ada"])
    request = sessions_pb2.RevokeSessionRequest(session_id=other.session.session_id, request_id=fresh_id())
    for _ in range(2):
        await answer(live.connection.sessions.RevokeSession(request, metadata=ada.metadata, timeout=LIMIT))
    assert len([r for r in await live.audit("session.revoke") if r.subject == other.session.session_id]) == 1


async def test_one_message_that_is_sent_twice_on_purpose_is_two_requests(live: LiveServer):
    """The SDK draws an id for the call, and leaves the caller's message as it is."""
    person = await live.person("ada")
    first = await live.signed_in(person)
    session = Session(
        live.connection,
        server_id=live.app.world.facts.server_id,
        tokens=first.tokens,
        details=first.session,
        proof_key=first.proof_key,
    )
    request = security_info_pb2.RevokeOtherSessionsRequest()
    for _ in range(2):
        other = await live.signed_in(person)
        await session.call(live.connection.security_info.RevokeOtherSessions, request)
        with refused(Reason.SESSION_REVOKED):
            await other.introspect()
    assert request.request_id == ""
