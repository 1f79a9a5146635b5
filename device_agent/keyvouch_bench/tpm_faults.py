"""Connections to a TPM on which things go wrong, at the command where a test wants it.

    plan = FaultPlan(Fault(lose_reply(0x101), code=TPM2_CC.Sign, at=2))
    with FaultingTcti(open_tcti(tpm.tcti), plan) as tcti, ESAPI(tcti) as esys:
        ...

The plan outlives a connection and goes on counting on the next. What can go wrong is an `Action`: `refuse`,
`lose_reply`, `delay`, `truncate`, `disconnect`, `call`, or a function of your own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tpm2_pytss import TSS2_Exception
from tpm2_pytss.constants import TSS2_RC

from keyvouch_bench.tpm_tcti import (
    HEADER,
    ExchangeTcti,
    Recording,
    RecordingTcti,
    Send,
    command_code,
    open_tcti,
    response,
)

Action = Callable[[bytes, Send], bytes]
"""Given a command and the way to the TPM, returns the response the caller shall see."""


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
    """Let the TPM do it, and hand over a response of only the first `length` bytes, with a header that agrees.

    libtss2 3.2 does not notice unless a session protects the response: it reads on in its own buffer, and its caller
    gets a success with rubbish in it. What is shorter than a header no TCTI hands over, and this fails as they do.
    """

    def act(command: bytes, send: Send) -> bytes:
        answer = send(command)[:length]
        if len(answer) < HEADER:
            raise TSS2_Exception(TSS2_RC.TCTI_RC_MALFORMED_RESPONSE)
        return answer[:2] + len(answer).to_bytes(4, "big") + answer[6:]

    return act


def disconnect(*, executed: bool = False) -> Action:
    """Fail with an IO error, and with every later command too; with `executed` the TPM has done this one.

    An `ESAPI` reports the IO error once, and after that TSS2_ESYS_RC_BAD_SEQUENCE: it is of no use any more.
    """

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


@dataclass(frozen=True, slots=True)
class FaultyTpm:
    """A TPM that is reached by its TCTI string, and how to reach it with faults on the way."""

    tcti: str

    def connections(self, plan: FaultPlan, recording: Recording | None = None) -> Callable[[], FaultingTcti]:
        """What opens connections that share the plan; `recording` gets what really reaches the TPM."""
        kept = Recording() if recording is None else recording
        return lambda: FaultingTcti(RecordingTcti(open_tcti(self.tcti), kept), plan)
