"""A door in front of PostgreSQL's socket that shuts at a chosen moment: when the database has answered a COMMIT, or
before it has heard of it.

    async with PostgresDoor(url) as door:
        store = await PostgresStore.open(door.url, ...)
        door.lose = Lost.ANSWER

It knows as much of the protocol as it takes to see the command `COMMIT` go by as a simple query.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit

_COMMIT = b"COMMIT\0"


class Lost(Enum):
    """What of the next commit does not arrive."""

    NOTHING = "nothing"
    ANSWER = "the database's answer to the client"
    COMMAND = "the command to the database"


class PostgresDoor:
    """Forwards a socket of its own to that of the database. `shut` counts the connections it has cut."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._folder = Path(tempfile.mkdtemp(prefix="kv-door-"))
        self._target = Path(parse_qs(self._parts.query)["host"][0]) / ".s.PGSQL.5432"
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._ways: set[asyncio.Task[None]] = set()
        self.lose = Lost.NOTHING
        self.shut = 0

    @property
    def url(self) -> str:
        """The database's address through the door."""
        return self._parts._replace(query=f"host={quote(str(self._folder))}").geturl()

    def close_for(self, seconds: float) -> None:
        """New connections wait so long."""
        self._open.clear()
        asyncio.get_running_loop().call_later(seconds, self._open.set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, self._folder / self._target.name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for way in tuple(self._ways):
            way.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way = asyncio.create_task(self._forward(reader, writer))
        self._ways.add(way)
        way.add_done_callback(self._ways.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            await self._open.wait()
            far_reader, far_writer = await asyncio.open_unix_connection(self._target)
            ends.append(far_writer)
            committing = asyncio.Event()
            async with asyncio.TaskGroup() as both:
                there = both.create_task(self._to_database(reader, far_writer, committing))
                back = both.create_task(self._to_client(far_reader, writer, committing))
                await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
                there.cancel()
                back.cancel()
        finally:
            for end in ends:
                end.close()
            await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)

    async def _to_database(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, committing: asyncio.Event
    ) -> None:
        while data := await source.read(1 << 16):
            if _COMMIT in data and self.lose is Lost.COMMAND:
                self._cut()
                return
            if _COMMIT in data and self.lose is Lost.ANSWER:
                committing.set()
            target.write(data)
            await target.drain()

    async def _to_client(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, committing: asyncio.Event
    ) -> None:
        while data := await source.read(1 << 16):
            if committing.is_set():
                self._cut()
                return
            target.write(data)
            await target.drain()

    def _cut(self) -> None:
        self.lose = Lost.NOTHING
        self.shut += 1
