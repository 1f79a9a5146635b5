"""A home with ports for security keys beside it, one server, and the terminal of its person."""

from __future__ import annotations

import io
import os
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

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
from keyvouch_agent.prompts.tty_lines import TtyLines
from support.agent_bench import pending_ids, state_of, until
from support.authenticators import FAST_KDF
from support.live_server import TENANT, LiveServer, OpenSignIn
from support.security_keys import Bench

PIN = "493817"


@dataclass
class Desk:
    """One home, the ports beside it, one server."""

    live: LiveServer
    home: Home
    ports: Bench = field(default_factory=Bench)
    said: list[str] = field(default_factory=list)

    @property
    def tuning(self) -> Tuning:
        return Tuning(kdf=FAST_KDF, first_delay=0.02, longest_delay=0.1, security_keys=self.ports.keys)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.home)

    async def enrol(
        self, username: str = "ada", *, interaction: ProviderInteraction | None = None, replace: bool = False
    ) -> Enrolment:
        """`keyvouch-agent enroll --provider fido2`."""
        access_pass = await self.live.issue_pass_again(username)

        async def ask() -> Secret:
            self.said.append("asked for the pass")
            return Secret(access_pass)

        ca = (self.live.data / "ca.pem").read_text()
        endpoint = f"127.0.0.1:{self.live.public_port}"
        return await bootstrap.enrol(
            home=self.home,
            wish=RegistrationWish(endpoint, ca, TENANT, username, "laptop with a key", replace=replace),
            provider="fido2",
            interaction=interaction or GivenPin(Pin(PIN), may_set=True, tell=self.said.append),
            ask_access_pass=ask,
            progress=self.said.append,
            tuning=self.tuning,
        )

    async def prompted(self, agent: Agent, username: str = "ada") -> OpenSignIn:
        await until(lambda: state_of(agent) == "connected")
        begun = await self.live.begin(username)
        await until(lambda: pending_ids(agent))
        return begun

    def running(self) -> AbstractAsyncContextManager[Agent]:
        return bootstrap.run_agent(home=self.home, log=open_log(io.StringIO()), tuning=self.tuning)


class Terminal:
    """A person at the terminal of `keyvouch-agent run`."""

    def __init__(self) -> None:
        self.keyboard, self._end = os.openpty()
        self.screen = io.StringIO()
        self.lines = TtyLines(self._end, self.screen)

    async def answer(self, question: str, typed: str) -> None:
        await until(lambda: question in self.screen.getvalue())
        os.write(self.keyboard, f"{typed}\n".encode())

    def close(self) -> None:
        os.close(self.keyboard)
        os.close(self._end)
