"""Many at once, against a server process: of everything that may happen once, exactly one happens."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError
from keyvouch.statement import Decision, SignInOffer
from keyvouch.v1 import administration_pb2, common_pb2, prompts_pb2, sessions_pb2, sign_in_pb2
from keyvouch_bench.device import BenchDevice, PromptStream, enrol_with_pass
from keyvouch_client import Connection, Session, sign_in_with_access_pass
from keyvouch_client.errors import answer
from keyvouch_client.sign_in import Begun
from support.contest import at_once, check_history, shuffled
from support.crash_stage import Account, Stage
from support.live_server import LiveServer
from support.stubborn import Enrolling, StubbornDevice, begin, refresh_request

ROUNDS = 240
"""Rounds of the interleaving test, shared by four users at the same time."""

LATE = {Reason.SIGN_IN_CANCELLED, Reason.SIGN_IN_SUPERSEDED, Reason.SIGN_IN_EXPIRED}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("races"), registration__devices_per_user=100) as made:
        yield made


@pytest.fixture
async def connections(stage: Stage) -> AsyncIterator[list[Connection]]:
    """Four clients."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(stage.connect()) for _ in range(4)]


@asynccontextmanager
async def person(stage: Stage, connection: Connection) -> AsyncIterator[tuple[Account, StubbornDevice]]:
    """A new user with a connected device."""
    account = await stage.new_account(connection)
    async with StubbornDevice(await enrolled(stage, connection, account)).online() as device:
        await device.connected()
        yield account, device


async def enrolled(stage: Stage, connection: Connection, account: Account) -> BenchDevice:
    return await enrol_with_pass(connection, stage.server.tenant, account.username, account.access_pass)


async def approve(device: StubbornDevice, begun: Begun) -> prompts_pb2.Outcome:
    prompt = await device.prompt_of(begun.begun.sign_in_id)
    await device.send(device.device.approve(prompt, begun.begun.number))
    return await device.outcome(prompt.prompt_id)


def sessions_of(stage: Stage, account: Account) -> list[str]:
    rows = stage.rows(
        "SELECT session.id FROM session JOIN user ON user.id = user_id"
        " WHERE username = ? AND session.kind = 'approval'",
        account.username,
    )
    return [row[0] for row in rows]


def states_of(stage: Stage, account: Account) -> Counter[str]:
    query = "SELECT state FROM sign_in JOIN user ON user.id = user_id WHERE username = ?"
    return Counter(row[0] for row in stage.rows(query, account.username))


def refusals(results: Sequence[object]) -> list[Reason]:
    return [result.reason for result in results if isinstance(result, KeyvouchError)]


# Answers


@pytest.mark.parametrize("ways", ["one stream", "streams on one channel", "channels"])
async def test_fifty_copies_of_one_answer_one_is_accepted_W1(
    stage: Stage, connections: list[Connection], ways: str
) -> None:
    account = await stage.new_account(connections[0])
    device = await enrolled(stage, connections[0], account)
    async with AsyncExitStack() as stack:
        shared = device.open_channel()
        stack.push_async_callback(shared.close)
        count = 1 if ways == "one stream" else 50
        opened = [PromptStream(device, None if ways == "channels" else shared) for _ in range(count)]
        streams = [await stack.enter_async_context(stream) for stream in opened]
        begun = await begin(connections[1], stage.server.tenant, account.username)
        given = device.approve(await streams[0].prompt(), begun.begun.number)
        outcomes = await at_once([lambda s=s: s.send(given) for s in streams] if count > 1 else [])
        if count == 1:
            for _ in range(50):
                await streams[0].write(given)
            outcomes = [await streams[0].outcome() for _ in range(50)]
        session = await begun.redeem()
    told = Counter((o.accepted, o.reason) for o in outcomes if isinstance(o, prompts_pb2.Outcome))
    assert told == {(True, ""): 1, (False, "challenge_consumed"): 49}
    assert sessions_of(stage, account) == [session.session_id]
    query = "SELECT count(*) FROM audit_record WHERE subject = ? AND action = 'sign_in.approve'"
    assert stage.rows(query, begun.begun.sign_in_id) == [(1,)]
    stage.check()


async def test_two_devices_approve_at_the_same_time(stage: Stage, connections: list[Connection]) -> None:
    async with person(stage, connections[0]) as (account, first), AsyncExitStack() as stack:
        second = StubbornDevice(await enrolled(stage, connections[0], account))
        await stack.enter_async_context(second.online())
        await second.connected()
        winners = Counter[int]()
        for _ in range(10):
            begun = await begin(connections[1], stage.server.tenant, account.username)
            sign_in_id = begun.begun.sign_in_id
            await asyncio.gather(first.prompt_of(sign_in_id), second.prompt_of(sign_in_id))
            outcomes = await asyncio.gather(approve(first, begun), approve(second, begun))
            assert sorted(o.accepted for o in outcomes) == [False, True]
            assert {o.reason for o in outcomes} == {"", "challenge_consumed"}
            winners[outcomes[0].accepted] += 1
            await begun.redeem()
    assert sum(winners.values()) == 10
    assert len(sessions_of(stage, account)) == 10
    stage.check()


async def test_approval_and_denial_race(stage: Stage, connections: list[Connection]) -> None:
    """Whoever is first decides; the other one learns what was decided."""
    async with person(stage, connections[0]) as (account, first), AsyncExitStack() as stack:
        second = StubbornDevice(await enrolled(stage, connections[0], account))
        await stack.enter_async_context(second.online())
        await second.connected()
        for _ in range(10):
            begun = await begin(connections[1], stage.server.tenant, account.username)
            mine = await first.prompt_of(begun.begun.sign_in_id)
            theirs = await second.prompt_of(begun.begun.sign_in_id)
            approval = first.device.approve(mine, begun.begun.number)
            await asyncio.gather(first.send(approval), second.send(second.device.refuse(theirs, Decision.DENY)))
            approved, denied = await asyncio.gather(first.outcome(mine.prompt_id), second.outcome(theirs.prompt_id))
            assert approved.accepted is not denied.accepted
            assert (approved.reason or denied.reason) in {"sign_in_denied", "challenge_consumed"}
            (result,) = await at_once([begun.redeem])
            assert isinstance(result, Session) is approved.accepted
    stage.check()


# Redemptions


@pytest.mark.parametrize("racers", [2, 8, 64])
async def test_parallel_redemptions_give_one_session_P7(
    stage: Stage, connections: list[Connection], racers: int
) -> None:
    async with person(stage, connections[0]) as (account, device):
        begun = await begin(connections[1], stage.server.tenant, account.username)
        await approve(device, begun)
        copies = [Begun(connections[n % 4], begun.begun, begun._proof_key) for n in range(racers)]
        results = await at_once([copy.redeem for copy in copies])
    ids = {result.session_id for result in results if isinstance(result, Session)}
    assert refusals(results) == []
    assert [*ids] == sessions_of(stage, account)
    assert len({r.tokens.refresh_token for r in results if isinstance(r, Session)}) == 1
    query = "SELECT count(*) FROM audit_record WHERE subject = ? AND action = 'sign_in.redeem'"
    assert stage.rows(query, begun.begun.sign_in_id) == [(1,)]
    stage.check()


@pytest.mark.parametrize("rival", ["cancel", "begin"])
async def test_redemption_races_its_end(stage: Stage, connections: list[Connection], rival: str) -> None:
    draw, seen = random.Random(rival), Counter[str]()
    async with person(stage, connections[0]) as (account, device):
        for number in range(25):
            begun = await begin(connections[1], stage.server.tenant, account.username)
            assert (await approve(device, begun)).accepted
            other = Begun(connections[2], begun.begun, begun._proof_key)

            async def against(other: Begun = other) -> None:
                if rival == "cancel":
                    await other.cancel()
                else:
                    await begin(connections[2], stage.server.tenant, account.username)

            redeemed, _ = await shuffled([begun.redeem, against], longest=0.004 * (number % 2), draw=draw)
            states = dict(stage.rows("SELECT id, state FROM sign_in"))
            if isinstance(redeemed, Session):
                assert states[begun.begun.sign_in_id] == "consumed"
            else:
                assert refusals([redeemed])[0] in LATE
                assert states[begun.begun.sign_in_id] in {"cancelled", "superseded"}
            seen[states[begun.begun.sign_in_id]] += 1
    assert seen["consumed"] == len(sessions_of(stage, account))
    stage.check()


async def test_redemption_races_the_expiry(live: LiveServer) -> None:
    """The clock moves to the last second, or over it, while the approval is redeemed."""
    ada = await live.person("ada")
    await live.change_policy(approval={"begins_per_minute": 6000})
    seen = Counter[bool]()
    for number in range(20):
        opened = await live.approved(ada)
        lifetime = opened.begun.expires_at - live.clock.now()

        async def time_passes(seconds: int = lifetime - 1 + number % 2) -> None:
            live.clock.advance(seconds)
            await live.app.sign_ins.expire()

        result, _ = await at_once(
            [opened.redeem, time_passes] if number % 4 < 2 else [time_passes, opened.redeem][::-1]
        )
        if isinstance(result, KeyvouchError):
            assert result.reason is Reason.SIGN_IN_EXPIRED
            assert await opened.state() == common_pb2.SIGN_IN_STATE_EXPIRED
        else:
            assert await opened.state() == common_pb2.SIGN_IN_STATE_CONSUMED
        seen[isinstance(result, KeyvouchError)] += 1
    assert seen[False] >= 10


# Beginnings, refreshes


async def test_parallel_begins_leave_one_open_request_KI4(stage: Stage, connections: list[Connection]) -> None:
    async with person(stage, connections[0]) as (account, device):
        results = await at_once(
            [lambda c=c: begin(c, stage.server.tenant, account.username) for c in connections for _ in range(16)]
        )
        assert refusals(results) == []
        assert states_of(stage, account) == {"pending": 1, "superseded": 63}
        query = "SELECT sign_in.id FROM sign_in JOIN user ON user.id = user_id WHERE username = ? AND state = 'pending'"
        ((newest,),) = stage.rows(query, account.username)
        begun = next(r for r in results if isinstance(r, Begun) and r.begun.sign_in_id == newest)
        assert (await approve(device, begun)).accepted
        await begun.redeem()
    stage.check()


async def test_parallel_refreshes_are_one_step(stage: Stage, connections: list[Connection]) -> None:
    async with person(stage, connections[0]) as (account, device):
        begun = await begin(connections[1], stage.server.tenant, account.username)
        await approve(device, begun)
        session = await begun.redeem()
        first = refresh_request(session)
        results = await at_once(
            [lambda c=c: answer(c.sessions.RefreshSession(first, timeout=15)) for c in connections for _ in range(8)]
        )
        assert refusals(results) == []
        told = {r.tokens.refresh_token for r in results if isinstance(r, sessions_pb2.RefreshSessionResponse)}
        assert len(told) == 1
        query = "SELECT generation FROM session WHERE id = ?"
        assert stage.rows(query, session.session_id) == [(2,)]
        session.tokens.refresh_token = told.pop()
        await session.refresh()
        with pytest.raises(UnauthenticatedError):  # the control: two holders of one session are found out
            await answer(connections[0].sessions.RefreshSession(first, timeout=15))
        with pytest.raises(UnauthenticatedError) as ended:
            await session.refresh()
    assert ended.value.reason is Reason.SESSION_REVOKED
    stage.check()


# Access passes and registrations


async def test_parallel_guesses_at_an_access_pass_P9(stage: Stage, connections: list[Connection]) -> None:
    account, bystander = [await stage.new_account(connections[0]) for _ in range(2)]
    wrong = [f"WRNG{number:04}" for number in range(200)]
    results = await at_once(
        [
            lambda c=connections[n % 4], code=code: use_pass(stage, c, account.username, code)
            for n, code in enumerate(wrong)
        ]
    )
    assert set(refusals(results)) == {Reason.ACCESS_PASS_REFUSED, Reason.THROTTLED}
    assert len(refusals(results)) == 200
    query = """SELECT outcome FROM audit_record JOIN user ON user.id = user_id
        WHERE action = 'access_pass.sign_in' AND username = ?"""
    told = Counter(row[0] for row in stage.rows(query, account.username))
    assert told["access_pass_wrong"] == 5
    assert told["access_pass_attempts"] + told["throttled"] == 195
    (late,) = await at_once([lambda: use_pass(stage, connections[0], account.username, account.access_pass)])
    assert set(refusals([late])) <= {Reason.ACCESS_PASS_REFUSED, Reason.THROTTLED}
    assert refusals([late])
    assert (await use_pass(stage, connections[0], bystander.username, bystander.access_pass)).tokens.access_token


async def use_pass(
    stage: Stage, connection: Connection, username: str, code: str
) -> sign_in_pb2.SignInWithAccessPassResponse:
    request = sign_in_pb2.SignInWithAccessPassRequest(tenant=stage.server.tenant, username=username, access_pass=code)
    return await answer(connection.sign_ins.SignInWithAccessPass(request, timeout=15))


@pytest.mark.parametrize("one_time", [False, True])
async def test_one_completion_in_parallel_makes_one_device(
    stage: Stage, connections: list[Connection], one_time: bool
) -> None:
    """Every copy gets the reply of the one that was first, also when the pass was spent by it."""
    account = await stage.new_account(connections[0])
    code = await one_time_pass(stage, connections[0], account) if one_time else account.access_pass
    session = await sign_in_with_access_pass(
        connections[0], tenant=stage.server.tenant, username=account.username, access_pass=code
    )
    enrolling = Enrolling(connections[0])
    await enrolling.begin(await session.metadata())
    results = await at_once([enrolling.complete_once] * 8)
    assert refusals(results) == []
    devices = {r.device.device_id for r in results if not isinstance(r, KeyvouchError)}
    chains = {tuple(r.certificate_chain) for r in results if not isinstance(r, KeyvouchError)}
    assert (len(devices), len(chains)) == (1, 1)
    assert devices_of(stage, account) == [*devices]
    stage.check()


async def test_a_one_time_pass_opens_one_session_and_one_device_P8(stage: Stage, connections: list[Connection]) -> None:
    account = await stage.new_account(connections[0])
    code = await one_time_pass(stage, connections[0], account)
    signed_in = await at_once([lambda c=c: use_pass(stage, c, account.username, code) for c in connections * 4])
    opened = [r for r in signed_in if not isinstance(r, KeyvouchError)]
    assert (len(opened), Counter(refusals(signed_in))) == (1, {Reason.ACCESS_PASS_REFUSED: 15})
    enrolling = [Enrolling(connection) for connection in connections]
    for one in enrolling:
        await one.begin((("authorization", f"Bearer {opened[0].tokens.access_token}"),))
    completed = await at_once([one.complete_once for one in enrolling])
    assert Counter(refusals(completed)) == {Reason.SESSION_REVOKED: 3}
    assert len(devices_of(stage, account)) == 1
    stage.check()


async def one_time_pass(stage: Stage, connection: Connection, account: Account) -> str:
    stub, metadata = connection.administration, stage.administrator
    gone = administration_pb2.DeleteAccessPassRequest(username=account.username)
    await answer(stub.DeleteAccessPass(gone, metadata=metadata))
    wanted = administration_pb2.CreateAccessPassRequest(username=account.username, one_time=True)
    return (await answer(stub.CreateAccessPass(wanted, metadata=metadata))).code


def devices_of(stage: Stage, account: Account) -> list[str]:
    query = "SELECT device.id FROM device JOIN user ON user.id = user_id WHERE username = ?"
    return [row[0] for row in stage.rows(query, account.username)]


# Everything together


async def test_random_interleavings_are_ways_through_the_state_machine(
    stage: Stage, connections: list[Connection]
) -> None:
    """Answers, copies, redemptions, withdrawals and newer requests, in every order that chance finds."""
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - shown when the test fails
    draws = [random.Random(seed + n) for n in range(4)]
    await asyncio.gather(*(play(stage, c, d, ROUNDS // 4) for c, d in zip(connections, draws, strict=True)))
    stage.check()
    query = """SELECT subject, action FROM audit_record
        WHERE action LIKE 'sign_in.%' AND outcome IN ('ok', ?) ORDER BY sequence"""
    histories: dict[str, list[str]] = {}
    for subject, action in stage.rows(query, Reason.NUMBER_MISMATCH.value):
        histories.setdefault(subject, []).append(action)
    for sign_in_id, state in stage.rows("SELECT id, state FROM sign_in WHERE user_id <> ''"):
        check_history(histories[sign_in_id], state)


async def play(stage: Stage, connection: Connection, draw: random.Random, rounds: int) -> None:
    async with person(stage, connection) as (account, device):
        for _ in range(rounds):
            await play_once(stage, connection, account, device, draw)


async def play_once(
    stage: Stage, connection: Connection, account: Account, device: StubbornDevice, draw: random.Random
) -> None:
    begun = await begin(connection, stage.server.tenant, account.username)
    prompt = await device.prompt_of(begun.begun.sign_in_id)
    given = device.device.approve(prompt, begun.begun.number)
    acts = {
        "approve": lambda: device.send(given),
        "copy": lambda: device.send(given),
        "deny": lambda: device.send(device.device.refuse(prompt, Decision.DENY)),
        "redeem": begun.redeem,
        "again": begun.redeem,
        "cancel": begun.cancel,
        "newer": lambda: begin(connection, stage.server.tenant, account.username),
    }
    chosen = ["approve", "redeem", *draw.sample(["copy", "deny", "again", "cancel", "newer"], draw.randint(1, 3))]
    results = dict(zip(chosen, await shuffled([acts[a] for a in chosen], longest=0.02, draw=draw), strict=True))
    sent = sum(act in results for act in ("approve", "copy", "deny"))
    outcomes = [await device.outcome(prompt.prompt_id, n + 1) for n in range(sent)]
    assert sum(o.accepted for o in outcomes) <= 1
    last, *_ = await at_once([begun.redeem])
    sessions = {r.session_id for r in (*results.values(), last) if isinstance(r, Session)}
    ((state, session_id),) = stage.rows(
        "SELECT state, session_id FROM sign_in WHERE id = ?", SignInOffer.parse(prompt.offer).sign_in_id
    )
    assert (state == "consumed") is bool(session_id)
    assert sessions == ({session_id} if session_id else set())
