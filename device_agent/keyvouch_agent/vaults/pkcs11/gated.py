"""The PIN of the PKCS#11 vault: asked for, shown to the token, and how many tries are left.

Unlocked means that a session is open in which the token has seen the PIN; the lock logs out. The PIN itself is kept
until then only where a key may want it for each signature (CKA_ALWAYS_AUTHENTICATE, as slot 9C of a PIV card). It is
never shown to a token on our own account: a card that was taken out, or that another program has reset, asks again.

What is not here: what is done behind the PIN (`vault`), and changing it (`pin_control`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import pkcs11
from pkcs11.exceptions import PinIncorrect, PinInvalid, PinLenRange, PinLocked, PKCS11Error

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.ports import PinEntry
from keyvouch_agent.authenticator.vault import UvState
from keyvouch_agent.vaults.pkcs11.account import CardAccount
from keyvouch_agent.vaults.pkcs11.failures import locked
from keyvouch_agent.vaults.pkcs11.library import PIN_PAD
from keyvouch_agent.vaults.pkcs11.pins import PinStanding, blocked_pin, require_try, wrong_pin
from keyvouch_agent.vaults.pkcs11.recorded import RecordedVault
from keyvouch_agent.vaults.pkcs11.session import TokenSession, told_of

__all__ = ["REFUSALS_OF_PIN", "GatedVault", "Unlocked", "can_be_pin", "not_a_pin", "refusal_of_pin"]

REFUSALS_OF_PIN: Final = (PinIncorrect, PinInvalid, PinLenRange, PinLocked)
_ON_PAD: Final = ""
"""The PIN of a context login on a PIN pad: python-pkcs11 passes no null, and OpenSC takes an empty PIN for one."""

_T = TypeVar("_T")


@dataclass(slots=True)
class Unlocked:
    """From the PIN to the lock."""

    session: TokenSession
    pin: bytearray | None = field(repr=False)
    """UTF-8; empty for one that is typed on the reader, None where no key wants it again."""

    def wipe(self) -> None:
        """Log out, and overwrite the PIN. Copies inside Python cannot be reached."""
        if self.pin is not None:
            self.pin[:] = bytes(len(self.pin))
            self.pin = None
        self.session.close()


class GatedVault(RecordedVault):
    """What of a `VerifyingVault` has to do with its PIN."""

    def __init__(self, account: CardAccount) -> None:
        super().__init__(account)
        self._unlocked: Unlocked | None = None
        self._last_try_allowed = False

    def uv_state(self) -> UvState:
        """Ask the token; nothing is asked of one that is unlocked. Raises AUTHENTICATOR_NOT_CONNECTED, _OTHER."""
        unlocked = self._unlocked  # another thread may lock meanwhile
        if unlocked is not None and unlocked.session.is_open:
            return UvState(is_configured=True, retries_left=None)
        standing = self._account.pin_standing()
        return UvState(standing.is_set, standing.tries_left, on_pad=standing.on_pad)

    def allow_last_try(self, allowed: bool = True) -> None:
        """The user knows that one try is left, and is sure: it may be spent, once. Or she is not any more."""
        self._last_try_allowed = allowed

    def take_last_try(self) -> bool:
        """Whether the last try may be spent now; it may not be a second time."""
        allowed, self._last_try_allowed = self._last_try_allowed, False
        return allowed

    def verify_user(self, entry: PinEntry) -> None:
        """Unlock. Besides what the port names: PIN_LAST_TRY, and AUTHENTICATOR_NOT_CONNECTED, _OTHER and _REMOVED.

        How the PIN stands is looked at before it is asked for, and again when it was typed: others may have tried too.
        """
        self.lock()
        allowed = self.take_last_try()
        standing = self._account.pin_standing()
        require_try(standing, allow_last=allowed)
        pin = _entered(entry, standing)
        if not standing.on_pad:
            require_try(self._account.pin_standing(), allow_last=allowed)
        kept = bytearray() if pin is PIN_PAD else bytearray(pin, "utf-8")
        self._unlocked = Unlocked(self._login(pin), kept)
        try:
            self._on_unlocked()
        except BaseException:
            self.lock()
            raise

    def lock(self) -> None:
        """Log out and forget the PIN. A login of another account on the same token, which ended ours, stays."""
        unlocked, self._unlocked = self._unlocked, None
        if unlocked is not None:
            account = self._account
            unlocked.wipe()
            if not account.library.is_logged_in(account.profile.name):
                account.forget_pin()
            account.library.release()

    def _on_unlocked(self) -> None:
        """For the keys: the token shows what is private now."""

    def _login(self, pin: Any) -> TokenSession:
        account = self._account
        makes_keys = account.profile.existing is None
        try:
            return TokenSession(account.library, account.profile.name, pin=pin, write=makes_keys)
        except REFUSALS_OF_PIN as error:
            raise refusal_of_pin(error, account) from error
        except PKCS11Error as error:
            raise told_of(account.library, account.profile.name, error) from error

    def _on_token(self, action: Callable[[pkcs11.Session], _T]) -> _T:
        """Do something behind the PIN. A card that went away, or wants the PIN again, locks the vault."""
        unlocked = self._require_unlocked()
        try:
            return unlocked.session.do(action, passing=REFUSALS_OF_PIN)
        except REFUSALS_OF_PIN as error:
            self._forget()
            raise refusal_of_pin(error, self._account) from error
        except DeviceError:
            if not unlocked.session.is_open:
                self._forget()
            raise

    def _context_pin(self, *, pin_always: bool) -> str | None:
        """The PIN for one use of a key that wants it each time. Locks, and raises, where no try is to spare.

        It was the right one when it was typed. Others may have changed it since, and then it counts as a wrong one.
        """
        pin = self._require_unlocked().pin
        if not pin_always or pin is None:
            return None
        try:
            require_try(self._account.pin_standing(), allow_last=False)
        except DeviceError:
            self._forget()
            raise
        return bytes(pin).decode() or _ON_PAD

    def _require_unlocked(self) -> Unlocked:
        if self._unlocked is None:
            raise locked()
        if not self._unlocked.session.is_open:
            self._forget()
            raise locked()
        return self._unlocked

    def _forget(self) -> None:
        GatedVault.lock(self)


def refusal_of_pin(error: PKCS11Error, account: CardAccount) -> DeviceError:
    """A PIN was not taken: what that means now."""
    if isinstance(error, PinLocked):
        return blocked_pin()
    try:
        return wrong_pin(account.pin_standing())
    except DeviceError as gone:
        return gone


def _entered(entry: PinEntry, standing: PinStanding) -> Any:
    """The PIN that somebody types, here or on the reader. Raises `DeviceError`: USER_CANCELLED, PIN_WRONG."""
    if standing.on_pad:
        entry.on_pad(standing.tries_left)
        return PIN_PAD
    pin = entry.ask(standing.tries_left)
    if pin is None:
        raise DeviceError(Reason.USER_CANCELLED, "No PIN was entered.", fix="Try again.")
    if not can_be_pin(pin):
        raise not_a_pin(standing)
    return pin


def can_be_pin(text: str) -> bool:
    """Whether somebody could have typed it, and a token may be shown it."""
    return bool(text) and text.isprintable()


def not_a_pin(standing: PinStanding) -> DeviceError:
    """What was given for the PIN is none, and was not tried."""
    return DeviceError(
        Reason.PIN_WRONG,
        "That is no PIN of a card. It was not tried.",
        retries_left=standing.tries_left,
        fix="Try again.",
    )
