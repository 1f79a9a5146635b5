"""The two framings take any bytes: an answer, or the silence that the specification asks for; never an exception."""

from __future__ import annotations

import itertools
import random

import pytest

from keyvouch_agent.transports.command_runner import CommandRunner
from keyvouch_agent.transports.ctaphid import BROADCAST, PACKET, Capability, CtapHid, HidCommand
from keyvouch_agent.transports.fido_applet import FIDO_AID, FidoApplet
from support.transport_bench import CRASH, Grants, ScriptedAuthenticator

APDUS = 10_000
PACKETS = 20_000
SEEDS = range(4)

CLASSES = (0x00, 0x10, 0x80, 0x90, 0x81, 0xFF)
INSTRUCTIONS = (0xA4, 0xC0, 0x10, 0x11, 0x12, 0x01, 0x02, 0x03, 0x00, 0xB0)
PARAMETERS = (0x00, 0x01, 0x03, 0x04, 0x07, 0x08, 0x11, 0x80, 0x81)
WORDS = {0x9000, 0x9100, 0x6700, 0x6985, 0x6A82, 0x6A86, 0x6D00, 0x6E00, 0x6F00}
ERRORS = {1, 2, 3, 4, 5, 6, 0x0B, 0x7F}


def random_apdu(chance: random.Random) -> bytes:
    """Anything, or something that is nearly right."""
    if chance.random() < 0.2:
        return chance.randbytes(chance.choice((0, 1, 3, 4, 5, 6, 7, 9, 40, 300)))
    header = bytes(
        [chance.choice(CLASSES), chance.choice(INSTRUCTIONS), chance.choice(PARAMETERS), chance.choice(PARAMETERS[:4])]
    )
    data = chance.choice((b"", FIDO_AID, b"\x04", CRASH, chance.randbytes(chance.randrange(1, 250))))
    kind = chance.random()
    if kind < 0.1:
        header, data = b"\x00\xa4\x04\x00", FIDO_AID
    elif kind < 0.4:
        header = bytes([chance.choice((0x80, 0x80, 0x90)), 0x10, chance.choice((0, 0x80)), 0])
    if chance.random() < 0.3:
        body = b"\x00" + len(data).to_bytes(2, "big") + data + chance.choice((b"", b"\x00\x00", b"\x01\x00", b"\x00"))
    else:
        body = (bytes([len(data)]) + data if data else b"") + chance.choice((b"", b"\x00", b"\x07"))
    whole = bytearray(header + body)
    if chance.random() < 0.1:
        whole[chance.randrange(len(whole))] = chance.randrange(256)
    return bytes(whole)


@pytest.mark.parametrize("seed", SEEDS)
async def test_any_apdu_gets_a_status_word(seed: int):
    chance = random.Random(seed)
    authenticator = ScriptedAuthenticator()
    async with CommandRunner(authenticator, Grants()) as runner:
        applet = FidoApplet(runner)
        for _ in range(APDUS):
            apdu = random_apdu(chance)
            answer = await applet.transmit(apdu)
            word = int.from_bytes(answer[-2:], "big")
            assert word in WORDS or word >> 8 == 0x61, (apdu.hex(), answer.hex())
        await applet.transmit(b"\x00\xa4\x04\x00\x08" + FIDO_AID)
        assert await applet.transmit(b"\x80\x10\x00\x00\x01\x04") == b"\x00\x90\x00"
    assert len(authenticator.requests) > APDUS / 100


class Fuzzed:
    """A device, and what is known of it from outside."""

    def __init__(self, chance: random.Random) -> None:
        numbers = itertools.count(1)
        self.chance = chance
        self.channels = [BROADCAST, 0, 0xABCDEF]
        self.now = 0.0
        self.running = False
        self.answered = 0
        both = Capability.WINK | Capability.CBOR
        self.hid = CtapHid(new_channel=lambda: next(numbers), capabilities=lambda: both)

    def step(self) -> None:
        self.now += self.chance.choice((0.0, 0.0, 0.001, 0.05, 1.0))
        if self.running and self.chance.random() < 0.2:
            self.running = False
            self.look(self.hid.finish(self.chance.randbytes(self.chance.choice((0, 1, 100, 7609, 7610)))).packets)
        packet = self.packet()
        reaction = self.hid.receive(packet, self.now)
        self.look(reaction.packets)
        assert not (reaction.cancel and not self.running)
        if reaction.start is not None:
            assert not self.running
            self.running = True
            assert 0 < len(reaction.start[1]) <= 7609

    def packet(self) -> bytes:
        chance = self.chance
        if chance.random() < 0.02:
            return chance.randbytes(chance.choice((0, 1, 63, 65, 200)))
        if chance.random() < 0.05:
            return chance.randbytes(PACKET)
        channel = chance.choice(self.channels[-6:] + self.channels[:1])
        command = 0x80 | chance.choice([*HidCommand, 0x40]) if chance.random() < 0.6 else chance.choice((0, 1, 2, 127))
        length = chance.choice((0, 1, 8, 8, 57, 58, 116, 117, 7609, 7610, 65535))
        return (channel.to_bytes(4, "big") + bytes([command]) + length.to_bytes(2, "big") + chance.randbytes(57))[
            :PACKET
        ]

    def look(self, packets: list[bytes]) -> None:
        for packet in packets:
            assert len(packet) == PACKET
            channel, first = int.from_bytes(packet[:4], "big"), packet[4]
            if first == 0x80 | HidCommand.ERROR:
                assert packet[7] in ERRORS
            elif first & 0x80:
                assert channel in self.channels[3:] or (channel == BROADCAST and first == 0x86)
                self.answered += 1
            if channel == BROADCAST and first == 0x86:
                self.channels.append(int.from_bytes(packet[15:19], "big"))


@pytest.mark.parametrize("seed", SEEDS)
def test_any_packets_leave_a_device_that_works(seed: int):
    fuzzed = Fuzzed(random.Random(seed))
    for _ in range(PACKETS):
        fuzzed.step()
    assert fuzzed.answered > PACKETS / 100
    fuzzed.hid.finish(b"\0")
    fuzzed.now += 100.0
    fuzzed.hid.elapse(fuzzed.now)
    packet = BROADCAST.to_bytes(4, "big") + b"\x86\x00\x08" + b"a nonce." + bytes(49)
    assert fuzzed.hid.receive(packet, fuzzed.now).packets[0][7:15] == b"a nonce."
