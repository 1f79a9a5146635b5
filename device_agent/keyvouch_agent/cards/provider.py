"""`Provider` over the account of one card, whether the card is in its reader or not.

A new account is opened when its card is there: `ready` waits for that. One that is enrolled is known from its record;
its card is looked for when it is used, and a card that is missing then is said at once, for the request waits anyway.
Presence and PIN are those of `BuiltInProvider`. What is *not* here: accounts and their folders (`account`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event, Lock
from typing import Final

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.cards.account import CardAccounts, OpenedAccount
from keyvouch_agent.ports import (
    Gate,
    HealthReport,
    KeyProtection,
    ProviderCapabilities,
    ProviderInteraction,
    ProviderKind,
    ReplacementSteps,
)
from keyvouch_agent.providers.built_in import DEFAULT_MIN_PIN_LENGTH
from keyvouch_agent.providers.ctap_session import CtapSession

__all__ = ["CardProvider"]

WAIT_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.25
_ES256: Final = -7
_NAME: Final = "Smartcard"
_TO_WAIT_FOR: Final = frozenset(
    (Reason.AUTHENTICATOR_NOT_CONNECTED, Reason.AUTHENTICATOR_OTHER, Reason.AUTHENTICATOR_REMOVED)
)


class CardProvider:
    """See `keyvouch_agent.ports` for the methods. `seconds` is how long a card is waited for, `adopts` as in `open`."""

    def __init__(
        self, accounts: CardAccounts, name: str, *, adopts: bool = True, seconds: float = WAIT_SECONDS
    ) -> None:
        self._accounts = accounts
        self._name = name
        self._adopts = adopts
        self._seconds = seconds
        self._opening = Lock()
        self._opened: OpenedAccount | None = None
        self._close: Callable[[], None] = lambda: None
        if accounts.has_record(name):
            self._open()

    def capabilities(self) -> ProviderCapabilities:
        """What the card says, or that it is not there."""
        return self._opened.provider.capabilities() if self._opened else _absent()

    def ready(self, ui: ProviderInteraction, cancelled: Event) -> None:
        """Wait for the card, and say which one it is."""
        deadline, said = time.monotonic() + self._seconds, ""
        while True:
            try:
                opened = self._open()
                opened.check_present()
            except DeviceError as error:
                if error.reason not in _TO_WAIT_FOR or time.monotonic() > deadline:
                    raise
                if said != error.message:
                    said = error.message
                    ui.tell(f"{error.message} Put your card into the reader.")
            else:
                ui.tell(f"The card is {opened.name}.")
                return
            if cancelled.wait(_LOOK_SECONDS):
                raise DeviceError(Reason.USER_CANCELLED, "No card is waited for any more.", fix="Start again.")

    def open(self, ui: ProviderInteraction, *, rp_id: str) -> CtapSession:
        """Start a ceremony."""
        return self._open().provider.open(ui, rp_id=rp_id)

    def health(self, qualifying_data: bytes, pcrs: Sequence[int]) -> HealthReport | None:  # noqa: ARG002
        """A card says nothing of its health."""
        return None

    def replacement(self) -> ReplacementSteps | None:
        """None: a new key is registered with an access pass."""
        return None

    def forget(self, credential_id: CredentialId | None) -> None:  # noqa: ARG002 - the account's only one
        """Forget the account's key. An existing one stays on the card as it was.

        Raises `DeviceError(PIN_REQUIRED)` where one that was made here stays on the token until its PIN is typed.
        """
        if self._opened is None:
            return
        left = self._opened.forget()
        if left:
            raise DeviceError(
                Reason.PIN_REQUIRED,
                "The key pair stays on the token, and opens nothing: the token destroys it only behind its PIN.",
                fix="The next enrolment on this token destroys it. Or: pkcs11-tool --login --delete-object --type "
                f"privkey --id {left[-1].hex()}",
            )

    def close(self) -> None:
        """Lock the card and let go of it."""
        with self._opening:
            opened, self._opened = self._opened, None
            if opened is not None:
                opened.close()
                self._close()

    def _open(self) -> OpenedAccount:
        with self._opening:
            if self._opened is None:
                self._opened, self._close = self._accounts.open(self._name, adopts=self._adopts)
            return self._opened


def _absent() -> ProviderCapabilities:
    return ProviderCapabilities(
        kind=ProviderKind.SMARTCARD,
        name=_NAME,
        algorithms=(_ES256,),
        key_protection=KeyProtection.HARDWARE,
        uv_by=Gate.CARD_POLICY,
        up_by=Gate.HOST,
        pin_is_set=False,
        pin_retries_left=None,
        min_pin_length=DEFAULT_MIN_PIN_LENGTH,
        attestation_formats=(),
        connected=False,
    )
