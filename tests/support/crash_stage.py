"""A server that tests may kill, its administrator, and somebody who starts it again.

`Stage` lives as long as a test module: one data directory, one pair of ports, many processes one after the other.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc

from keyvouch.errors import UnavailableError
from keyvouch.v1 import administration_pb2 as pb
from keyvouch_bench.device import BenchDevice, PromptStream, enrol_with_pass
from keyvouch_bench.server_process import ServerProcess
from keyvouch_client import Connection, SignIn
from keyvouch_client.backoff import Backoff
from keyvouch_client.call_proofs import ProofKey
from keyvouch_client.errors import answer
from keyvouch_server.bootstrap import DATABASE
from keyvouch_server.stores.sqlite_upkeep import check
from support import killable_server
from support.kill_points import Trigger

PROGRAM = (sys.executable, "-m", killable_server.__name__)
QUICK = Backoff(first=0.05, longest=0.3)
"""How soon clients in these tests try again."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user with an access pass that may be used more than once."""

    username: str
    access_pass: str


@dataclass(slots=True)
class Stage:
    """The server process with its files, and an administrator's session."""

    server: ServerProcess
    administrator: tuple[tuple[str, str], ...] = ()
    restarts: int = 0
    _key: ProofKey | None = None
    _names: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    @contextmanager
    def open(cls, folder: Path, *, killable: bool = False, configuration: str = "", **policy: int) -> Iterator[Self]:
        """Make a server, start it, sign its administrator in and loosen the limits that would slow tests down.

        `configuration` goes to the end of its keyvouch.toml.
        """
        with ServerProcess.make(folder) as server:
            with (server.data / "keyvouch.toml").open("a", encoding="utf-8") as file:
                file.write(configuration)
            stage = cls(server)
            if killable:
                server.command = PROGRAM
                server.environment.update(stage.trigger.environment)
            server.start()
            # A loop of its own: the tests' loops come and go.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, stage._prepare(policy)).result()
            yield stage

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.server.data

    @property
    def trigger(self) -> Trigger:
        """Arms a killable server."""
        return Trigger(self.data.parent)

    def connect(self) -> Connection:
        """A client's connection."""
        return self.proving(Connection(self.server.endpoint, ca_file=self.server.ca, backoff=QUICK))

    def proving(self, connection: Connection) -> Connection:
        """Another connection, made to prove the calls of the administrator's session as well."""
        if self._key is not None:
            connection.prover.hold(self._key)
        return connection

    def channel_of(self, device: BenchDevice) -> grpc.aio.Channel:
        """A channel by which a device reaches the server."""
        return device.open_channel()

    async def _prepare(self, policy: dict[str, int]) -> None:
        server = self.server
        async with self.connect() as connection:
            device = await enrol_with_pass(connection, server.tenant, server.administrator, server.administrator_pass)
            async with (
                PromptStream(device) as stream,
                SignIn(
                    connection, tenant=server.tenant, username=server.administrator, app_id="keyvouch", app_name="Admin"
                ) as sign_in,
            ):
                await stream.send(device.approve(await stream.prompt(), sign_in.number))
                session = await sign_in.session()
            self.administrator = await session.metadata()
            assert session.proof_key is not None
            self._key = ProofKey(session.session_id, session.server_id, session.proof_key)
            stub = connection.administration
            told = await answer(stub.GetPolicy(pb.GetPolicyRequest(), metadata=self.administrator))
            told.policy.approval.begins_per_minute = 6000
            told.policy.session.access_token_seconds = 3600  # many rounds of anything take longer than is usual
            for name, value in policy.items():
                part, _, setting = name.partition("__")
                setattr(getattr(told.policy, part), setting, value)
            await answer(stub.UpdatePolicy(pb.UpdatePolicyRequest(policy=told.policy), metadata=self.administrator))
            await session.refresh()
            self.administrator = await session.metadata()

    async def new_account(self, connection: Connection) -> Account:
        """A fresh user with a pass."""
        name, stub = f"user{next(self._names)}", connection.administration
        await answer(stub.CreateUser(pb.CreateUserRequest(username=name), metadata=self.administrator))
        made = await answer(
            stub.CreateAccessPass(pb.CreateAccessPassRequest(username=name), metadata=self.administrator)
        )
        return Account(name, made.code)

    # Ends and beginnings of the process

    async def crash(self) -> None:
        """Kill -9, and start again on the same data and ports."""
        await asyncio.to_thread(self.server.kill)
        await asyncio.to_thread(self.server.start)
        self.restarts += 1

    async def ensure_running(self) -> None:
        """Start the server where an earlier test has left it dead, so that one failure is one."""
        with suppress(UnavailableError):
            if not has_died(self.server.pid):
                return
            await asyncio.to_thread(self.server.wait)
        await asyncio.to_thread(self.server.start)

    @asynccontextmanager
    async def reviving(self) -> AsyncIterator[None]:
        """While the block lasts, a server that dies is started again."""
        task = asyncio.create_task(self._revive())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _revive(self) -> None:
        while True:
            await eventually(partial(has_died, self.server.pid), math.inf)
            starting = asyncio.create_task(asyncio.to_thread(self._start_again))
            try:
                await asyncio.shield(starting)
            except asyncio.CancelledError:
                await starting  # a start is not left half-way
                raise

    def _start_again(self) -> None:
        status = self.server.wait()
        if status != -signal.SIGKILL:
            raise AssertionError(f"the server ended by itself with {status}; see {self.server.log}")
        self.server.start()
        self.restarts += 1

    async def arm(self, point: str) -> None:
        """From now on the server counts, and kills itself at `point` (none: it only counts)."""
        await asyncio.to_thread(self.trigger.arm, self.server.pid, point)

    async def reached(self, point: str, seconds: float = 10.0) -> None:
        """Wait until the server has reached a point since it was armed, whatever came of it."""
        await eventually(lambda: point in self.reached_points(), seconds, f"{point} was not reached")

    def reached_points(self) -> list[str]:
        """What the server has reached since it was armed."""
        return self.trigger.reached()

    # What the store says

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the store, as it is on disk."""
        with closing(sqlite3.connect(f"{(self.data / DATABASE).as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()

    def check(self) -> None:
        """Nothing that must never be found is found."""
        problems = check(self.data / DATABASE).problems
        if problems:
            raise AssertionError(problems)


def has_died(pid: int) -> bool:
    """Whether a child has ended; it is left to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


async def eventually(holds: Callable[[], bool], seconds: float = 10.0, otherwise: str = "it never came true") -> None:
    """Wait until `holds()`."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise AssertionError(otherwise)
        await asyncio.sleep(0.01)
