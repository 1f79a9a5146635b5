"""The outside world of the authenticator, except its keys: time, entropy, and the user's presence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Protocol

__all__ = ["Clock", "Entropy", "Presence", "PresenceRequest", "Purpose", "UserPresence"]


class Clock(Protocol):
    """Time that only goes forward."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""


class Entropy(Protocol):
    """Cryptographically strong randomness."""

    def token(self, length: int) -> bytes:
        """Return `length` fresh random bytes."""


@unique
class Purpose(StrEnum):
    """What the user is asked to be present for."""

    MAKE_CREDENTIAL = "make_credential"
    GET_ASSERTION = "get_assertion"
    SELECTION = "selection"
    RESET = "reset"


@unique
class Presence(StrEnum):
    """How the user answered."""

    GRANTED = "granted"
    DENIED = "denied"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class PresenceRequest:
    """What to show: the purpose, and the relying party and account where there is one."""

    purpose: Purpose
    rp_id: str = ""
    user_name: str = ""


class UserPresence(Protocol):
    """Evidence of user interaction: a touch, or an explicit confirmation (section 2, "user presence")."""

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        """Ask the user and wait. Return `CANCELLED` soon after `cancelled()` turns true."""
