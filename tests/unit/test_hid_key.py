"""The virtual USB key with python-fido2's CtapHidDevice at the other end of the wire."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from fido2.ctap import STATUS, CtapError
from fido2.hid import CAPABILITY, CTAPHID, CtapHidDevice

from keyvouch_agent.authenticator.ports import Presence
from keyvouch_agent.transports.presence import DeferredPresence
from support.transport_bench import (
    ASK,
    CRASH,
    SECONDS,
    HidBench,
    LoopThread,
    ScriptedAuthenticator,
    SlowUser,
    loop_thread,
)


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    with loop_thread() as made:
        yield made


class Stage:
    def __init__(self, thread: LoopThread, *, u2f: bool = True) -> None:
        self.authenticator = ScriptedAuthenticator(u2f=u2f)
        self.user = SlowUser()
        deferred = DeferredPresence(self.user, thread.loop.time)
        self.bench = HidBench(thread, self.authenticator, self.user, u2f_presence=deferred)
        self.device = self.bench.device()


@pytest.fixture
def stage(thread: LoopThread) -> Iterator[Stage]:
    made = Stage(thread)
    yield made
    made.bench.close()


def code_of(call: object, *arguments: object) -> CtapError.ERR | int:
    with pytest.raises(CtapError) as refusal:
        call(*arguments)  # type: ignore[operator]
    return refusal.value.code


def test_the_device_says_what_it_is(stage: Stage):
    assert stage.device.version == 2
    assert stage.device.device_version == (1, 2, 3)
    assert stage.device.capabilities == CAPABILITY.WINK | CAPABILITY.CBOR


def test_a_key_without_u2f_says_so(thread: LoopThread):
    stage = Stage(thread, u2f=False)
    assert stage.device.capabilities == CAPABILITY.WINK | CAPABILITY.CBOR | CAPABILITY.NMSG
    assert code_of(stage.device.call, CTAPHID.MSG, b"\0\3\0\0") == CtapError.ERR.INVALID_COMMAND
    stage.bench.close()


@pytest.mark.parametrize("length", [1, 57, 58, 1000, 7609])
def test_requests_and_responses_of_any_length_pass(stage: Stage, length: int):
    request = b"\x04" + bytes(i % 251 for i in range(length - 1))
    assert stage.device.call(CTAPHID.CBOR, request) == b"\x00" + request[1:]
    assert stage.device.ping(request) == request


def test_wink_and_lock(stage: Stage):
    stage.device.wink()
    stage.device.lock(1)
    stage.device.lock(0)
    assert stage.bench.events == ["wink"]


def test_a_client_hears_that_the_user_is_needed(stage: Stage):
    heard = []

    def on_keepalive(status: STATUS) -> None:
        heard.append(status)
        if status is STATUS.UPNEEDED:
            stage.user.answer(Presence.GRANTED)

    assert stage.device.call(CTAPHID.CBOR, ASK, on_keepalive=on_keepalive) == b"\x00"
    assert heard[-1] is STATUS.UPNEEDED


def test_a_client_cancels(stage: Stage):
    cancel = threading.Event()
    assert stage.device.call(CTAPHID.CBOR, ASK, cancel, lambda _: cancel.set()) == b"\x2d"
    assert stage.user.withdrawn.is_set()
    assert stage.device.call(CTAPHID.CBOR, b"\x04") == b"\x00"


class RawClient:
    """A client that looks at single packets, and drops those of other channels as clients of a hidraw must."""

    def __init__(self, stage: Stage) -> None:
        self._wire = stage.bench.wire()
        self._channel = b"\xff" * 4
        self.send(CTAPHID.INIT, b"a nonce.")
        self._channel = self.receive()[1][8:12]

    def send(self, command: int, data: bytes) -> None:
        self._wire.write_packet((self._channel + bytes([0x80 | command, 0, len(data)]) + data).ljust(64, b"\0"))

    def receive(self) -> tuple[int, bytes]:
        """The next message that is no keep-alive."""
        while (packet := self._wire.read_packet())[:4] != self._channel or packet[4] == 0x80 | CTAPHID.KEEPALIVE:
            pass
        return packet[4] & 0x7F, packet[7 : 7 + packet[6]]


def test_a_second_client_finds_it_busy_and_the_first_gets_its_answer(stage: Stage):
    first, second = RawClient(stage), RawClient(stage)
    first.send(CTAPHID.CBOR, ASK)
    stage.user.asked.get(timeout=SECONDS)
    second.send(CTAPHID.CBOR, b"\x04")
    assert second.receive() == (CTAPHID.ERROR, bytes([CtapError.ERR.CHANNEL_BUSY]))
    stage.user.answer(Presence.GRANTED)
    assert first.receive() == (CTAPHID.CBOR, b"\x00")
    second.send(CTAPHID.CBOR, b"\x04")
    assert second.receive() == (CTAPHID.CBOR, b"\x00")


def test_init_ends_a_command_and_leaves_the_key_ready(stage: Stage):
    client = RawClient(stage)
    client.send(CTAPHID.CBOR, ASK)
    stage.user.asked.get(timeout=SECONDS)
    client.send(CTAPHID.INIT, b"freshnow")
    command, data = client.receive()
    assert (command, data[:8]) == (CTAPHID.INIT, b"freshnow")
    client.send(CTAPHID.CBOR, b"\x04")
    assert client.receive() == (CTAPHID.CBOR, b"\x00")


def test_a_fault_is_an_answer(stage: Stage):
    assert stage.device.call(CTAPHID.CBOR, CRASH) == b"\x7f"
    assert stage.device.call(CTAPHID.CBOR, b"\x04") == b"\x00"


# U2F


def u2f(device: CtapHidDevice, apdu: bytes) -> bytes:
    return device.call(CTAPHID.MSG, apdu)


def test_u2f_answers_at_once_and_grants_when_the_user_was_there(stage: Stage):
    assert u2f(stage.device, b"\x00\x03\x00\x00\x00\x00\x00") == b"U2F_V2\x90\x00"
    request = b"\x00\x02\x03\x00\x00\x00\x03abc\x00\x00"
    assert u2f(stage.device, request) == b"\x69\x85"
    stage.user.asked.get(timeout=SECONDS)
    assert u2f(stage.device, request) == b"\x69\x85"
    stage.user.answer(Presence.GRANTED)
    while (answer := u2f(stage.device, request)) == b"\x69\x85":
        pass
    assert answer == b"\x03\x00abc\x90\x00"
    assert stage.user.asked.empty()


@pytest.mark.parametrize(
    ("apdu", "word"),
    [
        (b"\x00\x03", "6700"),
        (b"\x00\x03\x00\x00\x05a", "6700"),
        (b"\x80\x03\x00\x00", "6e00"),
        (b"\x00\x07\0\0", "6d00"),
    ],
)
def test_u2f_messages_that_are_none_get_their_word(stage: Stage, apdu: bytes, word: str):
    assert u2f(stage.device, apdu).hex() == word


def test_unplugging_ends_what_runs(thread: LoopThread):
    stage = Stage(thread)
    client = RawClient(stage)
    client.send(CTAPHID.CBOR, ASK)
    stage.user.asked.get(timeout=SECONDS)
    stage.bench.close()
    assert stage.user.withdrawn.is_set()


def test_a_client_that_is_gone_waits_for_nobody(stage: Stage):
    answered: list[bytes] = []
    client = threading.Thread(target=lambda: answered.append(stage.device.call(CTAPHID.CBOR, ASK)))
    client.start()
    stage.user.asked.get(timeout=SECONDS)
    stage.bench.leave()
    client.join(SECONDS)
    assert answered == [b"\x2d"]
    stage.bench.leave()  # nothing runs: nothing happens
    assert stage.device.ping(b"next") == b"next"  # control
