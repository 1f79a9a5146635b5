"""Kill -9 of the server at every point of a sign-in, from the access pass to the refreshed session.

The scenario is one; the points are listed, and a control test holds the list against what a run really passes. After
each kill the server starts again on the same data, and client and device do what real ones do: they try again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from keyvouch.errors import ConflictError, Reason, RefusedError
from keyvouch.statement import Decision
from keyvouch.v1 import prompts_pb2, sessions_pb2
from keyvouch_client import Connection, Session, SignInStream, sign_in_with_access_pass
from keyvouch_client.errors import answer
from support.crash_stage import Account, Stage
from support.killable_server import AFTER_COMMIT, BEFORE_COMMIT, BEFORE_MESSAGE
from support.stubborn import Enrolling, StubbornDevice, begin, insist

COMMITS = (
    "SignInWithAccessPass 1",
    "BeginRegistration 1",
    "CompleteRegistration 1",
    "BeginSignIn 1",
    "StreamPrompts 1",
    "RedeemSignIn 1",
    "RefreshSession 1",
    "StreamPrompts 2",  # the copy of the answer at the end: it is judged in a transaction too, and changes nothing
)
MESSAGES = (
    "GetJwks 1",
    "SignInWithAccessPass 1",
    "BeginRegistration 1",
    "CompleteRegistration 1",
    "StreamPrompts 1",
    "BeginSignIn 1",
    "StreamPrompts 2",
    "WatchSignIn 1",
    "StreamPrompts 3",
    "WatchSignIn 2",
    "RedeemSignIn 1",
    "RefreshSession 1",
)
POINTS = [
    *(f"{kind} {commit}" for commit in COMMITS for kind in (BEFORE_COMMIT, AFTER_COMMIT)),
    *(f"{BEFORE_MESSAGE} {message}" for message in MESSAGES),
]
STEPS = (
    "access pass used",
    "registration begun",
    "registered",
    "device connected",
    "sign-in begun",
    "prompt arrived",
    "answer accepted",
    "approval seen",
    "redeemed",
    "refreshed",
)

# The answer, coming in on the device's stream, sets off the redemption: that commit bears the name of that stream.
STREAM_COMMITS = ("SignInSession 1", "StreamPrompts 1", "StreamPrompts 2", "StreamPrompts 3")
STREAM_MESSAGES = ("SignInSession 1", "SignInSession 2", "StreamPrompts 1", "StreamPrompts 2", "SignInSession 3")
STREAM_POINTS = [
    *(f"{kind} {commit}" for commit in STREAM_COMMITS for kind in (BEFORE_COMMIT, AFTER_COMMIT)),
    *(f"{BEFORE_MESSAGE} {message}" for message in STREAM_MESSAGES),
]
STREAM_STEPS = ("sign-in begun", "prompt arrived", "answer accepted")

Step = Callable[[str], Awaitable[None]]


async def nothing_happens(step: str) -> None:
    assert step in STEPS + STREAM_STEPS


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("kill"), killable=True) as made:
        yield made


@pytest.fixture(autouse=True)
async def running(stage: Stage) -> None:
    await stage.ensure_running()


async def enrolled(connection: Connection, stage: Stage, account: Account, step: Step) -> StubbornDevice:
    """Access pass, registration."""
    pass_session = await insist(
        connection,
        lambda: sign_in_with_access_pass(
            connection, tenant=stage.server.tenant, username=account.username, access_pass=account.access_pass
        ),
    )
    await step("access pass used")
    enrolling = Enrolling(connection)
    await enrolling.begin(await pass_session.metadata())
    await step("registration begun")
    device = await enrolling.complete()
    await step("registered")
    return StubbornDevice(device)


async def approved(device: StubbornDevice, sign_in_id: str, number: str, step: Step) -> prompts_pb2.Answer:
    """The person at the device. Returns the answer, which was made once and may have been sent more than once."""
    prompt = await device.prompt_of(sign_in_id)
    await step("prompt arrived")
    given = device.device.approve(prompt, number)
    await device.send(given)
    outcome = await device.outcome(prompt.prompt_id)
    assert outcome.accepted or outcome.reason == Reason.CHALLENGE_CONSUMED
    await step("answer accepted")
    return given


async def canonical(connection: Connection, stage: Stage, account: Account, step: Step) -> None:
    """The whole way, once, by a client and a device that do not give up; then what must hold."""
    device = await enrolled(connection, stage, account, step)
    async with device.online():
        await device.connected()
        await step("device connected")
        begun = await insist(connection, lambda: begin(connection, stage.server.tenant, account.username))
        await step("sign-in begun")
        watching = asyncio.create_task(begun.wait())
        await stage.reached(f"{BEFORE_MESSAGE} WatchSignIn 1")
        given = await approved(device, begun.begun.sign_in_id, begun.begun.number, step)
        await watching
        await step("approval seen")
        session = await begun.redeem()
        await step("redeemed")
        await insist(connection, session.refresh)
        await step("refreshed")
        await everything_holds(connection, stage, account, session)
        await replay_is_refused(device, given)


async def on_a_stream(connection: Connection, stage: Stage, account: Account, step: Step, point: str) -> None:
    """The same with a SignInSession stream; the point is armed when the device is enrolled."""
    device = await enrolled(connection, stage, account, nothing_happens)
    await connection.identity()
    await stage.arm(point)
    async with AsyncExitStack() as stack:
        stream = await insist(
            connection,
            lambda: stack.enter_async_context(SignInStream(connection, app_id="shop", app_name="Shop")),
        )
        pending = await stream.begin(tenant=stage.server.tenant, username=account.username)
        await step("sign-in begun")
        async with device.online():
            given = await approved(device, pending.sign_in_id, pending.number, step)
            session = await pending.session()
            await session.refresh()
            await everything_holds(connection, stage, account, session)
            await replay_is_refused(device, given)


async def everything_holds(connection: Connection, stage: Stage, account: Account, session: Session) -> None:
    """One device, one session, one record of each act, and tokens that are accepted."""
    stage.check()
    mine = "user_id = (SELECT id FROM user WHERE username = ?)"
    devices = stage.rows(f"SELECT id FROM device WHERE {mine}", account.username)
    completed = stage.rows(f"SELECT device_id FROM registration WHERE state = 'complete' AND {mine}", account.username)
    assert len(devices) == 1
    assert completed == devices
    sessions = stage.rows(f"SELECT id, generation FROM session WHERE kind = 'approval' AND {mine}", account.username)
    assert sessions == [(session.session_id, 2)]
    sign_ins = dict(stage.rows(f"SELECT state, id FROM sign_in WHERE {mine}", account.username))
    assert sign_ins.keys() <= {"consumed", "superseded"}
    acts = stage.rows("SELECT action FROM audit_record WHERE subject = ? AND outcome = 'ok'", sign_ins["consumed"])
    assert [acts.count((f"sign_in.{act}",)) for act in ("begin", "approve", "redeem")] == [1, 1, 1]
    told = await answer(
        connection.sessions.IntrospectSession(
            sessions_pb2.IntrospectSessionRequest(), metadata=await session.metadata(), timeout=15
        )
    )
    assert told.session.session_id == session.session_id


async def replay_is_refused(device: StubbornDevice, given: prompts_pb2.Answer) -> None:
    """P6, W1: the answer that was accepted is worth nothing a second time, whoever was killed in between."""
    known = len(device.outcomes[given.prompt_id])
    await device.send(given)
    copy = await device.outcome(given.prompt_id, known + 1)
    assert not copy.accepted
    assert copy.reason == Reason.CHALLENGE_CONSUMED


async def test_the_list_of_points_is_what_a_run_passes(stage: Stage) -> None:
    async with stage.connect() as connection:
        account = await stage.new_account(connection)
        await stage.arm("")
        async with stage.connect() as fresh:
            await canonical(fresh, stage, account, nothing_happens)
    passed = [point for point in stage.reached_points() if point in POINTS]
    assert sorted(passed) == sorted(POINTS)
    beyond = [p for p in stage.reached_points() if p not in POINTS and p != "armed"]
    assert [p for p in beyond if not p.startswith(BEFORE_MESSAGE)] == []
    assert set(beyond) == {f"{BEFORE_MESSAGE} IntrospectSession 1", f"{BEFORE_MESSAGE} StreamPrompts 4"}


@pytest.mark.parametrize("point", POINTS)
async def test_sign_in_survives_a_kill_of_the_server(stage: Stage, point: str) -> None:
    async with stage.connect() as connection:
        account = await stage.new_account(connection)
    before = stage.restarts
    async with stage.reviving(), stage.connect() as connection:
        await stage.arm(point)
        await canonical(connection, stage, account, nothing_happens)
    assert stage.restarts == before + 1


@pytest.mark.parametrize("killed_at", STEPS)
async def test_sign_in_survives_a_kill_of_the_server_between_two_steps(stage: Stage, killed_at: str) -> None:
    async def step(name: str) -> None:
        if name == killed_at:
            await stage.crash()

    async with stage.connect() as connection:
        account = await stage.new_account(connection)
        await stage.arm("")
        await canonical(connection, stage, account, step)


async def test_the_list_of_points_of_a_stream_is_what_a_run_passes(stage: Stage) -> None:
    async with stage.connect() as connection:
        await on_a_stream(connection, stage, await stage.new_account(connection), nothing_happens, "")
    passed = stage.reached_points()
    assert sorted(p for p in passed if p in STREAM_POINTS) == sorted(STREAM_POINTS)
    assert {p for p in passed if "commit" in p and "Refresh" not in p} <= set(STREAM_POINTS)


@pytest.mark.parametrize("point", STREAM_POINTS)
async def test_sign_in_on_a_stream_survives_a_kill_of_the_server(stage: Stage, point: str) -> None:
    before = stage.restarts
    async with stage.reviving(), stage.connect() as connection:
        await on_a_stream(connection, stage, await stage.new_account(connection), nothing_happens, point)
    assert stage.restarts == before + 1


@pytest.mark.parametrize("killed_at", STREAM_STEPS)
async def test_sign_in_on_a_stream_survives_a_kill_between_two_steps(stage: Stage, killed_at: str) -> None:
    async def step(name: str) -> None:
        if name == killed_at:
            await stage.crash()

    async with stage.connect() as connection:
        await on_a_stream(connection, stage, await stage.new_account(connection), step, "")


@pytest.mark.parametrize("answered", ["wrong number", "denied", "reported"])
@pytest.mark.parametrize("kind", [BEFORE_COMMIT, AFTER_COMMIT, BEFORE_MESSAGE])
async def test_refusal_counts_once_though_the_server_was_killed(stage: Stage, kind: str, answered: str) -> None:
    """The device sends its answer again; a wrong number is one miss, a denial one denial, and there is no session."""
    async with stage.reviving(), stage.connect() as connection:
        account = await stage.new_account(connection)
        device = await enrolled(connection, stage, account, nothing_happens)
        async with device.online():
            begun = await begin(connection, stage.server.tenant, account.username)
            prompt = await device.prompt_of(begun.begun.sign_in_id)
            await stage.arm(f"{kind} StreamPrompts 1")
            await device.send(refusing(device, prompt, begun.begun.number, answered))
            outcome = await device.outcome(prompt.prompt_id)
            with pytest.raises(RefusedError) as refused:
                await begun.wait()
    ends = {"wrong number": Reason.NUMBER_MISMATCH, "denied": Reason.SIGN_IN_DENIED}
    assert refused.value.reason is ends.get(answered, Reason.SIGN_IN_REPORTED)
    assert outcome.accepted is (kind == BEFORE_COMMIT and answered != "wrong number")
    query = "SELECT number_misses FROM user WHERE username = ?"
    assert stage.rows(query, account.username) == [(int(answered == "wrong number"),)]
    query = "SELECT count(*) FROM audit_record WHERE subject = ? AND action <> 'sign_in.begin'"
    assert stage.rows(query, begun.begun.sign_in_id) == [(1,)]
    stage.check()


def refusing(device: StubbornDevice, prompt: prompts_pb2.Prompt, number: str, answered: str) -> prompts_pb2.Answer:
    if answered == "wrong number":
        return device.device.approve(prompt, str((int(number) + 1) % 100).zfill(2))
    return device.device.refuse(prompt, Decision.DENY if answered == "denied" else Decision.REPORT)


async def test_a_lost_completion_cannot_be_repeated_with_another_key(stage: Stage) -> None:
    """The control beside repeating it with the same bytes."""
    async with stage.connect() as connection:
        account = await stage.new_account(connection)
        session = await sign_in_with_access_pass(
            connection, tenant=stage.server.tenant, username=account.username, access_pass=account.access_pass
        )
        first = Enrolling(connection)
        await first.begin(await session.metadata())
        await first.complete()
        await stage.crash()
        assert (await first.complete()).device_id
        first.remake()
        with pytest.raises(ConflictError) as refused:
            await insist(connection, first.complete_once)
    assert refused.value.reason is Reason.REGISTRATION_CONSUMED
    stage.check()
