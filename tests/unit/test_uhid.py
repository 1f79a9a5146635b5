"""/dev/uhid, with a pair of sockets in the place of the kernel's device: one message is one event there too."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fido2.hid.base import parse_report_descriptor

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.transports.uhid import REPORT_DESCRIPTOR, UhidDevice, open_uhid

PACKET = bytes(range(64))
CREATE2, DESTROY, INPUT2 = 11, 1, 12
START, STOP, OPEN, CLOSE, OUTPUT, GET_REPORT, SET_REPORT = 2, 3, 4, 5, 6, 9, 13


class Kernel:
    """The other end of the file."""

    def __init__(self) -> None:
        self._theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._theirs.setblocking(False)
        self.ours = ours
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.events: list[str] = []
        self.device = UhidDevice(ours.fileno(), serial="0001", journal=lambda event, **_: self.events.append(event))
        self.left = 0
        self.running = asyncio.create_task(self.device.run(self.received.put_nowait, self._leave))

    def _leave(self) -> None:
        self.left += 1

    async def event(self) -> tuple[int, bytes]:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._theirs, 8192), 20)
        return struct.unpack("=I", data[:4])[0], data[4:]

    async def tell(self, kind: int, body: bytes = b"") -> None:
        await asyncio.get_running_loop().sock_sendall(self._theirs, struct.pack("=I", kind) + body)

    async def output(self, data: bytes) -> None:
        await self.tell(OUTPUT, struct.pack("=4096sHB", data, len(data), 1))

    def give_up(self) -> None:
        self._theirs.close()

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        self.ours.close()
        self._theirs.close()


@pytest.fixture
async def kernel() -> AsyncIterator[Kernel]:
    made = Kernel()
    yield made
    await made.close()


def test_the_report_descriptor_is_that_of_a_security_key():
    assert parse_report_descriptor(REPORT_DESCRIPTOR) == (64, 64)


async def test_the_key_is_plugged_in(kernel: Kernel):
    kind, body = await kernel.event()
    assert kind == CREATE2
    fields = struct.unpack("=128s64s64sHHIIII4096s", body)
    name, _, uniq, size, bus, vendor, product, _, _, descriptor = fields
    assert name.rstrip(b"\0") == b"Keyvouch authenticator"
    assert uniq.rstrip(b"\0") == b"0001"
    assert (bus, vendor, product) == (3, 0x1209, 1)
    assert descriptor[:size] == REPORT_DESCRIPTOR


async def test_packets_pass_both_ways(kernel: Kernel):
    await kernel.event()
    await kernel.output(b"\0" + PACKET)  # as hidraw hands it on, the number of the report in front
    await kernel.output(PACKET)
    assert await kernel.received.get() == PACKET
    assert await kernel.received.get() == PACKET
    kernel.device.send(PACKET)
    assert await kernel.event() == (INPUT2, struct.pack("=H", 64) + PACKET)


async def test_a_long_message_is_not_written_faster_than_clients_can_read(kernel: Kernel):
    await kernel.event()
    loop, messages = asyncio.get_running_loop(), [bytes([number]) + PACKET[1:] for number in range(129)]
    started = loop.time()
    for packet in messages:
        kernel.device.send(packet)
    assert [(await kernel.event())[1][2:] for _ in messages] == messages
    assert loop.time() - started >= 4 * 0.01  # bursts of 32


async def test_packets_that_come_all_at_once_are_all_taken(kernel: Kernel):
    await kernel.event()
    messages = [bytes([number]) + PACKET[1:] for number in range(129)]
    for packet in messages:
        await kernel.output(packet)
    assert [await kernel.received.get() for _ in messages] == messages


@pytest.mark.parametrize("data", [b"", b"\0", PACKET[:63], b"\1" + PACKET, PACKET + PACKET])
async def test_reports_that_are_no_packets_are_dropped(kernel: Kernel, data: bytes):
    await kernel.event()
    await kernel.output(data)
    await kernel.output(PACKET)
    assert await kernel.received.get() == PACKET
    assert kernel.received.empty()


async def test_reports_that_are_asked_for_and_set_are_refused_at_once(kernel: Kernel):
    await kernel.event()
    await kernel.tell(GET_REPORT, struct.pack("=IBB", 77, 0, 0))
    assert await kernel.event() == (10, struct.pack("=IHH", 77, 5, 0))
    await kernel.tell(SET_REPORT, struct.pack("=IBBH", 78, 0, 0, 3) + b"abc")
    assert await kernel.event() == (14, struct.pack("=IH", 78, 5))


async def test_what_the_kernel_tells_is_told_on(kernel: Kernel):
    await kernel.event()
    for kind in (START, OPEN, CLOSE, STOP):
        await kernel.tell(kind, bytes(4372))
    await kernel.output(PACKET)
    await kernel.received.get()
    assert kernel.events == ["plugged-in", "opened", "closed", "unplugged"]


async def test_the_last_client_that_goes_is_told_on(kernel: Kernel):
    await kernel.tell(OPEN)
    await kernel.output(PACKET)
    await kernel.received.get()
    assert kernel.left == 0
    await kernel.tell(CLOSE)
    await kernel.output(PACKET)
    await kernel.received.get()
    assert kernel.left == 1


@pytest.mark.parametrize("event", [b"\1", struct.pack("=I", 999), struct.pack("=I", OUTPUT), struct.pack("=IB", 9, 1)])
async def test_events_that_are_none_are_ignored(kernel: Kernel, event: bytes):
    await kernel.event()
    await asyncio.get_running_loop().sock_sendall(kernel._theirs, event)
    await kernel.output(PACKET)
    assert await kernel.received.get() == PACKET


async def test_the_key_is_unplugged_at_the_end(kernel: Kernel):
    await kernel.event()
    kernel.running.cancel()
    await asyncio.gather(kernel.running, return_exceptions=True)
    assert await kernel.event() == (DESTROY, b"")
    kernel.device.send(PACKET)  # lost, as on a wire


async def test_a_kernel_that_gives_the_key_up_is_an_error_that_says_so(kernel: Kernel):
    await kernel.event()
    kernel.give_up()
    with pytest.raises(DeviceError) as failure:
        await asyncio.wait_for(kernel.running, 20)
    assert failure.value.reason is Reason.DEVICE_FAILED


def test_a_kernel_without_uhid_is_told_from_one_that_does_not_let_us(tmp_path: Path):
    with pytest.raises(DeviceError) as missing:
        open_uhid(tmp_path / "uhid")
    assert missing.value.reason is Reason.UNSUPPORTED
    assert "modprobe uhid" in missing.value.fix
    with pytest.raises(DeviceError) as failed:
        open_uhid(tmp_path)  # a directory
    assert failed.value.reason is Reason.DEVICE_FAILED


def test_a_device_that_may_not_be_used_comes_with_the_rule_to_add(tmp_path: Path):
    locked = tmp_path / "uhid"
    locked.touch(0o000)
    if os.geteuid() == 0:  # root may open everything: be somebody else for a moment
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(DeviceError) as failure:
            open_uhid(locked)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert failure.value.reason is Reason.AUTHENTICATOR_PERMISSION
    assert 'KERNEL=="uhid"' in failure.value.fix
