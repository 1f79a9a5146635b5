"""The question for presence, on a real pseudo-terminal."""

from __future__ import annotations

import asyncio
import os
import termios
from collections.abc import AsyncIterator, Callable

import pytest

from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, Purpose
from keyvouch_agent.prompts.presence import MOST_REFUSED, QUIET_SECONDS, TerminalPresence, question_for
from support.terminal_person import Person

REQUEST = PresenceRequest(Purpose.GET_ASSERTION, "login.example.org", "ada")


@pytest.fixture
async def person() -> AsyncIterator[Person]:
    made = Person()
    yield made
    made.leave()


def ask(
    person: Person, *, seconds: float = 20.0, cancelled: Callable[[], bool] = lambda: False
) -> tuple[TerminalPresence, asyncio.Task[Presence]]:
    presence = TerminalPresence(person.lines, asyncio.get_running_loop(), seconds=seconds)
    return presence, asyncio.create_task(asyncio.to_thread(presence.confirm, REQUEST, cancelled))


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("y", Presence.GRANTED), (" YES ", Presence.GRANTED), ("n", Presence.DENIED), ("No", Presence.DENIED)],
)
async def test_a_yes_grants_and_a_no_denies(person: Person, typed: str, answer: Presence):
    _, asking = ask(person)
    await person.types(typed)
    assert await asking is answer


async def test_there_is_no_default(person: Person):
    _, asking = ask(person)
    for times, typed in enumerate(("", "x", "yy", "1"), 1):
        await person.types(typed, times=times)
    await person.types("y", times=5)
    assert await asking is Presence.GRANTED


async def test_the_end_of_the_input_denies(person: Person):
    _, asking = ask(person)
    await person.sees("(y, n): ")
    os.write(person.own_end, b"\x04")
    assert await asking is Presence.DENIED


async def test_nobody_answers(person: Person):
    _, asking = ask(person, seconds=0.05)
    assert await asking is Presence.TIMEOUT
    await person.sees("Nobody answered")


async def test_a_client_that_cancels_takes_its_question_back(person: Person):
    gone = asyncio.Event()
    before = termios.tcgetattr(person.terminal)
    _, asking = ask(person, cancelled=gone.is_set)
    await person.sees("(y, n): ")
    gone.set()
    assert await asking is Presence.CANCELLED
    await person.sees("withdrawn")
    assert termios.tcgetattr(person.terminal) == before


async def test_one_question_at_a_time(person: Person):
    gone = asyncio.Event()
    presence, first = ask(person)
    await person.sees("(y, n): ")
    second = asyncio.create_task(asyncio.to_thread(presence.confirm, REQUEST, gone.is_set))
    gone.set()
    assert await second is Presence.CANCELLED
    assert person.look().count("(y, n): ") == 1
    await person.types("y")
    assert await first is Presence.GRANTED


async def test_a_yes_to_a_question_that_was_taken_away_is_none_to_the_next(person: Person):
    gone = asyncio.Event()
    presence, first = ask(person, cancelled=gone.is_set)
    await person.sees("(y, n): ")
    gone.set()
    assert await first is Presence.CANCELLED
    other = PresenceRequest(Purpose.GET_ASSERTION, "evil.example", "ada")
    second = asyncio.create_task(asyncio.to_thread(presence.confirm, other, lambda: False))
    await person.sees("evil.example")
    os.write(person.own_end, b"y\n")  # meant for the one before, which was there a moment ago
    await person.types("n", times=2)
    assert await second is Presence.DENIED
    third = asyncio.create_task(asyncio.to_thread(presence.confirm, REQUEST, lambda: False))
    await person.types("y", times=3)
    assert await third is Presence.GRANTED  # control


async def test_a_client_cannot_ask_until_somebody_is_tired(person: Person):
    presence = TerminalPresence(person.lines, asyncio.get_running_loop(), monotonic=lambda: now[0])
    now = [100.0]

    async def answer(typed: str, times: int) -> Presence:
        asking = asyncio.create_task(asyncio.to_thread(presence.confirm, REQUEST, lambda: False))
        await person.types(typed, times=times)
        return await asking

    assert [await answer("n", times) for times in range(1, MOST_REFUSED + 1)] == [Presence.DENIED] * MOST_REFUSED
    assert await asyncio.to_thread(presence.confirm, REQUEST, lambda: False) is Presence.DENIED
    assert person.look().count("(y, n): ") == MOST_REFUSED
    await person.sees("without asking you")
    now[0] += QUIET_SECONDS
    assert await answer("y", MOST_REFUSED + 1) is Presence.GRANTED
    assert await answer("n", MOST_REFUSED + 2) is Presence.DENIED
    assert await answer("y", MOST_REFUSED + 3) is Presence.GRANTED


@pytest.mark.parametrize("purpose", Purpose)
def test_every_purpose_has_words_of_its_own(purpose: Purpose):
    words = {question_for(PresenceRequest(other)) for other in Purpose}
    assert len(words) == len(Purpose)
    assert ("RESET" in question_for(PresenceRequest(purpose))) == (purpose is Purpose.RESET)


def test_what_a_client_says_of_itself_acts_on_nothing():
    shown = question_for(PresenceRequest(Purpose.GET_ASSERTION, "a\x1b[2J.example\nSite  b", "\u202eada"))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert len(shown.splitlines()) == 3
