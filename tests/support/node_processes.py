"""Several server processes on one PostgreSQL database: nodes, each with a copy of the data directory and ports of its
own, as server/README.md tells people to set them up.

    with NodeStage.open_nodes(folder, url) as stage:
        stage.nodes[1].kill()                    # as in kill -9
        stage.rows("SELECT ...")                 # what the database says

Everything about administrators, accounts and checks is as with one server (`crash_stage`). Not here: nodes in the
test's own process, with a clock that tests move (`nodes`).
"""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import asyncpg
import grpc

from keyvouch_bench.device import BenchDevice
from keyvouch_bench.server_process import ServerProcess, free_ports
from keyvouch_client import Connection
from keyvouch_server.stores.invariants import INVARIANTS
from support.crash_stage import PROGRAM, QUICK, Stage
from support.kill_points import Trigger

NODES = 3


def copied(server: ServerProcess, folder: Path) -> ServerProcess:
    """A further node of the same server, in `folder`: its data directory, and other ports. It is not started."""
    public, device = free_ports(2)
    data = folder / server.data.name
    folder.mkdir(exist_ok=True)
    shutil.copytree(server.data, data)
    file = data / "keyvouch.toml"
    settings = file.read_text(encoding="utf-8")
    for old, new in ((server.public_port, public), (server.device_port, device)):
        settings = re.sub(rf'(_listen = "127\.0\.0\.1:){old}"', rf'\g<1>{new}"', settings)
    file.write_text(settings, encoding="utf-8")
    return replace(server, data=data, public_port=public, device_port=device, environment={})


@dataclass(slots=True)
class NodeStage(Stage):
    """Nodes with their files, and an administrator's session. `server` is the first node."""

    nodes: Sequence[ServerProcess] = ()
    url: str = ""
    _turn: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    @contextmanager
    def open_nodes(
        cls, folder: Path, url: str, *, count: int = NODES, killable: bool = False, **policy: int
    ) -> Iterator[Self]:
        """Make a server on an empty database and further nodes of it, start them all and sign the administrator in."""
        with ExitStack() as stack:
            first = stack.enter_context(ServerProcess.make(folder / "node1", store=url))
            further = [copied(first, folder / f"node{number}") for number in range(2, count + 1)]
            stage = cls(first, nodes=(first, *(stack.enter_context(node) for node in further)), url=url)
            for node in stage.nodes if killable else ():
                node.command = PROGRAM
                node.environment.update(Trigger(node.data.parent).environment)
            stage.on_all(ServerProcess.start)
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, stage._prepare(policy)).result()
            yield stage

    @property
    def endpoints(self) -> list[str]:
        """host:port of the public listeners."""
        return [node.endpoint for node in self.nodes]

    def on_all(self, act: Callable[[ServerProcess], object]) -> None:
        """Do something with all nodes at the same time."""
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            list(threads.map(act, self.nodes))

    def send_devices_to(self, port: int) -> None:
        """From now on devices are told to connect to this port of the loopback. The nodes are started again."""
        for node in self.nodes:
            file = node.data / "keyvouch.toml"
            settings = re.sub(r'(device_endpoint = "localhost:)\d+', rf"\g<1>{port}", file.read_text(encoding="utf-8"))
            file.write_text(settings, encoding="utf-8")
        self.on_all(ServerProcess.stop)
        self.on_all(ServerProcess.start)

    def connect_to(self, number: int) -> Connection:
        """A client's connection to one node, counted from 0."""
        return self.proving(Connection(self.nodes[number].endpoint, ca_file=self.server.ca, backoff=QUICK))

    def channel_of(self, device: BenchDevice) -> grpc.aio.Channel:
        """Each time to another node, as a load balancer does it; the first time not to the first one."""
        node = self.nodes[next(self._turn) % len(self.nodes)]
        return replace(device, endpoint=f"localhost:{node.device_port}").open_channel()

    # What the store says

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database; parameters are written as for SQLite."""
        numbers = itertools.count(1)
        with ThreadPoolExecutor(1) as thread:  # the test's loop is running
            numbered = re.sub(r"\?", lambda _: f"${next(numbers)}", query)
            return thread.submit(asyncio.run, self._ask(numbered, values)).result()

    async def _ask(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self.url, timeout=30, server_settings={"search_path": "keyvouch"})
        try:
            return [tuple(row) for row in await connection.fetch(query, *values)]
        finally:
            await connection.close()

    def check(self) -> None:
        """Nothing that must never be found is found."""
        problems = {what: rows for what, query in INVARIANTS.items() if (rows := self.rows(query))}
        if problems:
            raise AssertionError(problems)
