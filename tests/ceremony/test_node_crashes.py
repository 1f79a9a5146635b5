"""Three server processes on one PostgreSQL database, of which one, or the database, is killed or hangs in mid-race.

Nobody wins twice and nothing is lost that was acknowledged; whoever can be served is served; and everything goes on by
itself once what died is there again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack

import pytest

from keyvouch.errors import KeyvouchError, Reason, UnavailableError
from keyvouch_bench.server_process import ServerProcess
from keyvouch_client import Connection
from keyvouch_server.rpc.interceptors import UNARY_SECONDS
from keyvouch_server.stores import postgres_connection
from support.contest import at_once
from support.killable_server import STATEMENT_SECONDS
from support.node_processes import NODES, NodeStage
from support.once import (
    Arena,
    approval_round,
    approved,
    assert_one_redemption_each,
    online,
    pass_round,
    refresh_round,
    registration_round,
    two_holders_round,
)
from support.postgres_server import PostgresCluster
from support.racers import Finish, Racers, racers
from support.stubborn import begin, insist
from support.upsets import CutConnections, DatabaseCrash, KilledNode, PausedNode

CRASHES = 1
"""At least so many in mid-race, for each kind of item; of many rounds one in ten."""
REFUSED_WITHIN = 15.0
"""Seconds in which a call is refused while the database is away."""
CUT_OFF_WITHIN = 15.0
"""Seconds for which a node that stands still can keep the others from writing; the database's limit is 5."""
PATIENCE = 5.0
"""Seconds that nodes wait here for a database that hangs; what they wait otherwise is in `postgres_connection`."""
HUNG_WITHIN = PATIENCE + 15
"""Seconds in which a call ends while the database hangs, on a machine that does other things too."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, postgres_cluster: PostgresCluster) -> Iterator[NodeStage]:
    postgres_cluster.start()
    url, folder = postgres_cluster.database(), tmp_path_factory.mktemp("crashes")
    with NodeStage.open_nodes(folder, url, killable=True, registration__devices_per_user=100) as made:
        yield made
    postgres_cluster.discard(url)


@pytest.fixture(scope="module")
def field(stage: NodeStage) -> Iterator[Racers]:
    with racers(NODES, stage.endpoints, stage.server.ca) as running:
        yield running


@pytest.fixture
async def connection(stage: NodeStage, postgres_cluster: PostgresCluster) -> AsyncIterator[Connection]:
    """To the first node. Afterwards the store is looked through."""
    postgres_cluster.start()
    async with stage.connect() as made:
        yield made
    stage.check()


@pytest.fixture
def crashes(request: pytest.FixtureRequest) -> int:
    return max(CRASHES, int(request.config.getoption("--race-rounds")) // 10)


async def rounds_of_everything(arena: Arena, number: int) -> list[Finish]:
    """So many races for each kind of item; returns what became of the calls, of which each made its promise."""
    finishes = []
    account, session = await arena.account(), await arena.session()
    async with online(arena, account) as device:
        for _ in range(number):
            finishes += await pass_round(arena, await arena.account(), 24)
            finishes += await approval_round(arena, account, device, 24)
            finishes += await registration_round(arena, 12)
            finishes += await refresh_round(arena, session, 24)
            await two_holders_round(arena, await arena.session(), 6)
    assert_one_redemption_each(arena.stage, account, number)
    return finishes


@pytest.mark.timeout(3600)
async def test_a_node_that_is_killed_takes_nothing_with_it_P6_P7(
    stage: NodeStage, field: Racers, connection: Connection, crashes: int
) -> None:
    """It stays away until everybody has been answered, by the others: those who were at it ask the next node."""
    upset = KilledNode(stage, random.Random(20261130))
    await rounds_of_everything(Arena(stage, field, connection, upset), crashes)
    assert upset.hits > 2 * crashes  # of five kills each, most were at a point of the race itself


@pytest.mark.timeout(3600)
async def test_a_node_that_stands_still_in_a_transaction_keeps_nobody_waiting_for_long_P7(
    stage: NodeStage, field: Racers, connection: Connection, crashes: int
) -> None:
    """The database cuts it off. When it goes on, it finds out what became of what it was about to do."""
    upset = PausedNode(stage, random.Random(20261201))
    arena = Arena(stage, field, connection, upset)
    for _ in range(crashes):
        await pass_round(arena, await arena.account(), 12)
    assert max(upset.waited) < CUT_OFF_WITHIN


@pytest.mark.timeout(3600)
async def test_a_database_that_is_killed_takes_nothing_with_it_P6_P7(
    stage: NodeStage, field: Racers, connection: Connection, postgres_cluster: PostgresCluster, crashes: int
) -> None:
    """The nodes go on without a restart, and meanwhile say that the store is away."""
    before, upset = pids(stage), DatabaseCrash(postgres_cluster, random.Random(20261131))
    finishes = await rounds_of_everything(Arena(stage, field, connection, upset), crashes)
    met = Counter(reason for one in finishes for reason in one.met)
    assert set(met) == {"store_unavailable"}
    assert max(one.longest for one in finishes) < REFUSED_WITHIN
    assert pids(stage) == before


@pytest.mark.timeout(3600)
async def test_connections_that_are_cut_again_and_again_change_nothing_P6_P7(
    stage: NodeStage, field: Racers, connection: Connection, crashes: int
) -> None:
    """A commit whose answer is lost is looked up, so that nobody is told another thing than what happened."""
    upset = CutConnections(stage, random.Random(20261202))
    finishes = await rounds_of_everything(Arena(stage, field, connection, upset), crashes)
    assert {reason for one in finishes for reason in one.met} <= {"store_unavailable"}
    assert upset.cut > 0


def pids(stage: NodeStage) -> list[int]:
    return [node.pid for node in stage.nodes]


async def test_without_a_database_every_call_is_refused_soon_and_all_goes_on_with_it_G8(
    stage: NodeStage, field: Racers, connection: Connection, postgres_cluster: PostgresCluster
) -> None:
    """An approval and a session that there were stay good."""
    arena = Arena(stage, field, connection)
    account, other, session = await arena.account(), await arena.account(), await arena.session()
    async with online(arena, account) as device:
        begun, connections = await approved(arena, account, device), device.connections
        await asyncio.to_thread(postgres_cluster.crash)
        results, seconds = await every_node_is_asked(stage, other.username)
        assert {(type(one), one.reason) for one in results} == {(UnavailableError, Reason.STORE_UNAVAILABLE)}
        assert seconds < REFUSED_WITHIN
        await asyncio.to_thread(postgres_cluster.start)
        await everything_goes_on(stage, other.username)
        assert (await begun.redeem()).session_id
        await session.refresh()
        await insist(connection, lambda: approved(arena, account, device))  # told from node to node again
        assert device.connections == connections  # over the stream that it had


def test_the_longest_wait_for_a_database_is_shorter_than_that_for_a_call() -> None:
    """So that callers read what is wrong, and not only that it took too long."""
    assert postgres_connection._CONNECT_SECONDS + postgres_connection._STATEMENT_SECONDS < UNARY_SECONDS


@pytest.fixture
def impatient(stage: NodeStage) -> Iterator[None]:
    """Nodes that give up a hanging database early."""
    for node in stage.nodes:
        node.environment[STATEMENT_SECONDS] = str(PATIENCE)
    stage.on_all(restart)
    yield
    for node in stage.nodes:
        del node.environment[STATEMENT_SECONDS]
    stage.on_all(restart)


def restart(node: ServerProcess) -> None:
    assert node.stop() == 0
    node.start()


async def test_a_database_that_hangs_is_given_up_and_all_goes_on_after_it_G8(
    stage: NodeStage, field: Racers, connection: Connection, postgres_cluster: PostgresCluster, impatient: None
) -> None:
    arena = Arena(stage, field, connection)
    account, other = await arena.account(), await arena.account()
    async with online(arena, account) as device:
        begun = await approved(arena, account, device)
        await asyncio.to_thread(postgres_cluster.pause)
        try:
            results, seconds = await every_node_is_asked(stage, other.username)
        finally:
            await asyncio.to_thread(postgres_cluster.resume)
        assert {one.reason for one in results} == {Reason.STORE_UNAVAILABLE}
        assert seconds < HUNG_WITHIN
        await everything_goes_on(stage, other.username)
        assert (await begun.redeem()).session_id
        await insist(connection, lambda: approved(arena, account, device))


async def every_node_is_asked(stage: NodeStage, username: str) -> tuple[list[KeyvouchError], float]:
    """Begin sign-ins at each node, more at once than it has connections; nobody gets one."""
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(stage.connect_to(number)) for number in range(NODES)]
        began = time.monotonic()
        attempts = [lambda c=c: begin(c, stage.server.tenant, username, seconds=60) for c in connections * 12]
        results = await at_once(attempts)
        seconds = time.monotonic() - began
    refused: Sequence[KeyvouchError] = [one for one in results if isinstance(one, KeyvouchError)]
    assert len(refused) == len(results)
    return [*refused], seconds


async def everything_goes_on(stage: NodeStage, username: str) -> None:
    """Each node serves again, by itself."""
    for number in range(NODES):
        async with stage.connect_to(number) as connection:
            await insist(connection, lambda c=connection: begin(c, stage.server.tenant, username))
