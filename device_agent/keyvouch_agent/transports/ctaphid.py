"""CTAPHID: packets of 64 bytes in, packets out (CTAP 2.1 section 11.2, USB HID). A pure state machine.

Time is an argument, in seconds of any clock that only goes forward. One transaction at a time:

    idle --first packet--> receiving --last packet--> running --finish--> idle
              |                 | a wrong or late packet: ERROR   | every 0.1 s: KEEPALIVE
              `-- a whole message of one packet ----------------->'

Meanwhile other channels hear CHANNEL_BUSY. INIT on the channel of the transaction ends it, whatever its state. What has
to be done outside comes back in a `Reaction`. Not here: how commands run (`hid_key`), and the device file (`uhid`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag, unique
from typing import Final

__all__ = ["BROADCAST", "LONGEST_MESSAGE", "PACKET", "Capability", "CtapHid", "HidCommand", "HidError", "Reaction"]

PACKET: Final = 64
"""Bytes of every packet, both ways."""
BROADCAST: Final = 0xFFFFFFFF
"""The channel on which channels are asked for (section 11.2.9.1.3)."""
LONGEST_MESSAGE: Final = PACKET - 7 + 128 * (PACKET - 5)
"""7609 bytes: the first packet and 128 more (section 11.2.4)."""

TRANSACTION_SECONDS: Final = 3.0
"""The longest wait for the next packet of a message."""
KEEPALIVE_SECONDS: Final = 0.1
"""At least this often a client hears that its command still runs (section 11.2.9.2.1)."""
MAX_CHANNELS: Final = 64
"""Channels known at a time. One more takes the place of the one that was used least lately."""

_PROTOCOL_VERSION: Final = 2
_RESERVED_CHANNEL: Final = 0
_FIRST_PACKET: Final = 0x80
_NONCE: Final = 8
_LONGEST_LOCK: Final = 10


@unique
class HidCommand(IntEnum):
    """Section 11.2.9."""

    PING = 0x01
    MSG = 0x03
    LOCK = 0x04
    INIT = 0x06
    WINK = 0x08
    CBOR = 0x10
    CANCEL = 0x11
    KEEPALIVE = 0x3B
    ERROR = 0x3F


@unique
class HidError(IntEnum):
    """Section 11.2.9.1.6. LOCK_REQUIRED is not listed: none of the commands needs a lock."""

    INVALID_CMD = 0x01
    INVALID_PAR = 0x02
    INVALID_LEN = 0x03
    INVALID_SEQ = 0x04
    MSG_TIMEOUT = 0x05
    CHANNEL_BUSY = 0x06
    INVALID_CHANNEL = 0x0B
    OTHER = 0x7F


class Capability(IntFlag):
    """What INIT says of the device (section 11.2.9.1.3)."""

    WINK = 0x01
    CBOR = 0x04
    NMSG = 0x08


@dataclass(slots=True)
class Reaction:
    """What a packet, or time, leads to. `start` is a command to carry out: `HidCommand.CBOR` or `MSG`, and its data."""

    packets: list[bytes] = field(default_factory=list)
    start: tuple[HidCommand, bytes] | None = None
    cancel: bool = False
    """End the running command early, and tell `finish` what it answered all the same."""
    wink: bool = False


@dataclass(slots=True)
class _Transaction:
    channel: int
    command: int
    length: int
    data: bytearray
    deadline: float
    """Of the next packet while receiving, of the next keep-alive while running."""
    sequence: int = 0
    running: bool = False
    restart: list[bytes] | None = None
    """Its client has started afresh: nobody waits for the answer any more, but for this one to INIT."""


class _RefusedError(Exception):
    def __init__(self, error: HidError) -> None:
        super().__init__(error.name)
        self.error = error


class CtapHid:
    """The device's side of CTAPHID. `new_channel` draws 32 random bits; `capabilities` are those of the moment."""

    def __init__(
        self,
        *,
        new_channel: Callable[[], int],
        capabilities: Callable[[], Capability],
        device_version: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        self._new_channel = new_channel
        self._capabilities = capabilities
        self._device_version = device_version
        self._channels: OrderedDict[int, None] = OrderedDict()
        self._transaction: _Transaction | None = None
        self._lock: tuple[int, float] | None = None

    @property
    def deadline(self) -> float | None:
        """When `elapse` has something to do next; None while nothing is under way."""
        return self._transaction.deadline if self._transaction else None

    def receive(self, packet: bytes, now: float) -> Reaction:
        """Take one packet. One of another size than 64 bytes is ignored, as a packet that says nothing is."""
        reaction = self.elapse(now)
        if len(packet) != PACKET:
            return reaction
        channel = int.from_bytes(packet[:4], "big")
        try:
            if channel == _RESERVED_CHANNEL:
                raise _RefusedError(HidError.INVALID_CHANNEL)
            if packet[4] & _FIRST_PACKET:
                self._first(channel, packet[4] & ~_FIRST_PACKET, packet[5:], now, reaction)
            else:
                self._continuation(channel, packet[4], packet[5:], now, reaction)
        except _RefusedError as refusal:
            reaction.packets += _message(channel, HidCommand.ERROR, bytes([refusal.error]))
        return reaction

    def elapse(self, now: float, *, needs_user: bool = False) -> Reaction:
        """Let time pass: a message that stays away times out, a command that runs is kept alive."""
        reaction, transaction = Reaction(), self._transaction
        if self._lock is not None and now >= self._lock[1]:
            self._lock = None
        if transaction is None or now < transaction.deadline:
            return reaction
        if not transaction.running:
            self._transaction = None
            reaction.packets += _message(transaction.channel, HidCommand.ERROR, bytes([HidError.MSG_TIMEOUT]))
            return reaction
        transaction.deadline = now + KEEPALIVE_SECONDS
        if transaction.command == HidCommand.CBOR and transaction.restart is None:
            reaction.packets += _message(transaction.channel, HidCommand.KEEPALIVE, bytes([2 if needs_user else 1]))
        return reaction

    def finish(self, response: bytes) -> Reaction:
        """The command that was started has answered."""
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            return Reaction()
        if transaction.restart is not None:
            return Reaction(transaction.restart)
        if len(response) > LONGEST_MESSAGE:
            return Reaction(_message(transaction.channel, HidCommand.ERROR, bytes([HidError.OTHER])))
        return Reaction(_message(transaction.channel, transaction.command, response))

    def _first(self, channel: int, command: int, rest: bytes, now: float, reaction: Reaction) -> None:
        length, data = int.from_bytes(rest[:2], "big"), rest[2:]
        if channel not in self._channels and (channel, command) != (BROADCAST, HidCommand.INIT):
            raise _RefusedError(HidError.INVALID_CHANNEL)
        if command == HidCommand.CANCEL:
            self._cancel(channel, reaction)
            return
        if self._is_taken(channel):
            raise _RefusedError(HidError.CHANNEL_BUSY)
        if length > LONGEST_MESSAGE or (command == HidCommand.INIT and length != _NONCE):
            raise _RefusedError(HidError.INVALID_LEN)
        if self._transaction is not None:
            self._start_afresh(self._transaction, command, bytes(data[:length]), reaction)
        if self._transaction is not None:
            return
        if channel != BROADCAST:
            self._channels.move_to_end(channel)
        message = _Transaction(channel, command, length, bytearray(data[:length]), now + TRANSACTION_SECONDS)
        if len(message.data) < length:
            self._transaction = message
        else:
            self._complete(message, now, reaction)

    def _is_taken(self, channel: int) -> bool:
        """Whether another channel has the device to itself: by a transaction, or by a lock."""
        holder = self._transaction.channel if self._transaction else self._lock[0] if self._lock else channel
        return holder != channel

    def _cancel(self, channel: int, reaction: Reaction) -> None:
        """Section 11.2.9.1.5: it has no response of its own, and is ignored where there is nothing to cancel."""
        transaction = self._transaction
        if transaction is not None and transaction.running and transaction.channel == channel:
            reaction.cancel = transaction.command == HidCommand.CBOR

    def _start_afresh(self, before: _Transaction, command: int, nonce: bytes, reaction: Reaction) -> None:
        """A first packet on the channel of a transaction. Only INIT may interrupt it (section 11.2.5.3).

        Where a command runs already, INIT is answered when that has ended: its client finds the device idle then.
        """
        if before.running and command == HidCommand.INIT:
            before.restart = [*(before.restart or []), *self._init(before.channel, nonce)]
            reaction.cancel = True
            return
        if before.running:
            raise _RefusedError(HidError.CHANNEL_BUSY)
        self._transaction = None
        if command != HidCommand.INIT:
            raise _RefusedError(HidError.INVALID_SEQ)

    def _continuation(self, channel: int, sequence: int, data: bytes, now: float, reaction: Reaction) -> None:
        """Section 11.2.5.4: one that belongs to nothing is ignored; one out of order ends the message."""
        transaction = self._transaction
        if transaction is None or transaction.running or transaction.channel != channel:
            return
        if sequence != transaction.sequence:
            self._transaction = None
            raise _RefusedError(HidError.INVALID_SEQ)
        transaction.sequence += 1
        transaction.deadline = now + TRANSACTION_SECONDS
        transaction.data += data[: transaction.length - len(transaction.data)]
        if len(transaction.data) == transaction.length:
            self._transaction = None
            self._complete(transaction, now, reaction)

    def _complete(self, message: _Transaction, now: float, reaction: Reaction) -> None:
        data = bytes(message.data)
        match message.command:
            case HidCommand.INIT:
                reaction.packets += self._init(message.channel, data)
            case HidCommand.PING:
                reaction.packets += _message(message.channel, HidCommand.PING, data)
            case HidCommand.WINK:
                _require_length(data, 0)
                reaction.wink = True
                reaction.packets += _message(message.channel, HidCommand.WINK, b"")
            case HidCommand.LOCK:
                self._set_lock(message.channel, data, now)
                reaction.packets += _message(message.channel, HidCommand.LOCK, b"")
            case HidCommand.CBOR | HidCommand.MSG:
                self._start(message, data, now, reaction)
            case _:
                raise _RefusedError(HidError.INVALID_CMD)

    def _start(self, message: _Transaction, data: bytes, now: float, reaction: Reaction) -> None:
        command = HidCommand(message.command)
        if command is HidCommand.MSG and Capability.NMSG in self._capabilities():
            raise _RefusedError(HidError.INVALID_CMD)
        if not data:
            raise _RefusedError(HidError.INVALID_LEN)
        message.running, message.deadline = True, now + KEEPALIVE_SECONDS
        message.data.clear()
        self._transaction = message
        reaction.start = (command, data)

    def _init(self, channel: int, nonce: bytes) -> list[bytes]:
        """Section 11.2.9.1.3: a new channel for who asks on the broadcast channel; else a fresh start on its own."""
        given = self._allocate() if channel == BROADCAST else channel
        device = bytes([_PROTOCOL_VERSION, *self._device_version, self._capabilities()])
        return _message(channel, HidCommand.INIT, nonce + given.to_bytes(4, "big") + device)

    def _allocate(self) -> int:
        while (channel := self._new_channel()) in (_RESERVED_CHANNEL, BROADCAST) or channel in self._channels:
            pass
        if len(self._channels) >= MAX_CHANNELS:
            kept = self._lock[0] if self._lock else BROADCAST
            self._channels.pop(next(known for known in self._channels if known != kept))
        self._channels[channel] = None
        return channel

    def _set_lock(self, channel: int, data: bytes, now: float) -> None:
        """Section 11.2.9.2.2: 0 to 10 seconds for this channel alone; 0 ends it."""
        _require_length(data, 1)
        if data[0] > _LONGEST_LOCK:
            raise _RefusedError(HidError.INVALID_PAR)
        self._lock = (channel, now + data[0]) if data[0] else None


def _require_length(data: bytes, length: int) -> None:
    if len(data) != length:
        raise _RefusedError(HidError.INVALID_LEN)


def _message(channel: int, command: int, data: bytes) -> list[bytes]:
    """The packets of one message (section 11.2.4)."""
    head = channel.to_bytes(4, "big")
    first = head + bytes([_FIRST_PACKET | command]) + len(data).to_bytes(2, "big")
    size = PACKET - len(first)
    packets, rest = [first + data[:size]], data[size:]
    step = PACKET - 5
    for sequence, start in enumerate(range(0, len(rest), step)):
        packets.append(head + bytes([sequence]) + rest[start : start + step])
    return [packet.ljust(PACKET, b"\0") for packet in packets]
