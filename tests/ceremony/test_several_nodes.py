"""Several servers on one database: what is done at one reaches who waits at another, in less than a second.

`here` is where clients and administrators are, `there` where devices are connected, unless a test says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from keyvouch.errors import Reason
from keyvouch.statement import Decision
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, directory_pb2, prompts_pb2, security_info_pb2, sessions_pb2
from keyvouch_bench.device import PromptStream
from keyvouch_client.errors import answer
from keyvouch_server.use_cases.sign_in import BegunSignIn
from support.live_server import LIMIT, LiveServer, OpenSignIn, Person, SignedIn, refused
from support.node_clients import BOTH_WAYS, SESSION, Begin, multiplexed, watching
from support.nodes import carried, moved, nodes, person, removed, soon


def approve(ada: Person, prompt: prompts_pb2.Prompt, number: str) -> prompts_pb2.Answer:
    return ada.device.approve(prompt, number)


def mistype(ada: Person, prompt: prompts_pb2.Prompt, number: str) -> prompts_pb2.Answer:
    return ada.device.approve(prompt, str((int(number) + 1) % 10 ** len(number)).zfill(len(number)))


def deny(ada: Person, prompt: prompts_pb2.Prompt, number: str) -> prompts_pb2.Answer:
    return ada.device.refuse(prompt, Decision.DENY)


def report(ada: Person, prompt: prompts_pb2.Prompt, number: str) -> prompts_pb2.Answer:
    return ada.device.refuse(prompt, Decision.REPORT)


@BOTH_WAYS
@pytest.mark.parametrize(
    ("decide", "end"),
    [
        (approve, SESSION),
        (mistype, common_pb2.SIGN_IN_STATE_FAILED),
        (deny, common_pb2.SIGN_IN_STATE_DENIED),
        (report, common_pb2.SIGN_IN_STATE_REPORTED),
    ],
)
async def test_a_prompt_reaches_its_device_and_the_answer_its_client_PS4_PS5_PS21(
    pair: tuple[LiveServer, ...], begin: Begin, decide: Callable[..., prompts_pb2.Answer], end: int
):
    here, there = pair
    ada = await person(here, "ada", at=there)
    with soon():
        client = await begin(here, "ada")
        prompt = await ada.stream.prompt()
    with soon():
        outcome = await ada.stream.send(decide(ada, prompt, client.number))
        assert await client.end() == end
    assert outcome.accepted is (decide is not mistype)


@BOTH_WAYS
async def test_what_the_client_withdraws_is_withdrawn_at_the_device_PS21(pair: tuple[LiveServer, ...], begin: Begin):
    here, there = pair
    ada = await person(here, "ada", at=there)
    client = await begin(here, "ada")
    prompt = await ada.stream.prompt()
    with soon():
        await client.cancel()
        withdrawn = await ada.stream.withdrawn()
    assert (withdrawn.prompt_id, withdrawn.state) == (prompt.prompt_id, common_pb2.SIGN_IN_STATE_CANCELLED)
    assert await client.end() == common_pb2.SIGN_IN_STATE_CANCELLED


@BOTH_WAYS
async def test_a_newer_request_at_another_node_takes_the_place_of_the_older_KI4(
    pair: tuple[LiveServer, ...], begin: Begin
):
    here, there = pair
    ada = await person(here, "ada", at=there)
    older = await begin(here, "ada")
    first = await ada.stream.prompt()
    with soon():
        newer = await begin(there, "ada")
        assert await older.end() == common_pb2.SIGN_IN_STATE_SUPERSEDED
        assert (await ada.stream.withdrawn()).prompt_id == first.prompt_id
        second = await ada.stream.prompt()
    await ada.stream.send(ada.device.approve(second, newer.number))
    assert await newer.end() == SESSION


@BOTH_WAYS
@pytest.mark.parametrize("sweeper", [0, 1])
async def test_whichever_node_finds_that_time_is_up_all_are_told(
    pair: tuple[LiveServer, ...], begin: Begin, sweeper: int
):
    here, there = pair
    ada = await person(here, "ada", at=there)
    client = await begin(here, "ada")
    prompt = await ada.stream.prompt()
    here.clock.advance(121)
    with soon():
        await pair[sweeper].app.sign_ins.expire()
        withdrawn = await ada.stream.withdrawn()
        assert await client.end() == common_pb2.SIGN_IN_STATE_EXPIRED
    assert (withdrawn.prompt_id, withdrawn.state) == (prompt.prompt_id, common_pb2.SIGN_IN_STATE_EXPIRED)


@BOTH_WAYS
async def test_a_deleted_users_sign_in_is_cancelled_everywhere_PS18(pair: tuple[LiveServer, ...], begin: Begin):
    here, there = pair
    ada = await person(here, "ada", at=there)
    client = await begin(there, "ada")
    await ada.stream.prompt()
    await here.admin()
    with soon():
        await here.administer("DeleteUser", admin_pb.DeleteUserRequest(username="ada"))
        assert await client.end() == common_pb2.SIGN_IN_STATE_CANCELLED
        await removed(ada.stream)


async def by_owner(ada: Person, session: SignedIn) -> None:
    request = security_info_pb2.RemoveDeviceRequest(device_id=ada.device.device_id)
    call = session.live.connection.security_info.RemoveDevice
    await answer(call(request, metadata=session.metadata, timeout=LIMIT))


async def by_administrator(ada: Person, session: SignedIn) -> None:
    await session.live.administer(
        "AdminRemoveDevice", admin_pb.AdminRemoveDeviceRequest(device_id=ada.device.device_id)
    )


@pytest.mark.parametrize("remove", [by_owner, by_administrator])
async def test_a_device_that_is_removed_loses_its_streams_at_every_node_PS18(
    pair: tuple[LiveServer, ...], remove: Callable[[Person, SignedIn], Awaitable[None]]
):
    here, there = pair
    ada = await person(here, "ada", at=there)
    session = await here.signed_in(ada)
    kept = await person(here, "bob", at=there)
    await here.admin()
    with soon():
        await remove(ada, session)
        await removed(ada.stream)
    with refused(Reason.SESSION_REVOKED):
        await carried(session, there).introspect()
    await here.signed_in(kept)


async def test_a_session_that_is_revoked_ends_its_streams_at_every_node_P14_PS18(pair: tuple[LiveServer, ...]):
    here, there = pair
    session = await here.signed_in(await person(here, "ada", at=there))
    streams = []
    for live in pair:
        used = carried(session, live)
        watch = health_pb2_grpc.HealthStub(live.connection.channel).Watch
        streams.append(watch(health_pb2.HealthCheckRequest(), metadata=used.metadata, timeout=LIMIT))
        await answer(streams[-1].read())
    with soon():
        request = sessions_pb2.RevokeSessionRequest()
        await answer(here.connection.sessions.RevokeSession(request, metadata=session.metadata, timeout=LIMIT))
        for stream in streams:
            with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
                await answer(stream.read())
                await stream


async def test_t18_a_pass_is_good_at_once_and_used_up_at_once_at_every_node(
    server_template: Path, tmp_path: Path, postgres_url: str
):
    async with nodes(server_template, tmp_path, postgres_url, count=3) as (here, *others):
        await here.create_user("ada")
        for live in (*others, here):
            await live.access_pass_sign_in("ada", await here.issue_pass_again("ada"))
        code = await here.issue_pass_again("ada", one_time=True)
        await others[0].access_pass_sign_in("ada", code)
        for live in (others[1], here, others[0]):
            with refused(Reason.ACCESS_PASS_REFUSED):
                await live.access_pass_sign_in("ada", code)


async def test_a_role_and_a_policy_count_at_once_at_every_node_P16_KI1(pair: tuple[LiveServer, ...]):
    here, there = pair
    ada = await person(here, "ada", at=there)
    session = carried(await here.signed_in(ada), there)
    listing = admin_pb.ListUsersRequest()
    with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
        await there.administer("ListUsers", listing, session.metadata)
    change = directory_pb2.UpdateUserRequest(user="ada", role=admin_pb.ROLE_GLOBAL_READER)
    await answer(here.connection.directory.UpdateUser(change, metadata=await here.admin(), timeout=LIMIT))
    with refused(Reason.SESSION_REVOKED):
        await there.administer("ListUsers", listing, session.metadata)
    await there.administer("ListUsers", listing, carried(await here.signed_in(ada), there).metadata)
    waiting = await here.begin("ada")
    prompt = await ada.stream.prompt()
    await here.change_policy(approval={"enabled": False})
    with refused(Reason.METHOD_DISABLED, Reason.NO_METHOD, Reason.POLICY_CHANGED):
        await there.begin("ada")
    await ada.stream.send(ada.device.approve(prompt, waiting.number))
    with refused(Reason.METHOD_DISABLED, Reason.NO_METHOD, Reason.POLICY_CHANGED):
        await replaced(waiting, there).redeem()


def replaced(opened: OpenSignIn, live: LiveServer) -> OpenSignIn:
    """The sign-in as its client goes on with it at another node."""
    return OpenSignIn(live, opened.begun, opened.proof_key)


async def test_a_ceremony_may_change_nodes_at_every_step_PS4(pair: tuple[LiveServer, ...]):
    here, there = pair
    ada = await person(here, "ada", at=here)
    opened = await there.begin("ada")
    prompt = await ada.stream.prompt()
    async with PromptStream(moved(ada.device, there)) as second:
        assert (await second.prompt()).offer == prompt.offer
        watched = replaced(opened, here).watch()
        assert (await answer(watched.read())).state == common_pb2.SIGN_IN_STATE_PENDING
        assert (await second.send(ada.device.approve(prompt, opened.number))).accepted
        assert (await answer(watched.read())).state == common_pb2.SIGN_IN_STATE_APPROVED
        session = await replaced(opened, here).redeem()
    await ada.stream.write(ada.device.approve(prompt, opened.number))
    assert (await ada.stream.read()).WhichOneof("event") == "outcome"  # nothing was withdrawn from who has answered
    session = carried(session, there)
    session.tokens = await session.refresh()
    await carried(session, here).introspect()


async def test_of_two_devices_at_two_nodes_one_decides_and_both_hear_of_it_P7(pair: tuple[LiveServer, ...]):
    here, there = pair
    ada = await person(here, "ada", at=there)
    second = await here.connect("ada", await here.enrol("ada", await here.issue_pass_again("ada")))
    for _ in range(3):
        client = await watching(here, "ada")
        prompts = [await one.stream.prompt() for one in (ada, second)]
        one = ada.stream.send(ada.device.approve(prompts[0], client.number))
        other = second.stream.send(second.device.refuse(prompts[1], Decision.DENY))
        outcomes = await asyncio.gather(one, other)
        assert [outcome.accepted for outcome in outcomes].count(True) == 1
        assert await client.end() == (SESSION if outcomes[0].accepted else common_pb2.SIGN_IN_STATE_DENIED)
        here.clock.advance(60)


async def test_an_approval_that_is_redeemed_at_two_nodes_is_one_session_P7(pair: tuple[LiveServer, ...]):
    here, there = pair
    opened = await here.approved(await person(here, "ada", at=there))
    redeemed = await asyncio.gather(*(replaced(opened, live).redeem() for live in (*pair, *pair)))
    assert len({one.session.session_id for one in redeemed}) == 1


async def test_a_device_is_told_of_each_prompt_once_PS21(pair: tuple[LiveServer, ...]):
    """Also by a node that takes its own notifications for another's, as it does after it has lost its writer."""
    here, there = pair
    ada = await person(here, "ada", at=there)
    for live in (*pair, *pair):
        for one in pair:
            one.app.store._drop_writer()  # type: ignore[attr-defined]
        opened = await live.begin("ada")
        prompt = await ada.stream.prompt()
        await ada.stream.write(ada.device.approve(prompt, opened.number))
        message = await ada.stream.read()
        assert message.WhichOneof("event") == "outcome"
        assert message.outcome.accepted
        await opened.redeem()
    await asyncio.sleep(0.2)
    await ada.stream.write(ada.device.approve(prompt, "00"))
    assert (await ada.stream.read()).WhichOneof("event") == "outcome"


async def test_a_decision_that_is_heard_of_before_the_begin_is_answered_is_not_missed_PS4(
    pair: tuple[LiveServer, ...], monkeypatch: pytest.MonkeyPatch
):
    """A node writes on one connection and hears on another: nothing says which of them is first."""
    here, there = pair
    ada = await person(here, "ada", at=there)
    real, begun, go_on = here.app.sign_ins.begin, asyncio.Event(), asyncio.Event()
    made: list[BegunSignIn] = []

    async def late(*arguments: Any, **options: Any) -> BegunSignIn:
        made.append(await real(*arguments, **options))
        begun.set()
        await go_on.wait()
        return made[0]

    monkeypatch.setattr(here.app.sign_ins, "begin", late)
    client = asyncio.create_task(multiplexed(here, "ada"))
    prompt = await ada.stream.prompt()
    await begun.wait()
    sign_in = made[0].sign_in
    assert (await ada.stream.send(ada.device.approve(prompt, sign_in.number))).accepted
    async with asyncio.timeout(LIMIT):
        while sign_in.id not in here.app.relay.missed:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
    go_on.set()
    assert await (await client).end() == SESSION
