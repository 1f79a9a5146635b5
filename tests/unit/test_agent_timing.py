"""Back-off and the server's time."""

from __future__ import annotations

import itertools

import pytest

from keyvouch.errors import UnavailableError
from keyvouch_agent.backoff import Backoff
from keyvouch_agent.server_time import ServerTime


def test_delays_double_up_to_the_longest_and_begin_again() -> None:
    backoff = Backoff(jitter=lambda: 1.0, first=0.2, longest=30.0)
    delays = [backoff.delay() for _ in range(10)]
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0])
    backoff.reset()
    assert backoff.delay() == pytest.approx(0.2)


def test_jitter_spreads_the_upper_half() -> None:
    draws = itertools.cycle([0.0, 0.5, 0.999])
    backoff = Backoff(jitter=lambda: next(draws), first=8.0, longest=8.0)
    assert [backoff.delay() for _ in range(3)] == pytest.approx([4.0, 6.0, 7.996])


class StepClock:
    """Two clocks that a test sets."""

    def __init__(self) -> None:
        self.wall, self.steady = 0.0, 100.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady


def test_a_step_of_the_wall_clock_changes_nothing_p20() -> None:
    clock = StepClock()
    server_time = ServerTime(clock)
    server_time.learn(1_700_000_000)
    clock.wall += 86_400
    clock.steady += 5
    assert server_time.now() == pytest.approx(1_700_000_005)


def test_before_the_first_welcome_nothing_is_known() -> None:
    with pytest.raises(UnavailableError):
        ServerTime(StepClock()).now()
