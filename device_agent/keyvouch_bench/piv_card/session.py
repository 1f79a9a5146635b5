"""What a card knows between two commands, and what its commands work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from keyvouch_bench.piv_card.identifiers import RefusedError, Status
from keyvouch_bench.piv_card.state import CardState

__all__ = ["Chip", "Pending", "Session"]


@dataclass(frozen=True, slots=True)
class Pending:
    """A challenge (the card asked) or a witness (the card is asked) that the next command may answer."""

    value: bytes
    is_witness: bool


@dataclass(slots=True)
class Session:
    """The security status of SP 800-73-4 part 1, section 2.4.2: gone with the power, or with another application.

    `just_verified` and `pending` are what the command right before has left; `begin` makes them so.
    """

    selected: bool = True
    pin_verified: bool = False
    administrator: bool = False
    just_verified: bool = False
    pending: Pending | None = None
    next_just_verified: bool = False
    next_pending: Pending | None = None

    def begin(self) -> None:
        """A command comes: what the one before it left is for this one only."""
        self.just_verified, self.next_just_verified = self.next_just_verified, False
        self.pending, self.next_pending = self.next_pending, None

    def pin_accepted(self) -> None:
        """The PIN was right."""
        self.pin_verified = self.next_just_verified = True

    def pin_forgotten(self) -> None:
        """Nobody has given the PIN any more."""
        self.pin_verified = self.next_just_verified = False


@dataclass(slots=True)
class Chip:
    """A card at work. `entropy` gives that many random bytes; `touched` says whether somebody touches it now."""

    state: CardState
    entropy: Callable[[int], bytes]
    touched: Callable[[], bool]
    session: Session = field(default_factory=Session)

    def require_administrator(self) -> None:
        """Raises `RefusedError` unless the card management key was shown."""
        if not self.session.administrator:
            raise RefusedError(Status.SECURITY_STATUS_NOT_SATISFIED)
