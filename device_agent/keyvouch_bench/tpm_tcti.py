"""Connections to a TPM that watch, spoil or change what passes: for tests of anything that takes a TCTI.

Each is a TCTI over another TCTI, so that they can be stacked, and each is for one connection. What has to outlive a
connection is handed in: the `Recording` and the `FaultPlan`, which may serve several, one after the other.

    recording, plan = Recording(), FaultPlan(Fault(lose_reply(0x922), code=TPM2_CC.Sign))
    with FaultingTcti(RecordingTcti(open_tcti(tpm.tcti), recording), plan) as tcti, ESAPI(tcti) as esys:
        ...

The variable `tcti` must live as long as the `ESAPI` over it: the C library keeps a bare pointer to it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from tpm2_pytss import PyTCTI, TCTILdr, TSS2_Exception
from tpm2_pytss.constants import TSS2_RC

Send = Callable[[bytes], bytes]
"""Sends a whole command to the TPM and returns its whole response."""

Action = Callable[[bytes, Send], bytes]
"""Given a command and the way to the TPM, returns the response the caller shall see."""

_NO_SESSIONS: Final = 0x8001


def open_tcti(tcti: str) -> Any:
    """The connection that a TCTI string such as `device:/dev/tpmrm0` names. Close it, or use it in a `with`."""
    return TCTILdr.parse(tcti)


def response(code: int) -> bytes:
    """A response that consists of a response code."""
    return struct.pack(">HII", _NO_SESSIONS, 10, code)


def command_code(command: bytes) -> int:
    """What a command asks for (TPM_CC)."""
    return int.from_bytes(command[6:10], "big")


class ExchangeTcti(PyTCTI):  # type: ignore[misc] # tpm2_pytss has no type information
    """A TCTI over another one that sees whole exchanges: override `exchange`.

    The command is sent and its response waited for when the command is handed over, so that a caller cannot have
    two on their way. `TSS2_Exception` passes to the caller with its code; any other exception becomes
    TCTI_RC_GENERAL_FAILURE at a caller in C.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._inner = self._stack.enter_context(inner)
        self._response = b""

    def exchange(self, command: bytes, send: Send) -> bytes:
        """Answer `command`; `send` gives a command to the TPM."""
        return send(command)

    def close(self) -> None:
        """Close this connection and the one below. May be called twice."""
        self._stack.close()

    def do_transmit(self, command: bytes) -> None:
        """Called by the C library with a command."""
        self._response = b""
        self._response = self.exchange(command, self._send)

    def do_receive(self, timeout: int) -> bytes:  # noqa: ARG002 - the response is here already
        """Called by the C library for the response."""
        return self._response

    def do_cancel(self) -> None:
        """Cancel what the TPM is doing."""
        self._inner.cancel()

    def do_set_locality(self, locality: int) -> None:
        """Set the locality of what follows."""
        self._inner.set_locality(locality)

    def do_finalize(self) -> None:
        """Called by the C library, or by the end of a `with`."""
        self.close()

    def _send(self, command: bytes) -> bytes:
        self._inner.transmit(command)
        return bytes(self._inner.receive())


@dataclass(frozen=True, slots=True)
class Exchange:
    """A command and its response as they passed; the response is empty if none came."""

    command: bytes
    response: bytes

    @property
    def code(self) -> int:
        """What was asked for (TPM_CC)."""
        return command_code(self.command)

    @property
    def result(self) -> int | None:
        """The response code (TPM_RC), None if there is none."""
        return int.from_bytes(self.response[6:10], "big") if len(self.response) >= 10 else None


@dataclass(slots=True)
class Recording:
    """Everything that passed, in order."""

    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def traffic(self) -> bytes:
        """All bytes of the bus, both directions: what an interposer on the board would have."""
        return b"".join(part for one in self.exchanges for part in (one.command, one.response))

    @property
    def codes(self) -> tuple[int, ...]:
        """The code of every command, in order."""
        return tuple(one.code for one in self.exchanges)

    def count(self, code: int) -> int:
        """How often a command was sent."""
        return self.codes.count(code)


class RecordingTcti(ExchangeTcti):
    """Keeps every command and response in a `Recording`."""

    def __init__(self, inner: Any, recording: Recording) -> None:
        super().__init__(inner)
        self._recording = recording

    def exchange(self, command: bytes, send: Send) -> bytes:
        """Send it, and write it down whatever happens."""
        answer = b""
        try:
            answer = send(command)
        finally:
            self._recording.exchanges.append(Exchange(command, answer))
        return answer


# Faults


def refuse(code: int) -> Action:
    """Answer `code` without sending the command.

    The C library itself sends a command again for TPM_RC_RETRY, YIELDED and TESTING, up to five times in all: one
    such answer is never seen by its caller.
    """
    return lambda _command, _send: response(code)


def lose_reply(code: int) -> Action:
    """Let the TPM do it, then answer `code`."""

    def act(command: bytes, send: Send) -> bytes:
        send(command)
        return response(code)

    return act


def delay(seconds: float) -> Action:
    """Let the TPM take longer."""

    def act(command: bytes, send: Send) -> bytes:
        time.sleep(seconds)
        return send(command)

    return act


def truncate(length: int) -> Action:
    """Let the TPM do it, and hand over only the first `length` bytes of the response."""
    return lambda command, send: send(command)[:length]


def disconnect(*, executed: bool = False) -> Action:
    """Fail with an IO error, and with every later command too; with `executed` the TPM has done this one."""

    def act(command: bytes, send: Send) -> bytes:
        if executed:
            send(command)
        raise TSS2_Exception(TSS2_RC.TCTI_RC_IO_ERROR)

    return act


def call(function: Callable[[], None], *, executed: bool = False) -> Action:
    """Call `function` before the command is sent, or with `executed` before its response is handed over.

    It runs inside the C library: a test program may end itself there with `os.kill`, but not with an exception.
    """

    def act(command: bytes, send: Send) -> bytes:
        if executed:
            answer = send(command)
            function()
            return answer
        function()
        return send(command)

    return act


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens (`action`), to which commands (`code`, None for all), from the how-manieth on and how often.

    `at` counts from 1. `times` is None for ever.
    """

    action: Action
    code: int | None = None
    at: int = 1
    times: int | None = 1

    def strikes(self, number: int) -> bool:
        """Whether it happens to the command that is the `number`th of those it counts."""
        return self.at <= number and (self.times is None or number < self.at + self.times)


class FaultPlan:
    """Several faults, and where each of them stands. The first that strikes a command decides; all of them count."""

    def __init__(self, *faults: Fault) -> None:
        self._faults = faults
        self._seen = [0] * len(faults)
        self.struck = 0
        """How many commands met a fault."""

    def action_for(self, code: int) -> Action | None:
        """Count one command, and say what happens to it; None for nothing."""
        counted = [index for index, fault in enumerate(self._faults) if fault.code in {None, code}]
        for index in counted:
            self._seen[index] += 1
        actions = [self._faults[index].action for index in counted if self._faults[index].strikes(self._seen[index])]
        self.struck += bool(actions)
        return actions[0] if actions else None


class FaultingTcti(ExchangeTcti):
    """Does to commands what a `FaultPlan` says. After an IO error this connection stays dead; a new one works."""

    def __init__(self, inner: Any, plan: FaultPlan) -> None:
        super().__init__(inner)
        self._plan = plan
        self._dead = False

    def exchange(self, command: bytes, send: Send) -> bytes:
        """Pass the command on, unless the plan has something else for it."""
        if self._dead:
            raise TSS2_Exception(TSS2_RC.TCTI_RC_IO_ERROR)
        action = self._plan.action_for(command_code(command))
        try:
            return send(command) if action is None else action(command, send)
        except TSS2_Exception as error:
            self._dead = error.rc == TSS2_RC.TCTI_RC_IO_ERROR
            raise
