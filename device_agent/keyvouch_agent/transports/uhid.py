"""A USB HID security key made by the Linux kernel for us: /dev/uhid, and what is said through it.

Every event is a 32-bit type and a packed structure, in the machine's byte order (linux/uhid.h). The kernel hands out
packets of clients as UHID_OUTPUT and takes ours as UHID_INPUT2. Requests of the kernel that a security key has nothing
to say to are refused at once, or their callers would wait for five seconds. Not here: what packets mean (`hid_key`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections import deque
from collections.abc import Callable
from enum import IntEnum, unique
from pathlib import Path
from typing import Final

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.transports.command_runner import Journal
from keyvouch_agent.transports.ctaphid import PACKET

__all__ = [
    "MESSAGE_SIZE",
    "REPORT_DESCRIPTOR",
    "UHID",
    "UhidDevice",
    "UhidEvent",
    "create_event",
    "input_event",
    "open_uhid",
]

UHID: Final = Path("/dev/uhid")

REPORT_DESCRIPTOR: Final = bytes.fromhex(
    "06D0F1"  # usage page: FIDO alliance (0xF1D0)
    "0901"  # usage: CTAPHID
    "A101"  # collection: application
    "0920"  # usage: data in
    "150026FF0075089540"  # values 0 to 255, 8 bits each, 64 of them
    "8102"  # input: data, variable, absolute
    "0921"  # usage: data out
    "150026FF0075089540"
    "9102"  # output: data, variable, absolute
    "C0"  # end of the collection
)
"""CTAP 2.1 section 11.2.8.1."""


@unique
class UhidEvent(IntEnum):
    """enum uhid_event_type, without the legacy ones."""

    DESTROY = 1
    START = 2
    STOP = 3
    OPEN = 4
    CLOSE = 5
    OUTPUT = 6
    GET_REPORT = 9
    GET_REPORT_REPLY = 10
    CREATE2 = 11
    INPUT2 = 12
    SET_REPORT = 13
    SET_REPORT_REPLY = 14


_DATA_MAXIMUM: Final = 4096  # UHID_DATA_MAX
_TYPE: Final = struct.Struct("=I")
_CREATE2: Final = struct.Struct("=128s64s64sHHIIII4096s")  # name, phys, uniq, rd_size, bus, vendor, product, version,
#                                                            country, rd_data
_INPUT2: Final = struct.Struct("=H")  # size; the data follows
_OUTPUT: Final = struct.Struct("=4096sHB")  # data, size, rtype
_REQUEST: Final = struct.Struct("=I")  # the id, first in GET_REPORT and SET_REPORT
_GET_REPORT_REPLY: Final = struct.Struct("=IHH")  # id, err, size
_SET_REPORT_REPLY: Final = struct.Struct("=IH")  # id, err
_LONGEST_EVENT: Final = _TYPE.size + _CREATE2.size

MESSAGE_SIZE: Final = 1800
"""Bytes of a message that passes for certain, in 31 packets: the kernel keeps 32 events for us, and drops what comes
while they wait. A longer one may lose packets, and its client hears of it in an error. Lists of 16 credentials fit.
"""

_BURST_PACKETS: Final = 32
_BURST_SECONDS: Final = 0.01
"""No more packets than that in that time; a real key at full speed is slower still."""
_MOST_EVENTS: Final = 256

_BUS_USB: Final = 0x03
_VENDOR: Final = 0x1209  # pid.codes, for open hardware and software
_PRODUCT: Final = 0x0001  # its number for tests
_NAME: Final = b"Keyvouch authenticator"
_OPENED_OR_CLOSED: Final = {
    UhidEvent.START: "plugged-in",
    UhidEvent.STOP: "unplugged",
    UhidEvent.OPEN: "opened",
    UhidEvent.CLOSE: "closed",
}


def create_event(serial: str) -> bytes:
    """UHID_CREATE2: plug the key in."""
    size = len(REPORT_DESCRIPTOR)
    body = _CREATE2.pack(_NAME, b"", serial.encode("ascii"), size, _BUS_USB, _VENDOR, _PRODUCT, 1, 0, REPORT_DESCRIPTOR)
    return _TYPE.pack(UhidEvent.CREATE2) + body


def input_event(packet: bytes) -> bytes:
    """UHID_INPUT2: a packet from the key to its clients."""
    return _TYPE.pack(UhidEvent.INPUT2) + _INPUT2.pack(len(packet)) + packet


def open_uhid(path: Path = UHID) -> int:
    """Open the device for making devices. Raises `DeviceError` that says what to do about it."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise DeviceError(
            Reason.UNSUPPORTED,
            f"There is no {path}: the kernel does not offer virtual USB keys.",
            fix="Load its module with `sudo modprobe uhid`, or serve with --transport pcsc.",
        ) from None
    except PermissionError:
        raise DeviceError(
            Reason.AUTHENTICATOR_PERMISSION,
            f"You may not use {path}.",
            fix='Put KERNEL=="uhid", TAG+="uaccess" into /etc/udev/rules.d/70-uhid.rules, then run '
            "`sudo udevadm control --reload && sudo udevadm trigger /dev/uhid`, and log in again.",
            metadata={"path": str(path)},
        ) from None
    except OSError as error:
        raise DeviceError(
            Reason.DEVICE_FAILED,
            f"{path} cannot be opened: {error.strerror}.",
            fix="Look at the kernel's log (`dmesg`), or serve with --transport pcsc.",
            metadata={"path": str(path)},
        ) from error


class UhidDevice:
    """The kernel's side of one virtual key, over an open /dev/uhid. Belongs to one event loop."""

    def __init__(self, descriptor: int, *, journal: Journal, serial: str = "") -> None:
        self._descriptor = descriptor
        self._serial = serial
        self._journal = journal
        self._ended: asyncio.Future[None] | None = None
        self._outgoing: deque[bytes] = deque()
        self._pause: asyncio.TimerHandle | None = None
        self._burst_began = 0.0
        self._burst = 0

    async def run(self, receive: Callable[[bytes], None], left: Callable[[], None] = lambda: None) -> None:
        """Plug the key in and hand its packets to `receive`, until cancelled or until the kernel gives it up.

        `left` is called when the last client has closed the key.

        Raises `DeviceError(DEVICE_FAILED)` when the kernel does not go on with it.
        """
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._write(create_event(self._serial))
        loop.add_reader(self._descriptor, self._read, receive, left)
        try:
            await self._ended
        finally:
            loop.remove_reader(self._descriptor)
            if self._pause is not None:
                self._pause.cancel()
            self._destroy()

    def send(self, packet: bytes) -> None:
        """Hand a packet to the clients. Lost without a word when there is no key any more, as on a wire."""
        if self._ended is None or self._ended.done():
            return
        self._outgoing.append(packet)
        if self._pause is None:
            self._write_packets()

    def _write_packets(self) -> None:
        """Write what waits, no faster than a client can read: hidraw drops what does not fit in its 64 packets."""
        self._pause, loop = None, asyncio.get_running_loop()
        if loop.time() - self._burst_began >= _BURST_SECONDS:
            self._burst_began, self._burst = loop.time(), 0
        while self._outgoing and self._burst < _BURST_PACKETS:
            self._write(input_event(self._outgoing.popleft()))
            self._burst += 1
        if self._outgoing:
            self._pause = loop.call_later(_BURST_SECONDS, self._write_packets)

    def _read(self, receive: Callable[[bytes], None], left: Callable[[], None]) -> None:
        """Take all there is before anything is done about it: the kernel drops what does not fit in its 32 events."""
        events: list[bytes] = []
        try:
            while len(events) < _MOST_EVENTS and (event := os.read(self._descriptor, _LONGEST_EVENT)):
                events.append(event)
            failure = None if len(events) == _MOST_EVENTS else OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        except BlockingIOError:
            failure = None
        except OSError as error:
            failure = error
        for event in events:
            self._act_on(event, receive, left)
        if failure is not None:
            self._fail(failure)

    def _act_on(self, event: bytes, receive: Callable[[bytes], None], left: Callable[[], None]) -> None:
        if len(event) < _TYPE.size:
            return
        (kind,), body = _TYPE.unpack_from(event), event[_TYPE.size :]
        match kind:
            case UhidEvent.OUTPUT:
                packet = _packet_in(body)
                if packet is not None:
                    receive(packet)
            case UhidEvent.GET_REPORT if len(body) >= _REQUEST.size:
                reply = _GET_REPORT_REPLY.pack(*_REQUEST.unpack_from(body), errno.EIO, 0)
                self._write(_TYPE.pack(UhidEvent.GET_REPORT_REPLY) + reply)
            case UhidEvent.SET_REPORT if len(body) >= _REQUEST.size:
                reply = _SET_REPORT_REPLY.pack(*_REQUEST.unpack_from(body), errno.EIO)
                self._write(_TYPE.pack(UhidEvent.SET_REPORT_REPLY) + reply)
            case UhidEvent.START | UhidEvent.STOP | UhidEvent.OPEN | UhidEvent.CLOSE:
                self._journal(_OPENED_OR_CLOSED[UhidEvent(kind)])
                if kind == UhidEvent.CLOSE:
                    left()
            case _:
                pass

    def _write(self, event: bytes) -> None:
        try:
            os.write(self._descriptor, event)
        except OSError as error:
            self._fail(error)

    def _destroy(self) -> None:
        try:
            os.write(self._descriptor, _TYPE.pack(UhidEvent.DESTROY))
        except OSError:
            return  # the kernel has done it already

    def _fail(self, error: OSError) -> None:
        if self._ended is None or self._ended.done():
            return
        failure = DeviceError(
            Reason.DEVICE_FAILED,
            f"The kernel has given up the virtual key: {error.strerror}.",
            fix="Start the command again; if that does not help, look at the kernel's log (`dmesg`).",
        )
        failure.__cause__ = error
        self._ended.set_exception(failure)


def _packet_in(body: bytes) -> bytes | None:
    """The packet of a UHID_OUTPUT. hidraw leaves the number of the report, 0, in front of it."""
    if len(body) < _OUTPUT.size:
        return None
    data, size, _ = _OUTPUT.unpack_from(body)
    if size == PACKET + 1 and data[0] == 0:
        return bytes(data[1 : PACKET + 1])
    return bytes(data[:size]) if size == PACKET else None
