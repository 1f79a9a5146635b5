"""Ways of asking for presence that are no question on a terminal."""

from __future__ import annotations

import pytest

from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, Purpose
from keyvouch_agent.transports.presence import GRANT_SECONDS, PATIENCE, DeferredPresence, UnsafeAutoPresence
from support.transport_bench import SECONDS, SlowUser

FIRST = PresenceRequest(Purpose.GET_ASSERTION, "one.example")
SECOND = PresenceRequest(Purpose.GET_ASSERTION, "two.example")


def never() -> bool:
    return False


class Stage:
    def __init__(self) -> None:
        self.now = 50.0
        self.user = SlowUser()
        self.presence = DeferredPresence(self.user, lambda: self.now)

    def ask(self, request: PresenceRequest = FIRST) -> Presence:
        return self.presence.confirm(request, never)

    def answered(self, answer: Presence, request: PresenceRequest = FIRST) -> None:
        """The user answers, and the answer has arrived."""
        self.user.asked.get(timeout=SECONDS)
        self.user.answer(answer)
        self.presence.settled(SECONDS)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_auto_grants_everything_but_what_was_cancelled():
    assert UnsafeAutoPresence().confirm(FIRST, never) is Presence.GRANTED
    assert UnsafeAutoPresence().confirm(FIRST, lambda: True) is Presence.CANCELLED


def test_an_answer_serves_once(stage: Stage):
    assert stage.ask() is Presence.TIMEOUT
    stage.answered(Presence.GRANTED)
    assert stage.ask() is Presence.GRANTED
    assert stage.ask() is Presence.TIMEOUT
    assert stage.user.asked.get(timeout=SECONDS) == FIRST


def test_an_answer_serves_nothing_else(stage: Stage):
    stage.ask()
    stage.answered(Presence.GRANTED)
    assert stage.ask(SECOND) is Presence.TIMEOUT
    stage.answered(Presence.GRANTED)
    assert stage.ask(FIRST) is Presence.TIMEOUT


def test_an_answer_grows_old(stage: Stage):
    stage.ask()
    stage.answered(Presence.GRANTED)
    stage.now += min(GRANT_SECONDS, PATIENCE) + 0.1
    assert stage.ask() is Presence.TIMEOUT


def test_what_was_declined_is_not_asked_again_while_the_client_goes_on(stage: Stage):
    stage.ask()
    stage.answered(Presence.DENIED)
    for _ in range(5):
        stage.now += PATIENCE - 0.1
        assert stage.ask() is Presence.DENIED
    assert stage.user.asked.empty()
    stage.now += PATIENCE + 0.1
    assert stage.ask() is Presence.TIMEOUT
    assert stage.user.asked.get(timeout=SECONDS) == FIRST


def test_asking_again_is_no_second_question(stage: Stage):
    for _ in range(5):
        assert stage.ask() is Presence.TIMEOUT
    stage.user.asked.get(timeout=SECONDS)
    assert stage.user.asked.empty()


def test_a_client_that_gives_up_has_its_question_withdrawn(stage: Stage):
    stage.ask()
    stage.user.asked.get(timeout=SECONDS)
    stage.now += PATIENCE + 0.1
    assert stage.user.withdrawn.wait(SECONDS)


def test_another_question_takes_the_place_of_the_one_before(stage: Stage):
    stage.ask()
    stage.user.asked.get(timeout=SECONDS)
    assert stage.ask(SECOND) is Presence.TIMEOUT
    assert stage.user.withdrawn.wait(SECONDS)
    assert stage.user.asked.get(timeout=SECONDS) == SECOND


def test_withdraw_takes_back_the_question_and_the_answer(stage: Stage):
    stage.ask()
    stage.answered(Presence.GRANTED)
    stage.presence.withdraw()
    assert stage.ask() is Presence.TIMEOUT
    stage.user.asked.get(timeout=SECONDS)
    stage.presence.withdraw()
    assert stage.user.withdrawn.wait(SECONDS)


def test_a_cancelled_command_asks_nobody(stage: Stage):
    assert stage.presence.confirm(FIRST, lambda: True) is Presence.CANCELLED
    assert stage.user.asked.empty()


def test_an_answer_serves_no_other_message_that_looks_the_same(stage: Stage):
    """U2F names no site: two requests for different ones are shown alike."""
    mine, theirs = stage.presence.about(b"message"), stage.presence.about(b"another")
    assert mine.confirm(FIRST, never) is Presence.TIMEOUT
    stage.answered(Presence.GRANTED)
    assert theirs.confirm(FIRST, never) is Presence.TIMEOUT
    stage.answered(Presence.GRANTED)
    assert stage.presence.about(b"another").confirm(FIRST, never) is Presence.GRANTED  # control
