"""SignInSession on the real server: what the SDK never does, and what happens when things end early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from keyvouch.errors import Reason, UnavailableError
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Purpose, proof_statement
from keyvouch.v1 import common_pb2
from keyvouch.v1 import sign_in_pb2 as pb
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Prompt
from keyvouch_server.use_cases.sign_in import BegunSignIn
from support.live_server import TENANT, LiveServer
from support.strangers import OFFICE, Answerer, Caller, row_of
from support.stubborn import new_proof_key


@asynccontextmanager
async def stream(live: LiveServer) -> AsyncIterator[Any]:
    """An open stream with a proved key."""
    key = new_proof_key()
    call = live.connection.sign_ins.SignInSession(timeout=30)
    nonce = (await answer(call.read())).nonce
    proof = sign_proof(key, Purpose.SIGN_IN_SESSION, proof_statement(live.app.world.facts.server_id, nonce.nonce))
    opening = pb.SignInSessionOpen(proof_public_key=spki_of(key.public_key()), proof=proof)
    await call.write(pb.SignInSessionRequest(open=opening))
    yield call
    call.cancel()


def begin(tag: int, username: str = "ada", app: str = "shop") -> pb.SignInSessionRequest:
    context = pb.SignInContext(tenant=TENANT, username=username, app_id=app)
    return pb.SignInSessionRequest(begin=pb.SignInSessionBegin(tag=tag, context=context))


def cancel(tag: int) -> pb.SignInSessionRequest:
    return pb.SignInSessionRequest(cancel=pb.SignInSessionCancel(tag=tag))


async def test_a_sign_in_cancelled_before_it_is_begun_is_cancelled(live: LiveServer):
    ada = await live.person("ada")
    async with stream(live) as call:
        await call.write(begin(7))
        await call.write(cancel(7))
        assert (await answer(call.read())).WhichOneof("event") == "begun"
        last = await answer(call.read())
        assert (last.tag, last.changed.state) == (7, common_pb2.SIGN_IN_STATE_CANCELLED)
        await call.write(begin(7))  # the tag is free again
        begun = await answer(call.read())
        prompts = [await ada.stream.prompt(), await ada.stream.prompt()]
        await ada.stream.send(ada.device.approve(prompts[-1], begun.begun.number))
        assert (await answer(call.read())).WhichOneof("event") == "session"


async def test_cancelling_what_is_not_open_changes_nothing(live: LiveServer):
    await live.person("ada")
    async with stream(live) as call:
        await call.write(cancel(1))
        await call.write(begin(2))
        assert (await answer(call.read())).begun.number


async def test_a_tag_in_use_is_refused_and_its_sign_in_goes_on(live: LiveServer):
    ada = await live.person("ada")
    async with stream(live) as call:
        await call.write(begin(1))
        begun = (await answer(call.read())).begun
        await call.write(begin(1))
        assert (await answer(call.read())).refusal.reason == Reason.THROTTLED
        prompt = await ada.stream.prompt()
        await ada.stream.send(ada.device.approve(prompt, begun.number))
        assert (await answer(call.read())).WhichOneof("event") == "session"


async def test_an_approval_that_is_told_twice_is_one_session_P7(live: LiveServer, monkeypatch: pytest.MonkeyPatch):
    ada, told = await live.person("ada"), live.app.relay.sign_in
    monkeypatch.setattr(live.app.relay, "sign_in", lambda *what: [told(*what) for _ in range(3)])
    async with stream(live) as call:
        await call.write(begin(1))
        begun = (await answer(call.read())).begun
        await ada.stream.send(ada.device.approve(await ada.stream.prompt(), begun.number))
        assert (await answer(call.read())).WhichOneof("event") == "session"
        await call.write(begin(2))
        assert (await answer(call.read())).WhichOneof("event") == "begun"


async def test_what_is_approved_and_superseded_in_one_moment_is_answered_once_and_its_tag_is_free_KI4(live: LiveServer):
    ada = await live.person("ada")
    answerer = await Answerer.of(live, ada)

    async def waiting() -> BegunSignIn:
        row = await row_of(live, (await answer(call.read())).begun.sign_in_id)
        prompts = await live.app.store.read(lambda tx: tx.find(Prompt, {"sign_in_id": row.id}))
        return BegunSignIn(row, (), tuple(prompts))

    async with stream(live) as call:
        await call.write(begin(1))
        first = await waiting()
        await asyncio.gather(answerer.approves(first, first.sign_in.number), Caller.at(live, OFFICE).begins("ada"))
        assert (await answer(call.read())).changed.state == common_pb2.SIGN_IN_STATE_SUPERSEDED
        await call.write(begin(1))
        second = await waiting()
        await answerer.approves(second, second.sign_in.number)
        assert (await answer(call.read())).WhichOneof("event") == "session"


async def test_a_refused_begin_is_answered_with_its_tag(live: LiveServer):
    async with stream(live) as call:
        await call.write(begin(3, app=""))
        refused = await answer(call.read())
        assert (refused.tag, refused.refusal.reason, refused.refusal.kind) == (3, "field_invalid", "MalformedError")
        assert refused.refusal.metadata["field"] == "context.app_id"


async def test_a_stopping_server_tells_its_devices_to_come_again(live: LiveServer):
    ada = await live.person("ada")
    live.app.relay.drain()
    with pytest.raises(UnavailableError) as told:
        await ada.stream.read()
    assert told.value.reason is Reason.SERVER_UNREACHABLE
    assert told.value.__cause__.code() is grpc.StatusCode.UNAVAILABLE
