"""A PKCS#11 module in this process, and the tokens it sees now.

One `TokenLibrary` for each module and process: a login is the process's, not the session's (PKCS#11 section 5.6.7), so
two users of a token share it. A module that says the user is logged in already has not looked at the PIN. Then it is
initialised anew, which ends every login of this process, and the PIN is shown to the token itself; a session that ends
so says that the PIN is wanted again.

python-pkcs11 leaves the session of a failed login open, and modules have room for a limited number. So once there are
some, and none that is in use, the module is initialised anew too.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import pkcs11
from pkcs11 import Mechanism, Slot, SlotFlag, Token, TokenFlag, TokenNotPresent, TokenNotRecognised
from pkcs11.exceptions import DeviceRemoved, PKCS11Error, SlotIDInvalid, UserAlreadyLoggedIn

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.pkcs11.failures import explained, stuck_module
from keyvouch_agent.vaults.pkcs11.uri import TokenName

__all__ = ["PATIENCE", "PIN_PAD", "OpenedToken", "PresentToken", "TokenLibrary"]

PIN_PAD = pkcs11.PROTECTED_AUTH
"""In the place of a PIN: it is typed on the reader."""

PATIENCE = 180.0
"""Seconds for what another thread does in the module. A PIN typed on a reader, and an RSA key, take their time."""

_MANY = 8
"""Sessions left open. PKCS#11 promises no number; OpenSC and cards with applets of their own have room for more."""
_WENT = (TokenNotPresent, TokenNotRecognised, DeviceRemoved, SlotIDInvalid)


@dataclass(frozen=True, slots=True)
class PresentToken:
    """A token that was there when it was looked for, and what it said then."""

    name: TokenName
    flags: TokenFlag
    mechanisms: frozenset[Mechanism | int]
    slot_id: int
    reader: str
    """The slot's description: for a card, the name of its reader."""
    is_removable: bool
    token: Token


@dataclass(frozen=True, slots=True)
class OpenedToken:
    """A session, the token as it was when that was opened, and the library's generation then."""

    session: pkcs11.Session
    token: PresentToken
    generation: int


class TokenLibrary:
    """The module at `path`, which is trusted already (`module_path`). It is loaded when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = RLock()
        self._lib: Any = None
        self._leaked = 0
        self._in_use = 0
        self._logins: list[OpenedToken] = []
        self.generation = 0
        """Grows whenever the sessions that were open have ended."""

    def tokens(self) -> list[PresentToken]:
        """Every initialised token that is there now, read afresh. Raises `DeviceError`."""
        with self.exclusively():
            found = self._look()
            if not found and self.generation and self.renew_idle():
                found = self._look()  # OpenSC stays blind to a pcscd that was started again
            self.generation = self.generation or 1
            return found

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """One thread at a time: the module was told nothing about threads.

        Raises `DeviceError(MODULE_UNAVAILABLE)` where another one does not come back from it.
        """
        if not self._lock.acquire(timeout=PATIENCE):
            raise stuck_module(str(self.path))
        try:
            yield
        finally:
            self._lock.release()

    def open(self, find: Callable[[], PresentToken], *, pin: Any = None, write: bool = False) -> OpenedToken:
        """Open a session, and log the user in where there is a PIN. Raises what python-pkcs11 raises.

        `find` finds the token: again, where the module had to be initialised anew.
        """
        with self.exclusively():
            try:
                opened = self._open(find(), pin, write)
            except UserAlreadyLoggedIn:
                self.renew()
                opened = self._open(find(), pin, write)
            self._in_use += 1
            if pin is not None:
                self._logins.append(opened)
            return opened

    def is_logged_in(self, name: TokenName) -> bool:
        """Whether somebody in this process is logged in to that token, as far as is known here."""
        return any(opened.token.name.same_token(name) for opened in self._logins)

    def close_session(self, opened: OpenedToken) -> None:
        """Log out and end a session. Never fails: what a card that was taken out says to it is of no interest."""
        with contextlib.suppress(DeviceError), self.exclusively():
            if opened.generation != self.generation:
                return
            self._in_use -= 1
            self._logins = [other for other in self._logins if other is not opened]
            try:
                opened.session.close()
            except PKCS11Error:
                self._leaked += 1
            self._tidy()

    def release(self) -> None:
        """Let other programs have the cards to themselves, as some want to, unless something here is using one."""
        with contextlib.suppress(DeviceError), self.exclusively():
            if not self._in_use:
                self.close()

    def close(self) -> None:
        """End everything that this process has open in the module. Never fails."""
        with contextlib.suppress(DeviceError), self.exclusively():
            lib, self._lib = self._lib, None
            self._leaked = self._in_use = 0
            self._logins = []
            self.generation += 1
            if lib is not None:
                _finalize(self.path)
                with contextlib.suppress(PKCS11Error):  # python-pkcs11 takes note; the module has nothing left to end
                    lib.finalize()

    def _open(self, found: PresentToken, pin: Any, write: bool) -> OpenedToken:
        try:
            return OpenedToken(found.token.open(rw=write, user_pin=pin), found, self.generation)
        except PKCS11Error:
            self._leaked += 1
            self._tidy()
            raise

    def _tidy(self) -> None:
        if self._leaked >= _MANY and not self._in_use:
            self.renew()

    def renew(self) -> None:
        """Have the module initialised anew when it is needed next; every session and login of this process ends now."""
        self.close()

    def renew_idle(self) -> bool:
        """As `renew`, unless something here is using a token. Returns whether it was done."""
        with self.exclusively():
            if self._in_use:
                return False
            self.renew()
            return True

    def _look(self) -> list[PresentToken]:
        with _in_words():
            slots = self._loaded().get_slots(token_present=True)
            return [found for slot in slots if (found := _read(slot)) is not None]

    def _loaded(self) -> Any:
        if self._lib is None:
            try:
                self._lib = pkcs11.lib(str(self.path))
            except PKCS11Error as error:
                raise DeviceError(
                    Reason.MODULE_UNAVAILABLE,
                    f"The PKCS#11 module {self.path} does not load or start: {error or type(error).__name__}.",
                    fix="Install its package again; `keyvouch-agent doctor` says more.",
                ) from error
        return self._lib


def _finalize(path: Path) -> None:
    """C_Finalize (PKCS#11 section 5.4.2), while other threads go on.

    python-pkcs11 calls it with the interpreter's lock held. To let go of a card the module waits for pcscd, and pcscd
    for the reader: everything in this process would wait too, and for ever if the card is a program in it.
    """
    try:
        ctypes.CDLL(str(path)).C_Finalize(None)
    except (OSError, AttributeError):  # a module need not export it by name; then python-pkcs11 does it
        return


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except PKCS11Error as error:
        raise explained(error) from error


def _read(slot: Slot) -> PresentToken | None:
    """What is in a slot; None for a card that was taken out meanwhile, or is none of a user's."""
    try:
        token, mechanisms = slot.get_token(), slot.get_mechanisms()
    except _WENT:
        return None
    if not token.flags & TokenFlag.TOKEN_INITIALIZED:
        return None
    serial = token.serial.decode("ascii", errors="backslashreplace").strip("\0 ")  # two of them never look alike
    return PresentToken(
        TokenName(token.label, serial, token.manufacturer_id, token.model),
        token.flags,
        frozenset(mechanisms),
        slot.slot_id,
        slot.slot_description,
        bool(slot.flags & SlotFlag.REMOVABLE_DEVICE),
        token,
    )
