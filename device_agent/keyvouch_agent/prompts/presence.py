"""The question for presence, in the terminal of `keyvouch-agent authenticator serve`.

A security key asks for a touch; this one asks for a yes. There is no default, only `y` grants, and what a client says
of itself is shown inert. A question that takes the place of one that went away waits for a moment, so that the answer
to the other is none to it; and after three in a row that were not granted nobody is asked for half a minute. Not here:
PINs, which clients ask for themselves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Final

from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, Purpose
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.prompts.tty_lines import TtyLines

__all__ = ["ANSWER_SECONDS", "MOST_REFUSED", "QUIET_SECONDS", "TerminalPresence", "question_for"]

ANSWER_SECONDS: Final = 30.0
"""How long a question stands (CTAP 2.1 section 6.1.2: a platform waits for 30 seconds at least)."""

READING_SECONDS: Final = 1.0
"""For which a question that comes in the place of another takes no answer."""
MOST_REFUSED: Final = 3
"""Questions in a row that were not granted, after which clients get no for a while."""
QUIET_SECONDS: Final = 30.0

_POLL: Final = 0.05
_WHAT: Final = {
    Purpose.MAKE_CREDENTIAL: "A client wants to make a new key",
    Purpose.GET_ASSERTION: "A client wants to sign in",
    Purpose.SELECTION: "A client asks which key to use, this one or another",
    Purpose.RESET: "A client wants to RESET this authenticator: every key in it and its PIN will be destroyed",
}


class TerminalPresence:
    """`UserPresence` on a terminal. The authenticator's threads ask; the questions run in `loop`, one at a time."""

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
        self._refused = 0
        self._quiet_until = float("-inf")

    @property
    def is_asking(self) -> bool:
        """Whether a question stands."""
        return self._one_at_a_time.locked()

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        """Ask and wait, from any thread but the loop's own."""
        while not self._one_at_a_time.acquire(timeout=_POLL):
            if cancelled():
                return Presence.CANCELLED
        try:
            if self._monotonic() < self._quiet_until:
                return Presence.DENIED
            answer = self._wait(asyncio.run_coroutine_threadsafe(self._put(request), self._loop), cancelled)
            self._note(answer)
            return answer
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

    def _note(self, answer: Presence) -> None:
        self._refused = 0 if answer is Presence.GRANTED else self._refused + 1
        if self._refused >= MOST_REFUSED:
            self._refused = 0
            self._quiet_until = self._monotonic() + QUIET_SECONDS
            said = f"{MOST_REFUSED} questions in a row were not granted: for {QUIET_SECONDS:.0f} seconds every client "
            self._loop.call_soon_threadsafe(self._lines.show, said + "is told no without asking you.")

    async def _put(self, request: PresenceRequest) -> Presence:
        self._lines.show("\n" + question_for(request))
        went_away, self._went_away = self._went_away, True
        try:
            async with asyncio.timeout(self._seconds):
                if went_away:
                    await asyncio.sleep(READING_SECONDS)
                answer = await self._answer()
                self._went_away = False
                return answer
        except TimeoutError:
            self._lines.show("\nNobody answered; the client was told so.")
            return Presence.TIMEOUT
        except asyncio.CancelledError:
            self._lines.show("\nThe client has withdrawn its question; it needs no answer any more.")
            raise

    async def _answer(self) -> Presence:
        while (typed := await self._lines.ask("Is that you? (y, n): ")) is not None:
            match typed.strip().lower():
                case "y" | "yes":
                    return Presence.GRANTED
                case "n" | "no":
                    return Presence.DENIED
                case _:
                    self._lines.show("Type y or n, then Enter.")
        return Presence.DENIED


def question_for(request: PresenceRequest) -> str:
    """What the person is asked about, in lines of text. Names come from the client, and nobody has checked them."""
    rows = [f"{_WHAT.get(request.purpose, 'A client asks for you')}."]
    if request.rp_id:
        rows.append(f"  Site  {inert(request.rp_id, longest=100)}")
    if request.user_name:
        rows.append(f"  User  {inert(request.user_name, longest=64)}")
    return "\n".join(rows)
