"""Clients that follow a sign-in in both ways there are, for tests in which they and the devices are at different nodes.

Not here: the nodes (`nodes`), and what the SDK makes of it (`keyvouch_client`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Purpose, proof_statement
from keyvouch.v1 import common_pb2
from keyvouch.v1 import sign_in_pb2 as pb
from keyvouch_client.errors import answer
from keyvouch_client.sign_in import new_proof_key
from support.live_server import LIMIT, TENANT, LiveServer, OpenSignIn

SESSION: Final = -1
"""What a sign-in ends in that ends well, where others end in a state."""


@dataclass(slots=True)
class Watching:
    """A client that follows one sign-in with WatchSignIn and redeems it."""

    opened: OpenSignIn
    call: Any

    @property
    def number(self) -> str:
        return self.opened.number

    async def end(self) -> int:
        """What becomes of the sign-in."""
        state: int = (await answer(self.call.read())).state
        if state != common_pb2.SIGN_IN_STATE_APPROVED:
            return state
        await self.opened.redeem()
        return SESSION

    async def cancel(self) -> None:
        await self.opened.cancel()


@dataclass(slots=True)
class Multiplexed:
    """A client that does the same on a SignInSession stream."""

    begun: pb.BeginSignInResponse
    call: Any
    proof_key: ec.EllipticCurvePrivateKey

    @property
    def number(self) -> str:
        return self.begun.number

    async def end(self) -> int:
        """What becomes of the sign-in."""
        last = await answer(self.call.read())
        return SESSION if last.WhichOneof("event") == "session" else int(last.changed.state)

    async def cancel(self) -> None:
        await self.call.write(pb.SignInSessionRequest(cancel=pb.SignInSessionCancel(tag=1)))


Client = Watching | Multiplexed
Begin = Callable[[LiveServer, str], Awaitable[Client]]


async def watching(live: LiveServer, username: str) -> Client:
    """Begin a sign-in and watch it."""
    opened = await live.begin(username)
    call = opened.watch()
    assert (await answer(call.read())).state == common_pb2.SIGN_IN_STATE_PENDING
    return Watching(opened, call)


async def multiplexed(live: LiveServer, username: str) -> Client:
    """Begin a sign-in on a stream of its own."""
    key = new_proof_key()
    call = await proved_stream(live, key)
    context = pb.SignInContext(tenant=TENANT, username=username, app_id="shop")
    await call.write(pb.SignInSessionRequest(begin=pb.SignInSessionBegin(tag=1, context=context)))
    return Multiplexed((await answer(call.read())).begun, call, key)


async def proved_stream(live: LiveServer, key: ec.EllipticCurvePrivateKey) -> Any:
    """An open SignInSession stream of the key."""
    call: Any = live.connection.sign_ins.SignInSession(timeout=LIMIT)
    live.stack.callback(call.cancel)
    first: pb.SignInSessionResponse = await answer(call.read())
    nonce = first.nonce.nonce
    proof = sign_proof(key, Purpose.SIGN_IN_SESSION, proof_statement(live.app.world.facts.server_id, nonce))
    opening = pb.SignInSessionOpen(proof_public_key=spki_of(key.public_key()), proof=proof)
    await call.write(pb.SignInSessionRequest(open=opening))
    return call


BOTH_WAYS = pytest.mark.parametrize("begin", [watching, multiplexed])
