"""Which key a ceremony is for, and waiting until it is there.

A new credential goes on the only key, or on the one of several that is touched. A signature needs the key that holds
the credential; all that are connected are asked silently. Whoever is waited for is told so, once for each situation.
What is not here: the ceremony.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Final

from fido2.ctap import CtapError

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_client.security_keys.discovery import ConnectedKey, SecurityKeys
from keyvouch_client.security_keys.failures import device_error
from keyvouch_client.security_keys.selection import choose_by_touch, holding
from keyvouch_client.security_keys.standing import read_standing, require_usable

__all__ = ["EnrolledKey", "KeySearch"]

WAIT_SECONDS: Final = 60.0
"""For a key to be connected or touched. Longer than it takes to fetch one, shorter than a sign-in stays open."""

_CHOOSE: Final = "Touch the one to use, or lay it on its reader anew."


@dataclass(frozen=True, slots=True)
class EnrolledKey:
    """The key of an account as the enrolment knows it. `name` may be empty."""

    credential_id: CredentialId
    rp_id: str
    username: str
    name: str = ""

    @property
    def words(self) -> str:
        """For people."""
        return f"the security key of {self.username}" + (f" ({self.name})" if self.name else "")


class KeySearch:
    """Finds the key for one ceremony. `tell` says to the person what to do; `cancelled` ends every wait."""

    def __init__(
        self, keys: SecurityKeys, *, tell: Callable[[str], None], cancelled: Event, seconds: float = WAIT_SECONDS
    ) -> None:
        self._keys = keys
        self._tell = tell
        self._cancelled = cancelled
        self._seconds = seconds
        self._waits = False

    def any(self) -> ConnectedKey:
        """A key that can be used: waits for one, and for a touch where there are several.

        Raises `DeviceError`: AUTHENTICATOR_NOT_CONNECTED, AUTHENTICATOR_PERMISSION, UNSUPPORTED for one that can verify
        nobody, USER_CANCELLED, USER_TIMEOUT.
        """
        self._wait(bool, "Connect your security key: put it in, or lay it on the reader.")
        chosen = self._touched("are connected")
        require_usable(read_standing(chosen))
        return chosen

    def again(self, before: ConnectedKey) -> ConnectedKey:
        """The same key: at once where it is still there, else when one of its name is."""
        if before in self._keys.connected():
            return before
        found = self._wait(
            lambda now: any(key.name == before.name for key in now),
            f"The {before.title} was taken out. Put it in again.",
        )
        return next(key for key in found if key.name == before.name)

    def holder(self, enrolled: EnrolledKey) -> ConnectedKey:
        """The key that holds the account's credential.

        Raises `DeviceError`: AUTHENTICATOR_NOT_CONNECTED where none comes in time, AUTHENTICATOR_OTHER where none of
        those that are there holds it, USER_CANCELLED, USER_TIMEOUT.
        """
        found = self.silently(enrolled)
        if found is None:
            try:
                self._wait(self._is_there(enrolled), self._wanted(enrolled))
            except DeviceError as error:
                raise self._other(enrolled) if self._is_other(error) else error from None
            found = self.silently(enrolled)
        if found is None:
            raise self._other(enrolled)
        return found[0] if len(found) == 1 else self._touched("may be the right one", lambda key: key in found)

    def silently(self, enrolled: EnrolledKey) -> Sequence[ConnectedKey] | None:
        """Without a word: what holds the credential, else the keys that do not tell; None where there are none.

        Several that say they hold it cannot all be right, and only the right one shall get the PIN: they are touched.
        """
        held = holding(self._keys.connected(), enrolled.rp_id, [enrolled.credential_id])
        return list(held.holders) or list(held.unsure) or None

    def after_power_cycle(self, key: ConnectedKey) -> None:
        """Wait until a key was taken out and one was put in. Raises PIN_POWER_CYCLE where nobody does."""
        try:
            self._wait(
                lambda now: key not in now and bool(now),
                "Three wrong PINs in a row: the security key takes no more until it is taken out and put in again.",
            )
        except DeviceError as error:
            still = error.reason is Reason.AUTHENTICATOR_NOT_CONNECTED and key in self._keys.connected()
            raise (device_error(CtapError(CtapError.ERR.PIN_AUTH_BLOCKED)) if still else error) from None

    def _touched(self, what: str, among: Callable[[ConnectedKey], bool] = lambda _key: True) -> ConnectedKey:
        """The only key, or the one of several that is touched; which one that was is told, before it gets a PIN."""
        asked: list[ConnectedKey] = []

        def ask(keys: Sequence[ConnectedKey]) -> None:
            asked.extend(keys)
            self._tell(f"{len(keys)} security keys {what}. {_CHOOSE}")

        chosen = choose_by_touch(self._keys, seconds=self._seconds, cancelled=self._cancelled, among=among, asking=ask)
        if asked:
            self._tell(f"You chose the {chosen.title}.")
        return chosen

    def _wait(self, wanted: Callable[[Sequence[ConnectedKey]], bool], what: str) -> Sequence[ConnectedKey]:
        now = self._keys.connected()
        if wanted(now):
            return now
        self._tell(what)
        for problem in () if now else self._keys.problems():
            self._tell(problem.message)
            self._tell(problem.fix)
        self._waits = True
        return self._keys.wait_for(wanted, seconds=self._seconds, cancelled=self._cancelled)

    def _is_there(self, enrolled: EnrolledKey) -> Callable[[Sequence[ConnectedKey]], bool]:
        """Asks whenever other keys are there than before, and not at each look; says so where it is none of them."""
        known: Sequence[ConnectedKey] = ()

        def is_there(now: Sequence[ConnectedKey]) -> bool:
            nonlocal known
            if not now or now == known:
                return False
            came, known = any(key not in known for key in now), now
            if self.silently(enrolled) is not None:
                return True
            if came and self._waits:
                self._tell(self._wanted(enrolled))
            return False

        return is_there

    def _wanted(self, enrolled: EnrolledKey) -> str:
        if self._keys.connected():
            return f"No security key that is connected is {enrolled.words}, or it was reset. Connect the right one."
        return f"Connect {enrolled.words}: put it in, or lay it on the reader."

    def _is_other(self, error: DeviceError) -> bool:
        return error.reason is Reason.AUTHENTICATOR_NOT_CONNECTED and bool(self._keys.connected())

    def _other(self, enrolled: EnrolledKey) -> DeviceError:
        return DeviceError(
            Reason.AUTHENTICATOR_OTHER,
            f"No security key that is connected is {enrolled.words}. Another one is, or it was reset.",
            fix="Connect the right one. After a reset: an access pass, then `keyvouch-agent enroll --replace`.",
        )
