"""Where the PIN comes from that a card wants itself, and what a client wants it for.

CTAP asks for such a PIN on the authenticator's side ("built-in user verification"), so no client ever sees it. Not
here: the question on a terminal (`prompts.presence`), and when one is asked for (`authenticator.built_in_uv`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.parameters import parse_client_pin, parse_get_assertion, parse_make_credential
from keyvouch_agent.authenticator.pin_token import Permission
from keyvouch_agent.authenticator.status import CommandError

if TYPE_CHECKING:
    from keyvouch_agent.transports.command_runner import RunningCommand

__all__ = ["PIN_NOT_TAKEN", "CommandEntry", "HeldPin", "PinDesk", "PinRequest", "what_for"]

PIN_NOT_TAKEN: Final = frozenset((Reason.PIN_WRONG, Reason.PIN_BLOCKED, Reason.PIN_LAST_TRY))
"""What a vault says of a PIN that it did not take."""


@dataclass(frozen=True, slots=True)
class PinRequest:
    """What a client wants the PIN for, as it says itself: nobody has checked the names."""

    permissions: Permission = field(default=Permission(0))
    rp_id: str = ""
    user_name: str = ""


def what_for(request: bytes) -> PinRequest:
    """What a CTAP2 request would use the PIN for; nothing is known of one that the engine refuses anyway."""
    try:
        return _read(request[0], request[1:])
    except (CommandError, IndexError):
        return PinRequest()


def _read(command: int, data: bytes) -> PinRequest:
    match command:
        case 0x01:
            making = parse_make_credential(data)
            return PinRequest(Permission.MAKE_CREDENTIAL, making.rp_id, making.user.name)
        case 0x02:
            return PinRequest(Permission.GET_ASSERTION, parse_get_assertion(data).rp_id)
        case 0x06:
            token = parse_client_pin(data)
            return PinRequest(Permission(token.permissions or 0), token.rp_id or "")
        case _:
            return PinRequest()


class PinDesk(Protocol):
    """Whoever has the PIN. Called on the authenticator's thread."""

    def ask_pin(self, request: PinRequest, retries_left: int | None, cancelled: Callable[[], bool]) -> str | None:
        """The PIN, once; None when nobody wants to give it, and soon after `cancelled()` turns true.

        Raises `TimeoutError` when nobody answers, and `DeviceError(USER_CANCELLED)` where none is given any more.
        """

    def on_pad(self, request: PinRequest, retries_left: int | None) -> None:
        """Say that it is to be typed on the reader. Does not wait. Raises as `ask_pin`."""

    def heard(self, failure: Exception | None) -> None:
        """How the command ended for which the PIN was given."""


class CommandEntry:
    """`PinEntry` of one running command: it says what the command is about, and is taken back with it."""

    def __init__(self, command: RunningCommand, request: bytes, pins: PinDesk) -> None:
        self._command = command
        self._request = request
        self._pins = pins
        self._was_asked = False

    def ask(self, retries_left: int | None) -> str | None:
        """See `PinEntry`."""
        self._was_asked = True
        with self._command.asking():
            return self._pins.ask_pin(what_for(self._request), retries_left, self._command.is_cancelled)

    def on_pad(self, retries_left: int | None) -> None:
        """See `PinEntry`."""
        self._was_asked = True
        self._command.asks_elsewhere()
        self._pins.on_pad(what_for(self._request), retries_left)

    def over(self, failure: Exception | None) -> None:
        """The command has ended."""
        if self._was_asked:
            self._pins.heard(failure)


class HeldPin:
    """A PIN that is kept in memory and given to every command, for benches.

    One that was not taken is never given again, so that it does not block the card. Neither is one that has not been
    taken yet when a command with it fails in another way: it may have been wrong.
    """

    def __init__(self, pin: str) -> None:
        self._pin: str | None = pin
        self._is_proven = False

    def __repr__(self) -> str:
        return "HeldPin(...)"

    def ask_pin(self, request: PinRequest, retries_left: int | None, cancelled: Callable[[], bool]) -> str | None:  # noqa: ARG002
        """Nobody is asked."""
        if cancelled():
            return None
        if self._pin is None:
            raise DeviceError(
                Reason.USER_CANCELLED,
                "The PIN that was given at the start was not taken. It is not tried again.",
                fix="Start `keyvouch-agent authenticator serve` again, with the right PIN.",
            )
        return self._pin

    def on_pad(self, request: PinRequest, retries_left: int | None) -> None:
        """Whoever is at the reader types it; nobody is told here."""

    def heard(self, failure: Exception | None) -> None:
        """Keep a PIN that was taken."""
        if failure is None:
            self._is_proven = True
        elif not self._is_proven or (isinstance(failure, DeviceError) and failure.reason in PIN_NOT_TAKEN):
            self._pin = None
