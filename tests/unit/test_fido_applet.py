"""The FIDO applet, APDU by APDU (CTAP 2.1 section 11.3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from keyvouch_agent.authenticator.ports import Presence
from keyvouch_agent.transports.command_runner import CommandRunner
from keyvouch_agent.transports.fido_applet import FIDO_AID, FidoApplet
from support.transport_bench import ASK, CRASH, ScriptedAuthenticator, SlowUser

OK, MORE, UPDATE = b"\x90\x00", 0x61, b"\x91\x00"
SELECT = b"\x00\xa4\x04\x00\x08" + FIDO_AID + b"\x00"
GET_RESPONSE = b"\x80\x11\x00\x00\x00"
CANCEL = b"\x80\x11\x11\x00\x00"
END = b"\x80\x12\x01\x00\x00"


def message(request: bytes, *, p1: int = 0x80) -> bytes:
    return bytes([0x80, 0x10, p1, 0, len(request)]) + request + b"\x00"


class Reader:
    """The other end: sends APDUs, gets what is in pieces, and polls."""

    def __init__(self, *, u2f: bool = True) -> None:
        self.authenticator = ScriptedAuthenticator(u2f=u2f)
        self.user = SlowUser()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.runner = CommandRunner(
            self.authenticator, self.user, journal=lambda event, **fields: self.events.append((event, fields))
        )
        self.applet = FidoApplet(self.runner)

    async def send(self, apdu: bytes) -> bytes:
        return await self.applet.transmit(apdu)

    async def until_asked(self) -> None:
        await asyncio.to_thread(self.user.asked.get, timeout=20)

    async def poll(self) -> bytes:
        while (answer := await self.send(GET_RESPONSE)).endswith(UPDATE):
            pass
        return answer


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    made = Reader()
    yield made
    await made.runner.close()


@pytest.fixture
async def selected(reader: Reader) -> Reader:
    assert await reader.send(SELECT) == b"U2F_V2" + OK
    return reader


# Selection


async def test_select_says_that_u2f_is_spoken_too(reader: Reader):
    assert await reader.send(SELECT) == b"U2F_V2" + OK


async def test_select_says_that_only_ctap2_is_spoken():
    reader = Reader(u2f=False)
    assert await reader.send(SELECT) == b"FIDO_2_0" + OK
    assert await reader.send(b"\x00\x03\x00\x00\x00") == b"\x6d\x00"
    await reader.runner.close()


@pytest.mark.parametrize("command", [b"\x07", b"\x0d"])
async def test_what_switches_u2f_off_and_on_is_noticed(selected: Reader, command: bytes):
    selected.authenticator.u2f = False
    assert await selected.send(message(command)) == b"\x00" + OK
    assert await selected.send(SELECT) == b"FIDO_2_0" + OK


@pytest.mark.parametrize(
    "apdu",
    [
        message(b"\x04"),
        message(b"\x04", p1=0),
        GET_RESPONSE,
        CANCEL,
        END,
        b"\x00\x03\x00\x00\x00",
        b"\x00\xc0\x00\x00\x00",
    ],
)
async def test_nothing_works_before_the_applet_is_selected(reader: Reader, apdu: bytes):
    assert await reader.send(apdu) == b"\x69\x85"
    assert reader.authenticator.requests == []
    await reader.send(SELECT)
    assert await reader.send(message(b"\x04")) == b"\x00" + OK


@pytest.mark.parametrize("aid", [b"", FIDO_AID[:5], FIDO_AID + b"\0", bytes.fromhex("A000000308"), bytes(8)])
async def test_another_applet_is_not_there_and_deselects_this_one(selected: Reader, aid: bytes):
    body = bytes([len(aid)]) + aid if aid else b""
    assert await selected.send(b"\x00\xa4\x04\x00" + body) == b"\x6a\x82"
    assert await selected.send(message(b"\x04")) == b"\x69\x85"
    assert selected.authenticator.sessions_closed == 1


@pytest.mark.parametrize("parameters", [b"\x00\x00", b"\x04\x0c", b"\x02\x00", b"\x04\x02"])
async def test_select_in_any_other_way_is_refused_and_changes_nothing(selected: Reader, parameters: bytes):
    assert await selected.send(b"\x00\xa4" + parameters + b"\x08" + FIDO_AID) == b"\x6a\x86"
    assert await selected.send(message(b"\x04")) == b"\x00" + OK


async def test_selecting_again_keeps_the_session(selected: Reader):
    assert await selected.send(SELECT) == b"U2F_V2" + OK
    assert selected.authenticator.sessions_closed == 0


# Status words


@pytest.mark.parametrize(
    ("apdu", "word"),
    [
        (b"", "6700"),
        (b"\x80\x10", "6700"),
        (b"\x80\x10\x00\x00\x05abc", "6700"),
        (b"\x80\x10\x00\x00\x00\x00", "6700"),
        (b"\x80\x10\x01\x00\x01\x04", "6a86"),
        (b"\x80\x10\x81\x00\x01\x04", "6a86"),
        (b"\x80\x10\x80\x01\x01\x04", "6a86"),
        (b"\x80\x11\x01\x00\x00", "6a86"),
        (b"\x80\x11\x00\x01\x00", "6a86"),
        (b"\x80\x11\x00\x00\x00", "6985"),
        (b"\x80\x11\x11\x00\x00", "6985"),
        (b"\x80\x12\x00\x00\x00", "6a86"),
        (b"\x80\x12\x01\x01\x00", "6a86"),
        (b"\x80\x13\x00\x00\x00", "6d00"),
        (b"\x00\x10\x00\x00\x01\x04", "6d00"),
        (b"\x00\x04\x00\x00\x00", "6d00"),
        (b"\x00\xb0\x00\x00\x00", "6d00"),
        (b"\x81\x10\x00\x00\x01\x04", "6e00"),
        (b"\x0c\xa4\x04\x00\x00", "6e00"),
        (b"\xff\xca\x00\x00\x00", "6e00"),
    ],
)
async def test_what_is_wrong_gets_its_word(selected: Reader, apdu: bytes, word: str):
    assert (await selected.send(apdu)).hex() == word
    assert selected.authenticator.requests == []
    assert await selected.send(message(b"\x04")) == b"\x00" + OK


async def test_a_fault_of_the_authenticator_is_an_answer_too(selected: Reader):
    assert await selected.send(message(CRASH)) == b"\x7f" + OK
    assert selected.events == [("fault", {"command": "0x7e", "error": "RuntimeError"})]
    assert await selected.send(message(b"\x04")) == b"\x00" + OK


# Long messages


async def test_a_request_comes_in_a_chain_of_short_commands(selected: Reader):
    request = bytes(range(256)) * 3
    for start in range(0, 500, 250):
        part = request[start : start + 250]
        assert await selected.send(b"\x90\x10\x80\x00\xfa" + part) == OK
    rest = request[500:]
    first = await selected.send(b"\x80\x10\x80\x00\xff" + rest[:255])  # without its end: the rest does not fit
    assert first == (b"\x00" + request[1:755])[:256] + b"\x61\x00"
    data = first[:-2]
    while first[-2] == MORE:
        first = await selected.send(b"\x00\xc0\x00\x00\x00")
        data += first[:-2]
    assert data == b"\x00" + request[1:755]
    assert selected.authenticator.requests == [request[:755]]


async def test_get_response_is_understood_in_both_classes(selected: Reader):
    selected.authenticator.response = bytes(600)
    assert (await selected.send(message(b"\x04")))[256:] == b"\x61\x00"
    assert (await selected.send(b"\x80\xc0\x00\x00\x00"))[256:] == b"\x61\x58"
    assert (await selected.send(b"\x00\xc0\x00\x00\x58"))[88:] == OK


async def test_an_extended_request_gets_its_response_in_one_piece(selected: Reader):
    request = b"\x04" + bytes(3000)
    head = b"\x80\x10\x00\x00\x00" + len(request).to_bytes(2, "big")
    for end in (b"\x00\x00", b""):
        assert await selected.send(head + request + end) == b"\x00" + request[1:] + OK


async def test_an_interrupted_chain_does_not_leak_into_the_next_command(selected: Reader):
    assert await selected.send(b"\x90\x10\x80\x00\x03abc") == OK
    assert await selected.send(SELECT) == b"U2F_V2" + OK
    assert await selected.send(message(b"\x04")) == b"\x00" + OK
    assert selected.authenticator.requests == [b"\x04"]


# Commands that take long


async def test_a_client_that_polls_is_told_what_is_waited_for(selected: Reader):
    assert await selected.send(message(ASK)) == b"\x02" + UPDATE
    assert await selected.send(GET_RESPONSE) == b"\x02" + UPDATE
    selected.user.answer(Presence.GRANTED)
    assert await selected.poll() == b"\x00" + OK
    assert await selected.send(GET_RESPONSE) == b"\x69\x85"


async def test_a_client_that_does_not_poll_waits_for_its_answer(selected: Reader):
    waiting = asyncio.create_task(selected.send(message(ASK, p1=0)))
    await selected.until_asked()
    assert not waiting.done()
    selected.user.answer(Presence.GRANTED)
    assert await waiting == b"\x00" + OK


async def test_a_command_is_cancelled_by_polling(selected: Reader):
    assert await selected.send(message(ASK)) == b"\x02" + UPDATE
    answer = await selected.send(CANCEL)
    assert (answer if answer != b"\x02" + UPDATE else await selected.poll()) == b"\x2d" + OK


INTERRUPTIONS = {
    "another command": message(b"\x04"),
    "select": SELECT,
    "another applet": b"\x00\xa4\x04\x00\x05\xa0\x00\x00\x03\x08",
    "end": END,
    "u2f": b"\x00\x03\x00\x00\x00",
}


@pytest.mark.parametrize("name", INTERRUPTIONS)
async def test_whatever_comes_in_between_cancels_the_command(selected: Reader, name: str):
    assert await selected.send(message(ASK)) == b"\x02" + UPDATE
    await selected.send(INTERRUPTIONS[name])
    assert selected.user.withdrawn.is_set()
    await selected.send(SELECT)
    assert await selected.send(GET_RESPONSE) == b"\x69\x85"


async def test_what_is_refused_outright_leaves_the_command_alone(selected: Reader):
    assert await selected.send(message(ASK)) == b"\x02" + UPDATE
    for apdu in (b"", b"\xff\xca\x00\x00\x00", b"\x80\x13\x00\x00", b"\x80\x10\x01\x00\x01\x04"):
        await selected.send(apdu)
    selected.user.answer(Presence.GRANTED)
    assert await selected.poll() == b"\x00" + OK


async def test_the_end_of_all_messages_ends_the_session(selected: Reader):
    assert await selected.send(END) == OK
    assert selected.authenticator.sessions_closed == 1


async def test_without_power_everything_is_forgotten(selected: Reader):
    selected.authenticator.response = bytes(300)
    await selected.send(message(b"\x04"))
    await selected.applet.power_cycle()
    assert await selected.send(b"\x00\xc0\x00\x00\x00") == b"\x69\x85"
    assert await selected.send(message(b"\x04")) == b"\x69\x85"
    assert selected.authenticator.power_cycles == 1


async def test_a_command_ends_when_the_power_does(selected: Reader):
    assert await selected.send(message(ASK)) == b"\x02" + UPDATE
    await selected.applet.power_cycle()
    assert selected.user.withdrawn.is_set()
    await selected.send(SELECT)
    assert await selected.send(GET_RESPONSE) == b"\x69\x85"


async def test_a_client_that_has_gone_away_is_not_waited_for(selected: Reader):
    waiting = asyncio.create_task(selected.send(message(ASK, p1=0)))
    await selected.until_asked()
    selected.applet.give_up()
    assert await waiting == b"\x2d" + OK


# U2F


async def test_u2f_messages_are_instructions_of_their_own(selected: Reader):
    assert await selected.send(b"\x00\x03\x00\x00\x00") == b"U2F_V2" + OK
    selected.user.answer(Presence.GRANTED)
    assert await selected.send(b"\x00\x02\x03\x00\x03abc\x00") == b"\x03\x00abc" + OK
    selected.user.answer(Presence.DENIED)
    assert await selected.send(b"\x00\x01\x00\x00\x00\x00\x03abc\x00\x00") == b"\x69\x85"


async def test_a_u2f_message_whose_client_has_gone_away_is_not_waited_for(selected: Reader):
    waiting = asyncio.create_task(selected.send(b"\x00\x02\x03\x00\x03abc\x00"))
    await selected.until_asked()
    selected.applet.give_up()
    assert await waiting == b"\x69\x85"
    assert selected.user.withdrawn.is_set()


async def test_every_command_is_told_by_its_name_and_outcome(selected: Reader):
    await selected.send(message(b"\x04"))
    await selected.send(b"\x00\x03\x00\x00\x00")
    assert selected.events == [
        ("command", {"command": "getInfo", "status": "SUCCESS"}),
        ("command", {"command": "u2f version", "status": "9000"}),
    ]


async def test_the_authenticator_hears_of_time_between_commands(reader: Reader):
    await reader.runner.tick()
    assert reader.authenticator.ticks == 1
