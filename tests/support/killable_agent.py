"""A device agent for crash tests: the real one, with points at its files, its calls and its streams.

    python -m support.killable_agent enroll --home DIR --server HOST:PORT --ca FILE --tenant NAME --user NAME
    python -m support.killable_agent rekey --home DIR
    python -m support.killable_agent run --home DIR

`enroll` takes `--lost ID` too. It and `rekey` read PIN and access pass as JSON from their standard input and are armed
from the start; `run` says `ready` and is armed by SIGUSR1. Points (`kill_points`): `before-write FOLDER`,
`after-write FOLDER`, `before-delete FOLDER`, `after-delete FOLDER` of the ledger; `before-call METHOD`,
`after-reply METHOD`; `before-send EVENT`, `after-send EVENT`, `after-receive EVENT` of the prompt stream; `ask PIN`.

Not here: any failpoint of the product; it has none. Everything else is what `keyvouch_agent.bootstrap` puts together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from keyvouch_agent import bootstrap
from keyvouch_agent.agent_ports import Secret
from keyvouch_agent.bootstrap import Tuning
from keyvouch_agent.ceremonies.registration import RegistrationWish
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ledger import Ledger
from keyvouch_agent.logs import open_log
from keyvouch_agent.ports import Pin
from keyvouch_agent.vaults.software import KdfParameters
from support.kill_points import Points

QUICK = Tuning(kdf=KdfParameters(memory_kib=8, iterations=1, lanes=1), first_delay=0.05, longest_delay=0.2)


class MortalHome(Home):
    """The agent's home with a point on either side of each act on a file."""

    def __init__(self, path: Path, points: Points) -> None:
        super().__init__(path)
        self._points = points
        self.folder("")

    def write(self, name: str, data: bytes) -> None:
        """See `Home.write`."""
        folder = name.partition("/")[0]
        self._points.reach(f"before-write {folder}")
        super().write(name, data)
        self._points.reach(f"after-write {folder}")

    def delete(self, name: str) -> None:
        """See `Home.delete`."""
        folder = name.partition("/")[0]
        self._points.reach(f"before-delete {folder}")
        super().delete(name)
        self._points.reach(f"after-delete {folder}")


class MortalPin(GivenPin):
    """The person at the device, with a point at the question."""

    def __init__(self, pin: str, points: Points) -> None:
        super().__init__(Pin(pin), may_set=True)
        self._points = points

    def request_pin(self, retries_left: int | None, min_length: int) -> Pin | None:
        """See `ProviderInteraction`."""
        self._points.reach("ask PIN")
        return super().request_pin(retries_left, min_length)

    def request_new_pin(self, min_length: int) -> Pin | None:
        """See `ProviderInteraction`."""
        self._points.reach("ask PIN")
        return super().request_new_pin(min_length)


class CallObserver(grpc.aio.UnaryUnaryClientInterceptor):
    """Points before each call and after each reply."""

    def __init__(self, points: Points) -> None:
        self._points = points

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Let the call through."""
        method = _name(client_call_details.method)
        self._points.reach(f"before-call {method}")
        call = await continuation(client_call_details, request)
        if await call.code() is grpc.StatusCode.OK:
            self._points.reach(f"after-reply {method}")
        return call


class StreamObserver(grpc.aio.StreamStreamClientInterceptor):
    """Points around each message of a stream."""

    def __init__(self, points: Points) -> None:
        self._points = points

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """Let the messages through."""
        call = await continuation(client_call_details, self._sent(request_iterator))
        return self._received(call)

    async def _sent(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            self._points.reach(f"before-send {request.WhichOneof('event')}")
            yield request
            self._points.reach(f"after-send {request.WhichOneof('event')}")

    async def _received(self, call: Any) -> AsyncIterator[Any]:
        async for message in call:
            self._points.reach(f"after-receive {message.WhichOneof('event')}")
            yield message


def _name(method: str | bytes) -> str:
    return (method.decode() if isinstance(method, bytes) else method).rpartition("/")[2]


def observe_channels(points: Points) -> None:
    """Put the observers into every secure channel this process makes from now on."""
    plain: Any = grpc.aio.secure_channel

    def secure_channel(*args: Any, **more: Any) -> grpc.aio.Channel:
        observers = [CallObserver(points), StreamObserver(points)]
        made: grpc.aio.Channel = plain(*args, interceptors=observers, **more)
        return made

    setattr(grpc.aio, "secure_channel", secure_channel)  # noqa: B010 - the checker forbids assigning to a function


async def enroll(arguments: argparse.Namespace, points: Points) -> None:
    """As `keyvouch-agent enroll`."""
    points.arm()
    given = json.loads(sys.stdin.read())
    wish = RegistrationWish(
        public_endpoint=arguments.server,
        public_ca=arguments.ca.read_text(),
        tenant=arguments.tenant,
        username=arguments.user,
        display_name="laptop",
        lost=tuple(arguments.lost),
    )

    async def access_pass() -> Secret:
        return Secret(given["access_pass"])

    await bootstrap.enrol(
        home=MortalHome(arguments.home, points),
        wish=wish,
        provider="software",
        interaction=MortalPin(given["pin"], points),
        ask_access_pass=access_pass,
        progress=lambda _: None,
        tuning=QUICK,
    )


async def rekey(arguments: argparse.Namespace, points: Points) -> None:
    """As `keyvouch-agent rekey`, for the only account."""
    points.arm()
    home, given = MortalHome(arguments.home, points), json.loads(sys.stdin.read())
    (enrolment,) = Ledger(home).enrolments()
    await bootstrap.rekey(
        home=home, enrolment=enrolment, interaction=MortalPin(given["pin"], points), progress=lambda _: None
    )


async def run(arguments: argparse.Namespace, points: Points) -> None:
    """As `keyvouch-agent run --quiet-prompts`."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, points.arm)
    home = MortalHome(arguments.home, points)
    async with bootstrap.run_agent(home=home, log=open_log(sys.stderr), tuning=QUICK) as agent:
        loop.add_signal_handler(signal.SIGTERM, agent.stop)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await agent.stopped()


def main() -> int:
    """Run a command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["enroll", "rekey", "run"])
    for name in ("--server", "--tenant", "--user"):
        parser.add_argument(name)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--lost", action="append", default=[])
    arguments = parser.parse_args()
    points = Points()
    observe_channels(points)
    asyncio.run({"enroll": enroll, "rekey": rekey, "run": run}[arguments.command](arguments, points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
