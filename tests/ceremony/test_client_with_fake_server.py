"""The SDK against a server that verifies proofs for real: every way a sign-in can go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from keyvouch.base64url import encode as base64url
from keyvouch.errors import (
    EvidenceError,
    KeyvouchError,
    Reason,
    RefusedError,
    ThrottledError,
    UnauthenticatedError,
    UnavailableError,
    UsageError,
)
from keyvouch.ids import ServerId
from keyvouch.proofs import thumbprint
from keyvouch.v1 import common_pb2, sessions_pb2
from keyvouch_client import SecurityKeySignIn, sign_in_with_access_pass
from support.client_stage import ENDS, Stage, a_stage, until_called
from support.fake_world import unverified


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with a_stage() as opened:
        yield opened


# one sign-in


async def test_an_approved_sign_in_becomes_a_session_PS4(stage: Stage) -> None:
    async with stage.sign_in(audience="https://orders.test", binding_message="Pay 5") as sign_in:
        row = await stage.world.row()
        assert sign_in.number == row.number
        assert sign_in.expires_at == row.expires_at
        assert sign_in.methods == (common_pb2.SIGN_IN_METHOD_APPROVAL, common_pb2.SIGN_IN_METHOD_ACCESS_PASS)
        assert (row.context.app_name, row.context.binding_message) == ("Shop", "Pay 5")
        await stage.world.decide(row.sign_in_id)
        session = await sign_in.session()
    payload = unverified(await session.access_token())
    assert (payload["sub"], payload["aud"]) == ("usr_ada", "https://orders.test")
    assert payload["cnf"] == {"jkt": base64url(thumbprint(row.proof_key))}
    assert session.details.username == "ada"
    assert "CancelSignIn" not in stage.world.calls


async def test_an_approval_while_watching_is_noticed(stage: Stage) -> None:
    async with stage.sign_in() as sign_in:
        waiting = asyncio.create_task(sign_in.session())
        await until_called(stage.world, "WatchSignIn")
        await stage.world.decide((await stage.world.row()).sign_in_id)
        assert (await waiting).details.acr == "number-matched"


@pytest.mark.parametrize(("state", "reason"), ENDS, ids=[reason.value for _, reason in ENDS])
async def test_every_other_end_is_an_error_that_says_what_to_do(stage: Stage, state: int, reason: Reason) -> None:
    async with stage.sign_in() as sign_in:
        waiting = asyncio.create_task(sign_in.session())
        await until_called(stage.world, "WatchSignIn")
        await stage.world.decide((await stage.world.row()).sign_in_id, state)
        with pytest.raises(RefusedError) as caught:
            await waiting
    assert caught.value.reason is reason
    assert caught.value.message
    assert caught.value.fix
    assert "CancelSignIn" not in stage.world.calls


async def test_a_newer_sign_in_supersedes_the_older_KI4(stage: Stage) -> None:
    async with stage.sign_in() as older:
        waiting = asyncio.create_task(older.session())
        await until_called(stage.world, "WatchSignIn")
        async with stage.sign_in() as newer:
            with pytest.raises(RefusedError) as caught:
                await waiting
            await stage.world.decide((await stage.world.row(count=2)).sign_in_id)
            assert (await newer.session()).details.username == "ada"
    assert caught.value.reason is Reason.SIGN_IN_SUPERSEDED


async def test_leaving_without_a_result_withdraws_the_prompt(stage: Stage) -> None:
    async with stage.sign_in():
        row = await stage.world.row()
    assert row.state == common_pb2.SIGN_IN_STATE_CANCELLED


async def test_an_error_inside_the_block_withdraws_the_prompt(stage: Stage) -> None:
    with pytest.raises(ZeroDivisionError):
        async with stage.sign_in():
            raise ZeroDivisionError
    assert (await stage.world.row()).state == common_pb2.SIGN_IN_STATE_CANCELLED


async def test_giving_up_after_a_while_withdraws_the_prompt(stage: Stage) -> None:
    with pytest.raises(TimeoutError):
        async with stage.sign_in() as sign_in, asyncio.timeout(0.2):
            await sign_in.session()
    assert (await stage.world.row()).state == common_pb2.SIGN_IN_STATE_CANCELLED


async def test_a_server_restart_in_mid_watch_goes_unnoticed_PS21(stage: Stage) -> None:
    async with stage.sign_in() as sign_in:
        waiting = asyncio.create_task(sign_in.session())
        for n in range(1, 4):
            await until_called(stage.world, "WatchSignIn", n)
            await stage.restart()
        await until_called(stage.world, "WatchSignIn", 4)
        await stage.world.decide((await stage.world.row()).sign_in_id)
        assert (await waiting).details.username == "ada"


async def test_a_decision_while_the_server_is_down_is_found_afterwards(stage: Stage) -> None:
    async with stage.sign_in() as sign_in:
        waiting = asyncio.create_task(sign_in.session())
        await until_called(stage.world, "WatchSignIn")
        await stage.server.stop()
        await stage.world.decide((await stage.world.row()).sign_in_id, common_pb2.SIGN_IN_STATE_DENIED)
        await asyncio.sleep(0.3)
        await stage.server.start()
        with pytest.raises(RefusedError) as caught:
            await waiting
    assert caught.value.reason is Reason.SIGN_IN_DENIED


async def test_a_lost_redeem_reply_costs_nothing(stage: Stage) -> None:
    stage.world.lost_redeem_replies = 3
    session = await stage.signed_in()
    assert stage.world.calls.count("RedeemSignIn") == 4
    assert list(stage.world.sessions) == [session.session_id]


async def test_asking_again_after_success_gives_the_same_session(stage: Stage) -> None:
    async with stage.sign_in() as sign_in:
        await stage.world.decide((await stage.world.row()).sign_in_id)
        assert (await sign_in.session()).session_id == (await sign_in.session()).session_id


async def test_a_server_of_an_older_release_knows_no_security_keys(stage: Stage) -> None:
    who = {"tenant": "example", "username": "ada", "app_id": "shop", "app_name": "Shop"}
    with pytest.raises(RefusedError) as caught:
        async with SecurityKeySignIn(stage.connection, **who):  # type: ignore[arg-type]
            raise AssertionError("nothing is offered to a key")
    assert caught.value.reason is Reason.NO_METHOD
    assert (await stage.world.row()).state == common_pb2.SIGN_IN_STATE_CANCELLED


async def test_a_stolen_sign_in_token_is_worthless_without_the_proof_key(stage: Stage) -> None:
    async with stage.sign_in() as sign_in, stage.sign_in("eve") as thief:
        row = await stage.world.row("ada")
        await stage.world.decide(row.sign_in_id)
        mine, theirs = sign_in._live(), thief._live()
        theirs.begun.CopyFrom(mine.begun)
        theirs.metadata = mine.metadata
        with pytest.raises(EvidenceError) as caught:
            await theirs.redeem()
        assert (await sign_in.session()).details.username == "ada"
    assert caught.value.reason is Reason.PROOF_INVALID


async def test_throttling_says_when(stage: Stage) -> None:
    stage.world.begin_error = ThrottledError(Reason.THROTTLED, "Slow down.", retry_after=2.5, fix="Wait.")
    with pytest.raises(ThrottledError) as caught:
        async with stage.sign_in():
            pass
    assert (caught.value.retry_after, caught.value.message, caught.value.fix) == (2.5, "Slow down.", "Wait.")


async def test_nobody_at_the_address(stage: Stage) -> None:
    await stage.server.stop()
    with pytest.raises(UnavailableError) as caught:
        async with stage.sign_in():
            pass
    assert caught.value.reason is Reason.SERVER_UNREACHABLE
    assert caught.value.fix


async def test_the_number_before_the_beginning_is_a_usage_error(stage: Stage) -> None:
    with pytest.raises(UsageError):
        _ = stage.sign_in().number


# Temporary Access Pass


async def test_an_access_pass_opens_a_session_that_cannot_be_refreshed_T8(stage: Stage) -> None:
    session = await sign_in_with_access_pass(
        stage.connection, tenant="example", username="ada", access_pass="correct-horse-pass"
    )
    assert session.details.acr == "access-pass"
    assert await session.access_token() == session.tokens.access_token
    session.tokens.access_expires_at = int(time.time()) - 1
    with pytest.raises(UnauthenticatedError) as caught:
        await session.access_token()
    assert caught.value.reason is Reason.SESSION_EXPIRED


async def test_a_wrong_access_pass_is_refused_T17(stage: Stage) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        await sign_in_with_access_pass(stage.connection, tenant="example", username="ada", access_pass="no")
    assert caught.value.reason is Reason.ACCESS_PASS_REFUSED


# sessions


async def test_a_fresh_token_is_handed_out_as_it_is(stage: Stage) -> None:
    session = await stage.signed_in()
    assert await session.access_token() == session.tokens.access_token
    assert "RefreshSession" not in stage.world.calls


async def test_a_token_near_its_end_is_refreshed_once_for_all_who_ask(stage: Stage) -> None:
    stage.world.access_seconds = 30
    session = await stage.signed_in()
    old = session.tokens.refresh_token
    stage.world.access_seconds = 300
    tokens = await asyncio.gather(*(session.access_token() for _ in range(20)))
    assert len(set(tokens)) == 1
    assert stage.world.calls.count("RefreshSession") == 1
    assert session.tokens.refresh_token != old


async def test_refresh_tokens_rotate_and_a_lost_reply_costs_nothing(stage: Stage) -> None:
    session = await stage.signed_in()
    stage.world.lost_refresh_replies = 2
    seen = {session.tokens.refresh_token}
    for _ in range(3):
        await session.refresh()
        seen.add(session.tokens.refresh_token)
    assert len(seen) == 4
    assert stage.world.calls.count("RefreshSession") == 5


async def test_an_old_refresh_token_ends_the_session(stage: Stage) -> None:
    session = await stage.signed_in()
    stolen = common_pb2.SessionTokens()
    stolen.CopyFrom(session.tokens)
    await session.refresh()
    await session.refresh()
    session.tokens = stolen
    with pytest.raises(UnauthenticatedError) as caught:
        await session.refresh()
    assert caught.value.reason is Reason.SESSION_REVOKED


async def test_a_refresh_token_is_worthless_with_another_key(stage: Stage) -> None:
    session, other = await stage.signed_in(), await stage.signed_in()
    session.proof_key = other.proof_key
    with pytest.raises(EvidenceError) as caught:
        await session.refresh()
    assert caught.value.reason is Reason.PROOF_INVALID


async def test_a_refresh_proof_is_for_one_server(stage: Stage) -> None:
    session = await stage.signed_in()
    session.server_id = ServerId(bytes(32))
    with pytest.raises(EvidenceError):
        await session.refresh()


async def test_a_token_the_server_calls_expired_is_refreshed_and_the_call_made_again(stage: Stage) -> None:
    stage.world.access_seconds = 0
    session = await stage.signed_in()
    session.tokens.access_expires_at = int(time.time()) + 3600  # a client whose clock is slow
    stage.world.access_seconds = 300
    told = await session.call(stage.connection.sessions.IntrospectSession, sessions_pb2.IntrospectSessionRequest())
    assert told.session.username == "ada"
    assert stage.world.calls.count("RefreshSession") == 1


async def test_revoking_ends_the_session(stage: Stage) -> None:
    session = await stage.signed_in()
    await session.revoke()
    with pytest.raises(UnauthenticatedError) as caught:
        await session.refresh()
    assert caught.value.reason is Reason.SESSION_REVOKED


async def test_a_session_prints_no_secret(stage: Stage) -> None:
    session = await stage.signed_in()
    assert session.tokens.access_token not in repr(session)
    assert session.tokens.refresh_token not in repr(session)


async def test_the_server_may_not_change_its_identity(stage: Stage) -> None:
    await stage.connection.identity()
    stage.world.server_id = ServerId(bytes(32))
    with pytest.raises(EvidenceError) as caught:
        await stage.connection.jwks()
    assert caught.value.reason is Reason.WRONG_SERVER


async def test_no_error_of_a_sign_in_shows_a_secret(stage: Stage) -> None:
    async with stage.sign_in() as sign_in:
        row = await stage.world.row()
        await stage.world.decide(row.sign_in_id, common_pb2.SIGN_IN_STATE_DENIED)
        with pytest.raises(KeyvouchError) as caught:
            await sign_in.session()
    shown = f"{caught.value!r} {caught.value} {caught.value.metadata}"
    assert row.token not in shown
    assert row.number not in shown
