"""Carries commands to the authenticator: one at a time, on a thread of its own, so that a transport can go on talking.

    running = runner.start(request)        a CTAP2 command
    response = await running.wait(0.1)     None: it still runs, `running.needs_user` says what for
    running.cancel()

Not here: how a transport says all this to its client.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, Self

from keyvouch.errors import DeviceError
from keyvouch_agent.authenticator.ports import PinEntry, Presence, PresenceRequest, UserPresence
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.transports.pin_entry import CommandEntry, PinDesk

__all__ = [
    "CommandRunner",
    "Journal",
    "PresencePerMessage",
    "RunningCommand",
    "ServedAuthenticator",
    "tell_nobody",
]

Journal = Callable[..., None]
"""Told what happens: the name of an event, and fields as keywords. Called from more than one thread."""

_U2F_VERSION = 0x03
_U2F_SUCCESS = 0x9000
_U2F_FAILED = 0x6F00
_MAY_CHANGE_U2F = (b"\x07", b"\x0d")
"""reset and config: the commands that switch alwaysUv."""
_COMMANDS = {
    0x01: "makeCredential",
    0x02: "getAssertion",
    0x04: "getInfo",
    0x06: "clientPIN",
    0x07: "reset",
    0x08: "getNextAssertion",
    0x0A: "credentialManagement",
    0x0B: "selection",
    0x0C: "largeBlobs",
    0x0D: "config",
}
_U2F_COMMANDS = {0x01: "u2f register", 0x02: "u2f authenticate", 0x03: "u2f version"}


def tell_nobody(*_: object, **__: object) -> None:
    """A `Journal` for who wants none."""


class ServedAuthenticator(Protocol):
    """What a transport needs of an authenticator; see `keyvouch_agent.authenticator.engine`."""

    @property
    def failure(self) -> DeviceError | None:
        """What the vault said when the last CTAP2 request failed, where CTAP has only a status for it."""

    def handle(
        self,
        request: bytes,
        presence: UserPresence,
        cancelled: Callable[[], bool],
        entry: PinEntry | None = None,
    ) -> bytes:
        """Carry out one CTAP2 request."""

    def handle_u2f(
        self,
        instruction: int,
        p1: int,
        p2: int,
        data: bytes,
        presence: UserPresence,
        cancelled: Callable[[], bool],
    ) -> tuple[bytes, int]:
        """Carry out one CTAP1/U2F message. Returns response data and status word."""

    def tick(self) -> None:
        """Drop what has timed out."""

    def close_session(self) -> None:
        """End what one client has begun."""

    def power_cycle(self) -> None:
        """Start afresh."""


class PresencePerMessage(Protocol):
    """Presence that is for one message of U2F, and for no other that looks the same to a person."""

    def about(self, message: bytes) -> UserPresence:
        """The presence for this message."""


class RunningCommand:
    """One CTAP2 command under way."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._asking = threading.Event()
        self.outcome: asyncio.Future[bytes] | None = None

    @property
    def needs_user(self) -> bool:
        """Whether it waits for the user now (STATUS_UPNEEDED), and not for a key."""
        return self._asking.is_set()

    def cancel(self) -> None:
        """Ask it to end early. What it answers then is its outcome like any other."""
        self._cancelled.set()

    async def wait(self, seconds: float | None = None) -> bytes | None:
        """The response, or None when it is not there in time."""
        assert self.outcome is not None
        await asyncio.wait({self.outcome}, timeout=seconds)
        return self.outcome.result() if self.outcome.done() else None

    def is_cancelled(self) -> bool:
        """For the authenticator's thread."""
        return self._cancelled.is_set()

    def ask(self, presence: UserPresence, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        """Ask the user, on the authenticator's thread. A cancelled question grants nothing, whatever was answered."""
        if cancelled():
            return Presence.CANCELLED
        with self.asking():
            answer = presence.confirm(request, cancelled)
        return Presence.CANCELLED if cancelled() else answer

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The user is asked for the time of the block."""
        self._asking.set()
        try:
            yield
        finally:
            self._asking.clear()

    def asks_elsewhere(self) -> None:
        """The user is asked from now on, and nobody will say until when."""
        self._asking.set()


class _Asking:
    """`UserPresence` that lets the running command know that it asks."""

    def __init__(self, command: RunningCommand, presence: UserPresence) -> None:
        self._command = command
        self._presence = presence

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        return self._command.ask(self._presence, request, cancelled)


class CommandRunner:
    """One authenticator behind one transport, with its thread inside an `async with`. Belongs to one event loop.

    `u2f_presence` is asked for CTAP1/U2F messages; the same as for all others if it is not given. `pins` has the PIN
    for a vault that verifies its user itself.
    """

    def __init__(
        self,
        authenticator: ServedAuthenticator,
        presence: UserPresence,
        *,
        journal: Journal = tell_nobody,
        u2f_presence: PresencePerMessage | None = None,
        pins: PinDesk | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._presence = presence
        self._journal = journal
        self._u2f_presence = u2f_presence
        self._pins = pins
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="authenticator")
        self._running: RunningCommand | None = None
        self._speaks_u2f = self._answers_u2f()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def speaks_u2f(self) -> bool:
        """Whether CTAP1/U2F messages are served too. Not while user verification is always wanted (section 7.2)."""
        return self._speaks_u2f

    @property
    def journal(self) -> Journal:
        """Where events are told."""
        return self._journal

    def start(self, request: bytes) -> RunningCommand:
        """Begin a CTAP2 command. Transports see to it that the one before has ended."""
        command = self._running = RunningCommand()
        loop = asyncio.get_running_loop()
        command.outcome = loop.run_in_executor(self._thread, self._carry_out, request, command)
        return command

    def cancel(self) -> None:
        """Cancel whatever runs: the client is gone, or the program ends."""
        if self._running is not None:
            self._running.cancel()

    async def u2f(self, ins: int, p1: int, p2: int, data: bytes) -> tuple[bytes, int]:
        """Carry out a CTAP1/U2F message. Returns response data and status word."""
        command = self._running = RunningCommand()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, lambda: self._carry_out_u2f(ins, p1, p2, data, command.is_cancelled)
        )

    async def close_session(self) -> None:
        """End what one client has begun, after what still runs."""
        await self._between(self._authenticator.close_session)

    async def power_cycle(self) -> None:
        """Take the power away and give it back, after what still runs."""
        await self._between(self._authenticator.power_cycle)

    async def tick(self) -> None:
        """Let the authenticator drop what has timed out."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._authenticator.tick)

    async def close(self) -> None:
        """Cancel what runs and wait for its end."""
        self.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _between(self, act: Callable[[], None]) -> None:
        self.cancel()
        await asyncio.get_running_loop().run_in_executor(self._thread, act)

    def _carry_out(self, request: bytes, command: RunningCommand) -> bytes:
        entry = CommandEntry(command, request, self._pins) if self._pins is not None else None
        asking, failure = _Asking(command, self._presence), None
        try:
            response = self._authenticator.handle(request, asking, command.is_cancelled, entry)
            failure = self._authenticator.failure
        except Exception as error:  # noqa: BLE001 - a fault of ours is an answer too, and the key goes on
            _settle(entry, error)
            self._journal("fault", command=_name_of(request), error=type(error).__name__)
            return bytes([Status.OTHER])
        _settle(entry, failure)
        if request[:1] in _MAY_CHANGE_U2F:
            self._speaks_u2f = self._answers_u2f()
        self._journal("command", command=_name_of(request), status=_status_name(response), **_why(failure))
        return response

    def _answers_u2f(self) -> bool:
        _, status = self._carry_out_u2f(_U2F_VERSION, 0, 0, b"", lambda: False, told=False)
        return status == _U2F_SUCCESS

    def _carry_out_u2f(
        self, ins: int, p1: int, p2: int, data: bytes, cancelled: Callable[[], bool], *, told: bool = True
    ) -> tuple[bytes, int]:
        name = _U2F_COMMANDS.get(ins, f"u2f 0x{ins:02x}")
        presence = self._u2f_presence.about(bytes([ins, p1, p2]) + data) if self._u2f_presence else self._presence
        try:
            response, status = self._authenticator.handle_u2f(ins, p1, p2, data, presence, cancelled)
        except Exception as error:  # noqa: BLE001 - as above
            self._journal("fault", command=name, error=type(error).__name__)
            return b"", _U2F_FAILED
        if told:
            self._journal("command", command=name, status=f"{status:04X}")
        return response, status


def _settle(entry: CommandEntry | None, failure: Exception | None) -> None:
    if entry is not None:
        entry.over(failure)


def _why(failure: DeviceError | None) -> Mapping[str, str]:
    """What the vault said, for whoever serves: a client has the status alone."""
    return {} if failure is None else {"reason": failure.reason.value, "says": f"{failure.message} {failure.fix}"}


def _name_of(request: bytes) -> str:
    return _COMMANDS.get(request[0], f"0x{request[0]:02x}") if request else "(empty)"


def _status_name(response: bytes) -> str:
    try:
        return Status(response[0]).name
    except (IndexError, ValueError):
        return f"0x{response[:1].hex()}"
