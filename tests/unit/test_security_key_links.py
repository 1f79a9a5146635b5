"""Keys that hang, keep alive for ever, break the protocol or answer without end: whoever waits for them is let go."""

from __future__ import annotations

import logging
import os
import struct
import threading
import tty
from collections.abc import Callable, Iterator, Sequence
from threading import Event
from typing import Any

import pytest
from fido2.ctap import STATUS, CtapError
from fido2.hid import CTAPHID
from fido2.hid.base import CtapHidConnection, HidDescriptor
from fido2.pcsc import CtapPcscDevice

from keyvouch.errors import DeviceError, Reason
from keyvouch_client.security_keys.hid import OtherHidSource
from keyvouch_client.security_keys.links import HidLink, Patience, PatientCard, PatientHid
from keyvouch_client.security_keys.standing import read_standing

CHANNEL, BROADCAST = bytes.fromhex("00000007"), bytes.fromhex("ffffffff")
OTHER = bytes.fromhex("00000008")
DESCRIPTOR = HidDescriptor("/dev/hidraw0", 0x1050, 0x0407, 64, 64, "Bad Key", None)
PATIENCE = Patience(silence=10, working=30, person=120, cancelled=5, busy=10)
PROCESSING, UPNEEDED = bytes([STATUS.PROCESSING]), bytes([STATUS.UPNEEDED])


def packet(channel: bytes, command: int, data: bytes) -> bytes:
    return (channel + struct.pack(">BH", 0x80 | command, len(data)) + data).ljust(64, b"\0")


DONE = packet(CHANNEL, CTAPHID.CBOR, b"\0")


def init_answer(nonce: bytes) -> bytes:
    return packet(BROADCAST, CTAPHID.INIT, nonce + CHANNEL + bytes([2, 0, 0, 0, 0x04]))


class BadKey(CtapHidConnection):
    """The key's end: opens a channel as it should, then says what `says` gives, a packet each 0.1 s of a made-up clock.

    None is silence.
    """

    def __init__(self, says: Callable[[], bytes | None]) -> None:
        self.now = 0.0
        self.says = says
        self.written: list[bytes] = []
        self.pending: list[bytes] = []
        self.first: list[bytes] = []

    def write_packet(self, data: bytes) -> None:
        self.written.append(data)
        if data[:5] == BROADCAST + bytes([0x80 | CTAPHID.INIT]):
            self.pending = [*self.first, init_answer(data[7:15])]

    def readable(self, seconds: float) -> bool:
        if not self.pending and (said := self.says()) is not None:
            self.pending.append(said)
        self.now += 0.1 if self.pending else seconds
        return bool(self.pending)

    def read_packet(self) -> bytes:
        return self.pending.pop(0)

    def close(self) -> None:
        """Nothing is open."""

    def link(self) -> HidLink:
        patient = PatientHid(self, self.readable, patience=PATIENCE, monotonic=lambda: self.now)
        return HidLink(DESCRIPTOR, patient)


def commands(key: BadKey) -> list[int]:
    return [data[4] & 0x7F for data in key.written]


def test_a_key_that_answers_control() -> None:
    key = BadKey(lambda: packet(CHANNEL, CTAPHID.CBOR, b"\0"))
    link = key.link()
    assert link.capabilities == 0x04
    for _ in range(50):
        assert link.call(CTAPHID.CBOR, b"\x04") == b"\0"
        key.now += 60


def test_a_key_that_falls_silent_is_gone() -> None:
    key = BadKey(lambda: None)
    with pytest.raises(OSError, match="does not answer"):
        key.link().call(CTAPHID.CBOR, b"\x04")
    assert key.now < 11


def test_a_key_that_works_for_ever_is_gone() -> None:
    key = BadKey(lambda: packet(CHANNEL, CTAPHID.KEEPALIVE, PROCESSING))
    with pytest.raises(OSError, match="does not answer"):
        key.link().call(CTAPHID.CBOR, b"\x01")
    assert 29 < key.now < 32


def test_a_key_that_waits_for_a_person_has_more_time_and_not_for_ever() -> None:
    key = BadKey(lambda: packet(CHANNEL, CTAPHID.KEEPALIVE, UPNEEDED))
    with pytest.raises(OSError, match="does not answer"):
        key.link().call(CTAPHID.CBOR, b"\x01")
    assert 119 < key.now < 122


def test_a_key_that_does_not_stop_when_told_to_is_gone() -> None:
    key = BadKey(lambda: packet(CHANNEL, CTAPHID.KEEPALIVE, UPNEEDED))
    cancelled = Event()
    cancelled.set()
    with pytest.raises(OSError, match="does not answer"):
        key.link().call(CTAPHID.CBOR, b"\x01", cancelled)
    assert key.now < 7
    assert CTAPHID.CANCEL in commands(key)


def test_a_key_that_stops_when_told_to_control() -> None:
    key = BadKey(lambda: None)

    def says() -> bytes:
        stopped = CTAPHID.CANCEL in commands(key)
        if stopped:
            return packet(CHANNEL, CTAPHID.CBOR, bytes([CtapError.ERR.KEEPALIVE_CANCEL]))
        return packet(CHANNEL, CTAPHID.KEEPALIVE, UPNEEDED)

    key.says = says
    cancelled = Event()
    cancelled.set()
    assert key.link().call(CTAPHID.CBOR, b"\x01", cancelled) == bytes([CtapError.ERR.KEEPALIVE_CANCEL])


def test_a_key_that_is_busy_for_ever_is_told_as_busy() -> None:
    key = BadKey(lambda: packet(CHANNEL, CTAPHID.ERROR, bytes([CtapError.ERR.CHANNEL_BUSY])))
    patient = PatientHid(
        key, key.readable, patience=Patience(busy=0.25), monotonic=lambda: key.now
    )  # python-fido2 waits 0.1 s of real time in between
    with pytest.raises(CtapError) as caught:
        HidLink(DESCRIPTOR, patient).call(CTAPHID.CBOR, b"\x04", _set())
    assert caught.value.code == CtapError.ERR.CHANNEL_BUSY
    link = HidLink(DESCRIPTOR, patient)
    with pytest.raises(CtapError) as caught:
        link.call(CTAPHID.CBOR, b"\x04")
    assert caught.value.code == CtapError.ERR.CHANNEL_BUSY


def test_a_busy_key_writes_nothing_on_the_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a program that has set up no logging
    logging.getLogger("other").warning("control")
    said = iter([bytes([CtapError.ERR.CHANNEL_BUSY])] * 2)
    key = BadKey(lambda: packet(CHANNEL, CTAPHID.ERROR, busy) if (busy := next(said, b"")) else DONE)
    assert key.link().call(CTAPHID.CBOR, b"\x04") == b"\0"
    assert capsys.readouterr().err == "control\n"


def _set() -> Event:
    event = Event()
    event.set()
    return event


def test_what_the_key_says_to_another_program_is_passed_over() -> None:
    said = iter([packet(OTHER, CTAPHID.CBOR, b"\x2e"), packet(CHANNEL, CTAPHID.CBOR, b"\0")])
    key = BadKey(lambda: next(said, None))
    key.first = [init_answer(b"another!"), packet(OTHER, CTAPHID.KEEPALIVE, UPNEEDED)]
    assert key.link().call(CTAPHID.CBOR, b"\x04") == b"\0"


@pytest.mark.parametrize(
    "said",
    [
        [packet(CHANNEL, CTAPHID.CBOR, bytes(100))[:64], (CHANNEL + b"\x05").ljust(64, b"\0")],
        [packet(CHANNEL, CTAPHID.KEEPALIVE, b"\x77")],
        [CHANNEL],
        [b"\xff"],
        [packet(CHANNEL, CTAPHID.CBOR, b"")[:5]],
    ],
)
def test_a_key_that_breaks_the_protocol_is_gone(said: Sequence[bytes]) -> None:
    packets = iter(said)
    with pytest.raises(OSError, match=r"protocol|answer"):
        BadKey(lambda: next(packets, None)).link().call(CTAPHID.CBOR, b"\x04")


def test_another_error_of_the_protocol_stays_what_it_is() -> None:
    key = BadKey(lambda: packet(CHANNEL, CTAPHID.ERROR, bytes([CtapError.ERR.INVALID_LENGTH])))
    with pytest.raises(CtapError) as caught:
        key.link().call(CTAPHID.CBOR, b"\x04")
    assert caught.value.code == CtapError.ERR.INVALID_LENGTH


@pytest.fixture
def node() -> Iterator[tuple[int, str]]:
    """A device file with somebody at its other end: a terminal that changes nothing."""
    here, there = os.openpty()
    tty.setraw(there)
    try:
        yield here, os.ttyname(there)
    finally:
        os.close(here)
        os.close(there)


@pytest.mark.parametrize("answer", [b"", b"\0" * 3, CHANNEL + b"\x02"])
def test_a_key_that_opens_no_channel_is_told_with_words(node: tuple[int, str], answer: bytes) -> None:
    here, path = node

    def respond() -> None:
        asked = os.read(here, 65)[1:]
        os.write(here, packet(BROADCAST, CTAPHID.INIT, asked[7:15] + answer)[: 15 + len(answer)])

    descriptor = HidDescriptor(path, 0x1050, 0x0407, 64, 64, "Bad Key", None)
    (key,) = OtherHidSource(lambda: [descriptor]).scan(())
    thread = threading.Thread(target=respond)
    thread.start()
    with pytest.raises(DeviceError) as caught:
        read_standing(key)
    thread.join(20)
    assert caught.value.reason is Reason.AUTHENTICATOR_REMOVED
    assert caught.value.fix


# cards


class BadCard:
    """pyscard's connection to a card with the applet, which then says what `says` gives."""

    def __init__(self, says: Callable[[list[int]], tuple[list[int], int, int]]) -> None:
        self.now = 0.0
        self.says = says
        self.sent: list[list[int]] = []
        self.good = True

    def connect(self) -> None:
        """The card is there."""

    def transmit(self, apdu: list[int], _protocol: Any = None) -> tuple[list[int], int, int]:
        self.now += 0.1
        self.sent.append(apdu)
        if self.good:
            return [0], 0x90, 0x00
        return self.says(apdu)

    def device(self) -> CtapPcscDevice:
        patient: Any = PatientCard(self, patience=PATIENCE, monotonic=lambda: self.now)
        device = CtapPcscDevice(patient, "Reader")
        self.good = False
        return device


def test_a_card_that_answers_control() -> None:
    card = BadCard(lambda _apdu: ([0, 1], 0x90, 0x00))
    device = card.device()
    for _ in range(50):
        assert device.call(CTAPHID.CBOR, b"\x04") == b"\0\x01"
        card.now += 60


@pytest.mark.parametrize(("status", "least", "most"), [(1, 29, 32), (2, 119, 122)])
def test_a_card_that_works_for_ever_is_gone(status: int, least: float, most: float) -> None:
    card = BadCard(lambda _apdu: ([status], 0x91, 0x00))
    device = card.device()
    cancelled = _Never()
    with pytest.raises(OSError, match="does not answer"):
        device.call(CTAPHID.CBOR, b"\x04", cancelled)
    assert least < card.now < most


class _Never(Event):
    """Never set, and waits for nothing."""

    def wait(self, timeout: float | None = None) -> bool:
        return False


def test_a_card_that_does_not_stop_when_told_to_is_gone() -> None:
    card = BadCard(lambda _apdu: ([2], 0x91, 0x00))
    device = card.device()
    with pytest.raises(OSError, match="does not answer"):
        device.call(CTAPHID.CBOR, b"\x04", _set())
    assert card.now < 7
    assert card.sent[-1][:3] == [0x80, 0x11, 0x11]


def test_a_card_that_answers_without_end_is_gone() -> None:
    card = BadCard(lambda _apdu: ([0] * 256, 0x61, 0x00))
    device = card.device()
    with pytest.raises(OSError, match="without end"):
        device.call(CTAPHID.CBOR, b"\x04")
