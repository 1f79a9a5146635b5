"""A device agent on the bench: its home, a server in the same process, and shortcuts for what a person does."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from keyvouch_agent import bootstrap
from keyvouch_agent.agent import Agent
from keyvouch_agent.agent_ports import Secret
from keyvouch_agent.bootstrap import Tuning
from keyvouch_agent.ceremonies.registration import RegistrationWish
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.logs import open_log
from keyvouch_agent.ports import Pin, ProviderInteraction
from support.authenticators import FAST_KDF
from support.fake_device_server import FakeDeviceServer
from support.fake_devices import ACCESS_PASS, TENANT_NAME, USERNAME, FakeDevices, PromptRow

PIN = "428913"


async def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait for a condition that another task makes true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - any condition at all may be meant
            await asyncio.sleep(0.01)


def given_pin(text: str = PIN) -> GivenPin:
    """The right PIN, which also becomes the first one."""
    return GivenPin(Pin(text), may_set=True)


@dataclass
class AgentBench:
    """One home against one server."""

    home: Home
    server: FakeDeviceServer
    tuning: Tuning = field(default_factory=lambda: Tuning(kdf=FAST_KDF, first_delay=0.02, longest_delay=0.2))
    logged: io.StringIO = field(default_factory=io.StringIO)
    asked: int = 0
    progress: list[str] = field(default_factory=list)

    @classmethod
    async def start(cls, path: Path) -> AgentBench:
        server = FakeDeviceServer(FakeDevices())
        await server.start()
        return cls(Home.open(path / "home"), server)

    @property
    def rows(self) -> FakeDevices:
        return self.server.rows

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.home)

    def wish(self, **changes: object) -> RegistrationWish:
        values: dict[str, object] = {
            "public_endpoint": self.server.public_endpoint,
            "public_ca": self.rows.authority.pem.decode(),
            "tenant": TENANT_NAME,
            "username": USERNAME,
            "display_name": "Ada's laptop",
        }
        return RegistrationWish(**{**values, **changes})  # type: ignore[arg-type]

    async def enrol(
        self,
        *,
        interaction: ProviderInteraction | None = None,
        access_pass: str = ACCESS_PASS,
        tuning: Tuning | None = None,
        **changes: object,
    ) -> Enrolment:
        """`keyvouch-agent enroll`."""
        return await bootstrap.enrol(
            home=self.home,
            wish=self.wish(**changes),
            provider="software",
            interaction=interaction or given_pin(),
            ask_access_pass=self._pass(access_pass),
            progress=self.progress.append,
            tuning=tuning or self.tuning,
        )

    def _pass(self, text: str) -> Callable[[], Awaitable[Secret]]:
        async def ask() -> Secret:
            self.asked += 1
            return Secret(text)

        return ask

    def running(self) -> AbstractAsyncContextManager[Agent]:
        """`keyvouch-agent run`."""
        return bootstrap.run_agent(home=self.home, log=open_log(self.logged), tuning=self.tuning)

    async def prompted(self, agent: Agent, device_id: str, **changes: object) -> PromptRow:
        """A new prompt that has reached the agent."""
        await until(lambda: self.server.connected(device_id))
        row = self.server.ask(self.rows.offer(device_id, **changes))  # type: ignore[arg-type]
        await until(lambda: pending_ids(agent) == [row.prompt_id])
        return row


def pending_ids(agent: Agent) -> list[str]:
    """Ids of the prompts an agent shows."""
    prompts = agent.pending()["prompts"]
    assert isinstance(prompts, list)
    return [str(p["prompt_id"]) for p in prompts]


def state_of(agent: Agent) -> str:
    """The state of the only link."""
    enrolments = agent.status()["enrolments"]
    assert isinstance(enrolments, list)
    return str(enrolments[0]["state"])
