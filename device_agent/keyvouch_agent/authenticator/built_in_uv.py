"""Built-in user verification: a vault that verifies its user itself (performBuiltInUv, section 6.5).

A card wants the PIN and not a hash of it, so its PIN is none of CTAP's. Whoever runs the command gives a `PinEntry`,
where the PIN is typed; without one there is nobody to verify, and this authenticator says that it is not set up to.
One PIN is asked for at a time: another try is another command. What is *not* here: presence, which a typed PIN is no
evidence of.
"""

from __future__ import annotations

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.pin_token import TokenKeeper
from keyvouch_agent.authenticator.ports import Ask, PinEntry
from keyvouch_agent.authenticator.standing import Standing
from keyvouch_agent.authenticator.status import CommandError, Status

__all__ = ["BuiltInUv"]

_STATUS_OF = {
    Reason.USER_CANCELLED: Status.OPERATION_DENIED,
    Reason.USER_TIMEOUT: Status.USER_ACTION_TIMEOUT,
    Reason.PIN_NOT_SET: Status.NOT_ALLOWED,
}


class BuiltInUv:
    """Verifies the user, and knows whether the vault was opened by that."""

    def __init__(self, standing: Standing, tokens: TokenKeeper) -> None:
        self._standing = standing
        self._tokens = tokens
        self._opened = False

    def is_ready(self, ask: Ask) -> bool:
        """Whether it is there, set up, and somebody can be asked (the option "uv" of section 6.4)."""
        verifier = self._standing.verifier
        return verifier is not None and ask.entry is not None and verifier.uv_state().is_configured

    @property
    def retries_left(self) -> int:
        """How many tries are left, as the platform is told (uvRetries). At least one, where the vault does not tell."""
        verifier = self._standing.verifier
        left = verifier.uv_state().retries_left if verifier else 0
        return 1 if left is None else left

    def perform(self, ask: Ask, *, wrong: Status, blocked: Status) -> None:
        """Verify the user once, which opens the vault. `wrong` and `blocked` are what the command answers.

        The vault is locked before: what was verified earlier is given up with the token that says so. That no try is
        left the vault says itself, for it knows the way out; nobody is asked for a PIN then.
        """
        verifier, entry = self._standing.verifier, ask.entry
        if verifier is None or entry is None:
            raise CommandError(Status.NOT_ALLOWED)
        self._tokens.end()
        watched = _WatchedEntry(entry, ask, blocked)
        try:
            verifier.verify_user(watched)
        except DeviceError as error:
            if watched.gave_up is not None:
                raise CommandError(watched.gave_up) from None
            raise _explained(error, wrong, blocked) from error
        self._opened = True
        if ask.cancelled():
            raise CommandError(Status.KEEPALIVE_CANCEL)

    def close(self) -> None:
        """Lock the vault, if it was opened here and no token keeps it open."""
        verifier = self._standing.verifier
        if self._opened and verifier is not None and not self._tokens.is_in_use:
            self._opened = False
            verifier.lock()


def _explained(error: DeviceError, wrong: Status, blocked: Status) -> Exception:
    """The status for what the vault said; what concerns no user verification stays as it is."""
    match error.reason:
        case Reason.PIN_BLOCKED:
            return CommandError(blocked)
        case Reason.PIN_WRONG:
            return CommandError(blocked if error.retries_left == 0 else wrong)
        case _:
            status = _STATUS_OF.get(error.reason)
            return error if status is None else CommandError(status)


class _WatchedEntry:
    """The entry of one command, which knows why it gave no PIN: cancelled, nobody there, or no try left for it."""

    def __init__(self, entry: PinEntry, ask: Ask, blocked: Status) -> None:
        self._entry = entry
        self._ask = ask
        self._blocked = blocked
        self.gave_up: Status | None = None

    def ask(self, retries_left: int | None) -> str | None:
        """See `PinEntry`."""
        if self._is_cancelled():
            return None
        if retries_left == 0:
            self.gave_up = self._blocked
            return None
        try:
            pin = self._entry.ask(retries_left)
        except TimeoutError:
            self.gave_up = Status.USER_ACTION_TIMEOUT
            return None
        return None if self._is_cancelled() else pin

    def on_pad(self, retries_left: int | None) -> None:
        """See `PinEntry`."""
        self._entry.on_pad(retries_left)

    def _is_cancelled(self) -> bool:
        if self._ask.cancelled():
            self.gave_up = Status.KEEPALIVE_CANCEL
        return self.gave_up is not None
