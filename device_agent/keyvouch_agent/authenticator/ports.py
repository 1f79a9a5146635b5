"""The outside world of the authenticator, except its keys: time, entropy, and the user's presence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Protocol

__all__ = ["Ask", "Clock", "Entropy", "PinEntry", "Presence", "PresenceRequest", "Purpose", "UserPresence"]


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
    application: bytes = b""
    """Of CTAP1/U2F, which has no more than the hash of the relying party; so that one touch is for one of them."""


class UserPresence(Protocol):
    """Evidence of user interaction: a touch, or an explicit confirmation (section 2, "user presence")."""

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        """Ask the user and wait. Return `CANCELLED` soon after `cancelled()` turns true."""


class PinEntry(Protocol):
    """Where a PIN is typed that a vault wants itself."""

    def ask(self, retries_left: int | None) -> str | None:
        """Ask for the PIN once, saying how many tries are left. None when nobody wants to give it.

        Raise `TimeoutError` when nobody answers; the vault gets None then, too.
        """

    def on_pad(self, retries_left: int | None) -> None:
        """Say that the PIN is to be typed on the pad of the reader. Does not wait."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The user of the command that is running: asked for a sign of presence, and where a PIN is typed, if anywhere.

    Once the command is `cancelled`, it grants nothing, whatever the user has answered.
    """

    presence: UserPresence
    cancelled: Callable[[], bool]
    entry: PinEntry | None = None

    def __call__(self, request: PresenceRequest) -> Presence:
        """Ask for presence, and wait for the answer."""
        if self.cancelled():
            return Presence.CANCELLED
        answer = self.presence.confirm(request, self.cancelled)
        return Presence.CANCELLED if self.cancelled() else answer
