"""Everything that may be used once, raced for by client processes against a server process: one winner each (P7, P8).

By default a few rounds each. `--race-rounds 1000` runs as many with 2, 8 and 64 racers; see
tests/README.md. The same over several servers is in `test_node_races`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from keyvouch.v1 import sign_in_pb2
from support.crash_stage import Stage
from support.once import (
    FIELD,
    PASS,
    Arena,
    approval_round,
    assert_one_redemption_each,
    online,
    pass_round,
    reasons,
    refresh_round,
    registration_round,
    sizes,
    two_holders_round,
    winners,
)
from support.racers import Racers, racers
from support.upsets import Crash, KilledServer

PROCESSES = 3
CRASHES = 6
"""At least so many kills in mid-race, for each kind of item; of many rounds one in ten."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("once"), registration__devices_per_user=100) as made:
        yield made


@pytest.fixture(scope="module")
def field(stage: Stage) -> Iterator[Racers]:
    with racers(PROCESSES, [stage.server.endpoint], stage.server.ca) as running:
        yield running


@pytest.mark.timeout(3600)
async def test_a_one_time_pass_opens_one_session_P7_P8(stage: Stage, field: Racers, rounds: int) -> None:
    async with stage.connect() as connection:
        arena = Arena(stage, field, connection)
        account = await arena.account()
        for size in sizes(rounds):
            await pass_round(arena, account, size)
    stage.check()


@pytest.mark.timeout(3600)
async def test_an_approval_becomes_one_session_P7(stage: Stage, field: Racers, rounds: int) -> None:
    async with stage.connect() as connection:
        arena = Arena(stage, field, connection)
        account = await arena.account()
        async with online(arena, account) as device:
            for size in sizes(rounds):
                await approval_round(arena, account, device, size)
    assert_one_redemption_each(stage, account, rounds * len(FIELD))
    stage.check()


@pytest.mark.timeout(3600)
async def test_a_registration_makes_one_device_P7_P8(stage: Stage, field: Racers, rounds: int) -> None:
    async with stage.connect() as connection:
        for size in sizes(rounds):
            await registration_round(Arena(stage, field, connection), size)
    stage.check()


@pytest.mark.timeout(3600)
async def test_a_refresh_token_is_rotated_once_P7(stage: Stage, field: Racers, rounds: int) -> None:
    async with stage.connect() as connection:
        arena = Arena(stage, field, connection)
        session = await arena.session()
        for size in sizes(rounds):
            await refresh_round(arena, session, size)
    stage.check()


@pytest.mark.timeout(3600)
async def test_of_two_holders_of_a_refresh_token_at_most_one_goes_on_P7(
    stage: Stage, field: Racers, rounds: int
) -> None:
    async with stage.connect() as connection:
        arena = Arena(stage, field, connection)
        for size in sizes(rounds):
            await two_holders_round(arena, await arena.session(), size)
    stage.check()


# The same, and the server is killed while they race


@pytest.mark.timeout(3600)
async def test_a_crash_gives_no_second_winner_P6_P7(stage: Stage, field: Racers, rounds: int) -> None:
    crashes = max(CRASHES, rounds // 10)
    async with stage.connect() as connection:
        arena = Arena(stage, field, connection, Crash(stage, random.Random(20261128)))
        account = await arena.account()
        async with online(arena, account) as device:
            for _ in range(crashes):
                await pass_round(arena, await arena.account(), 64)
                await approval_round(arena, account, device, 64)
                await registration_round(arena, 16)
    assert_one_redemption_each(stage, account, crashes)
    stage.check()


@pytest.mark.timeout(3600)
async def test_a_refresh_token_is_rotated_once_over_a_crash_P6_P7(
    tmp_path_factory: pytest.TempPathFactory, rounds: int
) -> None:
    """The server is killed at a point of the exchange itself, before or after the commit that rotates the token."""
    crashes, draw = max(CRASHES, rounds // 10), random.Random(20261129)
    with (
        Stage.open(tmp_path_factory.mktemp("killed"), killable=True) as stage,
        racers(PROCESSES, [stage.server.endpoint], stage.server.ca) as field,
    ):
        async with stage.connect() as connection:
            arena = Arena(stage, field, connection, KilledServer(stage, draw))
            session = await arena.session()
            for _ in range(crashes):
                await refresh_round(arena, session, 64)
            for number in range(crashes // 2):
                await two_holders_round(arena, await arena.session(), (2, 8)[number % 2])
        stage.check()


def test_a_refusal_is_told_from_a_win(stage: Stage, field: Racers) -> None:
    """The control: racers that cannot win say so, each of them."""
    request = sign_in_pb2.SignInWithAccessPassRequest(tenant=stage.server.tenant, username="nobody", access_pass="x")
    finishes = field.race(PASS, [request] * 8)
    assert winners(finishes) == []
    assert [one.code for one in finishes] == ["UNAUTHENTICATED"] * 8
    assert reasons(finishes) == {"access_pass_refused"}
