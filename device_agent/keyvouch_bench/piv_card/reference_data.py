"""PIN and PUK: what they may look like, and the tries left (SP 800-73-4 part 1, section 4.4; part 2, section 2.4.3)."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from typing import Final

from keyvouch_bench.piv_card.identifiers import RefusedError, Status

__all__ = ["DEFAULT_PIN", "DEFAULT_PUK", "LENGTH", "ReferenceData", "padded", "pin_is_well_formed"]

LENGTH: Final = 8
"""Every PIN and PUK is that many bytes on the wire; a shorter one is padded with FF."""

DEFAULT_PIN: Final = "123456"
DEFAULT_PUK: Final = "12345678"
MOST_TRIES: Final = 15
"""A status word has room for that many."""

_PIN: Final = re.compile(rb"[0-9]{6,8}\xff{0,2}")


def padded(value: str) -> bytes:
    """A PIN or PUK as it is sent."""
    return value.encode().ljust(LENGTH, b"\xff")


def pin_is_well_formed(value: bytes) -> bool:
    """Six to eight digits, then padding."""
    return len(value) == LENGTH and _PIN.fullmatch(value) is not None


@dataclass(slots=True)
class ReferenceData:
    """A secret with a retry counter."""

    value: bytes
    tries: int
    left: int

    @classmethod
    def fresh(cls, value: str, tries: int) -> ReferenceData:
        """With all its tries."""
        return cls(padded(value), tries, tries)

    @property
    def blocked(self) -> bool:
        """Whether no try is left."""
        return self.left == 0

    def compare(self, value: bytes, *, acceptable: bool = True) -> None:
        """Take one try. Raises `RefusedError`: `BLOCKED` when none was left, else `TRIES_LEFT` with how many are.

        `acceptable` says whether what is to take its place will do; if not, the right value changes nothing:
        `INCORRECT_DATA`.
        """
        if self.blocked:
            raise RefusedError(Status.BLOCKED)
        if not hmac.compare_digest(self.value, value):
            self.left -= 1
            raise RefusedError(Status.TRIES_LEFT + self.left)
        if not acceptable:
            raise RefusedError(Status.INCORRECT_DATA)
        self.left = self.tries

    def replace(self, value: bytes) -> None:
        """Set another value, with all tries."""
        self.value, self.left = value, self.tries
