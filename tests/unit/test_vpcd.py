"""A card in the virtual reader, with the driver's end of the connection played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_agent.backoff import Backoff
from keyvouch_agent.transports.command_runner import CommandRunner
from keyvouch_agent.transports.fido_applet import FIDO_AID, FidoApplet
from keyvouch_agent.transports.vpcd import ATR, VirtualCard, VirtualReader, dial, loopback_address
from support.agent_bench import until
from support.transport_bench import ASK, ScriptedAuthenticator, SlowUser

SELECT = b"\x00\xa4\x04\x00\x08" + FIDO_AID
OFF, ON, RESET, GET_ATR = b"\x00", b"\x01", b"\x02", b"\x04"


class Driver:
    """vpcd's end of one connection."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    async def say(self, message: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._link, len(message).to_bytes(2, "big") + message)

    async def ask(self, message: bytes) -> bytes:
        await self.say(message)
        return await self._exactly(int.from_bytes(await self._exactly(2), "big"))

    async def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = await asyncio.get_running_loop().sock_recv(self._link, length - len(data))
            assert more, "the card has gone"
            data += more
        return data

    def hang_up(self) -> None:
        self._link.close()


class Stage:
    def __init__(self) -> None:
        self.authenticator, self.user = ScriptedAuthenticator(), SlowUser()
        self.events: list[str] = []
        self.runner = CommandRunner(self.authenticator, self.user)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.driver = Driver(theirs)
        card = VirtualCard(FidoApplet(self.runner), lambda event, **_: self.events.append(event))
        self.serving = asyncio.create_task(card.serve(ours))

    async def close(self) -> None:
        self.driver.hang_up()
        await asyncio.wait_for(self.serving, 20)
        await self.runner.close()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    yield made
    await made.close()


def test_the_answer_to_reset_is_well_formed():
    check = 0
    for byte in ATR[1:]:
        check ^= byte
    assert check == 0
    assert len(ATR) == 4 + (ATR[1] & 0x0F) + 1
    assert ATR[4:10] == bytes.fromhex("8073c021c058")
    assert ATR[10:-1] == b"Keyvouch"


async def test_power_and_apdus(stage: Stage):
    assert await stage.driver.ask(GET_ATR) == ATR
    await stage.driver.say(ON)
    assert await stage.driver.ask(SELECT) == b"U2F_V2\x90\x00"
    assert await stage.driver.ask(b"\x80\x10\x80\x00\x01\x04\x00") == b"\x00\x90\x00"
    assert stage.authenticator.power_cycles == 1
    assert stage.events == ["power-on"]


async def test_losing_the_power_or_being_reset_loses_everything(stage: Stage):
    for loss in ([OFF, ON], [RESET], [OFF, RESET]):
        await stage.driver.say(ON)
        await stage.driver.ask(SELECT)
        cycles = stage.authenticator.power_cycles
        for message in loss:
            await stage.driver.say(message)
        assert await stage.driver.ask(b"\x80\x10\x80\x00\x01\x04\x00") == b"\x69\x85"
        assert stage.authenticator.power_cycles > cycles


async def test_power_that_is_there_already_changes_nothing(stage: Stage):
    await stage.driver.say(ON)
    await stage.driver.ask(SELECT)
    await stage.driver.say(ON)
    assert await stage.driver.ask(b"\x80\x10\x80\x00\x01\x04\x00") == b"\x00\x90\x00"


async def test_messages_of_one_byte_that_mean_nothing_and_empty_ones_do_no_harm(stage: Stage):
    await stage.driver.say(b"\x03")
    await stage.driver.say(b"\xff")
    assert await stage.driver.ask(b"") == b"\x67\x00"
    assert await stage.driver.ask(GET_ATR) == ATR


async def test_a_reader_that_goes_away_while_the_user_is_asked_withdraws_the_question(stage: Stage):
    await stage.driver.say(ON)
    await stage.driver.ask(SELECT)
    await stage.driver.say(b"\x80\x10\x00\x00\x01" + ASK)
    await asyncio.to_thread(stage.user.asked.get, timeout=20)
    stage.driver.hang_up()
    await asyncio.wait_for(stage.serving, 20)
    assert stage.user.withdrawn.is_set()
    assert stage.events == ["power-on", "power-off"]


async def test_a_card_that_is_taken_out_ends_what_it_does(stage: Stage):
    await stage.driver.say(ON)
    await stage.driver.ask(SELECT)
    await stage.driver.say(b"\x80\x10\x00\x00\x01" + ASK)
    await asyncio.to_thread(stage.user.asked.get, timeout=20)
    stage.serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stage.serving
    assert stage.user.withdrawn.is_set()
    stage.serving = asyncio.create_task(asyncio.sleep(0))


async def test_the_longest_message_passes(stage: Stage):
    await stage.driver.say(ON)
    await stage.driver.ask(SELECT)
    assert await stage.driver.ask(b"\x80\x10\x80\x00\x00\xff\xf0" + bytes(0xFFF0)) == b"\x67\x00"


# The reader comes and goes


async def test_the_card_goes_back_into_a_reader_that_was_away():
    authenticator = ScriptedAuthenticator()
    runner = CommandRunner(authenticator, SlowUser())
    arrived: asyncio.Queue[socket.socket] = asyncio.Queue()
    loop, events, there = asyncio.get_running_loop(), [], [True, False, False, True, True]

    def connect() -> socket.socket:
        if not there.pop(0):
            raise UnavailableError(Reason.READER_UNAVAILABLE, "away")
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop.call_soon_threadsafe(arrived.put_nowait, theirs)
        return ours

    backoff = Backoff(jitter=lambda: 0.0, first=0.01, longest=0.02)
    journal = lambda event, **_: events.append(event)  # noqa: E731
    reader = VirtualReader(FidoApplet(runner), connect, backoff=backoff, journal=journal)
    running = asyncio.create_task(reader.run())
    for _ in range(2):
        driver = Driver(await asyncio.wait_for(arrived.get(), 20))
        await driver.say(ON)
        assert await driver.ask(SELECT) == b"U2F_V2\x90\x00"
        driver.hang_up()
    last = Driver(await asyncio.wait_for(arrived.get(), 20))
    await until(lambda: events[-1] == "inserted")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await runner.close()
    last.hang_up()
    once = ["inserted", "power-on", "power-off", "reader-gone"]
    assert events == [*once, *once, "inserted"]


async def test_a_reader_that_is_not_there_at_the_start_is_a_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    runner = CommandRunner(ScriptedAuthenticator(), SlowUser())
    reader = VirtualReader(FidoApplet(runner), lambda: dial(("127.0.0.1", port)), backoff=Backoff(jitter=lambda: 0.0))
    with pytest.raises(UnavailableError) as failure:
        await reader.run()
    assert failure.value.reason is Reason.READER_UNAVAILABLE
    assert "vsmartcard-vpcd" in failure.value.fix
    await runner.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:35963", ("127.0.0.1", 35963)),
        ("127.0.0.1", ("127.0.0.1", 35963)),
        ("localhost:1", ("localhost", 1)),
        ("127.9.9.9:65535", ("127.9.9.9", 65535)),
        ("[::1]:35964", ("::1", 35964)),
        ("[::1]", ("::1", 35963)),
    ],
)
def test_addresses_of_this_machine_are_taken(text: str, address: tuple[str, int]):
    assert loopback_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", ":35963", "192.0.2.1:35963", "0.0.0.0:35963", "reader.example:35963", "127.0.0.1:0", "127.0.0.1:65536",
     "127.0.0.1:x", "127.0.0.1:", "127.0.0.1:-1", "127.0.0.1:²"],
)  # fmt: skip
def test_any_other_address_is_refused(text: str):
    with pytest.raises(UsageError):
        loopback_address(text)
