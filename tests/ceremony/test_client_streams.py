"""Many sign-ins on one stream: fifty at once, refusals, and a stream that breaks under them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from keyvouch.errors import EvidenceError, Reason, RefusedError, ThrottledError, UsageError
from keyvouch.ids import ServerId
from keyvouch.proofs import spki_of
from keyvouch.v1 import common_pb2
from keyvouch_client import PendingSignIn, Session, SignInStream
from support.client_stage import ENDS, Stage, a_stage, until_called
from support.fake_world import FakeWorld, SignInRow, refused, unverified


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with a_stage() as opened:
        yield opened


async def approve_as_they_come(world: FakeWorld, count: int) -> None:
    for n in range(count):
        await world.decide((await world.row(f"user{n}")).sign_in_id)


async def sign_in_on(stream: SignInStream, username: str) -> tuple[PendingSignIn, Session]:
    pending = await stream.begin(tenant="example", username=username)
    return pending, await pending.session()


async def test_fifty_parallel_sign_ins_on_one_stream(stage: Stage) -> None:
    async with stage.stream() as stream:
        approving = asyncio.create_task(approve_as_they_come(stage.world, 50))
        results = await asyncio.gather(*(sign_in_on(stream, f"user{n}") for n in range(50)))
        await approving
    for n, (pending, session) in enumerate(results):
        assert session.details.username == f"user{n}"
        assert stage.world.sign_ins[pending.sign_in_id].number == pending.number
        assert unverified(session.tokens.access_token)["aud"] == "https://orders.test"
    assert len({session.session_id for _, session in results}) == 50
    assert stage.world.calls.count("SignInSession") == 1
    assert "RedeemSignIn" not in stage.world.calls


async def test_the_sessions_of_a_stream_can_be_refreshed(stage: Stage) -> None:
    async with stage.stream() as stream:
        approving = asyncio.create_task(approve_as_they_come(stage.world, 1))
        _, session = await sign_in_on(stream, "user0")
        await approving
    await session.refresh()
    assert spki_of(stage.world.sessions[session.session_id].proof_key) == spki_of(session.proof_key.public_key())  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(("state", "reason"), ENDS, ids=[reason.value for _, reason in ENDS])
async def test_every_other_end_on_a_stream(stage: Stage, state: int, reason: Reason) -> None:
    async with stage.stream() as stream:
        pending = await stream.begin(tenant="example", username="ada")
        await stage.world.decide(pending.sign_in_id, state)
        with pytest.raises(RefusedError) as caught:
            await pending.session()
        assert caught.value.reason is reason


async def test_a_refused_begin_leaves_the_stream_usable(stage: Stage) -> None:
    async with stage.stream() as stream:
        stage.world.begin_error = ThrottledError(Reason.THROTTLED, "Slow down.", retry_after=2.5, fix="Wait.")
        with pytest.raises(ThrottledError) as caught:
            await stream.begin(tenant="example", username="ada")
        stage.world.begin_error = refused(Reason.METHOD_DISABLED)
        with pytest.raises(RefusedError, match=r"No\."):
            await stream.begin(tenant="example", username="ada")
        stage.world.begin_error = None
        approving = asyncio.create_task(approve_as_they_come(stage.world, 1))
        _, session = await sign_in_on(stream, "user0")
        await approving
    assert caught.value.retry_after == 2.5
    assert session.details.username == "user0"
    assert stage.world.calls.count("SignInSession") == 1


async def test_a_broken_stream_hands_over_to_watch_and_redeem(stage: Stage) -> None:
    async with stage.stream() as stream:
        pending = [await stream.begin(tenant="example", username=f"user{n}") for n in range(5)]
        waiting = [asyncio.create_task(one.session()) for one in pending]
        await asyncio.sleep(0.05)
        await stage.restart()
        await until_called(stage.world, "WatchSignIn", 5)
        await approve_as_they_come(stage.world, 5)
        sessions = await asyncio.gather(*waiting)
        approving = asyncio.create_task(approve_as_they_come(stage.world, 6))
        _, later = await sign_in_on(stream, "user5")
        await approving
    assert [session.details.username for session in sessions] == [f"user{n}" for n in range(5)]
    assert later.details.username == "user5"
    assert stage.world.calls.count("SignInSession") == 2
    assert stage.world.calls.count("RedeemSignIn") == 5


async def test_a_begin_waits_for_a_server_that_restarts(stage: Stage) -> None:
    async with stage.stream() as stream:
        await stage.server.stop()
        beginning = asyncio.create_task(stream.begin(tenant="example", username="ada"))
        await asyncio.sleep(0.2)
        await stage.server.start()
        pending = await beginning
        assert pending.number == (await stage.world.row()).number


async def test_leaving_a_pending_sign_in_withdraws_it_on_the_stream(stage: Stage) -> None:
    async with stage.stream() as stream:
        async with await stream.begin(tenant="example", username="ada") as pending:
            row = stage.world.sign_ins[pending.sign_in_id]
        await wait_for_state(stage.world, row, common_pb2.SIGN_IN_STATE_CANCELLED)
    assert "CancelSignIn" not in stage.world.calls


async def wait_for_state(world: FakeWorld, row: SignInRow, state: int) -> None:
    async with asyncio.timeout(5), world.changed:
        await world.changed.wait_for(lambda: row.state == state)


async def test_closing_the_stream_leaves_nobody_waiting(stage: Stage) -> None:
    async with stage.stream() as stream:
        pending = await stream.begin(tenant="example", username="ada")
        waiting = asyncio.create_task(pending.session())
        await asyncio.sleep(0.05)
    await stage.world.decide(pending.sign_in_id)
    assert (await waiting).details.username == "ada"
    with pytest.raises(UsageError):
        await stream.begin(tenant="example", username="ada")


async def test_a_stream_to_another_server_is_not_signed_for(stage: Stage) -> None:
    await stage.connection.identity()
    stage.world.server_id = ServerId(bytes(32))
    with pytest.raises(EvidenceError) as caught:
        async with stage.stream():
            pass
    assert caught.value.reason is Reason.WRONG_SERVER


async def test_a_cancelled_waiter_does_not_disturb_the_others(stage: Stage) -> None:
    async with stage.stream() as stream:
        pending = await stream.begin(tenant="example", username="ada")
        impatient = asyncio.create_task(pending.session())
        await asyncio.sleep(0.02)
        impatient.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await impatient
        await stage.world.decide(pending.sign_in_id)
        assert (await pending.session()).details.username == "ada"
