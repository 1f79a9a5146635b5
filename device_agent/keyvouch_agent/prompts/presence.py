"""The questions in the terminal of `keyvouch-agent authenticator serve`: for presence, and for the PIN of a card.

A security key asks for a touch; this one asks for a yes. There is no default, only `y` grants, and what a client says
of itself is shown inert. A question that takes the place of one that went away waits for a moment, so that the answer
to the other is none to it; and after three in a row that were not granted nobody is asked for half a minute. A PIN is
asked for without echo, a wrong one counts as one of the three, and a right one is no yes: that is asked after it. Not
here: PINs that are none of a card's, which clients ask for themselves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from typing import Final

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.pin_token import Permission
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, Purpose
from keyvouch_agent.pin_standing import tries_left
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.prompts.tty_lines import TtyLines
from keyvouch_agent.transports.pin_entry import PIN_NOT_TAKEN, PinRequest

__all__ = ["ANSWER_SECONDS", "MOST_REFUSED", "QUIET_SECONDS", "TerminalPresence", "pin_question_for", "question_for"]

ANSWER_SECONDS: Final = 30.0
"""How long a question stands (CTAP 2.1 section 6.1.2: a platform waits for 30 seconds at least)."""

READING_SECONDS: Final = 1.0
"""For which a question that comes in the place of another takes no answer."""
MOST_REFUSED: Final = 3
"""Questions in a row that were not granted, after which clients get no for a while."""
QUIET_SECONDS: Final = 30.0

_Answer = Callable[[], Awaitable[Presence]]
_POLL: Final = 0.05
_WHAT: Final = {
    Purpose.MAKE_CREDENTIAL: "A client wants to make a new key",
    Purpose.GET_ASSERTION: "A client wants to sign in",
    Purpose.SELECTION: "A client asks which key to use, this one or another",
    Purpose.RESET: "A client wants to RESET this authenticator: its keys and the clients' PIN will be lost",
}
_WHAT_FOR: Final = {
    Permission.MAKE_CREDENTIAL: "make a new key",
    Permission.GET_ASSERTION: "sign in",
    Permission.CREDENTIAL_MANAGEMENT: "see, rename and delete the keys in this authenticator",
    Permission.LARGE_BLOB_WRITE: "store data in this authenticator",
    Permission.AUTHENTICATOR_CONFIGURATION: "change the settings of this authenticator",
}
_NO_PINS: Final = frozenset(("y", "yes", "n", "no"))
"""Answers to another question. None of them is worth a try of the card's PIN."""


class TerminalPresence:
    """`UserPresence` and `PinDesk` on a terminal.

    The authenticator's threads ask; the questions run in `loop`, one at a time.
    """

    def __init__(
        self,
        lines: TtyLines,
        loop: asyncio.AbstractEventLoop,
        *,
        seconds: float = ANSWER_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = lines
        self._loop = loop
        self._seconds = seconds
        self._monotonic = monotonic
        self._one_at_a_time = threading.Lock()
        self._went_away = False
        self._gave_pin = False
        self._refused = 0
        self._quiet_until = float("-inf")

    @property
    def is_asking(self) -> bool:
        """Whether a question stands."""
        return self._one_at_a_time.locked()

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        """Ask and wait, from any thread but the loop's own."""
        answer = self._asked(question_for(request), self._yes_or_no, cancelled, notes=True)
        return answer or Presence.DENIED

    def ask_pin(self, request: PinRequest, retries_left: int | None, cancelled: Callable[[], bool]) -> str | None:
        """See `PinDesk`. It is asked like everything else: one at a time, and not of somebody who is tired of it."""
        typed: list[str] = []

        async def answer() -> Presence:
            pin = await self._typed_pin(retries_left)
            typed.append(pin)
            return Presence.GRANTED if pin else Presence.DENIED

        outcome = self._asked(pin_question_for(request), answer, cancelled)
        if outcome is None:
            raise _quiet()
        if outcome is Presence.TIMEOUT:
            raise TimeoutError
        self._gave_pin = outcome is Presence.GRANTED
        return typed[0] if self._gave_pin else None

    def on_pad(self, request: PinRequest, retries_left: int | None) -> None:
        """See `PinDesk`."""
        if self._is_quiet:
            raise _quiet()
        self._gave_pin = True
        said = f"\n{pin_question_for(request)}\nType the PIN on the reader{_left(retries_left)}, if that is you."
        self._loop.call_soon_threadsafe(self._lines.show, said)

    def heard(self, failure: Exception | None) -> None:
        """See `PinDesk`. A wrong PIN counts like a question that was not granted."""
        given, self._gave_pin = self._gave_pin, False
        if given:
            was_wrong = isinstance(failure, DeviceError) and failure.reason in PIN_NOT_TAKEN
            self._note(granted=not was_wrong)

    @property
    def _is_quiet(self) -> bool:
        return self._monotonic() < self._quiet_until

    def _asked(
        self, question: str, answer: _Answer, cancelled: Callable[[], bool], *, notes: bool = False
    ) -> Presence | None:
        """How a question was answered; None where nobody was asked. With `notes` a yes is the end of what went before.

        What was not granted always counts.
        """
        while not self._one_at_a_time.acquire(timeout=_POLL):
            if cancelled():
                return Presence.CANCELLED
        try:
            if self._is_quiet:
                return None
            outcome = self._wait(asyncio.run_coroutine_threadsafe(self._put(question, answer), self._loop), cancelled)
            if notes or outcome is not Presence.GRANTED:
                self._note(granted=outcome is Presence.GRANTED)
            return outcome
        finally:
            self._one_at_a_time.release()

    def _wait(self, question: Future[Presence], cancelled: Callable[[], bool]) -> Presence:
        while True:
            if cancelled():
                question.cancel()
                return Presence.CANCELLED
            try:
                return question.result(_POLL)
            except CancelledError:
                return Presence.CANCELLED
            except TimeoutError:
                continue

    def _note(self, *, granted: bool) -> None:
        self._refused = 0 if granted else self._refused + 1
        if self._refused >= MOST_REFUSED:
            self._refused = 0
            self._quiet_until = self._monotonic() + QUIET_SECONDS
            said = f"{MOST_REFUSED} questions in a row were not granted: for {QUIET_SECONDS:.0f} seconds every client "
            self._loop.call_soon_threadsafe(self._lines.show, said + "is told no without asking you.")

    async def _put(self, question: str, answer: _Answer) -> Presence:
        self._lines.show("\n" + question)
        went_away, self._went_away = self._went_away, True
        try:
            async with asyncio.timeout(self._seconds):
                if went_away:
                    await asyncio.sleep(READING_SECONDS)
                answered = await answer()
                self._went_away = False
                return answered
        except TimeoutError:
            self._lines.show("\nNobody answered; the client was told so.")
            return Presence.TIMEOUT
        except asyncio.CancelledError:
            self._lines.show("\nThe client has withdrawn its question; it needs no answer any more.")
            raise

    async def _yes_or_no(self) -> Presence:
        while (typed := await self._lines.ask("Is that you? (y, n): ")) is not None:
            match typed.strip().lower():
                case "y" | "yes":
                    return Presence.GRANTED
                case "n" | "no":
                    return Presence.DENIED
                case _:
                    self._lines.show("Type y or n, then Enter.")
        return Presence.DENIED

    async def _typed_pin(self, retries_left: int | None) -> str:
        """Empty where nobody wants to give it."""
        question = f"The card's PIN{_left(retries_left)}, or just Enter to refuse: "
        while (typed := await self._lines.ask(question, secret=True)) is not None:
            if typed.strip().lower() not in _NO_PINS:
                return typed
            self._lines.show("That is no PIN; it was not tried. Once more.")
        return ""


def pin_question_for(request: PinRequest) -> str:
    """What the person is asked the card's PIN for, in lines of text. Names come from the client, and unchecked."""
    wanted = [words for permission, words in _WHAT_FOR.items() if permission in request.permissions]
    what = f"A client wants to {', and to '.join(wanted)}" if wanted else "A client wants to know that it is you"
    return _rows(f"{what}. That takes the card's PIN; no client sees it.", request.rp_id, request.user_name)


def question_for(request: PresenceRequest) -> str:
    """What the person is asked about, in lines of text. Names come from the client, and nobody has checked them."""
    first = f"{_WHAT.get(request.purpose, 'A client asks for you')}."
    return _rows(first, request.rp_id, request.user_name)


def _rows(first: str, rp_id: str, user_name: str) -> str:
    rows = [first]
    if rp_id:
        rows.append(f"  Site  {inert(rp_id, longest=100)}")
    if user_name:
        rows.append(f"  User  {inert(user_name, longest=64)}")
    return "\n".join(rows)


def _left(retries_left: int | None) -> str:
    return "" if retries_left is None else f" ({tries_left(retries_left)})"


def _quiet() -> DeviceError:
    return DeviceError(
        Reason.USER_CANCELLED,
        "Too many questions in a row were not granted: nobody is asked for the PIN now.",
        fix=f"Try again in {QUIET_SECONDS:.0f} seconds.",
    )
