"""A TCP proxy that fails on request: it resets, refuses, cuts in the middle of a frame, falls silent, is slow.

    async with FaultyProxy(server_port) as proxy:
        ... localhost:proxy.port ...
        proxy.reset()

It knows nothing of TLS or HTTP/2, so what it cuts is cut anywhere. Bytes of a direction that is silent are held back,
as in a queue that is never served: they arrive when it is lifted, or never when the connection is reset.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import Self

CHUNK = 16 * 1024


class Direction(Enum):
    """Where bytes are going."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class FaultyProxy:
    """Listens on the loopback and forwards to ports of it: each connection to the next one where somebody listens.

    `connections` counts what it has accepted.
    """

    def __init__(self, *targets: int, port: int = 0) -> None:
        self.port = port
        self.connections = 0
        self.delay = 0.0
        self.refusing = False
        self._targets = targets
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._left: dict[Direction, int | None] = dict.fromkeys(Direction)
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self.heal()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def reset(self) -> None:
        """Reset every connection; bytes under way are lost."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def cut_after(self, count: int, direction: Direction) -> None:
        """Let so many more bytes pass in a direction, then reset everything."""
        self._left[direction] = count

    def silence(self, direction: Direction) -> None:
        """Hold back what goes in a direction; the other one goes on."""
        self._open[direction].clear()

    def heal(self) -> None:
        """No faults from now on; what was held back goes on its way."""
        self.delay, self.refusing = 0.0, False
        for direction in Direction:
            self._left[direction] = None
            self._open[direction].set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self.connections += 1
        first = self.connections % len(self._targets)
        for target in self._targets[first:] + self._targets[:first]:
            with suppress(OSError):
                to_reader, to_writer = await asyncio.open_connection("127.0.0.1", target)
                break
        else:
            writer.transport.abort()
            return
        self._writers |= {writer, to_writer}
        self._start(self._pump(reader, to_writer, Direction.TO_SERVER))
        self._start(self._pump(to_reader, writer, Direction.TO_CLIENT))

    def _start(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(CHUNK):
                    await self._forward(data, writer, direction)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter, direction: Direction) -> None:
        await self._open[direction].wait()
        if self.delay:
            await asyncio.sleep(self.delay)
        left = self._left[direction]
        if left is not None and left < len(data):
            writer.write(data[:left])
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await writer.drain()
            self._left[direction] = None
            self.reset()
            return
        if left is not None:
            self._left[direction] = left - len(data)
        writer.write(data)
        await writer.drain()
