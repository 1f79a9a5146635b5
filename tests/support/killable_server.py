"""A server program for crash tests: the real server, with a store and an interceptor that can end the process.

    python -m support.killable_server serve --json --data DIR

It takes the arguments of `keyvouch-server serve`. Its points (`kill_points`) are named `KIND METHOD`: something of
KIND happens while METHOD is served.

    before-commit   a transaction has run all its statements; its COMMIT never comes
    after-commit    it is durable; its caller is never told
    before-message  a reply, or a message of a stream, is ready; it is never sent

With KEYVOUCH_TEST_SLOW_DISK every commit of a call takes that many seconds longer. KEYVOUCH_TEST_STATEMENT_SECONDS is
how long it waits for a database that hangs, instead of what the product does.

Not here: any failpoint of the product; it has none. Everything else is what `keyvouch_server.bootstrap` puts together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import grpc

from keyvouch.errors import KeyvouchError
from keyvouch_server.bootstrap import Running, assemble, open_store, running
from keyvouch_server.config import load_config
from keyvouch_server.ports import Snapshot, Store, Transaction
from keyvouch_server.stores import postgres_connection
from support.kill_points import Points

T = TypeVar("T")

SLOW_DISK, STATEMENT_SECONDS = "KEYVOUCH_TEST_SLOW_DISK", "KEYVOUCH_TEST_STATEMENT_SECONDS"
BEFORE_COMMIT, AFTER_COMMIT, BEFORE_MESSAGE = "before-commit", "after-commit", "before-message"

_METHOD: ContextVar[str] = ContextVar("method", default="")
"""The method being served; empty in the server's own tasks, whose transactions are no points."""


def _reach(points: Points, kind: str) -> None:
    method = _METHOD.get()
    if method:
        points.reach(f"{kind} {method}")


class MortalStore:
    """The `Store` port over another store, with a point on either side of each commit."""

    def __init__(self, inner: Store, points: Points, *, slow_disk: float = 0.0) -> None:
        self._inner = inner
        self._points = points
        self._slow_disk = slow_disk

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """See `ports.Store`."""
        return await self._inner.read(work)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """See `ports.Store`."""

        async def mortal(tx: Transaction) -> T:
            result = await work(tx)
            _reach(self._points, BEFORE_COMMIT)
            return result

        result = await self._inner.write(mortal)
        if self._slow_disk and _METHOD.get():
            await asyncio.sleep(self._slow_disk)
        _reach(self._points, AFTER_COMMIT)
        return result

    async def close(self) -> None:
        """See `ports.Store`."""
        await self._inner.close()

    @property
    def writer_pid(self) -> int | None:
        """See `keyvouch_server.stores.postgres`; a store in a file has none."""
        return getattr(self._inner, "writer_pid", None)


class Observer(grpc.aio.ServerInterceptor):
    """Says which method is being served, and has a point before each message that leaves."""

    def __init__(self, points: Points) -> None:
        self._points = points

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler; it is the outermost wrapping."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method.rpartition("/")[2]
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method), **codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream, method), **codec)
        return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, method), **codec)

    def _unary(self, serve: Any, method: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            _METHOD.set(method)
            reply = await serve(request, context)
            _reach(self._points, BEFORE_MESSAGE)
            return reply

        return call

    def _stream(self, serve: Any, method: str) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            _METHOD.set(method)
            async for message in serve(request, context):
                _reach(self._points, BEFORE_MESSAGE)
                yield message

        return call


def observe_servers(observer: Observer) -> None:
    """Put the observer in front of the interceptors of every gRPC server this process makes from now on."""
    plain: Any = grpc.aio.server

    def server(*args: Any, interceptors: tuple[Any, ...] = (), **more: Any) -> grpc.aio.Server:
        made: grpc.aio.Server = plain(*args, interceptors=(observer, *interceptors), **more)
        return made

    setattr(grpc.aio, "server", server)  # noqa: B010 - the checker knows that a function is not assigned to


async def serve(data: Path, points: Points, *, slow_disk: float) -> None:
    """As `keyvouch_server.bootstrap.serve`, with the mortal store."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, points.arm)
    config = load_config(data)
    store = MortalStore(await open_store(data, config), points, slow_disk=slow_disk)
    app = assemble(data, config, store)
    try:
        async with running(app) as listening:
            _announce(listening)
            await stop.wait()
    finally:
        await store.close()


def _announce(listening: Running) -> None:
    report = {"ready": True, "public_port": listening.public_port, "device_port": listening.device_port}
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Serve until SIGTERM, or until the armed point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    points = Points()
    if STATEMENT_SECONDS in os.environ:
        setattr(postgres_connection, "_STATEMENT_SECONDS", float(os.environ[STATEMENT_SECONDS]))  # noqa: B010 - it is Final
    observe_servers(Observer(points))
    try:
        asyncio.run(serve(arguments.data, points, slow_disk=float(os.environ.get(SLOW_DISK, "0"))))
    except KeyvouchError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
