"""Both ceremonies over one emulated TPM and a server in this process, with faults where a test wants them.

    async with tpm_ceremonies(template, folder, homes, chip) as stage:
        commands = await stage.commands_of(stage.enrol(home))
        stage.plan = FaultPlan(Fault(refuse(0x921), at=7))
        ...

One user with a pass that may be used again, and one TPM: whoever enrols in a fresh home takes the place of the device
before. What fault a connection meets is decided by `plan` at the time of the command.
"""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tpm2_pytss.constants import TPM2_CC

from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2
from keyvouch_agent import bootstrap
from keyvouch_agent.agent import Agent
from keyvouch_agent.agent_ports import Secret
from keyvouch_agent.bootstrap import Tuning
from keyvouch_agent.ceremonies.registration import RegistrationWish
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.logs import open_log
from keyvouch_agent.ports import Pin
from keyvouch_agent.vaults.tpm.connection import TpmAccess, TpmSettings
from keyvouch_bench.swtpm import MANUFACTURER, Swtpm
from keyvouch_bench.tpm_contents import TpmContents, read_contents
from keyvouch_bench.tpm_faults import Action, Fault, FaultingTcti, FaultPlan
from keyvouch_bench.tpm_tcti import Recording, RecordingTcti, Send, open_tcti
from keyvouch_server.ek_trust import TpmSettings as ServerTpmSettings
from support.agent_bench import pending_ids, state_of, until
from support.live_server import TENANT, LiveServer, OpenSignIn, live_server

__all__ = [
    "ATTESTED",
    "CLEAR",
    "PIN",
    "USERNAME",
    "TpmCeremonies",
    "command_names",
    "inject",
    "naming",
    "tpm_ceremonies",
]

PIN: Final = "493817"
USERNAME: Final = "ada"
NO_FAULT: Final = FaultPlan()
ATTESTED: Final = common_pb2.Assurance(
    protection=common_pb2.PROTECTION_TPM,
    verification=common_pb2.VERIFICATION_HARDWARE_GATED,
    provenance=common_pb2.PROVENANCE_ATTESTED,
    anchor="tpm-ek:root",
)
"""What the server knows of a registration in which nothing was left out."""

CLEAR: Final = bytes.fromhex("8002 0000001b 00000126 4000000a 00000009 40000009 0000 00 0000")
"""TPM2_Clear by the lockout hierarchy, whose password is empty (Part 3 section 24.6)."""


def inject(command: bytes) -> Action:
    """Have the TPM do `command` before the one whose turn it is, as another program could."""

    def act(following: bytes, send: Send) -> bytes:
        answer = send(command)
        if answer[6:10] != bytes(4):
            raise AssertionError(f"the injected command failed: {answer.hex()}")
        return send(following)

    return act


@contextmanager
def naming(kind: str, position: int, commands: Sequence[str]) -> Iterator[None]:
    """Say with a failure in the block which case of a sweep it is."""
    try:
        yield
    except BaseException as error:
        name = commands[position - 1] if position <= len(commands) else "?"
        error.add_note(f"{kind} at command {position} of {len(commands)}, {name}")
        raise


@dataclass(slots=True)
class TpmCeremonies:
    """The stage. `recording` has what reached the TPM, `base` what is in the chip while nobody is enrolled."""

    live: LiveServer
    chip: Swtpm
    homes: Path
    access_pass: str
    base: TpmContents
    plan: FaultPlan = NO_FAULT
    recording: Recording = field(default_factory=Recording)
    logged: io.StringIO = field(default_factory=io.StringIO)
    _homes: Iterator[int] = field(default_factory=itertools.count)

    def open_tcti(self) -> FaultingTcti:
        """A connection of the agent's."""
        return FaultingTcti(RecordingTcti(open_tcti(self.chip.tcti), self.recording), self.plan)

    @property
    def tuning(self) -> Tuning:
        """The agent's."""
        return Tuning(open_tcti=self.open_tcti, first_delay=0.02, longest_delay=0.1)

    @contextmanager
    def faulty(self, *faults: Fault) -> Iterator[FaultPlan]:
        """Until the end of the block connections, those that are open too, meet these faults."""
        self.plan = plan = FaultPlan(*faults)
        try:
            yield plan
        finally:
            self.plan = NO_FAULT

    async def commands_of(self, act: Awaitable[object]) -> list[str]:
        """The TPM commands of an act, by their names."""
        before = len(self.recording.exchanges)
        await act
        return command_names(self.recording.codes[before:])

    async def commands_of_an_enrolment(self) -> list[str]:
        """Those of a registration in which nothing goes wrong. The TPM has tested itself by then, and is as before."""
        for _ in range(2):
            home = self.new_home()
            commands = await self.commands_of(self.enrol(home))
            await self.forget(home)
        return commands

    # The agent

    def new_home(self) -> Home:
        """A device on which nobody is enrolled yet."""
        return Home.open(self.homes / f"home-{next(self._homes)}")

    def wish(self, *, replace: bool = False) -> RegistrationWish:
        """What the person asks for."""
        ca = (self.live.data / "ca.pem").read_text()
        endpoint = f"127.0.0.1:{self.live.public_port}"
        return RegistrationWish(endpoint, ca, TENANT, USERNAME, "tpm laptop", replace=replace)

    async def enrol(self, home: Home, *, replace: bool = False) -> Enrolment:
        """`keyvouch-agent enroll --provider tpm`."""

        async def access_pass() -> Secret:
            return Secret(self.access_pass)

        return await bootstrap.enrol(
            home=home,
            wish=self.wish(replace=replace),
            provider="tpm",
            interaction=GivenPin(Pin(PIN), may_set=True),
            ask_access_pass=access_pass,
            progress=lambda _: None,
            tuning=self.tuning,
        )

    async def forget(self, home: Home) -> None:
        """Take the only enrolment of a home away from it, and out of the TPM."""
        (enrolment,) = Ledger(home).enrolments()
        said: list[str] = []
        await bootstrap.unregister(
            home=home, enrolment=enrolment, progress=said.append, only_here=True, tuning=self.tuning
        )
        assert not said, said

    async def check_whole(self, enrolment: Enrolment) -> None:
        """The server has this device of the user and no other, with all that a TPM proves."""
        (device,) = await self.devices()
        assert device.device_id == enrolment.device_id
        assert device.assurance == ATTESTED, device.assurance

    async def devices(self) -> list[common_pb2.Device]:
        """The devices of the user, by the server."""
        told = await self.live.administer("ListDevices", admin_pb.ListDevicesRequest(username=USERNAME))
        return list(told.devices)

    async def device_ids(self) -> list[str]:
        """Their ids."""
        return [device.device_id for device in await self.devices()]

    @asynccontextmanager
    async def running(self, home: Home) -> AsyncIterator[Agent]:
        """`keyvouch-agent run`, connected, and done with its report of the TPM's health."""
        log = open_log(self.logged)
        async with bootstrap.run_agent(home=home, log=log, tuning=self.tuning) as agent:
            await until(lambda: state_of(agent) == "connected")
            await until(lambda: "health" in agent.status()["enrolments"][0])  # type: ignore[index]
            yield agent

    async def prompted(self, agent: Agent) -> OpenSignIn:
        """A sign-in that was begun and whose prompt the agent shows."""
        before = pending_ids(agent)
        begun = await self.live.begin(USERNAME)
        await until(lambda: pending_ids(agent) not in (before, []))
        return begun

    # The TPM

    def contents(self) -> TpmContents:
        """What is in the chip after the next connection of an agent, which sweeps what killed ones left."""
        access = TpmAccess(TpmSettings(tcti=self.chip.tcti))
        access.open().close()
        return read_contents(self.chip.tcti)

    def left(self) -> tuple[str, ...]:
        """What is not as it was before anybody enrolled, one sentence each."""
        return self.base.difference(self.contents())


def command_names(codes: Iterable[int]) -> list[str]:
    """Names of TPM commands, as the specification has them."""
    return [str(TPM2_CC.to_string(code)).removeprefix("TPM2_CC.") for code in codes]


@asynccontextmanager
async def tpm_ceremonies(template: Path, folder: Path, homes: Path, chip: Swtpm) -> AsyncIterator[TpmCeremonies]:
    """Start a server that believes the maker of `chip`, and make its user. The path of `homes` has to be short."""
    settings = ServerTpmSettings(chip.ca_certificates, frozenset({MANUFACTURER}))
    async with live_server(template, folder, tpm=settings) as live:
        await live.change_policy(registration={"accounts_per_device": 20}, approval={"begins_per_minute": 6000})
        await live.create_user(USERNAME)
        access_pass = await live.issue_pass(USERNAME)
        base = await asyncio.to_thread(read_contents, chip.tcti)
        yield TpmCeremonies(live, chip, homes, access_pass, base)
