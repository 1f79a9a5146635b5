"""Power that fails, memory that is put back and a TPM that is cleared, between any two steps of either ceremony."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent import bootstrap
from keyvouch_agent.agent import Agent
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Ledger
from keyvouch_agent.logs import open_log
from keyvouch_agent.ports import Pin
from keyvouch_bench.swtpm import Snapshot, Swtpm
from keyvouch_bench.tpm_faults import Action, Fault, call
from support.agent_bench import pending_ids, until
from support.tpm_ceremonies import CLEAR, PIN, TpmCeremonies, inject, naming, tpm_ceremonies

LOST = {Reason.DEVICE_KEY_LOST, Reason.TPM_CLEARED}
"""What a sign-in is refused with whose key is gone for good."""
GONE = Reason.TPM_UNAVAILABLE
"""What a ceremony is refused with under whose feet everything that was loaded went away."""
FIRST_OF_STEPS = (
    "StartAuthSession",  # of the session whose nonce the server signs: the TPM has shown itself
    "ActivateCredential",
    "NV_DefineSpace",
    "NV_Write",
    "NV_Read",  # the PIN is set
    "PolicySecret",
    "Create",
    "Load",
    "Certify",
    "NV_Certify",
    "Sign",
)
"""Commands with which something begins that another step builds on."""


@pytest.fixture
async def stage(
    server_template: Path, tmp_path: Path, socket_directory: Path, tpm_factory: Callable[..., Swtpm]
) -> AsyncIterator[TpmCeremonies]:
    async with tpm_ceremonies(server_template, tmp_path, socket_directory, tpm_factory()) as made:
        yield made


def step_positions(commands: Sequence[str]) -> list[int]:
    """The first command of all, that of every connection that makes a key, and the first of each step."""
    found = {1, len(commands)}
    for name in FIRST_OF_STEPS:
        found |= {position for position, command in enumerate(commands, 1) if command == name}
    return sorted(found)


def put_back(chip: Swtpm, snapshot: Snapshot) -> None:
    """As the owner of a virtual machine puts back an old state of it."""
    chip.power_cut()
    chip.restore(snapshot)
    chip.start()


def power_cut(chip: Swtpm, *, executed: bool) -> Action:
    """The plug is pulled, and put in again."""

    def cut() -> None:
        chip.power_cut()
        chip.start()

    return call(cut, executed=executed)


async def sign_in(stage: TpmCeremonies, home: Home) -> None:
    """From the prompt to the session."""
    async with stage.running(home) as agent:
        await approved(stage, agent)


async def approved(stage: TpmCeremonies, agent: Agent) -> None:
    begun = await stage.prompted(agent)
    assert (await approve(agent, begun.number))["accepted"]
    await begun.redeem()


async def approve(agent: Agent, number: str) -> dict[str, Any]:
    (prompt_id,) = pending_ids(agent)
    async with asyncio.timeout(5.0):
        return dict(await agent.approve(prompt_id, number, Pin(PIN)))


async def refusal_of(act: Awaitable[object]) -> DeviceError | None:
    """What an act is refused with, if it is; with a way on."""
    try:
        async with asyncio.timeout(5.0):
            await act
    except DeviceError as error:
        told = error
    else:
        return None
    assert told.fix
    return told


async def refused_sign_in(stage: TpmCeremonies, agent: Agent, reasons: set[Reason]) -> DeviceError:
    """A sign-in that the agent refuses. The prompt stays, so that the person can deny it or come back."""
    begun = await stage.prompted(agent)
    with pytest.raises(DeviceError) as caught:
        await approve(agent, begun.number)
    assert caught.value.reason in reasons, repr(caught.value)
    assert caught.value.fix
    assert pending_ids(agent)
    return caught.value


async def lost_channel(stage: TpmCeremonies, home: Home) -> None:
    """The channel's key went with the others: the agent runs and says why it does not connect."""
    async with bootstrap.run_agent(home=home, log=open_log(stage.logged), tuning=stage.tuning) as agent:
        await until(lambda: "The TPM was cleared" in agent.status()["enrolments"][0]["detail"])  # type: ignore[index]


async def enrolled_anew(stage: TpmCeremonies, home: Home) -> None:
    """`enroll --replace` works, and what it made signs people in."""
    before = {enrolment.device_id for enrolment in Ledger(home).enrolments()}
    enrolment = await stage.enrol(home, replace=True)
    assert enrolment.device_id not in before
    await stage.check_whole(enrolment)
    assert Ledger(home).enrolments() == (enrolment,)
    await sign_in(stage, home)


# Power


@pytest.mark.parametrize("executed", [False, True], ids=["before", "after"])
async def test_registration_survives_a_power_cut_between_any_two_steps(stage: TpmCeremonies, executed: bool) -> None:
    """A cut after the endorsement key was used counts for the TPM's own lockout; so each case has a fresh one."""
    snapshot = stage.chip.snapshot()
    commands = await stage.commands_of_an_enrolment()
    for position in step_positions(commands):
        with naming("power cut", position, commands):
            await asyncio.to_thread(put_back, stage.chip, snapshot)
            home, before = stage.new_home(), await stage.device_ids()
            with stage.faulty(Fault(power_cut(stage.chip, executed=executed), at=position)):
                told = await refusal_of(stage.enrol(home))
            if told is not None:
                # After a restart the numbers of handles begin anew: what was meant for one key meets another.
                assert told.reason in {GONE, Reason.TPM_OWNER_AUTH}, repr(told)
                assert await stage.device_ids() == before
                assert not stage.left()
                await stage.enrol(home)
            (enrolment,) = Ledger(home).enrolments()
            await stage.check_whole(enrolment)
            await stage.forget(home)
            assert not stage.left()


@pytest.mark.parametrize("executed", [False, True], ids=["before", "after"])
async def test_sign_in_survives_a_power_cut_between_any_two_commands(stage: TpmCeremonies, executed: bool) -> None:
    home = stage.new_home()
    await stage.enrol(home)
    enrolled = stage.contents()
    async with stage.running(home) as agent:
        commands = await stage.commands_of(approved(stage, agent))
        for position in range(1, len(commands) + 1):
            with naming("power cut", position, commands):
                begun = await stage.prompted(agent)
                with stage.faulty(Fault(power_cut(stage.chip, executed=executed), at=position)):
                    told = await refusal_of(approve(agent, begun.number))
                if told is not None:
                    assert told.reason is GONE, repr(told)
                    assert (await approve(agent, begun.number))["accepted"]
                await begun.redeem()
                assert not enrolled.difference(stage.contents())


# Memory that is put back


async def test_a_tpm_put_back_to_before_the_registration_has_lost_the_key(stage: TpmCeremonies) -> None:
    home, snapshot = stage.new_home(), stage.chip.snapshot()
    await stage.enrol(home)
    async with stage.running(home) as agent:
        await approved(stage, agent)
        await asyncio.to_thread(put_back, stage.chip, snapshot)
        error = await refused_sign_in(stage, agent, LOST)
        assert "--replace" in error.fix
    await enrolled_anew(stage, home)
    await stage.forget(home)
    assert not stage.left()


async def test_a_tpm_put_back_to_an_earlier_enrolment_has_lost_the_key_too(stage: TpmCeremonies) -> None:
    """Another index stands at the handle then, with the same PIN: it opens nothing of this account."""
    first, home = stage.new_home(), stage.new_home()
    await stage.enrol(first)
    snapshot = stage.chip.snapshot()
    await stage.forget(first)
    await stage.enrol(home)
    await asyncio.to_thread(put_back, stage.chip, snapshot)
    async with stage.running(home) as agent:
        await refused_sign_in(stage, agent, LOST)
    await enrolled_anew(stage, home)


# Cleared: T13


@pytest.mark.parametrize("part", range(2))
async def test_t13_a_tpm_cleared_between_any_two_steps_of_registration(stage: TpmCeremonies, part: int) -> None:
    """Either the registration fails, and is done again. Or it was past the TPM's part: then the key is lost."""
    snapshot = stage.chip.snapshot()
    commands = await stage.commands_of_an_enrolment()
    defined = commands.index("NV_DefineSpace") + 1
    for position in step_positions(commands)[part::2]:
        with naming("clear", position, commands):
            await asyncio.to_thread(put_back, stage.chip, snapshot)
            home, before = stage.new_home(), await stage.device_ids()
            with stage.faulty(Fault(inject(CLEAR), at=position)):
                told = await refusal_of(stage.enrol(home))
            if told is not None:
                assert told.reason in LOST | {GONE}, repr(told)
                assert await stage.device_ids() == before
            elif position > defined:
                await lost_channel(stage, home)
            await enrolled_anew(stage, home)


async def test_t13_a_tpm_cleared_between_any_two_commands_of_a_sign_in(stage: TpmCeremonies) -> None:
    """The sign-in under way is refused, the next one with the reason, and enrolling anew works."""
    home = stage.new_home()
    await stage.enrol(home)
    snapshot = stage.chip.snapshot()
    async with stage.running(home) as agent:
        commands = await stage.commands_of(approved(stage, agent))
        for position in range(1, len(commands) + 1):
            with naming("clear", position, commands):
                await asyncio.to_thread(put_back, stage.chip, snapshot)
                begun = await stage.prompted(agent)
                with stage.faulty(Fault(inject(CLEAR), at=position)):
                    told = await refusal_of(approve(agent, begun.number))
                if told is None:
                    assert position > commands.index("Sign") + 1
                else:
                    assert told.reason in LOST | {GONE}, repr(told)
                await refused_sign_in(stage, agent, LOST)
    await enrolled_anew(stage, home)
