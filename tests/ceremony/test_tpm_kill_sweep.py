"""Kill -9 of the agent at every TPM command of registration and sign-in; then the same command is run again.

The TPM has no resource manager, so it keeps everything that a killed process had loaded. The server is in this process;
the agent is a child of one that was ready (`support.killable_tpm_agent`).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Ledger
from keyvouch_bench.swtpm import Swtpm
from keyvouch_server.domain.model import Credential
from support.killable_tpm_agent import Act, Ended, TpmAgentProcess
from support.tpm_ceremonies import PIN, TpmCeremonies, command_names, naming, tpm_ceremonies

PARTS = 2
KILLS, SIGNATURES = 200, 1000


@dataclass
class Mortal:
    """The stage, and a process that does what an agent does there."""

    stage: TpmCeremonies
    process: TpmAgentProcess

    async def __call__(self, act: Act) -> Ended:
        return await asyncio.to_thread(self.process, act)

    def enrolment(self, home: Home) -> Act:
        wish = dataclasses.asdict(self.stage.wish())
        return Act("enrol", str(home.path), wish=wish, access_pass=self.stage.access_pass, pin=PIN)

    async def signature(self, home: Home) -> Act:
        """A sign-in with the only enrolment of a home."""
        (enrolment,) = Ledger(home).enrolments()
        found = {"device_id": enrolment.device_id}
        (credential,) = await self.stage.live.app.store.read(lambda tx: tx.find(Credential, found))
        return Act("sign", str(home.path), pin=PIN, public_key=credential.public_key.hex())

    async def killed(self, act: Act, position: int, *, executed: bool) -> None:
        ended = await self(dataclasses.replace(act, kill_at=position, executed=executed))
        assert ended.was_killed, ended

    async def done(self, act: Act) -> list[str]:
        """It has to succeed; its commands."""
        ended = await self(act)
        assert ended.status == 0, ended.told
        return command_names(ended.commands)


@pytest.fixture
async def mortal(
    server_template: Path, tmp_path: Path, socket_directory: Path, tpm_factory: Callable[..., Swtpm]
) -> AsyncIterator[Mortal]:
    chip = tpm_factory()
    async with tpm_ceremonies(server_template, tmp_path, socket_directory, chip) as stage:
        with TpmAgentProcess.open(chip.tcti, tmp_path) as process:
            yield Mortal(stage, process)


@pytest.mark.parametrize("executed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("part", range(PARTS))
async def test_registration_survives_a_kill_at_every_tpm_command(mortal: Mortal, part: int, executed: bool) -> None:
    """What the killed one left in the TPM is gone once the next one has run, but for what that needs itself."""
    stage = mortal.stage
    commands = await stage.commands_of_an_enrolment()
    before = await stage.device_ids()
    for position in range(1 + part, len(commands) + 1, PARTS):
        with naming("kill", position, commands):
            home = stage.new_home()
            await mortal.killed(mortal.enrolment(home), position, executed=executed)
            assert await stage.device_ids() == before
            assert not Ledger(home).enrolments()
            await mortal.done(mortal.enrolment(home))
            (enrolment,) = Ledger(home).enrolments()
            await stage.check_whole(enrolment)
            await stage.forget(home)
            assert not stage.left()
            before = [enrolment.device_id]


async def test_registration_survives_kills_while_it_takes_away_what_a_killed_one_left(mortal: Mortal) -> None:
    stage = mortal.stage
    commands = await stage.commands_of_an_enrolment()
    home = stage.new_home()
    act = mortal.enrolment(home)
    written = commands.index("NV_Write") + 1
    await mortal.killed(act, written, executed=True)
    swept = (await mortal(act)).commands
    assert command_names(swept).count("NV_UndefineSpace") == 1
    await stage.forget(home)
    for position in range(1, command_names(swept).index("NV_UndefineSpace") + 3):
        with naming("kill", position, command_names(swept)):
            home = stage.new_home()
            act = mortal.enrolment(home)
            await mortal.killed(act, written, executed=True)
            await mortal.killed(act, position, executed=position % 2 == 0)
            await mortal.done(act)
            await stage.forget(home)
            assert not stage.left()


async def test_t14_sign_in_survives_200_kills_and_then_signs_1000_times(mortal: Mortal) -> None:
    """Kills at every command, before and after it; after the first of each kind the next one succeeds at once."""
    stage, home = mortal.stage, mortal.stage.new_home()
    await stage.enrol(home)
    enrolled = stage.contents()
    act = await mortal.signature(home)
    commands = await mortal.done(act)
    assert {"PolicySecret", "Sign"} <= set(commands)
    cases = [(position, executed) for position in range(1, len(commands) + 1) for executed in (False, True)]
    assert len(cases) < KILLS
    for number in range(KILLS):
        position, executed = cases[number % len(cases)]
        with naming("kill", position, commands):
            await mortal.killed(act, position, executed=executed)
            if number < len(cases):
                await mortal.done(act)
    signed = await mortal.done(dataclasses.replace(act, what="sign_on", times=SIGNATURES))
    assert signed.count("Sign") == SIGNATURES
    assert stage.chip.loaded_handles() == frozenset()
    assert not enrolled.difference(stage.contents())
    await stage.forget(home)
    assert not stage.left()
