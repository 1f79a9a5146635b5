"""Several servers on one store in PostgreSQL: nodes, in the test's own event loop, with one clock and the same keys.

    async with nodes(template, folder, url) as (here, there):
        ada = await person(here, "ada", at=there)      # whose device is connected to the other node

Each has its own store object, listeners, relay and sweep; they share the data directory and the database, and nothing
else. Not here: the servers themselves (`live_server`), PostgreSQL (`postgres_server`).
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import grpc

from keyvouch.errors import Reason
from keyvouch_bench.device import BenchDevice, PromptStream
from keyvouch_server import bootstrap
from keyvouch_server.domain.model import Role
from support.live_server import (
    ADMINISTRATOR,
    LIMIT,
    TENANT,
    Clock,
    LiveServer,
    Person,
    SignedIn,
    configuration,
    refused,
    serve,
)

SOON = 1.0
"""Seconds in which the other nodes have heard of what one node did."""


@asynccontextmanager
async def nodes(template: Path, folder: Path, url: str, count: int = 2) -> AsyncIterator[tuple[LiveServer, ...]]:
    """Start nodes on an empty database; the first one knows the administrator's pass."""
    data, clock = folder / "server", Clock()
    shutil.copytree(template, data, ignore=shutil.ignore_patterns("keyvouch.db*"))
    async with AsyncExitStack() as stack:
        started = [await node(stack, data, url, clock) for _ in range(count)]
        founded = await started[0].app.administration.found(TENANT, ADMINISTRATOR)
        started[0].administrator_pass = founded.access_pass.code
        yield tuple(started)


async def node(stack: AsyncExitStack, data: Path, url: str, clock: Clock) -> LiveServer:
    """One more, until `stack` is closed."""
    store = await bootstrap.open_store(data, replace(configuration(1), store=url))
    stack.push_async_callback(store.close)
    return await serve(stack, data, store, clock, {"store": url})


async def person(home: LiveServer, username: str, *, at: LiveServer, role: Role = Role.USER) -> Person:
    """A new user who was made and enrolled at one node, and whose device is connected to another."""
    await home.create_user(username, role)
    device = await home.enrol(username, await home.issue_pass(username))
    return await at.connect(username, moved(device, at))


def moved(device: BenchDevice, to: LiveServer) -> BenchDevice:
    """The device as it connects to another node; it shares key and counter."""
    return replace(device, endpoint=f"127.0.0.1:{to.device_port}")


def carried(signed_in: SignedIn, to: LiveServer) -> SignedIn:
    """The session as its client uses it at another node."""
    to.hold(signed_in.tokens.session_id, signed_in.proof_key)
    return replace(signed_in, live=to)


async def removed(stream: PromptStream) -> None:
    """The stream ends, and says why."""
    with refused(Reason.DEVICE_REMOVED, status=grpc.StatusCode.UNAUTHENTICATED):
        async with asyncio.timeout(LIMIT):
            while True:
                await stream.read()


@contextmanager
def soon(latencies: list[float] | None = None) -> Iterator[None]:
    """What the block waits for must have come in time."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    if latencies is not None:
        latencies.append(took)
    assert took < SOON, f"it took {took:.2f} s"
