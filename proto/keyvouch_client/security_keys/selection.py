"""One of several keys: the one the person touches, or the one that holds a credential.

By touch: every key blinks at once, each on a thread of its own; the first that is touched is chosen and the others are
told to stop. Keys that come meanwhile join in, those that go drop out. A CTAP 2.1 key is asked with
authenticatorSelection (section 6.9), an older one with a makeCredential that has an empty pinUvAuthParam, which ends
with the touch and makes nothing (section 6.1.2, step 1). A card has nothing to touch and answers at once: laying it on
the reader is the touch. So one that lay there before the question does not take part beside keys on USB, until it is
laid down anew.

By credential: a silent getAssertion ("up" false) tells who holds it, without PIN and touch (section 6.2.2).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Final

from fido2.ctap import CtapDevice, CtapError
from fido2.ctap2.base import Ctap2

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_client.security_keys.discovery import POLL_SECONDS, ConnectedKey, SecurityKeys, Transport
from keyvouch_client.security_keys.failures import removed
from keyvouch_client.security_keys.standing import MALFORMED, require_ctap2

__all__ = ["Holding", "choose_by_touch", "holding"]

ERR: Final = CtapError.ERR
_TOUCHED: Final = frozenset({ERR.PIN_NOT_SET, ERR.PIN_INVALID, ERR.PIN_AUTH_INVALID})
"""What ends the older question once it was touched."""
_ASK_AGAIN: Final = frozenset({ERR.USER_ACTION_TIMEOUT, ERR.ACTION_TIMEOUT})
_HOLDS_NOT: Final = frozenset({ERR.NO_CREDENTIALS, ERR.INVALID_CREDENTIAL})
_STOPS_WITHIN: Final = 3.0
"""Seconds a key has to take its question back. One that does not is left alone; its thread ends with the program."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Who holds a credential. `unsure` are keys that only tell after the PIN was given."""

    holders: Mapping[ConnectedKey, CredentialId]
    unsure: tuple[ConnectedKey, ...]


def choose_by_touch(
    keys: SecurityKeys,
    *,
    seconds: float,
    cancelled: Event | None = None,
    among: Callable[[ConnectedKey], bool] = lambda _key: True,
    asking: Callable[[Sequence[ConnectedKey]], None] = lambda _keys: None,
) -> ConnectedKey:
    """Return the only key of those `among` accepts, or the one of several that is touched first.

    A card that is lifted and laid down anew is another appearance of itself, and is accepted as before.

    `asking` is called before the keys begin to blink, with all of them. Raises `DeviceError`:
    AUTHENTICATOR_NOT_CONNECTED (or what keeps a key from use) where there is none, USER_CANCELLED, USER_TIMEOUT.
    """
    found = [key for key in keys.connected() if among(key)]
    if not found:
        raise keys.nothing_usable()
    if len(found) == 1:
        return found[0]
    asking(found)
    readers = {key.place for key in found if key.transport is not Transport.USB}
    contest = _Contest(_resting(found))
    end = time.monotonic() + seconds
    try:
        return _first_touched(contest, keys, lambda key: among(key) or key.place in readers, cancelled or Event(), end)
    finally:
        contest.stop()


def holding(
    keys: Sequence[ConnectedKey], rp_id: str, credential_ids: Sequence[CredentialId], *, may_be_hidden: bool = False
) -> Holding:
    """Ask the keys silently which of them holds one of the credentials.

    `may_be_hidden`: the credentials may have been made with credProtect level 3, which hides them until the PIN is
    given; then every key that knows credProtect and denies is unsure. A key that fails holds nothing.
    """
    holders: dict[ConnectedKey, CredentialId] = {}
    unsure: list[ConnectedKey] = []
    for key in keys:
        with suppress(DeviceError):
            found = _held(key, rp_id, credential_ids, may_be_hidden)
            if isinstance(found, bytes):
                holders[key] = found
            elif found:
                unsure.append(key)
    return Holding(holders, tuple(unsure))


def _first_touched(
    contest: _Contest, keys: SecurityKeys, among: Callable[[ConnectedKey], bool], cancelled: Event, end: float
) -> ConnectedKey:
    seen: object = None
    while True:
        now = keys.fingerprint()
        if now != seen:
            seen = now
            contest.ask([key for key in keys.connected() if among(key)])
        if (touched := contest.touched(POLL_SECONDS)) is not None:
            return touched
        if cancelled.is_set():
            raise DeviceError(Reason.USER_CANCELLED, "The request was withdrawn.", fix="Start it again.")
        if time.monotonic() >= end:
            raise DeviceError(
                Reason.USER_TIMEOUT, "No security key was touched in time.", fix="Start again and touch one of them."
            )


def _resting(found: Sequence[ConnectedKey]) -> frozenset[ConnectedKey]:
    """The keys on readers, where there are others that can be touched."""
    cards = frozenset(key for key in found if key.transport is not Transport.USB)
    return cards if len(cards) < len(found) else frozenset()


class _Contest:
    """Keys that wait for a touch, each on its own thread; those that are `resting` are not asked."""

    def __init__(self, resting: frozenset[ConnectedKey]) -> None:
        self._resting = resting
        self._stop = Event()
        self._threads: dict[ConnectedKey, Thread] = {}
        self._touched: SimpleQueue[ConnectedKey] = SimpleQueue()

    def ask(self, keys: Sequence[ConnectedKey]) -> None:
        """Let those of the keys blink that do not yet."""
        for key in keys:
            if key not in self._threads and key not in self._resting:
                thread = Thread(target=self._wait_for_touch, args=(key,), name="touch", daemon=True)
                self._threads[key] = thread
                thread.start()

    def touched(self, seconds: float) -> ConnectedKey | None:
        """The key that was touched first; None while there is none."""
        try:
            return self._touched.get(timeout=seconds)
        except Empty:
            return None

    def stop(self) -> None:
        """Let every key stop blinking."""
        self._stop.set()
        for thread in self._threads.values():
            thread.join(_STOPS_WITHIN)

    def _wait_for_touch(self, key: ConnectedKey) -> None:
        """A key that fails or declines has dropped out."""
        with suppress(DeviceError, CtapError, OSError, *MALFORMED):
            device = key.open()
            try:
                require_ctap2(device)
                ctap = Ctap2(device)
                while not self._stop.is_set() and not _touch(ctap, self._stop):
                    pass
                if not self._stop.is_set():
                    self._touched.put(key)
            finally:
                device.close()


def _touch(ctap: Ctap2, stop: Event) -> bool:
    """Wait for a touch as long as the key does. Raises `CtapError` for anything but a touch or the key's time-out."""
    try:
        if "FIDO_2_1" in ctap.info.versions:
            ctap.selection(event=stop)
        else:
            ctap.make_credential(
                bytes(32),
                {"id": "touch.invalid", "name": "touch"},
                {"id": b"touch", "name": "touch", "displayName": "touch"},
                [{"type": "public-key", "alg": -7}],
                pin_uv_param=b"",
                pin_uv_protocol=ctap.info.pin_uv_protocols[0] if ctap.info.pin_uv_protocols else None,
                event=stop,
            )
    except CtapError as error:
        if error.code in _TOUCHED:
            return True
        if error.code in _ASK_AGAIN:
            return False
        raise
    return True


def _held(
    key: ConnectedKey, rp_id: str, credential_ids: Sequence[CredentialId], may_be_hidden: bool
) -> CredentialId | bool:
    """The credential that the key holds; else whether it may hold one all the same."""
    device = key.open()
    try:
        require_ctap2(device)
        return _searched(device, rp_id, credential_ids, may_be_hidden)
    except OSError as error:
        raise removed(error) from error
    except (CtapError, *MALFORMED):
        return True
    finally:
        device.close()


def _searched(
    device: CtapDevice, rp_id: str, credential_ids: Sequence[CredentialId], may_be_hidden: bool
) -> CredentialId | bool:
    ctap = Ctap2(device)
    longest = ctap.info.max_cred_id_length
    unsure = may_be_hidden and "credProtect" in ctap.info.extensions
    for credential in credential_ids:
        if longest and len(credential) > longest:
            continue
        try:
            ctap.get_assertion(
                rp_id, bytes(32), [{"id": bytes(credential), "type": "public-key"}], options={"up": False}
            )
        except CtapError as error:
            unsure = unsure or error.code not in _HOLDS_NOT
        else:
            return credential
    return unsure
