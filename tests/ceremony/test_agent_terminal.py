"""Prompts in the terminal, on a real pseudo-terminal with a person who types."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import sys
import termios
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest_asyncio

from keyvouch.v1 import common_pb2
from keyvouch_agent.agent import Agent
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.prompts.terminal import TerminalPrompts
from keyvouch_agent.prompts.tty_lines import TtyLines
from support.agent_bench import PIN, AgentBench, until
from support.fake_devices import ACCESS_PASS, TENANT_NAME, USERNAME, PromptRow


class Person:
    """Sits before the terminal: reads the screen, types lines."""

    def __init__(self) -> None:
        self.own_end, self.terminal = pty.openpty()
        os.set_blocking(self.own_end, False)
        self.screen = ""

    def look(self) -> str:
        with suppress(BlockingIOError):
            while data := os.read(self.own_end, 65536):
                self.screen += data.decode("utf-8", "replace")
        return self.screen

    async def sees(self, text: str, count: int = 1) -> None:
        await until(lambda: self.look().count(text) >= count)

    def types(self, line: str) -> None:
        os.write(self.own_end, f"{line}\n".encode())

    def echo(self) -> bool:
        return bool(termios.tcgetattr(self.terminal)[3] & termios.ECHO)

    def leave(self) -> None:
        os.close(self.own_end)
        os.close(self.terminal)


@dataclass
class Scene:
    """An agent that prompts on a terminal."""

    bench: AgentBench
    enrolment: Enrolment
    agent: Agent
    person: Person

    async def prompt(self, **changes: object) -> PromptRow:
        await until(lambda: self.bench.server.connected(self.enrolment.device_id))
        return self.bench.server.ask(self.bench.rows.offer(self.enrolment.device_id, **changes))  # type: ignore[arg-type]


@asynccontextmanager
async def at_the_terminal(bench: AgentBench) -> AsyncIterator[Scene]:
    enrolment = await bench.enrol()
    person = Person()
    with os.fdopen(os.dup(person.terminal), "w") as screen:
        async with bench.running() as agent:
            prompts = asyncio.create_task(TerminalPrompts(agent, TtyLines(person.terminal, screen)).run())
            try:
                yield Scene(bench, enrolment, agent, person)
            finally:
                assert not prompts.done()
                prompts.cancel()
                with suppress(asyncio.CancelledError):
                    await prompts
    assert person.echo()
    person.leave()


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    bench = await AgentBench.start(tmp_path)
    async with at_the_terminal(bench) as made:
        yield made
    await bench.server.stop()


async def test_approve_with_everything_shown_and_the_pin_unseen_ps5(scene: Scene) -> None:
    row = await scene.prompt(number="07", binding_message="Pay 10 euro")
    person = scene.person
    await person.sees("Your choice")
    for shown in ("[ada ", "[example ", "Payroll", "Utrecht, 192.0.2.7", "Pay 10 euro", "software", "8 PIN tries left"):
        assert shown in person.screen
    for choice in ("[a] Approve", "[d] Deny", "[r] This was not me"):
        assert choice in person.screen
    person.types("a")
    await person.sees("Number shown where you sign in (2 digits)")
    person.types("07")
    await person.sees("PIN (8 PIN tries left)")
    await until(lambda: not person.echo())
    person.types(PIN)
    await person.sees("Done: approved.")
    assert row.state == common_pb2.SIGN_IN_STATE_APPROVED
    assert PIN not in person.screen


async def choice_of(scene: Scene) -> PromptRow:
    """A prompt that shows three numbers."""
    await until(lambda: scene.bench.server.connected(scene.enrolment.device_id))
    row = scene.bench.rows.offer(scene.enrolment.device_id, number="07")
    row.choices = ("12", "07", "33")
    return scene.bench.server.ask(row)


async def test_in_the_legacy_choice_one_of_three_numbers_is_picked_and_no_other(scene: Scene) -> None:
    row, person = await choice_of(scene), scene.person
    await person.sees("Your choice")
    person.types("a")
    await person.sees("Which of 12, 07, 33 is shown where you sign in?")
    person.types("08")
    await person.sees("Type one of these numbers")
    person.types("07")
    await person.sees("PIN (8 PIN tries left)")
    await until(lambda: not person.echo())
    person.types(PIN)
    await person.sees("Done: approved.")
    assert row.state == common_pb2.SIGN_IN_STATE_APPROVED


async def test_in_the_legacy_choice_a_number_that_is_not_there_is_denied(scene: Scene) -> None:
    row, person = await choice_of(scene), scene.person
    await person.sees("Your choice")
    person.types("a")
    await person.sees("Which of 12, 07, 33 is shown where you sign in?")
    person.types("d")
    await person.sees("Done: denied.")
    assert row.state == common_pb2.SIGN_IN_STATE_DENIED


async def test_deny_and_report(scene: Scene) -> None:
    first = await scene.prompt()
    await scene.person.sees("Your choice")
    scene.person.types("d")
    await scene.person.sees("Done: denied.")
    second = await scene.prompt()
    await scene.person.sees("Your choice", 2)
    scene.person.types("r")
    await scene.person.sees("Done: reported.")
    assert first.state == common_pb2.SIGN_IN_STATE_DENIED
    assert second.state == common_pb2.SIGN_IN_STATE_REPORTED


async def test_there_is_no_default_and_nothing_typed_ahead_counts(scene: Scene) -> None:
    scene.person.types("a")  # before there is anything to approve
    row = await scene.prompt()
    await scene.person.sees("Your choice")
    scene.person.types("")
    await scene.person.sees("Your choice", 2)
    assert "Number shown" not in scene.person.screen
    assert row.answers == []
    scene.person.types("d")
    await scene.person.sees("Done: denied.")


async def test_a_withdrawn_prompt_takes_its_question_along(scene: Scene) -> None:
    row = await scene.prompt()
    await scene.person.sees("Your choice")
    scene.person.types("a")
    await scene.person.sees("Number shown")
    scene.person.types("07")
    await scene.person.sees("PIN (")
    scene.bench.server.withdraw(row, common_pb2.SIGN_IN_STATE_SUPERSEDED)
    await scene.person.sees("The request is superseded")
    await until(scene.person.echo)
    assert row.answers == []
    await scene.prompt(app_name="The newer one")
    await scene.person.sees("The newer one")
    scene.person.types("d")
    await scene.person.sees("Done: denied.")


async def test_a_slip_is_explained_and_only_its_question_asked_again(scene: Scene) -> None:
    await scene.prompt(number="07")
    person = scene.person
    for attempt, choice in enumerate(("yes", "a"), start=1):
        await person.sees("Your choice", attempt)
        person.types(choice)
    for attempt, number in enumerate(("7", "07"), start=1):
        await person.sees("Number shown", attempt)
        person.types(number)
    for attempt, pin in enumerate(("000000", PIN), start=1):
        await person.sees("PIN (", attempt)
        await until(lambda: not person.echo())
        person.types(pin)
    await person.sees("Done: approved.")
    for advice in ("Type a, d or r", "has 2 digits", "The PIN is wrong", "PIN (7 PIN tries left)"):
        assert advice in person.screen
    assert person.screen.count("Sign-in request") == 1


async def test_an_outage_is_told_once(scene: Scene) -> None:
    await until(lambda: scene.bench.server.connected(scene.enrolment.device_id))
    await scene.bench.server.stop()
    await scene.person.sees("cannot be reached")
    await asyncio.sleep(0.5)  # several tries
    told = [line for line in scene.person.look().splitlines() if "waiting." in line]
    assert len(told) == len(set(told))
    assert scene.person.screen.count("connecting.") == 1


async def test_text_of_the_requester_cannot_act_on_the_terminal_a2(scene: Scene) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\u202eApproved\n  Tenant   [bank"
    await scene.prompt(app_name=evil, binding_message=evil)
    await scene.person.sees("Your choice")
    for active in ("\x1b[2J", "\x07", "\u202e", "\n  Tenant   [bank"):
        assert active not in scene.person.screen.replace("\r\n", "\n")
    assert "<U+001B>" in scene.person.screen
    scene.person.types("r")
    await scene.person.sees("Done: reported.")


# The commands themselves, each with a controlling terminal of its own


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[AgentBench]:
    made = await AgentBench.start(tmp_path)
    (tmp_path / "ca.pem").write_bytes(made.rows.authority.pem)
    yield made
    await made.server.stop()


@asynccontextmanager
async def on_a_terminal(bench: AgentBench, *arguments: str) -> AsyncIterator[tuple[Process, Person]]:
    """A command in a session of its own, whose controlling terminal is the person's."""
    person = Person()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "keyvouch_agent", "--home", str(bench.home.path), *arguments,
        stdin=person.terminal, stdout=person.terminal, stderr=person.terminal, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    try:
        yield process, person
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        person.leave()


def enroll_arguments(bench: AgentBench) -> tuple[str, ...]:
    ca = str(bench.home.path.parent / "ca.pem")
    return (
        "enroll", "--server", bench.server.public_endpoint, "--ca", ca, "--tenant", TENANT_NAME, "--user", USERNAME
    )  # fmt: skip


async def test_enrol_and_run_on_a_terminal(bench: AgentBench) -> None:
    async with on_a_terminal(bench, *enroll_arguments(bench)) as (process, person):
        await person.sees("Temporary Access Pass: ")
        await until(lambda: not person.echo())
        person.types(ACCESS_PASS)
        await person.sees("New PIN: ")
        await until(lambda: not person.echo())
        person.types("123")
        await person.sees("That is too short")
        for attempt, (first, second) in enumerate(((PIN, "another"), (PIN, PIN)), start=1):
            await person.sees("New PIN: ", attempt + 1)
            await until(lambda: not person.echo())
            person.types(first)
            await person.sees("New PIN again: ", attempt)
            await until(lambda: not person.echo())
            person.types(second)
        assert await asyncio.wait_for(process.wait(), 20) == 0, person.look()
        assert "The two are not the same" in person.look()
        assert "Enrolled: ada of example" in person.screen
        assert PIN not in person.screen
        assert ACCESS_PASS not in person.screen
    (enrolment,) = bench.ledger.enrolments()
    async with on_a_terminal(bench, "run") as (process, person):
        await until(lambda: bench.server.connected(enrolment.device_id))
        row = bench.server.ask(bench.rows.offer(enrolment.device_id))
        await person.sees("Your choice")
        person.types("d")
        await person.sees("Done: denied.")
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == 0, person.look()
        assert "Traceback" not in person.look()
        assert "The agent has ended." in person.screen
        assert person.echo()
    assert row.state == common_pb2.SIGN_IN_STATE_DENIED


async def test_an_interrupted_enrolment_gives_the_terminal_back(bench: AgentBench) -> None:
    async with on_a_terminal(bench, *enroll_arguments(bench)) as (process, person):
        await person.sees("Temporary Access Pass: ")
        await until(lambda: not person.echo())
        person.types(ACCESS_PASS)
        await person.sees("New PIN: ")
        await until(lambda: not person.echo())
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == 130, person.look()
        assert person.echo()
        assert "Traceback" not in person.look()
    assert bench.ledger.enrolments() == ()
