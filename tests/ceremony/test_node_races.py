"""Three server processes on one PostgreSQL database: what may happen once happens once, whichever node is asked.

Each of three client processes talks to another node. By default a few rounds each; `--race-rounds 1000` runs as many
with 2, 8 and 64 racers. With nodes and the database killed meanwhile: `test_node_crashes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from keyvouch.call_proof import METADATA_KEY
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.v1 import administration_pb2, sessions_pb2
from keyvouch_client import Connection
from keyvouch_client.errors import answer
from support.contest import at_once
from support.node_processes import NODES, NodeStage
from support.once import (
    FIELD,
    PASS,
    Arena,
    approval_round,
    assert_one_redemption_each,
    one_time_pass,
    online,
    pass_request,
    pass_round,
    reasons,
    refresh_round,
    registration_round,
    sizes,
    two_holders_round,
    winners,
)
from support.postgres_server import PostgresCluster
from support.racers import Racers, racers
from support.stubborn import begin

MISSES = 10
"""Wrong numbers in a row after which approvals rest, by default."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, postgres_cluster: PostgresCluster) -> Iterator[NodeStage]:
    postgres_cluster.start()
    url = postgres_cluster.database()
    with NodeStage.open_nodes(tmp_path_factory.mktemp("nodes"), url, registration__devices_per_user=100) as made:
        yield made
    postgres_cluster.discard(url)


@pytest.fixture(scope="module")
def field(stage: NodeStage) -> Iterator[Racers]:
    with racers(NODES, stage.endpoints, stage.server.ca) as running:
        yield running


@pytest.fixture
async def arena(stage: NodeStage, field: Racers) -> AsyncIterator[Arena]:
    async with stage.connect() as connection:
        yield Arena(stage, field, connection)
    stage.check()


@pytest.fixture
async def connections(stage: NodeStage) -> AsyncIterator[list[Connection]]:
    """One to each node, which prove the calls of the administrator's session."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(stage.connect_to(number)) for number in range(NODES)]


# Races


@pytest.mark.timeout(3600)
async def test_a_one_time_pass_opens_one_session_at_one_of_three_nodes_P7_P8(arena: Arena, rounds: int) -> None:
    account = await arena.account()
    for size in sizes(rounds):
        await pass_round(arena, account, size)


@pytest.mark.timeout(3600)
async def test_an_approval_becomes_one_session_at_three_nodes_P7(arena: Arena, rounds: int) -> None:
    """The device is connected to another node than the one where the sign-in begins."""
    account = await arena.account()
    async with online(arena, account) as device:
        for size in sizes(rounds):
            await approval_round(arena, account, device, size)
    assert_one_redemption_each(arena.stage, account, rounds * len(FIELD))


@pytest.mark.timeout(3600)
async def test_a_registration_makes_one_device_at_one_of_three_nodes_P7_P8(arena: Arena, rounds: int) -> None:
    for size in sizes(rounds):
        await registration_round(arena, size)


@pytest.mark.timeout(3600)
async def test_a_refresh_token_is_rotated_once_at_three_nodes_P7(arena: Arena, rounds: int) -> None:
    session = await arena.session()
    for size in sizes(rounds):
        await refresh_round(arena, session, size)


@pytest.mark.timeout(3600)
async def test_of_two_holders_at_three_nodes_at_most_one_goes_on_P7(arena: Arena, rounds: int) -> None:
    for size in sizes(rounds):
        await two_holders_round(arena, await arena.session(), size)


async def test_a_request_under_one_id_is_done_once_at_three_nodes_P7(
    stage: NodeStage, connections: list[Connection]
) -> None:
    """All of them get the answer of the one that was first, or learn that it was done at the same moment."""
    request = administration_pb2.CreateUserRequest(username="grace", request_id="made-once-" + "x" * 10)

    async def create(connection: Connection) -> administration_pb2.CreateUserResponse:
        return await answer(connection.administration.CreateUser(request, metadata=stage.administrator))

    results = await at_once([lambda c=c: create(c) for c in connections * 4])
    told: list[Any] = [one for one in results if not isinstance(one, KeyvouchError)]
    assert told
    assert {one.reason for one in results if isinstance(one, KeyvouchError)} <= {Reason.REQUEST_COMPLETED}
    assert len({one.user.user_id for one in told}) == 1
    again = await at_once([lambda c=c: create(c) for c in connections])
    assert [one for one in again if isinstance(one, KeyvouchError)] == []
    assert stage.rows("""SELECT count(*) FROM "user" WHERE username = 'grace'""") == [(1,)]


async def test_the_proof_of_a_call_counts_once_at_three_nodes_P15(
    stage: NodeStage, connections: list[Connection]
) -> None:
    """Somebody has copied a call with its proof, and sends it to every node."""
    token = dict(stage.administrator)["authorization"].removeprefix("Bearer ")
    method, request = "/keyvouch.v1.SessionService/ListSessions", sessions_pb2.ListSessionsRequest()
    proof = connections[0].prover.proof(method, token)
    metadata = (*stage.administrator, (METADATA_KEY, proof))
    async with AsyncExitStack() as stack:
        thieves = [await stack.enter_async_context(Connection(node.endpoint, ca_file=node.ca)) for node in stage.nodes]
        results = await at_once(
            [lambda c=c: answer(c.sessions.ListSessions(request, metadata=metadata)) for c in thieves * 4]
        )
    refusals = [one.reason for one in results if isinstance(one, KeyvouchError)]
    assert Counter(refusals) == {Reason.PROOF_REPLAYED: len(results) - 1}


# What is counted, is counted for all nodes together


async def test_guesses_at_three_nodes_are_five_comparisons_of_a_pass_P9(arena: Arena) -> None:
    """More than any one name is let guess in a minute; each third of them goes to another node."""
    account, bystander = await arena.account(), await arena.account()
    requests = [pass_request(arena.stage, account.username, f"WRNG{number:04}") for number in range(300)]
    finishes = await arena.race(PASS, requests)
    assert winners(finishes) == []
    assert reasons(finishes) == {"access_pass_refused", "throttled"}
    query = """SELECT outcome, count(*) FROM audit_record JOIN "user" ON "user".id = user_id
        WHERE action = 'access_pass.sign_in' AND username = ? GROUP BY outcome"""
    told = dict(arena.stage.rows(query, account.username))
    assert told["access_pass_wrong"] == 5
    assert sum(told.values()) == len(finishes)
    refused = sum(one.reason == "access_pass_refused" for one in finishes)
    seconds = max(one.longest for one in finishes)
    assert 5 <= refused <= 100 + seconds + 2  # a hundred at once for one name, and one more each second
    right = pass_request(arena.stage, account.username, account.access_pass)
    assert winners(await arena.race(PASS, [right] * NODES)) == []  # the pass is dead at each node
    others = pass_request(arena.stage, bystander.username, await one_time_pass(arena, bystander.username))
    assert len(winners(await arena.race(PASS, [others] * NODES))) == 1


async def test_wrong_numbers_at_three_nodes_are_counted_together_P4(
    arena: Arena, connections: list[Connection]
) -> None:
    """Each sign-in begins at the next node, and the device answers over its own."""
    account = await arena.account()
    tenant = arena.stage.server.tenant
    async with online(arena, account) as device:
        for number in range(MISSES):
            begun = await begin(connections[number % NODES], tenant, account.username)
            prompt = await device.prompt_of(begun.begun.sign_in_id)
            wrong = f"{(int(begun.begun.number) + 1) % 100:02}"
            await device.send(device.device.approve(prompt, wrong))
            assert (await device.outcome(prompt.prompt_id)).reason == Reason.NUMBER_MISMATCH
        results = await at_once([lambda c=c: begin(c, tenant, account.username) for c in connections])
    assert [one.reason for one in results if isinstance(one, KeyvouchError)] == [Reason.THROTTLED] * NODES
