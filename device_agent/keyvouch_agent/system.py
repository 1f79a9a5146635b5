"""The operating system behind the ports: clocks, entropy, and keeping memory out of core dumps."""

from __future__ import annotations

import ctypes
import importlib.metadata
import secrets
import time
from contextlib import suppress

__all__ = ["SystemClock", "SystemEntropy", "forbid_core_dumps", "installed_version"]

_PR_SET_DUMPABLE = 4


class SystemClock:
    """The wall clock, and a clock that only goes forward and counts sleep too (clock_gettime(2), CLOCK_BOOTTIME)."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since the start of the machine."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class SystemEntropy:
    """The kernel's randomness."""

    def token(self, length: int) -> bytes:
        """Fresh random bytes."""
        return secrets.token_bytes(length)


def forbid_core_dumps() -> None:
    """Keep this process out of core dumps and of other processes' reach (prctl(2)), where the system can do that."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def installed_version() -> str:
    """The version of the installed distribution; `unknown` when it runs from a source tree."""
    try:
        return importlib.metadata.version("keyvouch")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
