"""What the transports are tested with: an authenticator that does what it is told, and clients' ends of the wires."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from fido2.hid import CtapHidDevice
from fido2.hid.base import CtapHidConnection, HidDescriptor

from keyvouch.errors import DeviceError
from keyvouch_agent.authenticator.ports import PinEntry, Presence, PresenceRequest, Purpose, UserPresence
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.transports.command_runner import CommandRunner
from keyvouch_agent.transports.hid_key import HidKey

ASK = b"\x0b"
"""A request that wants the user: answered 00, or 2D when it was cancelled, 2F when nobody came."""
CRASH = b"\x7e"
"""A request on which the authenticator breaks."""
WANTS_PIN = (b"\x01", b"\x02", b"\x06")
"""Requests for which a card's PIN is asked, once, where there is somebody to ask."""
SECONDS = 20.0

_ANSWERS = {Presence.GRANTED: b"\x00", Presence.CANCELLED: b"\x2d", Presence.TIMEOUT: b"\x2f", Presence.DENIED: b"\x27"}


class ScriptedAuthenticator:
    """Answers every request with 00 and the request's own parameters, or as `ASK` and `CRASH` say."""

    def __init__(self, *, u2f: bool = True) -> None:
        self.u2f = u2f
        self.requests: list[bytes] = []
        self.power_cycles = 0
        self.sessions_closed = 0
        self.ticks = 0
        self.response: bytes | None = None
        self.failure: DeviceError | None = None
        """What the vault says of `WANTS_PIN`."""
        self.pins: list[str | None] = []

    def handle(
        self,
        request: bytes,
        presence: UserPresence,
        cancelled: Callable[[], bool] = lambda: False,
        entry: PinEntry | None = None,
    ) -> bytes:
        self.requests.append(request)
        if entry is not None and request[:1] in WANTS_PIN:
            self.pins.append(entry.ask(3))
        if request == CRASH:
            raise RuntimeError("broken on purpose")
        if request == ASK:
            return _ANSWERS[presence.confirm(PresenceRequest(Purpose.SELECTION), cancelled)]
        return b"\x00" + request[1:] if self.response is None else self.response

    def handle_u2f(
        self,
        instruction: int,
        p1: int,
        p2: int,
        data: bytes,
        presence: UserPresence,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> tuple[bytes, int]:
        if not self.u2f or instruction not in (1, 2, 3):
            return b"", 0x6D00
        if instruction == 3:
            return b"U2F_V2", 0x9000
        question = PresenceRequest(Purpose.GET_ASSERTION, data.hex())
        granted = presence.confirm(question, cancelled) is Presence.GRANTED
        return (bytes([p1, p2]) + data, 0x9000) if granted else (b"", 0x6985)

    def tick(self) -> None:
        self.ticks += 1

    def close_session(self) -> None:
        self.sessions_closed += 1

    def power_cycle(self) -> None:
        self.power_cycles += 1


class SlowUser:
    """Answers when the test says so; says itself when it is being asked, and when a question was taken back."""

    def __init__(self) -> None:
        self.asked: queue.Queue[PresenceRequest] = queue.Queue()
        self.withdrawn = threading.Event()
        self._answer: queue.Queue[Presence] = queue.Queue()

    def answer(self, presence: Presence) -> None:
        self._answer.put(presence)

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        self.asked.put(request)
        while not cancelled():
            try:
                return self._answer.get(timeout=0.01)
            except queue.Empty:
                continue
        self.withdrawn.set()
        return Presence.CANCELLED


class Grants:
    """Everybody is always there."""

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        return Presence.CANCELLED if cancelled() else Presence.GRANTED


class LoopThread:
    """An event loop on a thread of its own, for what has to run while the test itself blocks."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="transport", daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.start(coroutine).result(SECONDS)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS)
        self.loop.close()


@contextmanager
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    try:
        yield thread
    finally:
        thread.close()


class HidWire(CtapHidConnection):
    """python-fido2's end of a wire whose other end is a `HidKey`."""

    def __init__(self, receive: Callable[[bytes], None]) -> None:
        self._receive = receive
        self.packets: queue.Queue[bytes] = queue.Queue()

    def read_packet(self) -> bytes:
        return self.packets.get(timeout=SECONDS)

    def write_packet(self, data: bytes) -> None:
        self._receive(data)

    def close(self) -> None:
        return


class HidBench:
    """A virtual USB key on a loop of its own; any number of clients share the wire, as programs share a hidraw."""

    def __init__(self, thread: LoopThread, authenticator: Any, presence: UserPresence, **runner: Any) -> None:
        self._thread = thread
        self._wires: list[HidWire] = []
        self.events: list[str] = []
        thread.do(self._plug_in(authenticator, presence, runner))

    async def _plug_in(self, authenticator: Any, presence: UserPresence, runner: dict[str, Any]) -> None:
        def journal(event: str, **_: object) -> None:
            self.events.append(event)

        self._runner = CommandRunner(authenticator, presence, journal=journal, **runner)
        self._key = HidKey(
            self._runner, send=self._send, entropy=SystemEntropy(), monotonic=self._thread.loop.time, version=(1, 2, 3)
        )

    def _send(self, packet: bytes) -> None:
        for wire in self._wires:
            wire.packets.put(packet)

    def _receive(self, packet: bytes) -> None:
        self._thread.loop.call_soon_threadsafe(self._key.receive, packet)

    def wire(self) -> HidWire:
        """A client's end. hidraw gives every reader every packet; clients drop those of other channels."""
        made = HidWire(self._receive)
        self._wires.append(made)
        return made

    def device(self) -> CtapHidDevice:
        """python-fido2's device, the only client on the wire while it is used."""
        descriptor = HidDescriptor("virtual", 0x1209, 1, 64, 64, "Keyvouch authenticator", None)
        self._wires.clear()
        return CtapHidDevice(descriptor, self.wire())

    def leave(self) -> None:
        """The last client has closed the device."""
        self._thread.loop.call_soon_threadsafe(self._key.leave)

    def close(self) -> None:
        self._thread.do(self._key.unplug())
        self._thread.do(self._runner.close())
