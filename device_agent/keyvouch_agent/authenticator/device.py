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
from keyvouch_agent.authenticator.ports import PinEntry, Presence, PresenceRequest, UserPresence

__all__ = ["AuthenticatorDevice"]

_KeepAlive = Callable[[STATUS], None]


class AuthenticatorDevice(CtapDevice):
    """One session with an authenticator, and with the user who will be asked for presence.

    `entry` is where a PIN is typed that the authenticator's vault wants itself.
    """

    def __init__(self, authenticator: Authenticator, presence: UserPresence, entry: PinEntry | None = None) -> None:
        self._authenticator = authenticator
        self._presence = presence
        self._entry = entry
        self._failure: DeviceError | None = None

    @property
    def capabilities(self) -> CAPABILITY:
        """CTAP2 only: no U2F messages."""
        return CAPABILITY.CBOR | CAPABILITY.NMSG

    @property
    def failure(self) -> DeviceError | None:
        """What the vault said when a command failed last. A success after it does not take it back."""
        return self._failure

    def call(
        self, cmd: int, data: bytes = b"", event: Event | None = None, on_keepalive: _KeepAlive | None = None
    ) -> bytes:
        """Carry out a CTAP2 command. `event` cancels; `on_keepalive` is told when the user is needed."""
        if cmd != CTAPHID.CBOR:
            raise CtapError(CtapError.ERR.INVALID_COMMAND)
        cancelled = (event or Event()).is_set
        presence = _Announced(self._presence, on_keepalive)
        entry = _AnnouncedEntry(self._entry, on_keepalive) if self._entry else None
        answer = self._authenticator.handle(data, presence, cancelled, entry)
        if answer[0] != CtapError.ERR.SUCCESS:
            self._failure = self._authenticator.failure
        return answer

    def close(self) -> None:
        """Lock the vault. The device can be used again."""
        self._authenticator.close_session()

    @classmethod
    def list_devices(cls) -> Iterator[Self]:
        """Nothing to discover: an authenticator of our own is made, not found."""
        return iter(())


class _Announced:
    """Says `UPNEEDED` before the user is asked."""

    def __init__(self, presence: UserPresence, on_keepalive: _KeepAlive | None) -> None:
        self._presence = presence
        self._on_keepalive = on_keepalive

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        if self._on_keepalive is not None:
            self._on_keepalive(STATUS.UPNEEDED)
        return self._presence.confirm(request, cancelled)


class _AnnouncedEntry:
    """Says `UPNEEDED` before the user is asked for the PIN."""

    def __init__(self, entry: PinEntry, on_keepalive: _KeepAlive | None) -> None:
        self._entry = entry
        self._on_keepalive = on_keepalive

    def ask(self, retries_left: int | None) -> str | None:
        self._announce()
        return self._entry.ask(retries_left)

    def on_pad(self, retries_left: int | None) -> None:
        self._announce()
        self._entry.on_pad(retries_left)

    def _announce(self) -> None:
        if self._on_keepalive is not None:
            self._on_keepalive(STATUS.UPNEEDED)
