"""An agent's home against a live server: enrolment in the process of the test, with a key in software."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from keyvouch_agent import bootstrap
from keyvouch_agent.agent import Agent
from keyvouch_agent.agent_ports import Departing, PresentDevice, Secret
from keyvouch_agent.bootstrap import Tuning
from keyvouch_agent.ceremonies.departures import ChooseDeparting
from keyvouch_agent.ceremonies.registration import RegistrationWish
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.logs import open_log
from keyvouch_agent.ports import Pin
from support.authenticators import FAST_KDF
from support.live_server import TENANT, LiveServer

PIN = "428913"


class Interrupted(Exception):  # noqa: N818 - not an error, an end
    """The agent was stopped here."""


class Desk:
    """One agent's home against the live server, and what it said and asked."""

    def __init__(self, live: LiveServer, path: Path) -> None:
        self.live = live
        self.home = Home.open(path)
        self.said: list[str] = []
        self.asked_for: list[tuple[tuple[str, ...], int]] = []
        self.pins = 0

    def answering(self, *departing: Departing) -> ChooseDeparting:
        """A person who names these."""

        async def choose(devices: Sequence[PresentDevice], needed: int) -> Sequence[Departing]:
            self.asked_for.append((tuple(d.device_id for d in devices), needed))
            return departing

        return choose

    def running(self) -> AbstractAsyncContextManager[Agent]:
        """`keyvouch-agent run`."""
        return bootstrap.run_agent(home=self.home, log=open_log(io.StringIO()), tuning=Tuning(kdf=FAST_KDF))

    async def enrol(
        self,
        username: str,
        code: str = "",
        *,
        choose: ChooseDeparting | None = None,
        until: str = "",
        **changes: object,
    ) -> Enrolment:
        """`keyvouch-agent enroll` with a software key; it ends at the sentence `until`, as when it is killed."""

        def progress(sentence: str) -> None:
            self.said.append(sentence)
            if until and until in sentence:
                raise Interrupted

        async def access_pass() -> Secret:
            return Secret(code)

        values: dict[str, object] = {
            "public_endpoint": f"localhost:{self.live.public_port}",
            "public_ca": (self.live.data / "ca.pem").read_text("ascii"),
            "tenant": TENANT,
            "username": username,
            "display_name": "new laptop",
        }
        return await bootstrap.enrol(
            home=self.home,
            wish=RegistrationWish(**{**values, **changes}),  # type: ignore[arg-type]
            provider="software",
            interaction=_CountedPin(self),
            ask_access_pass=access_pass,
            progress=progress,
            choose_departing=choose,
            tuning=Tuning(kdf=FAST_KDF),
        )


class _CountedPin(GivenPin):
    def __init__(self, desk: Desk) -> None:
        super().__init__(Pin(PIN), may_set=True)
        self._desk = desk

    def request_pin(self, retries_left: int | None, min_length: int) -> Pin | None:
        self._desk.pins += 1
        return super().request_pin(retries_left, min_length)

    def request_new_pin(self, min_length: int) -> Pin | None:
        self._desk.pins += 1
        return super().request_new_pin(min_length)
