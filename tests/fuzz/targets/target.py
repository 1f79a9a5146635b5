"""What a fuzz target is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, unique

from keyvouch.errors import KeyvouchError, Reason, UsageError

__all__ = ["SECONDS_PER_INPUT", "Shape", "Target", "is_finding"]

SECONDS_PER_INPUT = 0.1
"""Longest time that any input may take."""


@unique
class Shape(Enum):
    """What the bytes are made of, so that a fuzzer can also change them without breaking their lengths."""

    BYTES = "bytes"
    CBOR = "cbor"
    DER = "der"


@dataclass(frozen=True, slots=True)
class Target:
    """A parser or verifier as a function of bytes. `refusals` are errors beside Keyvouch's own that it may raise."""

    name: str
    act: Callable[[bytes], object]
    shape: Shape = Shape.BYTES
    max_length: int = 4096
    nests: bool = False
    refusals: tuple[type[Exception], ...] = ()

    def try_on(self, data: bytes) -> None:
        """Let it judge `data`. A refusal is an answer; whatever else comes out is a finding and goes on."""
        try:
            self.act(data)
        except self.refusals:
            return
        except KeyvouchError as error:
            if is_finding(error):
                raise


def is_finding(error: KeyvouchError) -> bool:
    """Bytes of a peer are never the mistake of the calling program, and never an internal error."""
    return isinstance(error, UsageError) or error.reason in (Reason.INTERNAL, Reason.USAGE)
