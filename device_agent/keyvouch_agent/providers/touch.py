"""Patience with a person who has to touch an authenticator: a reminder now and then, and an end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Thread

__all__ = ["TouchPatience", "TouchWatch"]


@dataclass(frozen=True, slots=True)
class TouchPatience:
    """Seconds between two reminders, and until the question is taken back.

    Most keys end their question themselves, after ten to thirty seconds (CTAP 2.1 section 6.1.2 asks for at least ten).
    """

    remind: float = 8.0
    give_up: float = 60.0


class TouchWatch:
    """Watches over one question at a time. `remind` reminds, `give_up` takes the question back."""

    def __init__(self, patience: TouchPatience, remind: Callable[[], None], give_up: Callable[[], None]) -> None:
        self._patience = patience
        self._remind = remind
        self._give_up = give_up
        self._over = Event()
        self._thread: Thread | None = None
        self.timed_out = False

    def begin(self) -> None:
        """The authenticator waits for a touch from now on."""
        self._remind()
        if self._thread is None:
            self.timed_out = False
            self._over.clear()
            self._thread = Thread(target=self._wait, name="touch-reminder", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """It waits no more. Does nothing where it did not."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _wait(self) -> None:
        waited = 0.0
        while waited < self._patience.give_up:
            step = min(self._patience.remind, self._patience.give_up - waited)
            if self._over.wait(step):
                return
            waited += step
            if waited < self._patience.give_up:
                self._remind()
        self.timed_out = True
        self._give_up()
