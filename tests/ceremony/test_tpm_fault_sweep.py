"""Every TPM command of registration and sign-in meets every fault once; then the same is tried again and works.

Agent and server are in this process, the TPM is emulated. Kills of the agent are in `test_tpm_kill_sweep`, losses of
power and of memory in `test_tpm_power_and_clear`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch_agent.agent import Agent
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Ledger
from keyvouch_agent.local_client import call_agent
from keyvouch_agent.ports import Pin
from keyvouch_agent.vaults.tpm import connection
from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_faults import Action, Fault, delay, disconnect, refuse, truncate
from keyvouch_bench.tpm_tcti import HEADER, Send
from support.agent_bench import pending_ids, until
from support.tpm_ceremonies import PIN, TpmCeremonies, naming, tpm_ceremonies

LOCKOUT, RETRY, OBJECT_MEMORY = 0x921, 0x922, 0x902
LONGEST = 5.0
"""Seconds after which a ceremony hangs."""
PARTS = 4
"""Into how many tests the positions are dealt, for processes that run beside each other."""


def halve(command: bytes, send: Send) -> bytes:
    """Hand over the first half of the response."""
    answer = send(command)
    return truncate(max(HEADER, len(answer) // 2))(command, lambda _: answer)


@dataclass(frozen=True)
class Kind:
    """What goes wrong, what a person is told, and whether it goes on going wrong, also while the agent cleans up."""

    action: Action
    reasons: frozenset[Reason]
    stays: bool = False

    def at(self, position: int) -> Fault:
        return Fault(self.action, at=position, times=None if self.stays else 1)


GARBLED = frozenset(
    {
        Reason.TPM_FAILED,
        Reason.TPM_UNAVAILABLE,
        Reason.TPM_OWNER_AUTH,  # a nonce that was cut off makes an HMAC that the TPM does not take
        Reason.PIN_WRONG,  # the same where the PIN is the key of the HMAC
    }
)
PASSING = {
    "lockout": Kind(refuse(LOCKOUT), frozenset({Reason.TPM_LOCKOUT})),
    "object memory": Kind(refuse(OBJECT_MEMORY), frozenset({Reason.TPM_MEMORY})),
    "disconnect before": Kind(disconnect(), frozenset({Reason.TPM_UNAVAILABLE})),
    "disconnect after": Kind(disconnect(executed=True), frozenset({Reason.TPM_UNAVAILABLE})),
    "only a header": Kind(truncate(10), GARBLED),
    "half a response": Kind(halve, GARBLED),
}
"""Faults of one command."""
STAYING = Kind(refuse(RETRY), frozenset({Reason.TPM_BUSY}), stays=True)
"""A TPM that is busy from one command on, for the rest of the ceremony and while the agent cleans up."""
INVISIBLE = Kind(refuse(RETRY), frozenset())
"""A TPM that is busy once."""


@pytest.fixture
async def stage(
    server_template: Path, tmp_path: Path, socket_directory: Path, tpm_factory: Callable[..., Swtpm]
) -> AsyncIterator[TpmCeremonies]:
    async with tpm_ceremonies(server_template, tmp_path, socket_directory, tpm_factory()) as made:
        yield made


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPM that is busy for ever is asked as often as ever, but without the pauses."""
    monkeypatch.setattr(connection, "_PAUSES", (0.0,) * len(connection._PAUSES))


def check_told(error: KeyvouchError, kind: Kind, position: int, commands: Sequence[str]) -> None:
    """A named outcome: a specific reason, and a way on."""
    assert isinstance(error, DeviceError), repr(error)
    # What is not flushed takes the room of what comes next.
    also = {Reason.TPM_MEMORY} if commands[position - 1] == "FlushContext" else set()
    assert error.reason in kind.reasons | also, repr(error)
    assert error.message
    assert error.fix


# Registration


async def enrol_with(stage: TpmCeremonies, home: Home, kind: Kind, position: int, commands: Sequence[str]) -> bool:
    """One enrolment in which one command fails. Whether it succeeded in spite of that; if so it is a whole one."""
    with stage.faulty(kind.at(position)) as plan:
        try:
            async with asyncio.timeout(LONGEST):
                enrolment = await stage.enrol(home)
        except KeyvouchError as error:
            check_told(error, kind, position, commands)
            enrolment = None
    assert plan.struck
    if enrolment is None:
        assert not Ledger(home).enrolments()
        assert not Ledger(home).staged()
        return False
    await stage.check_whole(enrolment)
    return True


async def enrol_again(stage: TpmCeremonies, home: Home, fault: Fault | None = None) -> None:
    """The same command once more, then out again: nothing of any try is left in the TPM."""
    with stage.faulty(*([fault] if fault else [])) as plan:
        enrolment = await stage.enrol(home)
    assert plan.struck == (fault is not None)
    await stage.check_whole(enrolment)
    await stage.forget(home)
    assert not stage.left()


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.usefixtures("no_pauses")
async def test_registration_survives_every_fault_of_every_tpm_command(stage: TpmCeremonies, part: int) -> None:
    """A fault that passes leaves nothing in the TPM; after one that stays the next `enroll` takes it away.

    The try after a fault that passes meets a TPM that is busy once, at the same command, and nobody notices.
    """
    commands = await stage.commands_of_an_enrolment()
    assert len(commands) > 55
    for position in range(1 + part, len(commands) + 1, PARTS):
        before = await stage.device_ids()
        for name, kind in PASSING.items():
            with naming(name, position, commands):
                home = stage.new_home()
                if await enrol_with(stage, home, kind, position, commands):
                    await stage.forget(home)
                    before = await stage.device_ids()
                assert not stage.left()
                assert await stage.device_ids() == before
        with naming("busy once", position, commands):
            await enrol_again(stage, home, INVISIBLE.at(position))
        with naming("busy for ever", position, commands):
            home, before = stage.new_home(), await stage.device_ids()
            if await enrol_with(stage, home, STAYING, position, commands):
                await stage.forget(home)
            else:
                assert await stage.device_ids() == before
                await enrol_again(stage, home)
            assert not stage.left()


@pytest.mark.parametrize("command", ["NV_DefineSpace", "NV_Write"])
async def test_what_fails_while_the_first_pin_is_set_is_told_too(stage: TpmCeremonies, command: str) -> None:
    """CTAP has no words for it."""
    commands = await stage.commands_of_an_enrolment()
    with stage.faulty(PASSING["lockout"].at(commands.index(command) + 1)), pytest.raises(DeviceError) as caught:
        await stage.enrol(stage.new_home())
    assert caught.value.reason is Reason.TPM_LOCKOUT


@pytest.mark.parametrize("command", ["GetCapability", "NV_Write", "Sign"])
async def test_a_tpm_that_stays_busy_ends_a_registration_soon(stage: TpmCeremonies, command: str) -> None:
    """With the pauses as they are: the first command, one after which an index is there, the last one that counts."""
    commands = await stage.commands_of_an_enrolment()
    home, began = stage.new_home(), time.monotonic()
    assert not await enrol_with(stage, home, STAYING, commands.index(command) + 1, commands)
    assert time.monotonic() - began < LONGEST
    await enrol_again(stage, home)


# Sign-in


async def approve(agent: Agent, number: str) -> dict[str, Any]:
    """The person types number and PIN."""
    (prompt_id,) = pending_ids(agent)
    async with asyncio.timeout(LONGEST):
        return dict(await agent.approve(prompt_id, number, Pin(PIN)))


async def approve_with(
    stage: TpmCeremonies, agent: Agent, number: str, kind: Kind, position: int, commands: Sequence[str]
) -> bool:
    """One approval in which one command fails. Whether it was given in spite of that; if not the prompt still waits."""
    with stage.faulty(kind.at(position)) as plan:
        try:
            outcome = await approve(agent, number)
        except KeyvouchError as error:
            check_told(error, kind, position, commands)
            outcome = None
    assert plan.struck
    if outcome is None:
        assert len(pending_ids(agent)) == 1
        return False
    assert outcome["accepted"], outcome
    return True


@pytest.mark.usefixtures("no_pauses")
async def test_sign_in_survives_every_fault_of_every_tpm_command(stage: TpmCeremonies) -> None:
    home = stage.new_home()
    await stage.enrol(home)
    enrolled = stage.contents()
    async with stage.running(home) as agent:
        begun = await stage.prompted(agent)
        commands = await stage.commands_of(approve(agent, begun.number))
        assert {"PolicySecret", "Sign"} <= set(commands)
        for position in range(1, len(commands) + 1):
            begun = await stage.prompted(agent)
            for name, kind in {**PASSING, "busy for ever": STAYING, "busy once": INVISIBLE}.items():
                with naming(name, position, commands):
                    if await approve_with(stage, agent, begun.number, kind, position, commands):
                        await begun.redeem()
                        begun = await stage.prompted(agent)
                    assert not enrolled.difference(stage.contents())
            assert (await approve(agent, begun.number))["accepted"]
            await begun.redeem()
    await stage.forget(home)
    assert not stage.left()


async def test_an_approval_asks_the_tpm_for_nothing_that_was_shown_with_its_request(stage: TpmCeremonies) -> None:
    home = stage.new_home()
    await stage.enrol(home)
    async with stage.running(home) as agent:
        begun = await stage.prompted(agent)
        assert "NV_Read" in await stage.commands_of(agent.show(""))
        commands = await stage.commands_of(approve(agent, begun.number))
        await begun.redeem()
    counts = {name: commands.count(name) for name in ("NV_Read", "StartAuthSession", "PolicySecret", "Sign")}
    assert counts == {"NV_Read": 0, "StartAuthSession": 2, "PolicySecret": 1, "Sign": 1}
    await stage.forget(home)


# A TPM that takes its time


async def test_the_agent_answers_while_its_tpm_hangs(stage: TpmCeremonies) -> None:
    home = stage.new_home()
    await stage.enrol(home)
    async with stage.running(home) as agent:
        begun = await stage.prompted(agent)
        with stage.faulty(Fault(delay(10.0), at=3)) as plan:
            (prompt_id,) = pending_ids(agent)
            signing = asyncio.create_task(agent.approve(prompt_id, begun.number, Pin(PIN)))
            await until(lambda: plan.struck)
            longest, answers = 0.0, 0
            while not signing.done():
                began = time.monotonic()
                for question in ("status", "pending"):
                    answer = await asyncio.to_thread(call_agent, home, question, seconds=LONGEST)
                    answers += bool(answer)
                longest = max(longest, time.monotonic() - began)
                await asyncio.sleep(0.1)
        assert (await signing)["accepted"]
        assert answers > 50
        assert longest < 1.0
        await begun.redeem()
    await stage.forget(home)
    assert not stage.left()
