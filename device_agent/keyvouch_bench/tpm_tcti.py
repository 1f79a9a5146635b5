"""Connections to a TPM that see what passes: TCTIs over another TCTI, written in Python.

They can be stacked, and each is for one connection. What has to outlive a connection is handed in, as the `Recording`:
it may serve several, one after the other.

    recording = Recording()
    with RecordingTcti(open_tcti(tpm.tcti), recording) as tcti, ESAPI(tcti) as esys:
        ...
    assert secret not in recording.traffic

The variable `tcti` must live as long as the `ESAPI` over it: the C library keeps a bare pointer to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from tpm2_pytss import PyTCTI, TCTILdr

Send = Callable[[bytes], bytes]
"""Sends a whole command to the TPM and returns its whole response."""

_NO_SESSIONS: Final = 0x8001

HEADER: Final = 10
"""Bytes of a command's or a response's header: tag, size, code (Part 1 section 16)."""


def open_tcti(tcti: str) -> Any:
    """The connection that a TCTI string such as `device:/dev/tpmrm0` names. Close it, or use it in a `with`."""
    return TCTILdr.parse(tcti)


def response(code: int) -> bytes:
    """A response that consists of a response code."""
    return struct.pack(">HII", _NO_SESSIONS, HEADER, code)


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
        return int.from_bytes(self.response[6:10], "big") if len(self.response) >= HEADER else None


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
