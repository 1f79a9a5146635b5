"""Sign-in on the device itself as people have it: real agent processes against a real server process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from keyvouch.tokens import certificate_thumbprint
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Enrolment, Ledger
from support.agent_process import PIN, AgentProcess
from support.crash_stage import Stage
from support.kill_points import wait_until
from support.own_sign_in import claims_in
from support.shell_terminal import shell_terminal


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
async def agent(stage: Stage, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    """An enrolled and connected agent of the product."""
    made = AgentProcess(tmp_path / "home", stage)
    async with stage.connect() as connection:
        account = await stage.new_account(connection)
    code, told = await asyncio.to_thread(made.enroll, account)
    assert code == 0, told
    await asyncio.to_thread(made.start_product)
    await asyncio.to_thread(made.connected)
    yield made
    assert await asyncio.to_thread(made.stop) == 0


def enrolment_of(agent: AgentProcess) -> Enrolment:
    (found,) = Ledger(Home.open(agent.home)).enrolments()
    return found


async def sign_in(agent: AgentProcess, *arguments: str, pin: str = PIN) -> tuple[int, dict[str, object]]:
    return await asyncio.to_thread(agent.command, "sign-in", "--app", "shop", *arguments, pin_fd=pin)


def reason(told: dict[str, object]) -> object:
    error = told["error"]
    assert isinstance(error, dict)
    return error["reason"]


async def test_the_tokens_are_on_standard_output_and_bound_to_this_device(agent: AgentProcess) -> None:
    code, session = await sign_in(agent, "--app-name", "Shop", "--audience", "https://orders.test", "--message", "Go")
    assert code == 0, session
    claims = claims_in(str(session["access_token"]))
    mine = enrolment_of(agent)
    assert claims["cnf"] == {"x5t#S256": certificate_thumbprint(mine.certificate_chain[0])}
    assert (claims["acr"], claims["aud"], claims["device"]) == (
        "phishing-resistant",
        "https://orders.test",
        mine.device_id,
    )
    assert session["acr"] == "phishing-resistant"
    assert session["token_type"] == "Bearer"
    assert str(session["refresh_token"]).startswith("kvr_")
    assert str(session["access_token"]) not in agent.log.read_text()


async def test_an_audience_that_is_not_named_is_the_app(agent: AgentProcess) -> None:
    _, session = await sign_in(agent)
    assert claims_in(str(session["access_token"]))["aud"] == "shop"


async def test_a_wrong_pin_opens_nothing_and_is_counted(agent: AgentProcess) -> None:
    code, told = await sign_in(agent, pin="000000")
    assert (code, reason(told)) == (1, "pin_wrong")
    error = told["error"]
    assert isinstance(error, dict)
    assert error["retries_left"] == 7
    assert (await sign_in(agent))[0] == 0


async def test_an_account_is_named_where_it_must_be(agent: AgentProcess) -> None:
    mine = enrolment_of(agent)
    for account in (mine.username, mine.device_id):
        assert (await sign_in(agent, account))[0] == 0
    code, told = await sign_in(agent, "eve")
    assert (code, reason(told)) == (1, "not_enrolled")


async def test_what_the_server_refuses_is_told(agent: AgentProcess) -> None:
    code, told = await sign_in(agent, "--message", "x" * 200)
    assert (code, reason(told)) == (1, "field_invalid")


async def test_a_sign_in_is_completed_once_and_by_its_own_operation(agent: AgentProcess) -> None:
    begun = await asyncio.to_thread(
        agent.ask, "begin_sign_in", account="", app_id="shop", app_name="Shop", audience="", message="Week 47"
    )
    assert (begun["app_name"], begun["binding_message"], begun["place"]) == ("Shop", "Week 47", "this computer")
    assert begun["pin"]["retries_left"] == 8
    assert agent.pending() == []
    name = begun["prompt_id"]
    with pytest.raises(Exception, match="no such prompt"):
        await asyncio.to_thread(agent.ask, "approve", prompt_id=name, number="42", pin=PIN)
    session = await asyncio.to_thread(agent.ask, "sign_in", prompt_id=name, pin=PIN)
    assert session["session_id"]
    with pytest.raises(Exception, match="no such sign-in"):
        await asyncio.to_thread(agent.ask, "sign_in", prompt_id=name, pin=PIN)


async def test_a_server_that_dies_meanwhile_costs_nothing(agent: AgentProcess, stage: Stage) -> None:
    begun = await asyncio.to_thread(
        agent.ask, "begin_sign_in", account="", app_id="shop", app_name="Shop", audience="", message=""
    )
    await asyncio.to_thread(stage.server.kill)
    completing = asyncio.create_task(asyncio.to_thread(agent.ask, "sign_in", prompt_id=begun["prompt_id"], pin=PIN))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(stage.server.start)
    assert (await completing)["session_id"]
    count = "SELECT count(*) FROM session WHERE certificate_bound = 1 AND device_id = ?"
    assert stage.rows(count, enrolment_of(agent).device_id) == [(1,)]


def test_people_see_what_is_signed_and_where_the_tokens_go(agent: AgentProcess, tmp_path: Path) -> None:
    with shell_terminal(tmp_path, {**os.environ}) as terminal:
        command = f"{sys.executable} -m keyvouch_agent --home {agent.home} sign-in --app shop --app-name 'Time sheets'"
        terminal.type(f"{command} --message 'Week 47' > tokens.json")
        answers = {r"PIN \(8 PIN tries left\): ": lambda: PIN}
        wait_until(lambda: terminal.answer(answers) or terminal.status() is not None, terminal.screen)
        shown = terminal.screen
        assert terminal.status() == 0, shown
    for part in ("Sign-in request", "Time sheets", "Week 47", "this computer", "The tokens go to standard output"):
        assert part in shown
    session = json.loads((tmp_path / "tokens.json").read_text())
    for secret in (PIN, session["access_token"], session["refresh_token"]):
        assert secret not in shown
