"""What goes wrong with a card: taken out, slow, garbled answers, status words out of nowhere.

    card.faults.remove_at(3)            # taken out at the third APDU from now, before that is carried out
    card.faults.remove_at(3, after=True)    # carried out, and its answer is lost
    card.faults.fail(1, 0x6F00)         # the next APDU is answered so, and not carried out
    card.faults.garble(2)               # the next two are carried out, their answers are noise
    card.faults.slow(0.5)               # every one takes that long, until `clear`

APDUs are counted as the reader sends them: each piece of a chain, and each GET RESPONSE.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

__all__ = ["CardRemovedError", "Faults", "Plan", "Turn"]

_LONGEST_NOISE: Final = 258


class CardRemovedError(ConnectionError):
    """The card is taken out of the reader. It never leaves the bench."""


class Turn(Enum):
    """What happens to one APDU."""

    NORMAL = auto()
    REMOVED = auto()
    REMOVED_AFTER = auto()
    FAILED = auto()
    GARBLED = auto()


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to the APDU at hand: how, after how many seconds, and the answer in its place if there is one."""

    turn: Turn
    seconds: float
    answer: bytes = b""


class Faults:
    """The faults that are to come. A test may order them from another thread than the card's."""

    def __init__(self, seed: int = 0) -> None:
        self._noise = random.Random(seed)  # noqa: S311 - noise that is the same each time
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._garbled = 0
        self._at: dict[int, tuple[Turn, bytes]] = {}
        self._count = 0

    def remove_at(self, number: int = 1, *, after: bool = False) -> None:
        """Take the card out at that APDU from now; `after` it was carried out, if so."""
        self._order(number, Turn.REMOVED_AFTER if after else Turn.REMOVED)

    def fail(self, number: int, status: int) -> None:
        """Answer that APDU from now with this status word, and do not carry it out."""
        self._order(number, Turn.FAILED, status.to_bytes(2, "big"))

    def garble(self, number: int = 1) -> None:
        """Answer so many APDUs with noise. They are carried out."""
        with self._lock:
            self._garbled = number

    def slow(self, seconds: float) -> None:
        """Take that long for each APDU."""
        with self._lock:
            self._seconds = seconds

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._seconds, self._garbled = 0.0, 0
            self._at.clear()

    def next(self) -> Plan:
        """What happens to the APDU that comes now."""
        with self._lock:
            self._count += 1
            turn, answer = self._at.pop(self._count, (Turn.NORMAL, b""))
            if turn is Turn.NORMAL and self._garbled:
                self._garbled -= 1
                turn, answer = Turn.GARBLED, self._noise.randbytes(self._noise.randint(1, _LONGEST_NOISE))
            return Plan(turn, self._seconds, answer)

    def _order(self, number: int, turn: Turn, answer: bytes = b"") -> None:
        with self._lock:
            self._at[self._count + number] = (turn, answer)
