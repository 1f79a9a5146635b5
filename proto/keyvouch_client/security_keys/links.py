"""Connections to keys that end: with a key that falls silent, keeps alive for ever, or answers without end.

python-fido2 waits for as long as a key lets it, and whoever waits for python-fido2 cannot be interrupted. So what it
speaks through is watched here: a key gets some time for each of its answers, more while it waits for a person, and
little once it was told to stop. After that it counts as gone (`OSError`), as one that was pulled out does. What is not
here: what keys say.
"""

from __future__ import annotations

import errno
import logging
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Any, Final, TypeVar

from fido2.ctap import STATUS, CtapDevice, CtapError
from fido2.hid import CTAPHID, ConnectionFailure, CtapHidDevice
from fido2.hid.base import CtapHidConnection, HidDescriptor

__all__ = ["HidLink", "Patience", "PatientCard", "PatientHid"]

_FIRST_PACKET: Final = 0x80
_COMMAND: Final = 4
"""Where a packet has its command (CTAP 2.1 section 11.2.4)."""
_KEEPALIVE: Final = _FIRST_PACKET | CTAPHID.KEEPALIVE
_ERROR: Final = _FIRST_PACKET | CTAPHID.ERROR
_CANCEL: Final = _FIRST_PACKET | CTAPHID.CANCEL
_INIT: Final = _FIRST_PACKET | CTAPHID.INIT
_STATUS: Final = 7
"""Where a packet of one byte has that."""
_NONCE: Final = slice(7, 15)

_GET_RESPONSE: Final = b"\x00\xc0"
_NFCCTAP_GETRESPONSE: Final = b"\x80\x11"
_NFCCTAP_CANCEL: Final = 0x11
_UPDATE: Final = (0x91, 0x00)
_T = TypeVar("_T")

_LONGEST_ANSWER: Final = 1 << 16
"""Bytes of an answer that a card gives in pieces."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. A key that works says so every 0.1 s (CTAP 2.1 section 11.2.9.2.1); some make a key pair in silence."""

    silence: float = 10.0
    """Without any word."""
    working: float = 30.0
    """For one command while the key works."""
    person: float = 120.0
    """For one command that waits for a person: longer than anybody lets a person wait."""
    cancelled: float = 5.0
    """Once it was told to stop."""
    busy: float = 10.0
    """While it is busy with another client."""


class _Deadline:
    """When one command has to be answered."""

    def __init__(self, patience: Patience, monotonic: Callable[[], float]) -> None:
        self._patience = patience
        self._monotonic = monotonic
        self._stops = float("inf")
        self.begin()

    def begin(self) -> None:
        """A command is sent."""
        self._began = self._monotonic()
        self._end = self._began + self._patience.working
        self._stops = float("inf")

    def waits_for_person(self) -> None:
        """The key says that it waits for somebody."""
        self._end = self._began + self._patience.person

    def cancel(self) -> None:
        """The key is told to stop; a second time changes nothing."""
        self._stops = min(self._stops, self._monotonic() + self._patience.cancelled)

    def left(self) -> float:
        """Seconds for the next word. Raises `OSError` where there are none."""
        left = min(self._end, self._stops) - self._monotonic()
        if left <= 0:
            raise _silent()
        return min(left, self._patience.silence)


class PatientHid(CtapHidConnection):
    """A HID connection whose reads end. `readable` waits up to some seconds for a packet and says whether one came."""

    def __init__(
        self,
        connection: CtapHidConnection,
        readable: Callable[[float], bool],
        *,
        patience: Patience | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._readable = readable
        self._patience = patience or Patience()
        self._monotonic = monotonic
        self._deadline = _Deadline(self._patience, monotonic)
        self._answered = True
        self._asked = b""
        self._busy_since: float | None = None

    def write_packet(self, data: bytes) -> None:
        """Pass a packet on. The first after an answer begins a command."""
        if data[_COMMAND] == _CANCEL:
            self._deadline.cancel()
        elif self._answered:
            self._answered = False
            self._asked = data
            self._deadline.begin()
        self._connection.write_packet(data)

    def read_packet(self) -> bytes:
        """The next packet. Raises `OSError` where none comes in time, EBUSY where another client has the key.

        The kernel hands the answers to one program to every other, too; those are passed over.
        """
        packet = b""
        while not packet or self._is_for_another(packet):
            if not self._readable(self._deadline.left()):
                raise _silent()
            packet = bytes(self._connection.read_packet())
            if not packet:
                raise OSError(errno.ENODEV, "the key is gone")
        kind, status = packet[_COMMAND : _COMMAND + 1], packet[_STATUS : _STATUS + 1]
        if kind == bytes([_KEEPALIVE]):
            if status == bytes([STATUS.UPNEEDED]):
                self._deadline.waits_for_person()
        elif kind:
            self._answered = True
            self._note_busy(kind + status == bytes([_ERROR, CtapError.ERR.CHANNEL_BUSY]))
        return packet

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _is_for_another(self, packet: bytes) -> bool:
        """On the channel where all programs ask for theirs, they know their answers by a number they have drawn."""
        if packet[:_COMMAND] != self._asked[:_COMMAND]:
            return True
        is_init = packet[_COMMAND : _COMMAND + 1] == bytes([_INIT]) and self._asked[_COMMAND] == _INIT
        return is_init and packet[_NONCE] != self._asked[_NONCE]

    def _note_busy(self, is_busy: bool) -> None:
        """python-fido2 tries again and again while a key is busy."""
        now = self._monotonic()
        if not is_busy:
            self._busy_since = None
            return
        self._busy_since = now if self._busy_since is None else self._busy_since
        if now - self._busy_since >= self._patience.busy:
            self._busy_since = None
            raise OSError(errno.EBUSY, "another program uses the key")


class HidLink(CtapDevice):
    """A key on HID, which fails as every other device does: with `OSError` where it is away or breaks the protocol."""

    def __init__(self, descriptor: HidDescriptor, connection: CtapHidConnection) -> None:
        _keep_off_the_screen(logging.getLogger("fido2.hid"))
        self._connection = connection
        self._device = self._in_words(lambda: CtapHidDevice(descriptor, connection))

    @property
    def capabilities(self) -> int:
        """Those of the key."""
        return int(self._device.capabilities)

    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: Event | None = None,
        on_keepalive: Callable[[STATUS], None] | None = None,
    ) -> bytes:
        """Pass a command on."""
        return self._in_words(lambda: bytes(self._device.call(cmd, data, event, on_keepalive)))

    def close(self) -> None:
        """Close the connection; one that cannot be closed is away already."""
        with suppress(OSError):
            self._connection.close()

    @classmethod
    def list_devices(cls) -> Iterator[CtapDevice]:
        """None of its own kind."""
        return iter(())

    @staticmethod
    def _in_words(act: Callable[[], _T]) -> _T:
        try:
            return act()
        except (ConnectionFailure, ValueError, LookupError, struct.error) as error:
            raise OSError(errno.EPROTO, f"the key breaks the protocol: {error}") from error
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise CtapError(CtapError.ERR.CHANNEL_BUSY) from error
            raise


class PatientCard:
    """pyscard's connection to a card, whose commands and answers end."""

    def __init__(
        self,
        connection: Any,
        *,
        patience: Patience | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._deadline = _Deadline(patience or Patience(), monotonic)
        self._received = 0

    def transmit(self, apdu: list[int], protocol: int | None = None) -> tuple[list[int], int, int]:
        """Send an APDU. Raises `OSError` where the command it belongs to takes too long, or its answer is too long."""
        head = bytes(apdu[:2])
        if head == _NFCCTAP_GETRESPONSE and apdu[2] == _NFCCTAP_CANCEL:
            self._deadline.cancel()
        if head not in (_GET_RESPONSE, _NFCCTAP_GETRESPONSE):
            self._deadline.begin()
            self._received = 0
        self._deadline.left()
        data, *status = self._connection.transmit(apdu, protocol)
        self._received += len(data)
        if self._received > _LONGEST_ANSWER:
            raise OSError(errno.EPROTO, "the card answers without end")
        if tuple(status) == _UPDATE and data[:1] == [STATUS.UPNEEDED]:
            self._deadline.waits_for_person()
        return data, status[0], status[1]

    def __getattr__(self, name: str) -> Any:
        """Everything else is the connection's own."""
        return getattr(self._connection, name)


def _keep_off_the_screen(logger: logging.Logger) -> None:
    """Where no program has set up logging Python prints warnings, and the library has one for each busy moment."""
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _silent() -> OSError:
    """A key that does not answer in time."""
    return OSError(errno.ETIMEDOUT, "the key does not answer")
