"""Kill -9 of the device agent at every point of an enrolment and of an answer, against a server process.

The agent is the real one with the software provider. After each kill it is started again, or `enroll` is run again,
as a person would; then the device is there once and the sign-in is complete.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from keyvouch.errors import KeyvouchError
from keyvouch_agent import bootstrap
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Ledger
from keyvouch_bench.device import enrol_with_pass
from keyvouch_client import Connection, Session
from keyvouch_client.sign_in import Begun
from support.agent_process import PIN, AgentProcess
from support.crash_stage import Account, Stage
from support.kill_points import wait_until
from support.stubborn import begin

ENROL_POINTS = (
    "before-call SignInWithAccessPass 1",
    "after-reply SignInWithAccessPass 1",
    "before-call BeginRegistration 1",
    "after-reply BeginRegistration 1",
    "ask PIN 1",
    "before-write staged 1",
    "after-write staged 1",
    "before-call CompleteRegistration 1",
    "after-reply CompleteRegistration 1",
    "before-write enrolments 1",
    "after-write enrolments 1",
    "before-delete staged 1",
    "after-delete staged 1",
)
ANSWER_POINTS = (
    "after-receive prompt 1",
    "before-write outbox 1",
    "after-write outbox 1",
    "before-send answer 1",
    "after-send answer 1",
    "after-receive outcome 1",
    "before-delete outbox 1",
    "after-delete outbox 1",
)
BEFORE_THE_OUTBOX = {"after-receive prompt 1", "before-write outbox 1"}
"""Points before the answer is kept: there the person is asked again."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("agents"), registration__devices_per_user=100) as made:
        yield made


async def new_account(stage: Stage) -> Account:
    async with stage.connect() as connection:
        return await stage.new_account(connection)


@pytest.fixture
def account(stage: Stage) -> Account:
    return run_apart(lambda: new_account(stage))


def run_apart(make: Callable[[], object]) -> Account:
    """Run in a loop of its own, in a thread of its own: fixtures are made outside the test's loop."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, make()).result()  # type: ignore[arg-type]


@pytest.fixture
def agent(stage: Stage, tmp_path: Path, socket_directory: Path) -> Iterator[AgentProcess]:
    made = AgentProcess(socket_directory / "home", stage)
    yield made
    made.kill()


def devices_of(stage: Stage, account: Account) -> list[str]:
    query = "SELECT device.id FROM device JOIN user ON user.id = user_id WHERE username = ?"
    return [row[0] for row in stage.rows(query, account.username)]


async def redeemed(stage: Stage, begun: Begun, account: Account) -> Session:
    """The client's end: it gets its session, and there is one approval, one redemption, one session."""
    await begun.wait()
    session = await begun.redeem()
    query = "SELECT action FROM audit_record WHERE subject = ? AND outcome = 'ok' ORDER BY sequence"
    acts = [row[0] for row in stage.rows(query, begun.begun.sign_in_id)]
    assert acts == ["sign_in.begin", "sign_in.approve", "sign_in.redeem"]
    query = "SELECT count(*) FROM sign_in WHERE session_id = ?"
    assert stage.rows(query, session.session_id) == [(1,)]
    stage.check()
    return session


# Enrolment


@pytest.mark.parametrize("point", ENROL_POINTS)
async def test_enrolment_survives_a_kill_of_the_agent(
    stage: Stage, agent: AgentProcess, account: Account, point: str
) -> None:
    assert agent.enroll_until(point, account) == -signal.SIGKILL
    assert len(devices_of(stage, account)) <= 1
    stage.check()
    status, told = agent.enroll(account)
    if status != 0:
        assert told["error"]["reason"] == "already_enrolled"
        assert point in {"after-write enrolments 1", "before-delete staged 1", "after-delete staged 1"}
    ledger = Ledger(Home.open(agent.home))
    (enrolment,) = ledger.enrolments()
    assert not ledger.staged()
    assert devices_of(stage, account) == [enrolment.device_id]
    assert await bootstrap.check_server(Home.open(agent.home), enrolment) == enrolment.display_name
    stage.check()


@pytest.mark.parametrize("point", ENROL_POINTS)
async def test_ps19_a_lost_device_goes_once_and_with_the_new_one_whenever_the_agent_is_killed(
    stage: Stage, agent: AgentProcess, account: Account, point: str
) -> None:
    server = stage.server
    async with stage.connect() as connection:
        old = await enrol_with_pass(connection, server.tenant, account.username, account.access_pass)
    lost = ("--lost", old.device_id)
    assert agent.enroll_until(point, account, *lost) == -signal.SIGKILL
    at_the_kill = devices_of(stage, account)
    assert len(at_the_kill) == 1  # the old one or the new one: never both, never none
    repeated = () if at_the_kill != [old.device_id] or Ledger(Home.open(agent.home)).staged() else lost
    status, told = agent.enroll(account, *repeated)  # what was staged takes it away although it is not said again
    assert status == 0 or told["error"]["reason"] == "already_enrolled"
    (enrolment,) = Ledger(Home.open(agent.home)).enrolments()
    assert devices_of(stage, account) == [enrolment.device_id] != [old.device_id]
    query = "SELECT count(*) FROM audit_record WHERE action = 'device.remove' AND subject = ?"
    assert stage.rows(query, old.device_id) == [(1,)]
    stage.check()


async def test_enrolment_without_a_kill_passes_every_point(stage: Stage, agent: AgentProcess, account: Account) -> None:
    """The control: the list above is complete."""
    assert agent.enroll_until("", account) == 0
    assert [p for p in agent.trigger.reached() if p != "armed"] == list(ENROL_POINTS)


# Answers


@pytest.fixture(scope="module")
def enrolled(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AgentProcess, Account]]:
    """An agent that is enrolled and runs, for tests that leave it running."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="kv-"))
    agent = AgentProcess(folder / "home", stage)
    account = run_apart(lambda: new_account(stage))
    assert agent.enroll_until("", account) == 0
    agent.start()
    agent.connected()
    yield agent, account
    agent.kill()
    shutil.rmtree(folder, ignore_errors=True)


async def approve(agent: AgentProcess, begun: Begun) -> dict[str, object]:
    """The person types number and PIN."""
    (prompt_id,) = agent.pending()
    return await asyncio.to_thread(agent.ask, "approve", prompt_id=prompt_id, number=begun.begun.number, pin=PIN)


async def prompted(agent: AgentProcess) -> None:
    await asyncio.to_thread(wait_until, agent.pending, f"no prompt was shown; see {agent.log}")


@pytest.mark.parametrize("point", ANSWER_POINTS)
async def test_answer_survives_a_kill_of_the_agent(
    stage: Stage, enrolled: tuple[AgentProcess, Account], point: str
) -> None:
    agent, account = enrolled
    agent.connected()
    agent.arm(point)
    async with stage.connect() as connection:
        begun = await begin(connection, stage.server.tenant, account.username)
        if point != ANSWER_POINTS[0]:
            await prompted(agent)
            with suppress(KeyvouchError):  # the agent dies before, or after, it has told the person
                await approve(agent, begun)
        assert await asyncio.to_thread(agent.wait) == -signal.SIGKILL
        await asyncio.to_thread(agent.start)
        if point in BEFORE_THE_OUTBOX:
            await prompted(agent)
            assert (await approve(agent, begun))["accepted"]
        await redeemed(stage, begun, account)
    await asyncio.to_thread(wait_until, lambda: agent.link()["unacknowledged"] == 0, "an answer is still kept")
    assert agent.pending() == []
    assert not Ledger(Home.open(agent.home)).outbox(agent.link()["device_id"])


async def test_answer_without_a_kill_passes_every_point(stage: Stage, enrolled: tuple[AgentProcess, Account]) -> None:
    """The control: the list above is complete."""
    agent, account = enrolled
    agent.connected()
    agent.arm("")
    async with stage.connect() as connection:
        begun = await begin(connection, stage.server.tenant, account.username)
        await prompted(agent)
        assert (await approve(agent, begun))["accepted"]
        await redeemed(stage, begun, account)
    assert sorted(p for p in agent.trigger.reached() if p != "armed") == sorted(ANSWER_POINTS)


async def test_prompt_is_delivered_after_the_server_was_killed_PS21(
    stage: Stage, enrolled: tuple[AgentProcess, Account]
) -> None:
    """Killed while a prompt is shown: it is shown once. Begun while the agent is cut off: it arrives."""
    agent, account = enrolled
    agent.connected()
    async with stage.connect() as connection:
        begun = await begin(connection, stage.server.tenant, account.username)
        await prompted(agent)
        shown = agent.pending()
        await stage.crash()
        await asyncio.to_thread(agent.connected)
        await asyncio.sleep(0.3)
        assert agent.pending() == shown
        assert (await approve(agent, begun))["accepted"]
        await redeemed(stage, begun, account)
        await stage.crash()
        newer = await begun_at_once(stage, connection, account)
        await prompted(agent)
        assert (await approve(agent, newer))["accepted"]
        await redeemed(stage, newer, account)


async def begun_at_once(stage: Stage, connection: Connection, account: Account) -> Begun:
    from support.stubborn import insist

    return await insist(connection, lambda: begin(connection, stage.server.tenant, account.username))


async def test_answer_given_while_the_server_is_away_is_taken_when_it_is_back(
    stage: Stage, enrolled: tuple[AgentProcess, Account]
) -> None:
    agent, account = enrolled
    agent.connected()
    async with stage.connect() as connection:
        begun = await begin(connection, stage.server.tenant, account.username)
        await prompted(agent)
        await asyncio.to_thread(stage.server.kill)
        answered = asyncio.create_task(approve(agent, begun))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(agent.kill)
        with suppress(KeyvouchError):
            await answered
        await asyncio.to_thread(agent.start)
        await asyncio.to_thread(stage.server.start)
        await redeemed(stage, begun, account)


async def test_the_product_s_own_commands_survive_kills(stage: Stage, agent: AgentProcess, account: Account) -> None:
    """`keyvouch-agent enroll`, `run`, `pending`, `approve`, with kill -9 of the running agent in between."""
    assert agent.enroll(account)[0] == 0
    agent.start_product()
    async with stage.connect() as connection:
        begun = await begin(connection, stage.server.tenant, account.username)
        await prompted(agent)
        agent.kill()
        agent.start_product()
        await prompted(agent)
        status, told = await asyncio.to_thread(
            lambda: agent.command("approve", "--number", begun.begun.number, pin_fd=PIN)
        )
        assert (status, told["state"]) == (0, "approved")
        agent.kill()
        await redeemed(stage, begun, account)
        agent.start_product()
        agent.connected()
        assert agent.command("pending") == (0, {"prompts": []})
