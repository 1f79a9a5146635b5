"""Waiting between attempts, and repeating what is safe to repeat.

Only calls that the protocol makes repeatable go through `persist`. Not here: which calls those are.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from keyvouch.errors import UnavailableError

__all__ = ["Backoff", "Patience", "persist"]

T = TypeVar("T")

_DRAW = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential waiting with jitter; all in seconds. The n-th wait lies between a half and all of its limit."""

    first: float = 0.2
    longest: float = 5.0

    def delay(self, attempt: int) -> float:
        """How long to wait after attempt number `attempt` (from 0) has failed."""
        limit: float = min(self.first * 2 ** min(attempt, 16), self.longest)
        return limit * _DRAW.uniform(0.5, 1.0)


class Patience:
    """Repeated attempts until an instant of the monotonic clock, with waits that start small again after success."""

    def __init__(self, seconds: float, backoff: Backoff) -> None:
        self._until = time.monotonic() + seconds
        self._backoff = backoff
        self._attempt = 0

    def refresh(self) -> None:
        """The last attempt got somewhere: the next wait is short again."""
        self._attempt = 0

    async def wait_or_raise(self, error: UnavailableError) -> None:
        """Wait for the next attempt, or raise `error` where the time is up."""
        delay = self._backoff.delay(self._attempt)
        if time.monotonic() + delay > self._until:
            raise error
        self._attempt += 1
        await asyncio.sleep(delay)


async def persist(attempt: Callable[[], Awaitable[T]], *, seconds: float, backoff: Backoff) -> T:
    """Call `attempt` until it succeeds, fails for a reason other than `UnavailableError`, or the time is up."""
    patience = Patience(seconds, backoff)
    while True:
        try:
            return await attempt()
        except UnavailableError as error:
            await patience.wait_or_raise(error)
