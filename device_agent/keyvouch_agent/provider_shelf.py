"""The agent's key providers: opened when first needed, and lent to a command that needs one for itself.

A software vault belongs to one process at a time, and the count of wrong PINs per power cycle lives in the
authenticator over it, so the running agent keeps it open. `enroll` and `pin` borrow: until they give it back, nobody
else gets a provider.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.ports import Provider

__all__ = ["OpenProvider", "ProviderShelf"]

OpenProvider: TypeAlias = Callable[[], tuple[Provider, Callable[[], None]]]
"""Opens a provider; the second value closes it."""


class ProviderShelf:
    """Providers by kind. Any thread may use it."""

    def __init__(self, openers: Mapping[str, OpenProvider]) -> None:
        self._openers = openers
        self._open: dict[str, tuple[Provider, Callable[[], None]]] = {}
        self._lent = False
        self._lock = threading.Lock()

    def kinds(self) -> tuple[str, ...]:
        """Kinds of provider this agent can open."""
        return tuple(self._openers)

    def get(self, kind: str) -> Provider:
        """The provider of that kind.

        Raises `DeviceError`: UNSUPPORTED for an unknown kind, VAULT_BUSY while it is lent, and its own.
        """
        with self._lock:
            if self._lent:
                raise _busy()
            if kind not in self._open:
                self._open[kind] = self._opener(kind)()
            return self._open[kind][0]

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Close every provider and hand out none until the end of the block. Raises VAULT_BUSY for a second loan."""
        with self._lock:
            if self._lent:
                raise _busy()
            self._lent = True
            self._close_all()
        try:
            yield
        finally:
            self._lent = False

    def close(self) -> None:
        """Close every provider."""
        with self._lock:
            self._close_all()

    def _close_all(self) -> None:
        while self._open:
            _, (_, close) = self._open.popitem()
            close()

    def _opener(self, kind: str) -> OpenProvider:
        try:
            return self._openers[kind]
        except KeyError:
            raise DeviceError(
                Reason.UNSUPPORTED,
                f"This agent has no key provider of the kind {kind!r}.",
                fix=f"Use one of: {', '.join(self._openers)}. `keyvouch-agent doctor` says what each needs.",
            ) from None


def _busy() -> DeviceError:
    return DeviceError(
        Reason.VAULT_BUSY,
        "Another command is using the key provider, to enrol or to change the PIN.",
        fix="Finish it or end it, then try again.",
    )
