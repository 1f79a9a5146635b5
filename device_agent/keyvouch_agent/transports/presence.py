"""Ways of asking for presence: not at all, and without making the client wait.

Not here: the question itself on a terminal (`keyvouch_agent.prompts.presence`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, UserPresence

__all__ = ["DeferredPresence", "UnsafeAutoPresence"]

GRANT_SECONDS: Final = 10.0
"""How long an answer is good for (FIDO U2F Raw Message Formats: presence may be kept for no more than 10 s)."""
PATIENCE: Final = 3.0
"""A client that has not asked again for this long has given up."""


class UnsafeAutoPresence:
    """Grants everything at once, to anybody. For benches: whoever serves with it has to say so loudly."""

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:  # noqa: ARG002
        """Nobody is asked."""
        return Presence.CANCELLED if cancelled() else Presence.GRANTED


@dataclass(slots=True)
class _Question:
    request: PresenceRequest
    message: bytes
    asked_again: float
    answer: Presence | None = None
    answered: float = 0.0
    withdrawn: threading.Event = field(default_factory=threading.Event)
    settled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _About:
    ask: Callable[[PresenceRequest, Callable[[], bool]], Presence]

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        return self.ask(request, cancelled)


class DeferredPresence:
    """For CTAP1/U2F, whose clients ask again and again: `TIMEOUT` at once while the person is being asked.

    The answer serves the next time the same is asked, once, and within ten seconds. U2F names no site that could be
    shown, so what is the same, the whole message says (`about`). A question whose client has given
    up is withdrawn, and so is one that another takes the place of. What was declined is not asked again while the
    client goes on.
    """

    def __init__(self, presence: UserPresence, monotonic: Callable[[], float]) -> None:
        self._presence = presence
        self._monotonic = monotonic
        self._guard = threading.Lock()
        self._question: _Question | None = None

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        """As `about` an empty message."""
        return self._confirm(request, b"", cancelled)

    def about(self, message: bytes) -> UserPresence:
        """For one message: no answer to another one serves it."""
        return _About(lambda request, cancelled: self._confirm(request, message, cancelled))

    def _confirm(self, request: PresenceRequest, message: bytes, cancelled: Callable[[], bool]) -> Presence:
        """The answer to an earlier question, if there is one; else see that there is a question."""
        if cancelled():
            return Presence.CANCELLED
        with self._guard:
            now, question = self._monotonic(), self._question
            is_same = question is not None and (question.request, question.message) == (request, message)
            if question is None or not is_same or self._is_over(question, now):
                self._ask(request, message, now)
                return Presence.TIMEOUT
            question.asked_again = now
            if question.answer is Presence.GRANTED:
                self._question = None
            return question.answer or Presence.TIMEOUT

    def settled(self, seconds: float) -> bool:
        """Wait until the open question has its answer; false if it does not within `seconds`."""
        with self._guard:
            question = self._question
        return question is None or question.settled.wait(seconds)

    def withdraw(self) -> None:
        """Take back what is being asked, and forget what was answered."""
        with self._guard:
            question, self._question = self._question, None
        if question is not None:
            question.withdrawn.set()

    def _is_over(self, question: _Question, now: float) -> bool:
        if now - question.asked_again > PATIENCE:
            return True
        return question.answer is Presence.GRANTED and now - question.answered > GRANT_SECONDS

    def _ask(self, request: PresenceRequest, message: bytes, now: float) -> None:
        if self._question is not None:
            self._question.withdrawn.set()
        self._question = question = _Question(request, message, now)
        threading.Thread(target=self._wait_for, args=(question,), name="presence", daemon=True).start()

    def _wait_for(self, question: _Question) -> None:
        answer = self._presence.confirm(question.request, lambda: self._is_unwanted(question))
        with self._guard:
            question.answer, question.answered = answer, self._monotonic()
        question.settled.set()

    def _is_unwanted(self, question: _Question) -> bool:
        return question.withdrawn.is_set() or self._monotonic() - question.asked_again > PATIENCE
