"""Registrations with a security key that are interrupted, or fail after the key has made its credential."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keyvouch.errors import KeyvouchError
from keyvouch_agent.agent_settings import FILE
from keyvouch_agent.commands.asking import TerminalInteraction
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Enrolment
from support.agent_bench import until
from support.live_server import LiveServer
from support.roaming_desk import PIN, Desk, Terminal
from support.security_keys import MAKE, KeyOnBench


@pytest.fixture
async def desk(live: LiveServer, tmp_path: Path) -> Desk:
    await live.create_user("ada")
    return Desk(live, Home.open(tmp_path / "home"))


@pytest.fixture
def key() -> KeyOnBench:
    return KeyOnBench("Maker Key 5")


@pytest.mark.parametrize("resident", [False, True])
async def test_a_credential_that_could_not_be_staged_is_named(desk: Desk, key: KeyOnBench, resident: bool) -> None:
    if resident:
        desk.home.write(FILE, b"[fido2]\nresident = true\n")
    desk.ports.put_in(key)
    staged = desk.home.folder("staged")

    def in_the_way(_answer: object) -> None:
        staged.rmdir()
        staged.touch()

    key.changes[MAKE] = in_the_way
    with pytest.raises(KeyvouchError):
        await desk.enrol()
    assert any("stays on the security key" in text for text in desk.said) is resident
    staged.unlink()
    del key.changes[MAKE]
    assert await desk.enrol()  # control


async def test_a_credential_that_nobody_waited_for_is_named(desk: Desk, key: KeyOnBench) -> None:
    desk.home.write(FILE, b"[fido2]\nresident = true\n")
    desk.ports.put_in(key)
    loop = asyncio.get_running_loop()
    enrolling = asyncio.create_task(desk.enrol())
    key.changes[MAKE] = lambda _answer: asyncio.run_coroutine_threadsafe(_cancel(enrolling), loop).result(30)
    with pytest.raises(asyncio.CancelledError):
        await enrolling
    assert any("stays on the security key" in text for text in desk.said)
    assert desk.ledger.staged() == ()


async def _cancel(task: asyncio.Task[Enrolment]) -> None:
    task.cancel()


@pytest.mark.parametrize("pin_is_set", [True, False])
async def test_an_enrolment_is_interrupted_at_the_question_for_the_pin(
    desk: Desk, key: KeyOnBench, pin_is_set: bool
) -> None:
    if pin_is_set:
        key.set_pin(PIN)
    desk.ports.put_in(key)
    terminal = Terminal()

    async def command() -> Enrolment:
        async with TerminalInteraction(terminal.lines, asyncio.get_running_loop()) as asking:
            return await asking.during(desk.enrol(interaction=asking))

    enrolling = asyncio.create_task(command())
    await until(lambda: "PIN (" in terminal.screen.getvalue() or "New PIN: " in terminal.screen.getvalue())
    enrolling.cancel()
    done, _ = await asyncio.wait({enrolling}, timeout=20)
    terminal.close()
    assert done
    assert enrolling.cancelled()
    assert key.open == 0
    assert MAKE not in key.commands
    assert await desk.enrol()  # control: the key is free
