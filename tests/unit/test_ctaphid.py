"""CTAPHID, packet by packet (CTAP 2.1 section 11.2). Time is a number here, so nothing waits."""

from __future__ import annotations

import itertools

import pytest

from keyvouch_agent.transports.ctaphid import (
    BROADCAST,
    KEEPALIVE_SECONDS,
    LONGEST_MESSAGE,
    MAX_CHANNELS,
    PACKET,
    TRANSACTION_SECONDS,
    Capability,
    CtapHid,
    HidCommand,
    HidError,
    Reaction,
)

NONCE = bytes(range(8))
CAPABILITIES = Capability.WINK | Capability.CBOR


def packets(channel: int, command: int, data: bytes = b"", length: int | None = None) -> list[bytes]:
    """A message as a client would send it; written here again, apart from the code that is tested."""
    size = len(data) if length is None else length
    head = channel.to_bytes(4, "big")
    made = [head + bytes([0x80 | command]) + size.to_bytes(2, "big") + data[:57]]
    for number, start in enumerate(range(57, len(data), 59)):
        made.append(head + bytes([number]) + data[start : start + 59])
    return [packet.ljust(PACKET, b"\0") for packet in made]


def error(channel: int, code: HidError) -> list[bytes]:
    return packets(channel, HidCommand.ERROR, bytes([code]))


class Device:
    def __init__(self, capabilities: Capability = CAPABILITIES) -> None:
        numbers = itertools.count(0x11)
        self.now = 100.0
        self.hid = CtapHid(
            new_channel=lambda: next(numbers), capabilities=lambda: capabilities, device_version=(4, 5, 6)
        )

    def take(self, *sent: bytes) -> Reaction:
        everything = Reaction()
        for packet in sent:
            reaction = self.hid.receive(packet, self.now)
            everything.packets += reaction.packets
            everything.start = reaction.start or everything.start
            everything.cancel |= reaction.cancel
            everything.wink |= reaction.wink
        return everything

    def send(self, channel: int, command: int, data: bytes = b"", length: int | None = None) -> Reaction:
        return self.take(*packets(channel, command, data, length))

    def open(self) -> int:
        answer = self.send(BROADCAST, HidCommand.INIT, NONCE).packets[0]
        return int.from_bytes(answer[15:19], "big")


@pytest.fixture
def device() -> Device:
    return Device()


def test_init_gives_a_channel_and_says_what_the_device_is(device: Device):
    reaction = device.send(BROADCAST, HidCommand.INIT, NONCE)
    expected = NONCE + b"\0\0\0\x11" + bytes([2, 4, 5, 6, CAPABILITIES])
    assert reaction.packets == packets(BROADCAST, HidCommand.INIT, expected)


def test_every_init_gives_another_channel(device: Device):
    assert len({device.open() for _ in range(10)}) == 10


def test_channels_that_mean_something_else_are_never_given():
    numbers = iter([0, BROADCAST, 7, 7, 8])
    hid = CtapHid(new_channel=lambda: next(numbers), capabilities=lambda: CAPABILITIES)
    given = [hid.receive(packets(BROADCAST, HidCommand.INIT, NONCE)[0], 0.0).packets[0][15:19] for _ in range(2)]
    assert given == [b"\0\0\0\x07", b"\0\0\0\x08"]


@pytest.mark.parametrize("nonce", [b"", NONCE[:7], NONCE + b"\0", bytes(60)])
def test_init_wants_eight_bytes(device: Device, nonce: bytes):
    assert device.take(packets(BROADCAST, HidCommand.INIT, nonce)[0]).packets == error(BROADCAST, HidError.INVALID_LEN)
    channel = device.open()
    assert device.take(packets(channel, HidCommand.INIT, nonce)[0]).packets == error(channel, HidError.INVALID_LEN)


def test_init_on_its_own_channel_keeps_it(device: Device):
    channel = device.open()
    answer = device.send(channel, HidCommand.INIT, NONCE).packets[0]
    assert answer[:4] == channel.to_bytes(4, "big")
    assert answer[15:19] == channel.to_bytes(4, "big")


def test_the_channel_used_least_lately_goes_first_when_there_are_too_many(device: Device):
    first, second = device.open(), device.open()
    device.send(first, HidCommand.PING, b"still here")
    for _ in range(MAX_CHANNELS - 1):
        device.open()
    assert device.send(first, HidCommand.PING, b"x").packets == packets(first, HidCommand.PING, b"x")
    assert device.send(second, HidCommand.PING, b"x").packets == error(second, HidError.INVALID_CHANNEL)


@pytest.mark.parametrize("length", [0, 1, 56, 57, 58, 57 + 59, 57 + 59 + 1, 1024, LONGEST_MESSAGE])
def test_a_ping_of_any_length_comes_back(device: Device, length: int):
    channel, data = device.open(), bytes(i % 253 for i in range(length))
    assert device.send(channel, HidCommand.PING, data).packets == packets(channel, HidCommand.PING, data)


def test_a_message_longer_than_any_is_refused_at_its_first_packet(device: Device):
    channel = device.open()
    first = packets(channel, HidCommand.PING, bytes(57), length=LONGEST_MESSAGE + 1)
    assert device.take(*first).packets == error(channel, HidError.INVALID_LEN)


def test_what_stands_behind_the_end_of_a_message_is_not_part_of_it(device: Device):
    channel = device.open()
    padded = packets(channel, HidCommand.PING, b"ab", length=1)
    assert device.take(*padded).packets == packets(channel, HidCommand.PING, b"a")


@pytest.mark.parametrize("command", [HidCommand.PING, HidCommand.CBOR, HidCommand.MSG, HidCommand.CANCEL])
def test_a_channel_that_was_not_given_is_refused(device: Device, command: HidCommand):
    device.open()
    for channel in (0, 0xABCD, BROADCAST):
        assert device.send(channel, command, b"x").packets == error(channel, HidError.INVALID_CHANNEL)


def test_init_on_the_reserved_channel_is_refused(device: Device):
    assert device.send(0, HidCommand.INIT, NONCE).packets == error(0, HidError.INVALID_CHANNEL)


@pytest.mark.parametrize("command", [0x00, 0x02, 0x05, 0x3B, 0x3F, 0x40, 0x7F])
def test_unknown_commands_are_refused(device: Device, command: int):
    channel = device.open()
    assert device.send(channel, command, b"x").packets == error(channel, HidError.INVALID_CMD)


def test_a_packet_of_another_size_is_ignored(device: Device):
    channel = device.open()
    packet = packets(channel, HidCommand.PING, b"x")[0]
    assert device.take(packet[:-1], packet + b"\0", b"") == Reaction()
    assert device.take(packet).packets == [packet]


# Messages of several packets


def test_packets_out_of_order_end_the_message(device: Device):
    channel = device.open()
    first, second, third = packets(channel, HidCommand.PING, bytes(150))
    assert device.take(first, third).packets == error(channel, HidError.INVALID_SEQ)
    assert device.take(second, third).packets == []
    assert len(device.take(first, second, third).packets) == 3


def test_continuations_of_nothing_and_of_other_channels_are_ignored(device: Device):
    channel, other = device.open(), device.open()
    first, second, third = packets(channel, HidCommand.PING, bytes(150))
    assert device.take(second) == Reaction()
    foreign = packets(other, HidCommand.PING, bytes(150))[1]
    assert device.take(first, foreign) == Reaction()
    assert len(device.take(second, third).packets) == 3


def test_a_new_message_in_the_middle_of_one_is_out_of_sequence(device: Device):
    channel = device.open()
    first, *_ = packets(channel, HidCommand.PING, bytes(150))
    assert device.take(first, first).packets == error(channel, HidError.INVALID_SEQ)
    assert device.send(channel, HidCommand.PING, b"x").packets == packets(channel, HidCommand.PING, b"x")


def test_init_in_the_middle_of_a_message_starts_afresh(device: Device):
    channel = device.open()
    first, second, _ = packets(channel, HidCommand.PING, bytes(150))
    assert device.take(first, *packets(channel, HidCommand.INIT, NONCE)).packets[0][4] == 0x86
    assert device.take(second) == Reaction()


def test_other_channels_find_the_device_busy_while_a_message_comes_in(device: Device):
    channel, other = device.open(), device.open()
    first, second, third = packets(channel, HidCommand.PING, bytes(150))
    device.take(first)
    assert device.send(other, HidCommand.PING, b"x").packets == error(other, HidError.CHANNEL_BUSY)
    assert device.send(BROADCAST, HidCommand.INIT, NONCE).packets == error(BROADCAST, HidError.CHANNEL_BUSY)
    assert len(device.take(second, third).packets) == 3
    assert device.send(other, HidCommand.PING, b"x").packets == packets(other, HidCommand.PING, b"x")


def test_a_message_that_stays_away_times_out(device: Device):
    channel, other = device.open(), device.open()
    first, second, _ = packets(channel, HidCommand.PING, bytes(150))
    device.take(first)
    assert device.hid.deadline == device.now + TRANSACTION_SECONDS
    device.now += TRANSACTION_SECONDS - 0.01
    assert device.hid.elapse(device.now) == Reaction()
    assert device.take(second) == Reaction()
    device.now += TRANSACTION_SECONDS
    assert device.hid.elapse(device.now).packets == error(channel, HidError.MSG_TIMEOUT)
    assert device.hid.deadline is None
    assert device.send(other, HidCommand.PING, b"x").packets == packets(other, HidCommand.PING, b"x")


def test_a_packet_that_comes_after_the_time_is_told_of_the_timeout_too(device: Device):
    channel = device.open()
    first, second, _ = packets(channel, HidCommand.PING, bytes(150))
    device.take(first)
    device.now += TRANSACTION_SECONDS
    assert device.take(second).packets == error(channel, HidError.MSG_TIMEOUT)


# Commands that run


@pytest.mark.parametrize("command", [HidCommand.CBOR, HidCommand.MSG])
def test_a_command_is_handed_out_and_its_answer_comes_back(device: Device, command: HidCommand):
    channel, request, response = device.open(), bytes(range(200)), bytes(reversed(range(180)))
    reaction = device.send(channel, command, request)
    assert reaction == Reaction(start=(command, request))
    assert device.hid.finish(response).packets == packets(channel, command, response)
    assert device.hid.deadline is None


@pytest.mark.parametrize("command", [HidCommand.CBOR, HidCommand.MSG])
def test_a_command_without_a_byte_is_refused(device: Device, command: HidCommand):
    channel = device.open()
    assert device.send(channel, command).packets == error(channel, HidError.INVALID_LEN)


def test_msg_is_unknown_where_u2f_is_not_spoken():
    device = Device(CAPABILITIES | Capability.NMSG)
    channel = device.open()
    assert device.send(channel, HidCommand.MSG, b"\0\3\0\0").packets == error(channel, HidError.INVALID_CMD)
    assert device.send(channel, HidCommand.CBOR, b"\4").start == (HidCommand.CBOR, b"\4")


def test_a_running_command_is_kept_alive(device: Device):
    channel = device.open()
    device.send(channel, HidCommand.CBOR, b"\1")
    assert device.hid.deadline == device.now + KEEPALIVE_SECONDS
    for needs_user, status in ((False, 1), (True, 2)):
        device.now += KEEPALIVE_SECONDS
        alive = device.hid.elapse(device.now, needs_user=needs_user)
        assert alive.packets == packets(channel, HidCommand.KEEPALIVE, bytes([status]))
        assert device.hid.elapse(device.now) == Reaction()


def test_a_u2f_message_is_not_kept_alive_since_its_clients_know_no_such_thing(device: Device):
    device.send(device.open(), HidCommand.MSG, b"\0\3\0\0")
    device.now += 10
    assert device.hid.elapse(device.now) == Reaction()


def test_a_running_command_keeps_everybody_out(device: Device):
    channel, other = device.open(), device.open()
    device.send(channel, HidCommand.CBOR, b"\1")
    assert device.send(other, HidCommand.CBOR, b"\4").packets == error(other, HidError.CHANNEL_BUSY)
    assert device.send(channel, HidCommand.CBOR, b"\4").packets == error(channel, HidError.CHANNEL_BUSY)
    assert device.hid.finish(b"\0").packets == packets(channel, HidCommand.CBOR, b"\0")
    assert device.send(other, HidCommand.CBOR, b"\4").start == (HidCommand.CBOR, b"\4")


def test_cancel_ends_the_command_of_its_own_channel_and_has_no_answer(device: Device):
    channel, other = device.open(), device.open()
    device.send(channel, HidCommand.CBOR, b"\1")
    assert device.send(other, HidCommand.CANCEL) == Reaction()
    assert device.send(channel, HidCommand.CANCEL) == Reaction(cancel=True)
    assert device.hid.finish(b"\x2d").packets == packets(channel, HidCommand.CBOR, b"\x2d")


def test_cancel_is_ignored_where_there_is_nothing_to_cancel(device: Device):
    channel = device.open()
    assert device.send(channel, HidCommand.CANCEL) == Reaction()
    device.send(channel, HidCommand.MSG, b"\0\3\0\0")
    assert device.send(channel, HidCommand.CANCEL) == Reaction()


def test_init_cancels_the_running_command_and_is_answered_when_that_has_ended(device: Device):
    channel = device.open()
    device.send(channel, HidCommand.CBOR, b"\1")
    assert device.send(channel, HidCommand.INIT, NONCE) == Reaction(cancel=True)
    device.now += 10
    assert device.hid.elapse(device.now) == Reaction()
    (answer,) = device.hid.finish(b"\x2d").packets
    assert answer[4] == 0x86
    assert device.send(channel, HidCommand.CBOR, b"\4").start == (HidCommand.CBOR, b"\4")


def test_an_answer_that_nobody_waits_for_goes_nowhere(device: Device):
    assert device.hid.finish(b"\0") == Reaction()


def test_an_answer_that_no_message_can_carry_becomes_an_error(device: Device):
    channel = device.open()
    device.send(channel, HidCommand.CBOR, b"\1")
    assert device.hid.finish(bytes(LONGEST_MESSAGE + 1)).packets == error(channel, HidError.OTHER)


# Wink and lock


def test_wink(device: Device):
    channel = device.open()
    assert device.send(channel, HidCommand.WINK) == Reaction(packets(channel, HidCommand.WINK), wink=True)
    assert device.send(channel, HidCommand.WINK, b"x").packets == error(channel, HidError.INVALID_LEN)


def test_a_lock_keeps_others_out_until_its_time_is_over(device: Device):
    channel, other = device.open(), device.open()
    assert device.send(channel, HidCommand.LOCK, b"\x0a").packets == packets(channel, HidCommand.LOCK)
    device.now += 9.9
    assert device.send(other, HidCommand.PING, b"x").packets == error(other, HidError.CHANNEL_BUSY)
    assert device.send(BROADCAST, HidCommand.INIT, NONCE).packets == error(BROADCAST, HidError.CHANNEL_BUSY)
    assert device.send(channel, HidCommand.PING, b"x").packets == packets(channel, HidCommand.PING, b"x")
    device.now += 0.1
    assert device.send(other, HidCommand.PING, b"x").packets == packets(other, HidCommand.PING, b"x")


def test_a_lock_of_no_time_ends_the_lock(device: Device):
    channel, other = device.open(), device.open()
    device.send(channel, HidCommand.LOCK, b"\x0a")
    device.send(channel, HidCommand.LOCK, b"\x00")
    assert device.send(other, HidCommand.PING, b"x").packets == packets(other, HidCommand.PING, b"x")


@pytest.mark.parametrize(
    ("data", "code"), [(b"", HidError.INVALID_LEN), (b"\1\1", HidError.INVALID_LEN), (b"\x0b", HidError.INVALID_PAR)]
)
def test_a_lock_that_cannot_be(device: Device, data: bytes, code: HidError):
    channel, other = device.open(), device.open()
    assert device.send(channel, HidCommand.LOCK, data).packets == error(channel, code)
    assert device.send(other, HidCommand.PING, b"x").packets == packets(other, HidCommand.PING, b"x")
