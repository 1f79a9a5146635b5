"""The agent's key providers: opened when first needed, and lent to a command that needs one for itself.

A vault's files belong to one process at a time, and the count of wrong PINs per power cycle lives in the authenticator
over it, so the running agent keeps it open. `enroll` and `pin` borrow: until they give it back, nobody else gets a
provider. Some holders keep each account's keys apart (a TPM does, each behind its own PIN): then a provider is one of
an account, by the name that the enrolment record has for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.ports import Provider

__all__ = ["OpenProvider", "ProviderKey", "ProviderMaker", "ProviderShelf"]

OpenProvider: TypeAlias = Callable[[str], tuple[Provider, Callable[[], None]]]
"""Opens the provider of an account (of all accounts, for an empty name); the second value closes it."""


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """Which provider: its kind, and the account where it keeps accounts apart."""

    kind: str
    account: str = ""


@dataclass(frozen=True, slots=True)
class ProviderMaker:
    """How providers of one kind come to be. `new_account` names a new one; None where all share one."""

    open: OpenProvider
    new_account: Callable[[], str] | None = None
    erase: Callable[[str], None] = lambda _account: None
    """Remove what is left of an account whose provider forgot it."""


class ProviderShelf:
    """Providers by kind and account. Any thread may use it."""

    def __init__(self, makers: Mapping[str, ProviderMaker]) -> None:
        self._makers = makers
        self._open: dict[ProviderKey, tuple[Provider, Callable[[], None]]] = {}
        self._lent = False
        self._lock = threading.Lock()

    def kinds(self) -> tuple[str, ...]:
        """Kinds of provider this agent can open."""
        return tuple(self._makers)

    def for_new_account(self, kind: str) -> ProviderKey:
        """Where the keys of a new account go. Raises UNSUPPORTED for an unknown kind."""
        new_account = self._maker(kind).new_account
        return ProviderKey(kind, new_account() if new_account else "")

    def get(self, key: ProviderKey) -> Provider:
        """The provider of that kind and account.

        Raises `DeviceError`: UNSUPPORTED for an unknown kind, VAULT_BUSY while it is lent, and its own.
        """
        with self._lock:
            if self._lent:
                raise _busy()
            if key not in self._open:
                self._open[key] = self._maker(key.kind).open(key.account)
            return self._open[key][0]

    def erase(self, key: ProviderKey) -> None:
        """Close the provider of an account that is no more, and remove what is left of it."""
        with self._lock:
            opened = self._open.pop(key, None) if key.account else None
            if opened is not None:
                opened[1]()
            if key.account:
                self._maker(key.kind).erase(key.account)

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

    def _maker(self, kind: str) -> ProviderMaker:
        try:
            return self._makers[kind]
        except KeyError:
            raise DeviceError(
                Reason.UNSUPPORTED,
                f"This agent has no key provider of the kind {kind!r}.",
                fix=f"Use one of: {', '.join(self._makers)}. `keyvouch-agent doctor` says what each needs.",
            ) from None


def _busy() -> DeviceError:
    return DeviceError(
        Reason.VAULT_BUSY,
        "Another command is using the key provider, to enrol or to change the PIN.",
        fix="Finish it or end it, then try again.",
    )
