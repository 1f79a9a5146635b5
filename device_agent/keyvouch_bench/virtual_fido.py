"""A security key of our own, for tests and benches: the agent's authenticator, with a person who does as told.

    with VirtualFido.make(folder) as key:
        Ctap2(key.device).get_info()       # in this process, through python-fido2's `CtapDevice`
        key.touch = False                  # from now on nobody touches it
        key.power_cycle()

It is real in everything but what protects it: the keys lie in a file, under a PIN that is cheap to guess. It says so by
its AAGUID, which is that of the agent's software vault. What is *not* here: the same key on a card reader
(`keyvouch_bench.fido_reader`).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, Self

from fido2.ctap import STATUS, CtapDevice
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin

from keyvouch_agent.authenticator.device import AuthenticatorDevice
from keyvouch_agent.authenticator.engine import Authenticator, AuthenticatorOptions
from keyvouch_agent.authenticator.ports import Clock, Presence, PresenceRequest
from keyvouch_agent.authenticator.vault import KeyVault
from keyvouch_agent.system import SystemClock, SystemEntropy
from keyvouch_agent.vaults.software import KdfParameters, SoftwareVault

__all__ = ["PIN", "ScriptedUser", "SecurityKey", "VirtualFido", "pin_of"]

PIN: Final = "a1b2c3d4"
"""The PIN that benches give to a key that has none."""

CHEAP_KDF: Final = KdfParameters(memory_kib=8, iterations=1, lanes=1)
"""Argon2id at its cheapest: a bench does not wait for the cost of guessing."""

PLUGGED_IN: Final = AuthenticatorOptions(make_cred_uv_not_required=True, transports=("usb",), u2f=True)
"""Like the keys that people carry, in a USB port: server-side credentials can be made without the PIN."""

ON_A_READER: Final = AuthenticatorOptions(
    make_cred_uv_not_required=True, transports=("nfc", "smart-card"), reset_window=None, u2f=True
)
"""The same on a card reader."""

TOUCH_SECONDS: Final = 30.0
"""How long the key waits for a touch."""

_LOOK_AGAIN: Final = 0.02


class SecurityKey(Protocol):
    """What a test does with a key, whether it is emulated or real."""

    touch: bool
    """Whether the key is touched whenever it asks. A real one asks the person at the terminal."""

    @property
    def device(self) -> CtapDevice:
        """The way to it while it is there: python-fido2's `Ctap2(key.device)`, `Fido2Client(key.device, ...)`."""

    @property
    def emulated(self) -> bool:
        """Whether it is one of ours."""

    def pin(self) -> str:
        """Its PIN. A key without one gets one, if the test may do that to it."""

    def remove(self) -> None:
        """Take it away."""

    def insert(self) -> None:
        """Put it back. What had no power has forgotten what is not stored."""

    def power_cycle(self) -> None:
        """Take its power away and give it back; `device` may be another one afterwards."""


class ScriptedUser:
    """Whoever sits before an emulated key: touches it at once while `touch` is on, else not until it is.

    `asked` remembers every question. `answer` takes the place of the touch: somebody who declines, for example.
    """

    def __init__(self, seconds: float = TOUCH_SECONDS) -> None:
        self.asked: list[PresenceRequest] = []
        self.answer = Presence.GRANTED
        self.seconds = seconds
        self._touching = threading.Event()
        self._touching.set()
        self._waiting = threading.Event()

    @property
    def touch(self) -> bool:
        """Whether the key is touched whenever it asks."""
        return self._touching.is_set()

    @touch.setter
    def touch(self, on: bool) -> None:
        (self._touching.set if on else self._touching.clear)()

    def wait_until_asked(self, seconds: float = TOUCH_SECONDS) -> bool:
        """Wait until the key waits for a touch that does not come; false if it does not within `seconds`."""
        return self._waiting.wait(seconds)

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        """See `UserPresence`."""
        self.asked.append(request)
        waited = 0.0
        try:
            while not cancelled():
                if self._touching.wait(_LOOK_AGAIN if waited else 0):
                    return self.answer
                self._waiting.set()
                waited += _LOOK_AGAIN
                if waited > self.seconds:
                    return Presence.TIMEOUT
            return Presence.CANCELLED
        finally:
            self._waiting.clear()


class VirtualFido:
    """An emulated key over any vault. `user` touches it; `authenticator` is the engine itself."""

    emulated: Final = True

    def __init__(
        self,
        vault: KeyVault,
        *,
        clock: Clock | None = None,
        user: ScriptedUser | None = None,
        options: AuthenticatorOptions | None = None,
    ) -> None:
        self.vault = vault
        self.user = user or ScriptedUser()
        self.authenticator = Authenticator(vault, clock or SystemClock(), SystemEntropy(), options or PLUGGED_IN)
        self._there = True
        self._device = _Plug(self)

    @classmethod
    @contextmanager
    def make(
        cls,
        folder: Path,
        *,
        kdf: KdfParameters = CHEAP_KDF,
        clock: Clock | None = None,
        options: AuthenticatorOptions = PLUGGED_IN,
    ) -> Iterator[Self]:
        """A key over the software vault in `folder`, new or as it was left: the PIN guards it if one is set."""
        with SoftwareVault.open(folder, SystemEntropy(), kdf=kdf, pin_gated=False) as vault:
            yield cls(vault, clock=clock, options=options)

    @property
    def device(self) -> CtapDevice:
        """The key in this process. Raises `OSError` while it is removed, at every command."""
        return self._device

    @property
    def is_there(self) -> bool:
        """Whether it is plugged in."""
        return self._there

    @property
    def touch(self) -> bool:
        """Whether it is touched whenever it asks."""
        return self.user.touch

    @touch.setter
    def touch(self, on: bool) -> None:
        self.user.touch = on

    def pin(self) -> str:
        """`PIN`, which is set now if none is."""
        return pin_of(self.device)

    def remove(self) -> None:
        """Unplug it."""
        self._there = False

    def insert(self) -> None:
        """Plug it in: it starts afresh."""
        self.authenticator.power_cycle()
        self._there = True

    def power_cycle(self) -> None:
        """Unplug it and plug it in again."""
        self.remove()
        self.insert()


class _Plug(AuthenticatorDevice):
    """The key as python-fido2 sees it: gone while it is unplugged."""

    def __init__(self, key: VirtualFido) -> None:
        super().__init__(key.authenticator, key.user)
        self._key = key

    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: threading.Event | None = None,
        on_keepalive: Callable[[STATUS], None] | None = None,
    ) -> bytes:
        if not self._key.is_there:
            raise OSError(errno.ENODEV, "The virtual key is not plugged in")
        return super().call(cmd, data, event, on_keepalive)


def pin_of(device: CtapDevice, pin: str = PIN) -> str:
    """Set `pin` where the key has none; returns it."""
    ctap = Ctap2(device)
    if not ctap.info.options.get("clientPin"):
        ClientPin(ctap).set_pin(pin)
    return pin
