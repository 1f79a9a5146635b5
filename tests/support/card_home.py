"""A home in this process whose accounts are on a virtual card, and somebody who puts the card back in when told to."""

from __future__ import annotations

import asyncio
import io
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
from keyvouch_agent.ports import Pin
from keyvouch_bench.piv_card.reader import PivReader
from support.agent_bench import pending_ids, state_of, until
from support.authenticators import FAST_KDF
from support.live_server import TENANT, LiveServer

__all__ = ["CardHome"]


@dataclass
class CardHome:
    """One home, one card in one reader, one server."""

    live: LiveServer
    path: Path
    piv: PivReader
    said: list[str] = field(default_factory=list)
    tuning: Tuning = field(default_factory=lambda: Tuning(kdf=FAST_KDF, first_delay=0.02, longest_delay=0.1))

    @property
    def home(self) -> Home:
        return Home.open(self.path)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.home)

    def accounts(self) -> list[str]:
        """What has a folder of an account on a card."""
        folder = self.path / "vault-card"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def tell(self, text: str) -> None:
        """The person puts the card in when she is told to."""
        self.said.append(text)
        if "Put your card" in text:
            self.piv.remove()  # a card that a fault has just taken out may not be missed yet
            self.piv.insert()

    async def enrol(self, username: str, access_pass: str, *, pin: str = "") -> Enrolment:
        """`keyvouch-agent enroll --provider smartcard`."""

        async def ask() -> Secret:
            return Secret(access_pass)

        ca = (self.live.data / "ca.pem").read_text()
        return await bootstrap.enrol(
            home=self.home,
            wish=RegistrationWish(f"127.0.0.1:{self.live.public_port}", ca, TENANT, username, "laptop with a card"),
            provider="smartcard",
            interaction=GivenPin(Pin(pin or self.piv.card.pin), tell=self.tell),
            ask_access_pass=ask,
            progress=self.said.append,
            tuning=self.tuning,
        )

    def running(self) -> AbstractAsyncContextManager[Agent]:
        """`keyvouch-agent run`."""
        return bootstrap.run_agent(home=self.home, log=open_log(io.StringIO()), tuning=self.tuning)

    async def prompted(self, agent: Agent, username: str) -> tuple[str, str]:
        """A sign-in is begun and has arrived: the prompt's id, and the number its client shows."""
        await until(lambda: state_of(agent) == "connected")
        begun = await self.live.begin(username)
        await until(lambda: pending_ids(agent))
        (prompt_id,) = pending_ids(agent)
        return prompt_id, begun.number

    async def approve(self, agent: Agent, prompt_id: str, number: str) -> object:
        """`keyvouch-agent approve`, with what it asks the agent first."""
        await agent.show(prompt_id)
        return (await agent.approve(prompt_id, number, Pin(self.piv.card.pin)))["accepted"]

    async def put_back(self) -> None:
        """The card is in the reader, and nothing more goes wrong."""
        self.piv.card.faults.clear()
        await asyncio.to_thread(self.piv.insert)
