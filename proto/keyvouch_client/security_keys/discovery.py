"""The security keys that are connected now, what keeps others from use, and waiting for one to come or go.

    keys = connected_security_keys()
    keys.connected()               those that can be used
    keys.problems()                what keeps a key, or all keys of a kind, from use, each with its way out
    keys.wait_for(any, seconds=60) until a key is there

Looking is cheap and disturbs no key: a `ConnectedKey` opens its device only when `open` is called. One key that can be
reached in two ways, over HID and through a reader, is listed once, over HID.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, unique
from threading import Event
from typing import Protocol

from fido2.ctap import CtapDevice

from keyvouch.errors import DeviceError, Reason

__all__ = [
    "ConnectedKey",
    "KeySource",
    "SecurityKeys",
    "Transport",
    "connected_security_keys",
    "not_connected",
    "shown_name",
]

UNNAMED = "Security key"
"""How the name of a key begins that gives itself none."""

LONGEST_NAME = 80
"""Characters of a name that are shown. The kernel has no more than 128."""

POLL_SECONDS = 0.25
"""Between two looks. A person does not notice, and a look costs less than a millisecond."""


@unique
class Transport(StrEnum):
    """How a key is reached."""

    USB = "usb"
    NFC = "nfc"
    CARD = "card"


@dataclass(frozen=True, slots=True)
class ConnectedKey:
    """A key that is connected. Equal to itself until it is taken out; put in again, it is another one."""

    name: str
    """For people: the name the key gives itself, or its reader's, made safe to show (`shown_name`)."""
    transport: Transport
    place: str
    """Where it is: `/dev/hidraw3`, the name of a reader."""
    appearance: str
    """Which connection this is; changes when the key is taken out and put in again."""
    opener: Callable[[], CtapDevice] = field(compare=False, repr=False)
    trouble: DeviceError | None = field(default=None, compare=False)
    """What keeps it from use; None for a key that can be used."""
    aaguid: bytes | None = field(default=None, compare=False)
    """The model, where it is known without opening the key."""

    @property
    def title(self) -> str:
        """Its name and what it is, within a sentence: `security key Maker Key`."""
        return f"security key {self.name.removeprefix(UNNAMED).lstrip()}"

    def open(self) -> CtapDevice:
        """Open the device, which the caller closes.

        Raises `trouble`, AUTHENTICATOR_REMOVED where the key went away, AUTHENTICATOR_PERMISSION, VAULT_BUSY.
        """
        if self.trouble is not None:
            raise self.trouble
        return self.opener()


class KeySource(Protocol):
    """One way by which keys are connected."""

    def scan(self, found: Sequence[ConnectedKey]) -> Sequence[ConnectedKey]:
        """The keys that are there now, those with trouble too, but for those `found` already. Never raises."""

    def fingerprint(self) -> object:
        """Something cheap that differs when a key came or went since the last time."""

    def problems(self) -> Sequence[DeviceError]:
        """What keeps this way as a whole from working, as far as the last scan knows."""


class SecurityKeys:
    """The keys of some sources. `pause` is between two looks, in seconds."""

    def __init__(
        self,
        sources: Sequence[KeySource],
        *,
        pause: float = POLL_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = tuple(sources)
        self._pause = pause
        self._monotonic = monotonic

    def scan(self) -> tuple[ConnectedKey, ...]:
        """Every key that is there, with or without trouble."""
        found: list[ConnectedKey] = []
        for source in self._sources:
            found += source.scan(tuple(found))
        return tuple(found)

    def connected(self) -> tuple[ConnectedKey, ...]:
        """The keys that can be used."""
        return tuple(key for key in self.scan() if key.trouble is None)

    def problems(self) -> tuple[DeviceError, ...]:
        """What keeps a key, or all keys of a source, from use."""
        found = tuple(key.trouble for key in self.scan() if key.trouble is not None)
        return (*found, *(problem for source in self._sources for problem in source.problems()))

    def wait_for(
        self,
        wanted: Callable[[Sequence[ConnectedKey]], bool],
        *,
        seconds: float,
        cancelled: Event | None = None,
        on_change: Callable[[Sequence[ConnectedKey], Sequence[ConnectedKey]], None] = lambda _came, _gone: None,
    ) -> tuple[ConnectedKey, ...]:
        """Return the usable keys as soon as `wanted` is true of them, at once if it is already.

        `on_change` gets the keys that came and those that went, whenever some did. Raises `DeviceError`: USER_CANCELLED
        when `cancelled` is set, and when the time is over what keeps a key from use, or AUTHENTICATOR_NOT_CONNECTED.
        """
        stop = cancelled or Event()
        end = self._monotonic() + seconds
        seen = self.fingerprint()
        keys = self.connected()
        while not wanted(keys):
            if stop.wait(self._pause):
                raise _cancelled()
            if self._monotonic() >= end:
                raise self.nothing_usable()
            now = self.fingerprint()
            if now == seen:
                continue
            before, keys, seen = keys, self.connected(), now
            came, gone = [k for k in keys if k not in before], [k for k in before if k not in keys]
            if came or gone:
                on_change(came, gone)
        return keys

    def fingerprint(self) -> object:
        """Something cheap that differs when a key came or went since the last time."""
        return tuple(source.fingerprint() for source in self._sources)

    def nothing_usable(self) -> DeviceError:
        """Why no key can be used: what keeps one that is there from use, else that none is connected."""
        return next((key.trouble for key in self.scan() if key.trouble is not None), None) or not_connected()


def connected_security_keys() -> SecurityKeys:
    """The keys of this computer: USB HID first, then the readers."""
    from keyvouch_client.security_keys.hid import hid_source  # noqa: PLC0415 - they import this module
    from keyvouch_client.security_keys.pcsc import pcsc_source  # noqa: PLC0415

    return SecurityKeys([hid_source(), pcsc_source()])


def shown_name(said: str) -> str:
    """A name as a device gives it, without what could act on a terminal, and of a length for one line."""
    return "".join(c if c.isprintable() else "?" for c in said.strip())[:LONGEST_NAME]


def not_connected() -> DeviceError:
    """No key is there."""
    return DeviceError(
        Reason.AUTHENTICATOR_NOT_CONNECTED,
        "No security key is connected.",
        fix="Put your security key in, or lay it on the reader, and start again.",
    )


def _cancelled() -> DeviceError:
    return DeviceError(
        Reason.USER_CANCELLED, "The request was withdrawn while it waited for a security key.", fix="Start it again."
    )
