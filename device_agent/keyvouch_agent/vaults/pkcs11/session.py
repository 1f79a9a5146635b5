"""What is done on one token: found by its name each time, for a card may be another one by now.

A session ends with the card that is taken out; what was logged in is not logged in again behind the user's back. So
everything that fails while the card is gone is AUTHENTICATOR_REMOVED, whatever the module called it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

import pkcs11
from pkcs11.exceptions import PKCS11Error

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.pkcs11 import readers
from keyvouch_agent.vaults.pkcs11.failures import (
    BROKEN,
    another_token,
    explained,
    held_token,
    locked,
    no_token,
    removed,
    unread_token,
)
from keyvouch_agent.vaults.pkcs11.library import OpenedToken, PresentToken, TokenLibrary
from keyvouch_agent.vaults.pkcs11.uri import TokenName, TokenUri

__all__ = ["TokenSession", "choose_token", "find_token", "told_of"]

_T = TypeVar("_T")
_MAY_BE_REMOVAL = frozenset((Reason.DEVICE_FAILED, Reason.UNSUPPORTED, Reason.PIN_REQUIRED))
"""What modules also say when a card is pulled: CKR_DEVICE_ERROR, CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED, ..."""


def choose_token(library: TokenLibrary, wanted: TokenUri) -> PresentToken:
    """The one token that a URI means. Raises `DeviceError`: AUTHENTICATOR_NOT_CONNECTED for none or several."""
    there = library.tokens()
    found = [token for token in there if wanted.matches(token.name, token.slot_id)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise _absent(str(wanted), there)
    raise _several(found)


def find_token(library: TokenLibrary, name: TokenName) -> PresentToken:
    """The token of that name. Raises `DeviceError`: AUTHENTICATOR_NOT_CONNECTED, AUTHENTICATOR_OTHER.

    A card that was pulled while it was read looks like another one, with nothing on it. So one that is another is
    looked at a second time, afresh, where that takes no login from another account.
    """
    there = library.tokens()
    found = [token for token in there if token.name.same_token(name)]
    if there and not found and library.renew_idle():
        there = library.tokens()
        found = [token for token in there if token.name.same_token(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise _several(found)
    others = [token for token in there if token.is_removable]
    if others:
        raise another_token(str(name), str(others[0].name))
    raise _absent(str(name), there)


def _several(found: list[PresentToken]) -> DeviceError:
    return DeviceError(
        Reason.AUTHENTICATOR_NOT_CONNECTED,
        f"There are {len(found)} cards that may be meant: {', '.join(str(token.name) for token in found)}.",
        fix='Leave one in, or name it: [smartcard] token = "pkcs11:serial=..." in agent.toml.',
    )


def _absent(wanted: str, there: list[PresentToken]) -> DeviceError:
    """Why a token is not there: it is in no reader, or it is and nobody can use it."""
    if held := readers.held_by_others():
        return held_token(held)
    unread = [reader for reader in readers.with_cards() if not any(reader.startswith(t.reader) for t in there)]
    return unread_token(unread) if unread and not there else no_token(wanted)


class TokenSession:
    """A session with one token, logged in where it was opened with a PIN. Close it, or use it in a `with`."""

    def __init__(self, library: TokenLibrary, name: TokenName, *, pin: Any = None, write: bool = False) -> None:
        """Raises `DeviceError`, and for a PIN that is not taken what python-pkcs11 raises."""
        self._library = library
        self._name = name
        self._opened: OpenedToken | None = library.open(lambda: find_token(library, name), pin=pin, write=write)
        self.mechanisms = self._opened.token.mechanisms
        """What the token can do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether it was closed neither here nor by a module that had to be initialised anew."""
        return self._opened is not None and self._opened.generation == self._library.generation

    def close(self) -> None:
        """Log out. Never fails."""
        opened, self._opened = self._opened, None
        if opened is not None:
            self._library.close_session(opened)

    def do(self, action: Callable[[pkcs11.Session], _T], *, passing: tuple[type[PKCS11Error], ...] = ()) -> _T:
        """Carry something out. Raises `DeviceError`, and refusals of the kinds in `passing` as they are.

        After those, AUTHENTICATOR_REMOVED, PIN_REQUIRED, and the failure of a module that is broken, it is closed.
        """
        with self._library.exclusively():
            if self._opened is None or not self.is_open:
                raise locked()
            try:
                return action(self._opened.session)
            except passing:
                self.close()
                raise
            except PKCS11Error as error:
                told = told_of(self._library, self._name, error)
                if told.reason in (Reason.AUTHENTICATOR_REMOVED, Reason.PIN_REQUIRED) or not self.is_open:
                    self.close()
                raise told from error


def told_of(library: TokenLibrary, name: TokenName, error: PKCS11Error) -> DeviceError:
    """What a refusal means: also that the card is not there any more, whatever the module called it.

    A module that failed may not have noticed yet. So it is initialised anew, which has it look at the card again.
    """
    told = explained(error)
    if told.reason not in _MAY_BE_REMOVAL:
        return told
    if type(error).__name__ in BROKEN:
        library.renew()
    try:
        find_token(library, name)
    except DeviceError:
        return removed()
    return told
