"""The question for a card's PIN, on a real pseudo-terminal."""

from __future__ import annotations

import asyncio
import os
import termios
from collections.abc import AsyncIterator, Callable

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.pin_token import Permission
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, Purpose
from keyvouch_agent.prompts.presence import MOST_REFUSED, QUIET_SECONDS, TerminalPresence, pin_question_for
from keyvouch_agent.transports.pin_entry import PinRequest
from support.terminal_person import Person

REQUEST = PinRequest(Permission.GET_ASSERTION, "login.example.org")
PIN = "648201"
ASKS = "Enter to refuse: "
WRONG = DeviceError(Reason.PIN_WRONG, "The PIN is wrong.", retries_left=2)


@pytest.fixture
async def person() -> AsyncIterator[Person]:
    made = Person()
    yield made
    made.leave()


class Desk:
    """A terminal that is asked for PINs, with a clock of its own."""

    def __init__(self, person: Person, seconds: float = 20.0) -> None:
        self.now = 100.0
        self.person = person
        self.presence = TerminalPresence(
            person.lines, asyncio.get_running_loop(), seconds=seconds, monotonic=lambda: self.now
        )
        self._asked = 0

    def ask(
        self, retries_left: int | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> asyncio.Task[str | None]:
        return asyncio.create_task(asyncio.to_thread(self.presence.ask_pin, REQUEST, retries_left, cancelled))

    async def answered(self, typed: str) -> str | None:
        asking = self.ask()
        self._asked += 1
        await self.person.types(typed, times=self._asked, question=ASKS)
        return await asking


async def test_the_pin_is_typed_unseen_with_the_tries_left_shown(person: Person):
    asking = Desk(person).ask(2)
    await person.types(PIN, question=f"The card's PIN (2 tries left), or just {ASKS}")
    assert await asking == PIN
    assert PIN not in person.look()
    assert "Site  login.example.org" in person.screen
    assert "sign in" in person.screen


async def test_tries_that_nobody_knows_are_not_told(person: Person):
    asking = Desk(person).ask(None)
    await person.types(PIN, question=f"The card's PIN, or just {ASKS}")
    assert await asking == PIN


async def test_nothing_typed_refuses(person: Person):
    assert await Desk(person).answered("") is None


async def test_the_end_of_the_input_refuses(person: Person):
    asking = Desk(person).ask()
    await person.sees(ASKS)
    os.write(person.own_end, b"\x04")
    assert await asking is None


@pytest.mark.parametrize("slip", ["y", "N", "yes", " no "])
async def test_an_answer_to_the_other_question_costs_no_try(person: Person, slip: str):
    asking = Desk(person).ask()
    await person.types(slip, question=ASKS)
    await person.types(PIN, times=2, question=ASKS)
    assert await asking == PIN
    assert "it was not tried" in person.screen


async def test_nobody_types(person: Person):
    with pytest.raises(TimeoutError):
        await Desk(person, seconds=0.05).ask()
    await person.sees("Nobody answered")


async def test_a_client_that_cancels_takes_its_question_back_and_the_echo_returns(person: Person):
    gone = asyncio.Event()
    before = termios.tcgetattr(person.terminal)
    asking = Desk(person).ask(cancelled=gone.is_set)
    await person.sees(ASKS)
    gone.set()
    assert await asking is None
    await person.sees("withdrawn")
    assert termios.tcgetattr(person.terminal) == before


async def test_presence_and_pin_are_asked_one_at_a_time(person: Person):
    desk, gone = Desk(person), asyncio.Event()
    asking = desk.ask()
    await person.sees(ASKS)
    assert desk.presence.is_asking
    request = PresenceRequest(Purpose.SELECTION)
    other = asyncio.create_task(asyncio.to_thread(desk.presence.confirm, request, gone.is_set))
    gone.set()
    assert await other is Presence.CANCELLED
    assert "(y, n)" not in person.look()
    await person.types(PIN, question=ASKS)
    assert await asking == PIN


async def test_a_pin_is_no_presence(person: Person):
    desk = Desk(person)
    assert await desk.answered(PIN) == PIN
    desk.presence.heard(None)
    request = PresenceRequest(Purpose.GET_ASSERTION, "login.example.org")
    present = asyncio.create_task(asyncio.to_thread(desk.presence.confirm, request, lambda: False))
    await person.types("n")
    assert await present is Presence.DENIED


async def test_a_pin_meant_for_a_question_that_went_away_is_none_for_the_next(person: Person):
    gone, desk = asyncio.Event(), Desk(person)
    first = desk.ask(cancelled=gone.is_set)
    await person.sees(ASKS)
    gone.set()
    assert await first is None
    second = desk.ask()
    await person.sees("That takes the card's PIN", 2)
    os.write(person.own_end, b"111111\n")
    await person.types(PIN, times=2, question=ASKS)
    assert await second == PIN


@pytest.mark.parametrize("how", ["refused", "wrong"])
async def test_a_client_cannot_ask_until_somebody_is_tired(person: Person, how: str):
    desk = Desk(person)
    for _ in range(MOST_REFUSED):
        typed = await desk.answered("" if how == "refused" else "000000")
        desk.presence.heard(WRONG if typed else None)
    await person.sees("without asking you")
    for ask in (lambda: desk.presence.ask_pin(REQUEST, None, lambda: False), lambda: desk.presence.on_pad(REQUEST, 3)):
        with pytest.raises(DeviceError) as refusal:
            await asyncio.to_thread(ask)
        assert refusal.value.reason is Reason.USER_CANCELLED
    presence = PresenceRequest(Purpose.SELECTION)
    assert await asyncio.to_thread(desk.presence.confirm, presence, lambda: False) is Presence.DENIED
    desk.now += QUIET_SECONDS
    assert await desk.answered(PIN) == PIN


async def test_a_right_pin_ends_the_count(person: Person):
    desk = Desk(person)
    for typed in ("", "", PIN, "", "", PIN):
        assert await desk.answered(typed) == (typed or None)
        desk.presence.heard(None)
    assert "without asking you" not in person.look()


async def test_a_pad_is_pointed_to(person: Person):
    desk = Desk(person)
    await asyncio.to_thread(desk.presence.on_pad, REQUEST, 3)
    await person.sees("Type the PIN on the reader (3 tries left)")
    assert "login.example.org" in person.screen


def test_what_a_client_says_of_itself_acts_on_nothing():
    shown = pin_question_for(PinRequest(Permission.MAKE_CREDENTIAL, "a\x1b[2J.example\nUser  b", "\u202eada"))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert len(shown.splitlines()) == 3


def test_every_permission_is_named():
    known = [permission for permission in Permission if permission is not Permission.BIO_ENROLLMENT]
    assert len({pin_question_for(PinRequest(permission)) for permission in known}) == len(known)
    both = pin_question_for(PinRequest(Permission.MAKE_CREDENTIAL | Permission.GET_ASSERTION))
    assert "make a new key, and to sign in" in both
