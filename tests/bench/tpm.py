"""`./run bench tpm`: registration and approval with a key in an emulated TPM, split into TPM, agent, wire and server.

    TPM      time between a command and its response, summed
    server   CPU time of the server process meanwhile
    wire     time in calls to the server less its CPU: TLS, scheduling, the disk
    agent    the rest: the CTAP client and authenticator, files, Python

An approval is measured from the decision to the accepted outcome; the tries that are left were asked for when it was
shown. Beside it stands the bare signature: a key of the same kind that is guarded by its own authorization value, over
the same kind of encrypted session.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from keyvouch_agent import bootstrap
from keyvouch_agent.agent import Agent
from keyvouch_agent.agent_ports import Secret
from keyvouch_agent.bootstrap import Tuning
from keyvouch_agent.ceremonies.registration import RegistrationCeremony, RegistrationWish
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.key_holders import KeyHolderSet, ShelfHolders
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.logs import open_log
from keyvouch_agent.ports import KeyUse, Pin
from keyvouch_agent.provider_shelf import ProviderKey, ProviderShelf
from keyvouch_agent.rpc.channel import public_channel
from keyvouch_agent.rpc.enrolment import EnrolmentClient
from keyvouch_agent.system import SystemClock
from keyvouch_agent.vaults.tpm.connection import TpmAccess
from keyvouch_bench.server_process import ServerProcess
from keyvouch_bench.swtpm import MANUFACTURER, Profile, Swtpm, SwtpmFactory
from keyvouch_bench.tpm_tcti import ExchangeTcti, open_tcti
from keyvouch_client import Connection, SignIn

PIN = "493817"
_T = TypeVar("_T")


@dataclass
class Meter:
    """What passed between agent and TPM: seconds, and the commands."""

    seconds: float = 0.0
    commands: int = 0

    def reset(self) -> None:
        self.seconds, self.commands = 0.0, 0


class TimingTcti(ExchangeTcti):
    """Times every exchange."""

    def __init__(self, inner: Any, meter: Meter) -> None:
        super().__init__(inner)
        self._meter = meter

    def exchange(self, command: bytes, send: Callable[[bytes], bytes]) -> bytes:
        start = time.perf_counter()
        try:
            return send(command)
        finally:
            self._meter.seconds += time.perf_counter() - start
            self._meter.commands += 1


@dataclass
class Split:
    """Samples of one act, in seconds."""

    total: list[float] = field(default_factory=list)
    tpm: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    wire: list[float] = field(default_factory=list)
    commands: list[int] = field(default_factory=list)

    def add(self, *, total: float, meter: Meter, server: float, called: float) -> None:
        self.total.append(total)
        self.tpm.append(meter.seconds)
        self.server.append(server)
        self.wire.append(max(0.0, called - server))
        self.commands.append(meter.commands)

    def document(self) -> dict[str, float]:
        """Medians in milliseconds."""
        median = {name: statistics.median(getattr(self, name)) * 1e3 for name in ("total", "tpm", "server", "wire")}
        median["agent"] = max(0.0, median["total"] - median["tpm"] - median["server"] - median["wire"])
        shown = {f"{name}_ms": round(value, 2) for name, value in median.items()}
        return {**shown, "tpm_commands": statistics.median(self.commands)}


class TimedServer:
    """`EnrolmentServer` with a stop-watch around every call."""

    def __init__(self, inner: EnrolmentClient) -> None:
        self._inner = inner
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._inner, name)

        async def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return await method(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


class Bench:
    """One emulated TPM, one server, one user."""

    def __init__(self, server: ServerProcess, tpm: Swtpm, folder: Path, cpu: Callable[[int], float]) -> None:
        self.server = server
        self.tpm = tpm
        self.folder = folder
        self.meter = Meter()
        self._cpu = cpu

    def open(self) -> Any:
        """A connection to the TPM that is timed."""
        return TimingTcti(open_tcti(self.tpm.tcti), self.meter)

    def server_cpu(self) -> float:
        """Seconds of CPU the server has used."""
        return self._cpu(self.server.pid)

    async def registrations(self, rounds: int) -> tuple[Split, Home, Enrolment]:
        """The same TPM enrols again and again, each time for a new home."""
        split = Split()
        for number in range(rounds + 1):
            home = Home.open(self.folder / f"home-{number}")
            enrolment, sample = await self._register(home)
            if number:  # the first one warms everything up
                split.add(**sample)
        return split, home, enrolment

    async def _register(self, home: Home) -> tuple[Enrolment, dict[str, Any]]:
        holders = KeyHolderSet(home, SystemClock(), open_tcti=self.open)
        authority = self.server.ca.read_bytes()
        channel = public_channel(self.server.endpoint, authority_pem=authority)
        timed = TimedServer(EnrolmentClient(channel, endpoint=self.server.endpoint))
        shelf = ProviderShelf(holders.makers())
        ceremony = RegistrationCeremony(
            ledger=Ledger(home),
            server=timed,
            holders=ShelfHolders(shelf, "tpm"),
            interaction=GivenPin(Pin(PIN), may_set=True),
            ask_access_pass=self._pass,
            progress=lambda _text: None,
            channel_keys=holders.channel_keys("tpm"),
        )
        self.meter.reset()
        cpu, start = self.server_cpu(), time.perf_counter()
        enrolment = await ceremony.run(self._wish())
        total = time.perf_counter() - start
        sample = {"total": total, "meter": self.meter, "server": self.server_cpu() - cpu, "called": timed.seconds}
        shelf.close()
        await channel.close()
        return enrolment, sample

    async def _pass(self) -> Secret:
        return Secret(self.server.administrator_pass)

    def _wish(self) -> RegistrationWish:
        s = self.server
        return RegistrationWish(s.endpoint, s.ca.read_text("ascii"), s.tenant, s.administrator, "bench")

    @asynccontextmanager
    async def agent(self, home: Home) -> Any:
        """The long-lived agent, connected."""
        tuning = Tuning(open_tcti=self.open)
        async with bootstrap.run_agent(home=home, log=open_log(io.StringIO()), tuning=tuning) as agent:
            while "connected" not in str(agent.status()) or "good" not in str(agent.status()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            yield agent

    async def approvals(self, home: Home, enrolment: Enrolment, rounds: int) -> Split:
        """Whole approvals; what a signature takes of them is measured apart, in the same run."""
        signed = await asyncio.to_thread(self._signatures, home, enrolment, rounds)
        split = Split()
        async with self.agent(home) as agent, Connection(self.server.endpoint, ca_file=self.server.ca) as connection:
            for number in range(rounds + 2):
                sample = await self._approve(agent, connection)
                if number >= 2:
                    split.add(**sample, called=max(0.0, sample["total"] - signed))
                await asyncio.sleep(6.1)  # ten requests a minute for each user
        return split

    async def _approve(self, agent: Agent, connection: Connection) -> dict[str, Any]:
        who = {"tenant": self.server.tenant, "username": self.server.administrator}
        async with SignIn(connection, **who, app_id="bench", app_name="Bench") as request:
            while not agent.pending()["prompts"]:  # noqa: ASYNC110 - the agent tells nobody
                await asyncio.sleep(0.005)
            await agent.show("")  # as a person sees it, with the tries that are left
            self.meter.reset()
            cpu, start = self.server_cpu(), time.perf_counter()
            outcome = await agent.approve("", request.number, Pin(PIN))
            total = time.perf_counter() - start
            if not outcome["accepted"]:
                raise RuntimeError(f"the approval was refused: {outcome}")
            sample = {"total": total, "meter": _copy(self.meter), "server": self.server_cpu() - cpu}
            await request.session()
        return sample

    def _signatures(self, home: Home, enrolment: Enrolment, rounds: int) -> float:
        """Median seconds of the provider's part of an approval."""
        shelf = ProviderShelf(KeyHolderSet(home, SystemClock(), open_tcti=self.open).makers())
        samples = []
        try:
            provider = shelf.get(ProviderKey("tpm", enrolment.account))
            for _ in range(rounds):
                start = time.perf_counter()
                provider.capabilities()
                with provider.open(GivenPin(Pin(PIN)), rp_id=enrolment.rp_id) as session:
                    session.sign(KeyUse(b"c" * 32, enrolment.rp_id, enrolment.credential_id))
                samples.append(time.perf_counter() - start)
        finally:
            shelf.close()
        return statistics.median(samples)

    def bare_signature(self, rounds: int) -> Split:
        """Load, one encrypted session, TPM2_Sign, FlushContext, for a key with an authorization value of its own."""
        from bare_signature import BareKey

        split, access = Split(), TpmAccess(open_tcti=self.open)
        key = BareKey.make(access)
        for _ in range(rounds):
            self.meter.reset()
            start = time.perf_counter()
            key.sign(access, hashlib.sha256(b"bare").digest())
            split.add(total=time.perf_counter() - start, meter=self.meter, server=0.0, called=0.0)
        return split


def _copy(meter: Meter) -> Meter:
    return Meter(meter.seconds, meter.commands)


def measure_tpm(*, rounds: int, cpu: Callable[[int], float], say: Callable[[str], None]) -> dict[str, object]:
    """Run everything; returns medians for JSON."""
    with tempfile.TemporaryDirectory(prefix="keyvouch-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        for part in ("chips", "tpm"):
            (folder / part).mkdir()
        tpm = stack.enter_context(SwtpmFactory(folder / "chips").make(folder / "tpm", Profile.WITH_SRK))
        server = stack.enter_context(ServerProcess.make(folder))
        with (server.data / "keyvouch.toml").open("a", encoding="utf-8") as file:
            trust = f'endorsement_trust = "{tpm.ca_certificates}"\nunregistered_manufacturers = ["{MANUFACTURER}"]\n'
            file.write(f"\n[tpm]\n{trust}")
        server.start()
        return asyncio.run(_measure(Bench(server, tpm, folder, cpu), rounds, say))


async def _measure(bench: Bench, rounds: int, say: Callable[[str], None]) -> dict[str, object]:
    say(f"registering {rounds + 1} times")
    registrations, home, enrolment = await bench.registrations(rounds)
    say(f"approving {rounds + 2} times, with the pauses that the server's limit wants")
    approvals = await bench.approvals(home, enrolment, rounds)
    bare = await asyncio.to_thread(bench.bare_signature, rounds)
    return {
        "rounds": rounds,
        "registration": registrations.document(),
        "approval": approvals.document(),
        "bare_signature": bare.document(),
    }


def table(result: dict[str, Any]) -> str:
    """For people."""
    columns: Sequence[str] = ("total_ms", "tpm_ms", "agent_ms", "wire_ms", "server_ms", "tpm_commands")
    lines = [f"{'medians':<16}" + "".join(f"{name.removesuffix('_ms'):>14}" for name in columns)]
    for act in ("registration", "approval", "bare_signature"):
        lines.append(f"{act.replace('_', ' '):<16}" + "".join(f"{result[act][name]:>14}" for name in columns))
    return "\n".join(lines)
