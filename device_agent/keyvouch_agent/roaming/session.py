"""A ceremony with a security key, from looking for it to closing it: `ProviderSession` over whichever key it takes.

The key is found when it is needed and opened as a `CtapSession`. A key that wants to be taken out and put in again
after three wrong PINs is waited for before anybody types. What is not here: which key (`search`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock
from types import TracebackType
from typing import Self, TypeVar

from keyvouch.errors import Reason, RefusedError, UsageError
from keyvouch_agent.ports import (
    Assertion,
    GateOffer,
    KeyCreation,
    KeyUse,
    PinControl,
    ProviderInteraction,
    Registration,
    TpmEvidence,
    TpmGrant,
    TpmPreparation,
)
from keyvouch_agent.providers.ctap_requests import CredentialWish
from keyvouch_agent.providers.ctap_session import CtapSession
from keyvouch_agent.providers.touch import TouchPatience
from keyvouch_agent.roaming.search import EnrolledKey, KeySearch
from keyvouch_client.security_keys.discovery import ConnectedKey
from keyvouch_client.security_keys.standing import require_usable, standing_of

__all__ = ["RoamingSession"]

_T = TypeVar("_T")


class RoamingSession:
    """One ceremony. See `keyvouch_agent.ports` for the methods.

    `enrolled` is the account's key, None for no account yet; `chosen` the key that was chosen before the ceremony
    began. `on_close` is called once, after the key was let go.
    """

    def __init__(
        self,
        search: KeySearch,
        ui: ProviderInteraction,
        *,
        rp_id: str,
        enrolled: EnrolledKey | None,
        chosen: ConnectedKey | None,
        wish: CredentialWish,
        min_pin_length: int,
        patience: TouchPatience,
        cancelled: Event,
        on_close: Callable[[], None],
    ) -> None:
        self._search = search
        self._ui = ui
        self._rp_id = rp_id
        self._enrolled = enrolled
        self._chosen = chosen
        self._wish = wish
        self._min_pin_length = min_pin_length
        self._patience = patience
        self._cancelled = cancelled
        self._on_close = on_close
        self._current: CtapSession | None = None
        self._working = Lock()
        self._closed = False

    def prepare(self, offer: GateOffer) -> TpmPreparation | None:  # noqa: ARG002
        """A security key has nothing to show before its key is made."""
        return None

    def accept(self, grant: TpmGrant) -> None:  # noqa: ARG002
        """Nothing was shown."""
        raise UsageError("Nothing was shown to the server, so it allows nothing.")

    def evidence(self, statement: bytes, channel_key: bytes) -> TpmEvidence | None:  # noqa: ARG002
        """The attestation object carries all there is."""
        return None

    def create_key(self, creation: KeyCreation) -> Registration:
        """Make a credential on the key that was chosen, or is chosen now."""
        return self._work(self._for_creation, lambda session: session.create_key(creation))

    def sign(self, use: KeyUse) -> Assertion:
        """Sign with the key that holds the credential."""
        if use.rp_id != self._rp_id:
            raise _wrong_server(use.rp_id, self._rp_id)
        known = self._enrolled
        if known is None or known.credential_id != use.credential_id:
            known = EnrolledKey(use.credential_id, use.rp_id, "this account")
        return self._work(lambda: self._search.holder(known), lambda session: session.sign(use))

    def pin(self) -> PinControl | None:
        """The PIN of the account's key, or of the one that is chosen now; None where it has none."""
        known = self._enrolled
        find = self._for_creation if known is None else lambda: self._search.holder(known)
        with self._working:
            return self._opened(find).pin()

    def cancel(self) -> None:
        """Stop waiting for a key, for a touch and for the person."""
        self._cancelled.set()
        if (current := self._current) is not None:
            current.cancel()

    def close(self) -> None:
        """Close the key. Waits for an operation that is under way; `cancel` shortens that."""
        with self._working:
            if self._closed:
                return
            self._closed = True
            try:
                self._let_go()
            finally:
                self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self, find: Callable[[], ConnectedKey], work: Callable[[CtapSession], _T]) -> _T:
        with self._working:
            return work(self._opened(find))

    def _for_creation(self) -> ConnectedKey:
        return self._search.any() if self._chosen is None else self._search.again(self._chosen)

    def _opened(self, find: Callable[[], ConnectedKey]) -> CtapSession:
        """The key, open, usable, and ready to take a PIN."""
        while True:
            self._let_go()
            if self._closed:
                raise UsageError("This session is closed.")
            key = find()
            device = key.open()
            try:
                standing = standing_of(device)
                require_usable(standing)
            except BaseException:
                device.close()
                raise
            if standing.needs_power_cycle and standing.asks_pin:
                device.close()
                self._search.after_power_cycle(key)
                continue
            self._current = CtapSession(
                device,
                self._ui,
                rp_id=self._rp_id,
                min_pin_length=self._min_pin_length,
                patience=self._patience,
                wish=self._wish,
            )
            if self._cancelled.is_set():
                self._current.cancel()
            return self._current

    def _let_go(self) -> None:
        """Close the key; one that cannot be closed is away already."""
        current, self._current = self._current, None
        if current is not None:
            with suppress(OSError):
                current.close()


def _wrong_server(named: str, expected: str) -> RefusedError:
    return RefusedError(
        Reason.WRONG_SERVER,
        "The request is for another server than the one this device is registered with.",
        fix="Do not approve it; tell the administrator.",
        metadata={"rp_id": named, "expected": expected},
    )
