"""A client and a fake server on one stage, for tests that play the person between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from keyvouch.errors import Reason
from keyvouch.v1 import common_pb2
from keyvouch_client import Connection, Session, SignIn, SignInStream
from keyvouch_client.backoff import Backoff
from support.fake_sign_in_server import FakeServer
from support.fake_world import FakeWorld

ENDS = [
    (common_pb2.SIGN_IN_STATE_DENIED, Reason.SIGN_IN_DENIED),
    (common_pb2.SIGN_IN_STATE_REPORTED, Reason.SIGN_IN_REPORTED),
    (common_pb2.SIGN_IN_STATE_FAILED, Reason.NUMBER_MISMATCH),
    (common_pb2.SIGN_IN_STATE_EXPIRED, Reason.SIGN_IN_EXPIRED),
    (common_pb2.SIGN_IN_STATE_SUPERSEDED, Reason.SIGN_IN_SUPERSEDED),
    (common_pb2.SIGN_IN_STATE_CANCELLED, Reason.SIGN_IN_CANCELLED),
]


@dataclass
class Stage:
    """One server, one client."""

    world: FakeWorld
    server: FakeServer
    connection: Connection

    def sign_in(self, username: str = "ada", **more: Any) -> SignIn:
        return SignIn(self.connection, tenant="example", username=username, app_id="shop", app_name="Shop", **more)

    def stream(self) -> SignInStream:
        return SignInStream(self.connection, app_id="shop", app_name="Shop", audience="https://orders.test")

    async def signed_in(self) -> Session:
        async with self.sign_in() as sign_in:
            await self.world.decide((await self.world.row()).sign_in_id)
            return await sign_in.session()

    async def restart(self) -> None:
        await self.server.stop()
        await self.server.start()


@contextlib.asynccontextmanager
async def a_stage() -> AsyncIterator[Stage]:
    """A running server and a connection that tries again quickly."""
    world = FakeWorld()
    async with (
        FakeServer(world) as server,
        Connection(server.address, insecure_loopback=True, backoff=Backoff(0.02, 0.2)) as connection,
    ):
        yield Stage(world, server, connection)


async def until_called(world: FakeWorld, call: str, times: int = 1) -> None:
    async with asyncio.timeout(10):
        while world.calls.count(call) < times:  # noqa: ASYNC110 # the server has no event for it
            await asyncio.sleep(0.01)
