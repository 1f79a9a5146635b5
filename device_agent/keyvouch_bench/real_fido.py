"""A real security key on the bench, with the interface of an emulated one.

    RealFido("/dev/hidraw3", Rig.of(say, control=""), pin="...")
    RealFido("ACS ACR122U 00 00", ...)

Where it lies in a rig that switches power and touch (`keyvouch_bench.bench_control` describes the protocol), the rig is
told; else the person at the terminal is. Nothing here sets a PIN or resets a key unless `may_change` says that it may.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from fido2.ctap import CtapDevice
from fido2.ctap2.base import Ctap2
from fido2.hid import CtapHidDevice, list_descriptors, open_connection

from keyvouch.errors import DeviceError, Reason, UsageError
from keyvouch_bench.fido_reader import open_card, wait_for_card
from keyvouch_bench.virtual_fido import pin_of

if TYPE_CHECKING:
    from fido2.hid.base import HidDescriptor

__all__ = ["Person", "RealFido", "Rig", "SwitchedPort", "is_hid", "serial_number"]

PATIENCE_SECONDS: Final = 60.0
"""How long a person may take to unplug a key."""

_LOOK_AGAIN: Final = 0.2


class Rig(Protocol):
    """Whoever handles the key."""

    def power(self, *, on: bool) -> None:
        """Take it away, or put it back. May return before that has happened."""

    def touch(self, *, on: bool) -> None:
        """Touch it from now on whenever it asks, or do not."""


class Person:
    """A person who reads what `say` prints."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def power(self, *, on: bool) -> None:
        """See `Rig`."""
        self._say("Put the security key back." if on else "Take the security key away, please.")

    def touch(self, *, on: bool) -> None:
        """See `Rig`."""
        self._say("Touch the security key when it blinks." if on else "Do not touch the security key for now.")


class SwitchedPort:
    """A rig that is told over HTTP; `url` leads to the key's port, for example `http://rig:8080/usb3`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise UsageError(f"{url!r} is no address of a rig.", fix="Give one like http://rig:8080/usb3.")

    def power(self, *, on: bool) -> None:
        """See `Rig`."""
        self._get(f"/power/{'on' if on else 'off'}")

    def touch(self, *, on: bool) -> None:
        """See `Rig`."""
        self._get(f"/touch/{'on' if on else 'off'}")

    def _get(self, path: str) -> None:
        with urllib.request.urlopen(self._url + path, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310 - http only
            answer.read()


class RealFido:
    """The key at `place`: the path of a `hidraw` device, or the whole name of a reader."""

    emulated: Final = False

    def __init__(self, place: str, rig: Rig, *, pin: str | None = None, may_change: bool = False) -> None:
        self.place = place
        self._rig = rig
        self._pin = pin
        self._may_change = may_change
        self._touch = True
        self._device: CtapDevice | None = None

    @property
    def device(self) -> CtapDevice:
        """The way to it. Raises `DeviceError` while it is not there."""
        if self._device is None:
            self._device = _open_hid(self.place) if is_hid(self.place) else open_card(self.place)
        return self._device

    @property
    def touch(self) -> bool:
        """Whether it is to be touched whenever it asks."""
        return self._touch

    @touch.setter
    def touch(self, on: bool) -> None:
        if on is not self._touch:
            self._touch = on
            self._rig.touch(on=on)

    def pin(self) -> str:
        """Its PIN as given. A key that has none gets one only where the key may be changed."""
        has_one = bool(Ctap2(self.device).info.options.get("clientPin"))
        if self._pin is None or not (has_one or self._may_change):
            raise UsageError(
                f"The key at {self.place} {'has a PIN that was not given' if has_one else 'has no PIN'}.",
                fix="Give it with --fido-pin-fd, from a descriptor. A key without a PIN gets that one only if "
                "--allow-reset names the key.",
            )
        return pin_of(self.device, self._pin)

    def remove(self) -> None:
        """Have it taken away, and wait until it is gone."""
        self.close()
        self._rig.power(on=False)
        if is_hid(self.place):
            _until(lambda: _descriptor(self.place) is None, self.place)
        else:
            wait_for_card(self.place, present=False)

    def insert(self) -> None:
        """Have it put back, and wait until it is there, in the same place."""
        self._rig.power(on=True)
        if is_hid(self.place):
            _until(lambda: _descriptor(self.place) is not None, self.place)
        else:
            wait_for_card(self.place, present=True)

    def power_cycle(self) -> None:
        """On a reader without a hand: the reader takes the power away. On USB it has to be unplugged."""
        if is_hid(self.place):
            self.remove()
            self.insert()
        else:
            self.close()

    def close(self) -> None:
        """Let go of it."""
        device, self._device = self._device, None
        if device is not None:
            with suppress(Exception):  # it may be gone
                device.close()


def is_hid(place: str) -> bool:
    """Whether a place is the path of a device, not the name of a reader."""
    return place.startswith("/")


def serial_number(place: str) -> str:
    """The serial number that a USB key tells; empty where there is none to know."""
    found = _descriptor(place) if is_hid(place) else None
    return (found.serial_number or "") if found is not None else ""


def _descriptor(place: str) -> HidDescriptor | None:
    found = list_descriptors()  # type: ignore[no-untyped-call] # of python-fido2
    return next((each for each in found if str(each.path) == place), None)


def _open_hid(place: str) -> CtapDevice:
    found = _descriptor(place)
    if found is None:
        raise DeviceError(
            Reason.AUTHENTICATOR_REMOVED,
            f"There is no security key at {place}, or it is not yours to use.",
            fix="`keyvouch-agent doctor` tells which.",
        )
    return CtapHidDevice(found, open_connection(found))  # type: ignore[no-untyped-call] # of python-fido2


def _until(condition: Callable[[], bool], place: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise DeviceError(Reason.USER_TIMEOUT, f"Nothing happened to the key at {place}.", fix="Try again.")
        time.sleep(_LOOK_AGAIN)
