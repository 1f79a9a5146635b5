"""What happens in the middle of a race: servers and databases that die there and come back (`once.Upset`).

Points of a killable server make sure that it is the middle: the N-th call of the race, before or after its commit.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from dataclasses import dataclass, field

import asyncpg

from keyvouch_bench.server_process import ServerProcess
from support.crash_stage import Stage, has_died
from support.kill_points import PAUSE, Trigger
from support.killable_server import AFTER_COMMIT, BEFORE_COMMIT, BEFORE_MESSAGE
from support.node_processes import NodeStage
from support.postgres_server import PostgresCluster
from support.racers import Finish, Race

LONGEST_DELAY = 0.06
"""Seconds after the start of a race in which whatever happens at no special point happens."""
KINDS = (BEFORE_COMMIT, AFTER_COMMIT, BEFORE_MESSAGE)


@dataclass(slots=True)
class Crash:
    """The one server is killed at some moment and started again at once."""

    stage: Stage
    draw: random.Random

    async def before(self, method: str, size: int) -> None:
        """See `once.Upset`."""

    async def during(self, race: Race) -> list[Finish]:
        """See `once.Upset`."""
        await asyncio.sleep(self.draw.uniform(0, LONGEST_DELAY))
        await self.stage.crash()
        return []

    async def after(self) -> None:
        """See `once.Upset`."""


@dataclass(slots=True)
class KilledServer:
    """The one server, a killable one, ends itself at a point of the race and is started again at once."""

    stage: Stage
    draw: random.Random
    points: list[str] = field(default_factory=list)

    async def before(self, method: str, size: int) -> None:
        """See `once.Upset`."""
        self.points.append(_point(self.draw, method, size))
        await self.stage.arm(self.points[-1])

    async def during(self, race: Race) -> list[Finish]:
        """See `once.Upset`."""
        await asyncio.to_thread(_has_killed_itself, self.stage.server, self.points[-1])
        await asyncio.to_thread(self.stage.server.start)
        return []

    async def after(self) -> None:
        """See `once.Upset`."""


@dataclass(slots=True)
class KilledNode:
    """One of several killable nodes ends itself at a point of the race. It is away until everybody has been answered:
    by the other nodes. `hits` counts how often it has reached its point; else it is killed when the race is over.
    """

    stage: NodeStage
    draw: random.Random
    hits: int = 0
    _victim: ServerProcess | None = None

    async def before(self, method: str, size: int) -> None:
        """See `once.Upset`."""
        nodes = self.stage.nodes
        self._victim = self.draw.choice(nodes[: min(size, len(nodes))])
        point = _point(self.draw, method, size // len(nodes))
        await asyncio.to_thread(Trigger(self._victim.data.parent).arm, self._victim.pid, point)

    async def during(self, race: Race) -> list[Finish]:
        """See `once.Upset`."""
        return await asyncio.to_thread(race.finishes)

    async def after(self) -> None:
        """See `once.Upset`."""
        assert self._victim is not None
        self.hits += has_died(self._victim.pid)
        await asyncio.to_thread(self._victim.kill)
        await asyncio.to_thread(self._victim.start)


@dataclass(slots=True)
class PausedNode:
    """One of several killable nodes stops where it is, in a transaction that it has not committed, so that it keeps the
    others from writing. It goes on when their callers have been answered. `waited` has how long each of them took.
    """

    stage: NodeStage
    draw: random.Random
    waited: list[float] = field(default_factory=list)
    _victim: int = 0

    async def before(self, method: str, size: int) -> None:
        """See `once.Upset`. The n-th client process talks to the n-th node."""
        self._victim = self.draw.randrange(len(self.stage.nodes))
        point = f"{PAUSE}{BEFORE_COMMIT} {method.rpartition('/')[2]} 1"
        await asyncio.to_thread(self._trigger.arm, self.stage.nodes[self._victim].pid, point)

    async def during(self, race: Race) -> list[Finish]:
        """See `once.Upset`."""
        finishes = await asyncio.to_thread(race.finishes, self._victim)
        os.kill(self.stage.nodes[self._victim].pid, signal.SIGCONT)
        self.waited += [one.longest for one in finishes]
        return finishes

    async def after(self) -> None:
        """See `once.Upset`."""
        assert any(point.startswith(BEFORE_COMMIT) for point in self._trigger.reached())

    @property
    def _trigger(self) -> Trigger:
        return Trigger(self.stage.nodes[self._victim].data.parent)


@dataclass(slots=True)
class DatabaseCrash:
    """The database is killed, all of its processes at once, and comes back after a while. The servers stay."""

    cluster: PostgresCluster
    draw: random.Random
    longest_absence: float = 0.5

    async def before(self, method: str, size: int) -> None:
        """See `once.Upset`."""

    async def during(self, race: Race) -> list[Finish]:
        """See `once.Upset`."""
        await asyncio.sleep(self.draw.uniform(0, LONGEST_DELAY))
        await asyncio.to_thread(self.cluster.crash)
        await asyncio.sleep(self.draw.uniform(0, self.longest_absence))
        await asyncio.to_thread(self.cluster.start)
        return []

    async def after(self) -> None:
        """See `once.Upset`."""


@dataclass(slots=True)
class CutConnections:
    """The database ends all connections of the servers, again and again, also in the middle of a commit."""

    stage: NodeStage
    draw: random.Random
    times: int = 12
    longest_pause: float = 0.04
    cut: int = 0

    async def before(self, method: str, size: int) -> None:
        """See `once.Upset`."""

    async def during(self, race: Race) -> list[Finish]:
        """See `once.Upset`."""
        connection = await asyncpg.connect(self.stage.url)
        try:
            for _ in range(self.times):
                await asyncio.sleep(self.draw.uniform(0, self.longest_pause))
                self.cut += await connection.fetchval(_CUT)
        finally:
            await connection.close()
        return []

    async def after(self) -> None:
        """See `once.Upset`."""


_CUT = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name = 'keyvouch-server' AND datname = current_database()"""


def _point(draw: random.Random, method: str, size: int) -> str:
    """One that a server reaches to which `size` copies of a call come; of calls that are refused no reply is sent."""
    kind, most = draw.choice(KINDS), min(size, 12)
    return f"{kind} {method.rpartition('/')[2]} {1 if kind == BEFORE_MESSAGE else draw.randint(1, max(1, most))}"


def _has_killed_itself(server: ServerProcess, point: str) -> None:
    status = server.wait()
    if status != -signal.SIGKILL:
        raise AssertionError(f"the server did not reach {point!r} and ended with {status}; see {server.log}")
