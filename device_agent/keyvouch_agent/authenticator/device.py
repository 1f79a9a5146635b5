"""The authenticator as a python-fido2 `CtapDevice`, so that its client drives every kind of key alike.

What is *not* here: real transports (`keyvouch_agent.transports`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Self

from fido2.ctap import STATUS, CtapDevice, CtapError
from fido2.hid import CAPABILITY, CTAPHID

from keyvouch.errors import DeviceError
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, UserPresence

__all__ = ["AuthenticatorDevice"]

_KeepAlive = Callable[[STATUS], None]


class AuthenticatorDevice(CtapDevice):
    """One session with an authenticator, and with the user who will be asked for presence."""

    def __init__(self, authenticator: Authenticator, presence: UserPresence) -> None:
        self._authenticator = authenticator
        self._presence = presence

    @property
    def capabilities(self) -> CAPABILITY:
        """CTAP2 only: no U2F messages."""
        return CAPABILITY.CBOR | CAPABILITY.NMSG

    @property
    def failure(self) -> DeviceError | None:
        """What the vault said when the last command failed."""
        return self._authenticator.failure

    def call(
        self, cmd: int, data: bytes = b"", event: Event | None = None, on_keepalive: _KeepAlive | None = None
    ) -> bytes:
        """Carry out a CTAP2 command. `event` cancels; `on_keepalive` is told when the user is needed."""
        if cmd != CTAPHID.CBOR:
            raise CtapError(CtapError.ERR.INVALID_COMMAND)
        cancelled = (event or Event()).is_set
        return self._authenticator.handle(data, _Announced(self._presence, on_keepalive), cancelled)

    def close(self) -> None:
        """Lock the vault. The device can be used again."""
        self._authenticator.close_session()

    @classmethod
    def list_devices(cls) -> Iterator[Self]:
        """Nothing to discover: an authenticator of our own is made, not found."""
        return iter(())


class _Announced:
    """Says `UPNEEDED` before the user is asked, and makes sure that a cancelled question grants nothing."""

    def __init__(self, presence: UserPresence, on_keepalive: _KeepAlive | None) -> None:
        self._presence = presence
        self._on_keepalive = on_keepalive

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        if self._on_keepalive is not None:
            self._on_keepalive(STATUS.UPNEEDED)
        if cancelled():
            return Presence.CANCELLED
        answer = self._presence.confirm(request, cancelled)
        return Presence.CANCELLED if cancelled() else answer
