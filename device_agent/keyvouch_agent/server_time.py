"""The server's time as a device knows it: learned at each welcome, carried on by a clock that only goes forward.

A device with a wrong or stepped wall clock still sees prompts expire when the server says so.
"""

from __future__ import annotations

from keyvouch.errors import Reason, UnavailableError
from keyvouch_agent.agent_ports import Clock

__all__ = ["ServerTime"]


class ServerTime:
    """Estimates the server's clock, to the second and late by at most the time a message took."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset: float | None = None

    @property
    def known(self) -> bool:
        """A welcome has been heard."""
        return self._offset is not None

    def learn(self, server_time: int) -> None:
        """Take over the time of a welcome that has just arrived."""
        self._offset = server_time - self._clock.monotonic()

    def now(self) -> float:
        """Seconds since the epoch on the server's clock. Raises `UnavailableError` before the first welcome."""
        if self._offset is None:
            raise UnavailableError(
                Reason.SERVER_UNREACHABLE,
                "The server has not been heard yet, so its time is unknown.",
                fix="Wait until `keyvouch-agent status` shows the enrolment as connected.",
            )
        return self._clock.monotonic() + self._offset
