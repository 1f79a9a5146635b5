"""The network between device, client and server fails in the middle of sign-ins: streams come back, nothing is lost."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Ledger
from keyvouch_bench.device import enrol_with_pass
from keyvouch_client import Connection, SignInStream
from support.agent_process import PIN, AgentProcess
from support.crash_stage import QUICK, Account, Stage
from support.kill_points import wait_until
from support.proxy import Direction, FaultyProxy
from support.stubborn import StubbornDevice, begin, insist

FAULTS = (
    "reset",
    "refused for a while",
    "cut in a frame to the server",
    "cut in a frame to the client",
    "silent to the server, then reset",
    "silent to the client, then reset",
    "silent to the server for a while",
    "silent to the client for a while",
    "slow",
)
WHILE = 0.2


async def inflict(proxy: FaultyProxy, fault: str) -> None:
    """Begin a fault; it is over, or goes on while the test goes on, by itself."""
    direction = Direction.TO_SERVER if "to the server" in fault else Direction.TO_CLIENT
    if fault.startswith("cut"):
        proxy.cut_after(45, direction)
    elif fault.startswith("silent"):
        proxy.silence(direction)
    elif fault == "slow":
        proxy.delay = 0.05
    else:
        proxy.refusing = fault.startswith("refused")
        proxy.reset()


async def relent(proxy: FaultyProxy, fault: str) -> None:
    """The fault ends after a while."""
    await asyncio.sleep(WHILE)
    if fault.endswith("then reset"):
        proxy.reset()
    proxy.heal()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("network")) as made:
        yield made


@dataclass(frozen=True, slots=True)
class Wired:
    """A user whose device and whose client reach the server through proxies."""

    account: Account
    device: StubbornDevice
    connection: Connection
    device_proxy: FaultyProxy
    client_proxy: FaultyProxy


@pytest.fixture
async def wired(stage: Stage) -> AsyncIterator[Wired]:
    async with AsyncExitStack() as stack:
        device_proxy = await stack.enter_async_context(FaultyProxy(stage.server.device_port))
        client_proxy = await stack.enter_async_context(FaultyProxy(stage.server.public_port))
        direct = await stack.enter_async_context(stage.connect())
        account = await stage.new_account(direct)
        device = await enrol_with_pass(direct, stage.server.tenant, account.username, account.access_pass)
        behind = StubbornDevice(dataclasses.replace(device, endpoint=f"localhost:{device_proxy.port}"))
        connection = Connection(f"localhost:{client_proxy.port}", ca_file=stage.server.ca, backoff=QUICK)
        await stack.enter_async_context(connection)
        await connection.identity()
        await stack.enter_async_context(behind.online())
        await behind.connected()
        yield Wired(account, behind, connection, device_proxy, client_proxy)


def accepted_once(stage: Stage, sign_in_id: str) -> None:
    query = "SELECT action FROM audit_record WHERE subject = ? AND outcome = 'ok'"
    acts = Counter(row[0] for row in stage.rows(query, sign_in_id))
    assert acts == {"sign_in.begin": 1, "sign_in.approve": 1, "sign_in.redeem": 1}
    stage.check()


@pytest.mark.parametrize("fault", FAULTS)
async def test_prompt_and_answer_survive_a_fault_of_the_device_s_network_PS21(
    stage: Stage, wired: Wired, fault: str
) -> None:
    """The fault comes before the prompt is sent, and again while the answer is."""
    device = wired.device
    await inflict(wired.device_proxy, fault)
    begun = await begin(wired.connection, stage.server.tenant, wired.account.username)
    await relent(wired.device_proxy, fault)
    prompt = await device.prompt_of(begun.begun.sign_in_id)
    await inflict(wired.device_proxy, fault)
    await device.send(device.device.approve(prompt, begun.begun.number))
    await relent(wired.device_proxy, fault)
    outcome = await device.outcome(prompt.prompt_id)
    assert outcome.accepted or outcome.reason == "challenge_consumed"
    await begun.wait()
    await begun.redeem()
    accepted_once(stage, begun.begun.sign_in_id)


@pytest.mark.parametrize("way", ["unary calls", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_client_survives_a_fault_of_its_network(stage: Stage, wired: Wired, fault: str, way: str) -> None:
    """The fault comes while the client waits, and what it waits for happens meanwhile."""
    device, tenant, username = wired.device, stage.server.tenant, wired.account.username
    async with AsyncExitStack() as stack:
        if way == "stream":
            stream = await stack.enter_async_context(SignInStream(wired.connection, app_id="shop", app_name="Shop"))
            pending = await stream.begin(tenant=tenant, username=username)
            sign_in_id, number = pending.sign_in_id, pending.number
            waiting = asyncio.create_task(pending.session())
        else:
            begun = await insist(wired.connection, lambda: begin(wired.connection, tenant, username))
            sign_in_id, number = begun.begun.sign_in_id, begun.begun.number

            async def session() -> object:
                await begun.wait()
                return await begun.redeem()

            waiting = asyncio.create_task(session())
        await asyncio.sleep(0.05)
        await inflict(wired.client_proxy, fault)
        prompt = await device.prompt_of(sign_in_id)
        await device.send(device.device.approve(prompt, number))
        assert (await device.outcome(prompt.prompt_id)).accepted
        await relent(wired.client_proxy, fault)
        async with asyncio.timeout(10):
            await waiting
    accepted_once(stage, sign_in_id)


async def test_agent_behind_a_failing_network(stage: Stage, socket_directory: Path) -> None:
    """The real agent: every fault, one after the other, and each time a prompt that has to arrive and be answered."""
    agent = AgentProcess(socket_directory / "home", stage)
    async with stage.connect() as connection, FaultyProxy(stage.server.device_port) as proxy:
        account = await stage.new_account(connection)
        assert await asyncio.to_thread(agent.enroll_until, "", account) == 0
        ledger = Ledger(Home.open(agent.home))
        (enrolment,) = ledger.enrolments()
        ledger.record(dataclasses.replace(enrolment, device_endpoint=f"localhost:{proxy.port}"))
        await asyncio.to_thread(agent.start)
        try:
            await asyncio.to_thread(agent.connected)
            for fault in FAULTS:
                await inflict(proxy, fault)
                begun = await begin(connection, stage.server.tenant, account.username)
                await relent(proxy, fault)
                await asyncio.to_thread(wait_until, agent.pending, f"{fault}: no prompt came; see {agent.log}")
                (prompt_id,) = agent.pending()
                await inflict(proxy, fault)
                answering = asyncio.create_task(
                    asyncio.to_thread(agent.ask, "approve", prompt_id=prompt_id, number=begun.begun.number, pin=PIN)
                )
                await relent(proxy, fault)
                assert (await answering)["accepted"]
                await begun.wait()
                await begun.redeem()
                accepted_once(stage, begun.begun.sign_in_id)
            assert proxy.connections > len(FAULTS) / 2
        finally:
            await asyncio.to_thread(agent.kill)
