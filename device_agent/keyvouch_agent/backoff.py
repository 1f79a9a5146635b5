"""Exponential back-off with jitter, so that ten thousand devices do not come back in the same instant.

Not here: sleeping, and the source of the jitter.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """Delays that double from `first` to `longest` seconds, each spread over its upper half by `jitter`.

    `jitter` gives a number in [0, 1). The spread never goes below half a delay, so a dead server is not hammered.
    """

    def __init__(self, *, jitter: Callable[[], float], first: float = 0.2, longest: float = 30.0) -> None:
        self._jitter = jitter
        self._first = first
        self._longest = longest
        self._next = first

    def delay(self) -> float:
        """Seconds to wait before the next try."""
        ceiling, self._next = self._next, min(self._next * 2, self._longest)
        return ceiling * (0.5 + self._jitter() / 2)

    def reset(self) -> None:
        """A try has succeeded: begin again at the first delay."""
        self._next = self._first
