"""One signature where python-fido2's client would have two.

Before it asks for an assertion, that client looks for the credential by silent assertions over the allow list ("pre-
flight", CTAP 2.1 section 6.2.2 with "up" false). The agent always names exactly one credential, so there is nothing to
choose: the answer is the one credential. A TPM or a card would show the PIN and sign a second time for it. Whether the
authenticator really holds the credential shows in the assertion itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Final

from fido2.ctap import STATUS, CtapDevice
from fido2.hid import CTAPHID

from keyvouch import cbor
from keyvouch.errors import MalformedError

__all__ = ["WithoutPreflight"]

_GET_ASSERTION: Final = 0x02
_SUCCESS: Final = b"\x00"
_NO_DATA: Final = bytes(37)
"""Authenticator data that says nothing: the client looks for the credential's id alone."""


class WithoutPreflight(CtapDevice):
    """A device whose silent search for one credential is answered without asking it."""

    def __init__(self, device: CtapDevice) -> None:
        self._device = device

    @property
    def capabilities(self) -> int:
        """Those of the device."""
        return self._device.capabilities

    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: Event | None = None,
        on_keepalive: Callable[[STATUS], None] | None = None,
    ) -> bytes:
        """Pass a command on, but for the search."""
        return _found(cmd, data) or self._device.call(cmd, data, event, on_keepalive)

    def close(self) -> None:
        """Close the device."""
        self._device.close()

    @classmethod
    def list_devices(cls) -> Iterator[CtapDevice]:
        """None of its own kind."""
        return iter(())


def _found(cmd: int, data: bytes) -> bytes | None:
    """The answer to a silent search for one credential; None for anything else."""
    if cmd != CTAPHID.CBOR or data[:1] != bytes([_GET_ASSERTION]):
        return None
    try:
        request = cbor.decode(data[1:])
    except MalformedError:
        return None
    if not isinstance(request, dict) or request.get(5) != {"up": False}:
        return None
    allowed = request.get(3)
    if not isinstance(allowed, list) or len(allowed) != 1:
        return None
    return _SUCCESS + cbor.encode({1: allowed[0], 2: _NO_DATA, 3: b""})
