"""The provider for everything without a FIDO2 interface of its own: our authenticator over a `KeyVault`.

    BuiltInProvider(Authenticator(vault, clock, entropy))

One `Authenticator` lives as long as the agent; that is its power cycle, over which wrong PINs in a row are
counted. A vault that verifies its user itself, a card, wants the PIN and not what CTAP makes of it: it is asked for by
the vault, through the session's user, and where it stands is what the vault says. What is *not* here: which vault; the
program's bootstrap chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Event

from fido2.ctap import CtapError

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.device import AuthenticatorDevice
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest
from keyvouch_agent.authenticator.vault import UvState
from keyvouch_agent.pin_standing import check_pin_usable, tries_left
from keyvouch_agent.ports import (
    Gate,
    HealthReport,
    KeyProtection,
    NativeSteps,
    PinControl,
    PresenceContext,
    ProviderCapabilities,
    ProviderInteraction,
    ProviderKind,
    ReplacementSteps,
)
from keyvouch_agent.providers.ctap_session import CtapSession
from keyvouch_client.security_keys.failures import device_error

__all__ = ["DEFAULT_MIN_PIN_LENGTH", "BuiltInProvider", "NativeHolder"]

DEFAULT_MIN_PIN_LENGTH = 6
"""Characters the agent asks for by default (NIST SP 800-63B section 3.2.10 recommends six)."""

_UV_BY = {
    ProviderKind.TPM: Gate.TPM_POLICY,
    ProviderKind.SMARTCARD: Gate.CARD_POLICY,
    ProviderKind.SOFTWARE: Gate.HOST,
    ProviderKind.FIDO2: Gate.AUTHENTICATOR,
}


_AWAY = frozenset(
    (
        Reason.AUTHENTICATOR_NOT_CONNECTED,
        Reason.AUTHENTICATOR_REMOVED,
        Reason.AUTHENTICATOR_OTHER,
        Reason.READER_UNAVAILABLE,
    )
)
"""What a vault says while its hardware is not there."""
_TOLD_BY_THE_VAULT = frozenset(
    (
        CtapError.ERR.OTHER,
        CtapError.ERR.UV_INVALID,
        CtapError.ERR.OPERATION_DENIED,
        CtapError.ERR.USER_ACTION_TIMEOUT,
        CtapError.ERR.NOT_ALLOWED,
    )
)
"""Statuses behind which the vault may have said more."""
_ON_PAD = "Type the PIN on the pad of the reader"

_KEY_PROTECTION = {ProviderKind.SOFTWARE: KeyProtection.SOFTWARE}
_NAMES = {
    ProviderKind.TPM: "Trusted Platform Module",
    ProviderKind.SMARTCARD: "Smartcard",
    ProviderKind.SOFTWARE: "Software key vault",
    ProviderKind.FIDO2: "FIDO2 authenticator",
}


@dataclass(frozen=True, slots=True)
class NativeHolder:
    """What is known of a vault's hardware beyond its keys. Empty where there is nothing to know."""

    name: str = ""
    protection: KeyProtection | None = None
    verifies: tuple[int, ...] = ()
    steps: Callable[[], NativeSteps] | None = None
    """Begins the native steps of a registration."""
    health: Callable[[bytes, Sequence[int]], HealthReport] | None = None
    forget: Callable[[], None] | None = None
    """Takes everything of the account away, where accounts are kept apart."""
    replacement: Callable[[], ReplacementSteps] | None = None
    """Begins to put a new key in the place of a registered one."""
    no_such_key: Callable[[], DeviceError] | None = None
    """What it means that the account does not know a key."""
    pin: PinControl | None = None
    """The PIN of a vault that verifies its user itself, where it can be changed from here."""
    ready: Callable[[ProviderInteraction, Event], None] | None = None
    """Makes sure that the hardware is there, as `Provider.ready`."""
    last_try: Callable[[bool], None] | None = None
    """Told for each session whether the last try of the PIN may be spent in it."""
    certificates: tuple[bytes, ...] = ()
    """What a new registration shows beside its key, see `Registration`."""


class BuiltInProvider:
    """`Provider` over an authenticator of our own. See `keyvouch_agent.ports` for the methods."""

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        min_pin_length: int = DEFAULT_MIN_PIN_LENGTH,
        native: NativeHolder | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._native = native or NativeHolder()
        self._min_pin_length = max(min_pin_length, authenticator.min_pin_length)
        self._kind = ProviderKind(authenticator.properties.protection)
        self._verifies_itself = authenticator.properties.verifies_itself
        if self._verifies_itself:
            self._min_pin_length = authenticator.min_pin_length

    def capabilities(self) -> ProviderCapabilities:
        """What the vault says about itself; its PIN's state is read without a prompt."""
        properties, pin = self._authenticator.properties, self._uv_state()
        return ProviderCapabilities(
            kind=self._kind,
            name=self._native.name or _NAMES[self._kind],
            algorithms=properties.algorithms,
            key_protection=self._native.protection or _KEY_PROTECTION.get(self._kind, KeyProtection.HARDWARE),
            uv_by=_UV_BY[self._kind],
            up_by=Gate.HOST,
            pin_is_set=pin is not None and pin.is_configured,
            pin_retries_left=pin.retries_left if pin else None,
            min_pin_length=self._min_pin_length,
            attestation_formats=properties.attestation_formats,
            aaguid=properties.aaguid,
            verifies=self._native.verifies,
            connected=pin is not None,
            asks_pin=pin is None or not pin.on_pad,
        )

    def ready(self, ui: ProviderInteraction, cancelled: Event) -> None:
        """It always is, but for a native holder that says otherwise."""
        if self._native.ready:
            self._native.ready(ui, cancelled)

    def open(self, ui: ProviderInteraction, *, rp_id: str) -> CtapSession:
        """Start a ceremony. Presence is an explicit confirmation in the agent."""
        presence = _ConfirmedPresence(ui)
        entry = _TypedPin(ui, self._min_pin_length) if self._verifies_itself else None
        device = AuthenticatorDevice(self._authenticator, presence, entry)
        if self._native.last_try:
            self._native.last_try(ui.allows_last_try())

        def explain(status: int | None) -> DeviceError | None:
            if status == CtapError.ERR.OPERATION_DENIED and presence.timed_out and device.failure is None:
                return device_error(CtapError(CtapError.ERR.USER_ACTION_TIMEOUT))
            if status == CtapError.ERR.NO_CREDENTIALS and self._native.no_such_key:
                return self._native.no_such_key()
            return _in_its_own_words(status, device.failure) or self._why_not_verified(status, device.failure)

        return CtapSession(
            device,
            ui,
            rp_id=rp_id,
            min_pin_length=self._min_pin_length,
            explain=explain,
            steps=self._native.steps() if self._native.steps else None,
            asks_itself=self._verifies_itself,
            pin=self._native.pin,
            certificates=self._native.certificates,
        )

    def health(self, qualifying_data: bytes, pcrs: Sequence[int]) -> HealthReport | None:
        """What stands behind the vault says of itself."""
        return self._native.health(qualifying_data, pcrs) if self._native.health else None

    def replacement(self) -> ReplacementSteps | None:
        """The native holder's, if it has any."""
        return self._native.replacement() if self._native.replacement else None

    def forget(self, credential_id: CredentialId | None) -> None:
        """Destroy a key, or with the native holder all of the account."""
        if self._native.forget:
            self._native.forget()
        elif credential_id is not None:
            self._authenticator.forget(credential_id)

    def _uv_state(self) -> UvState | None:
        """How the PIN stands, CTAP's or the vault's own; None while the hardware is not there."""
        if not self._verifies_itself:
            pin = self._authenticator.pin_state()
            return UvState(pin.is_set, pin.retries_left)
        try:
            return self._authenticator.uv_state()
        except DeviceError as error:
            if error.reason in _AWAY:
                return None
            raise

    def _why_not_verified(self, status: int | None, failure: DeviceError | None) -> DeviceError | None:
        """Why a vault could not verify its user: no PIN is set, or it is blocked, just now or before.

        A status of None is the client's own: it would have gone on with a PIN of CTAP's, and there is none.
        """
        if not self._verifies_itself or status not in (None, CtapError.ERR.UV_BLOCKED, CtapError.ERR.NOT_ALLOWED):
            return None
        if _is_blocked(failure):
            return failure
        try:
            check_pin_usable(replace(self.capabilities(), asks_pin=True))
        except DeviceError as error:
            return error
        return None


def _in_its_own_words(status: int | None, failure: DeviceError | None) -> DeviceError | None:
    """What the vault said, where it knows more than CTAP can say; a wrong PIN that blocks is told as a blocked one."""
    told = status in _TOLD_BY_THE_VAULT or (status == CtapError.ERR.PIN_BLOCKED and _is_blocked(failure))
    return failure if told else None


def _is_blocked(failure: DeviceError | None) -> bool:
    return failure is not None and failure.reason is Reason.PIN_BLOCKED


class _ConfirmedPresence:
    """The `UserPresence` port over the agent's own prompt."""

    def __init__(self, ui: ProviderInteraction) -> None:
        self._ui = ui
        self.timed_out = False

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        """Ask. The prompt itself is withdrawn by whoever cancels the session."""
        self.timed_out = False
        try:
            context = PresenceContext(str(request.purpose), request.rp_id, request.user_name)
            granted = self._ui.confirm_presence(context)
        except TimeoutError:
            self.timed_out = True
            return Presence.TIMEOUT
        if cancelled():
            return Presence.CANCELLED
        return Presence.GRANTED if granted else Presence.DENIED


class _TypedPin:
    """The `PinEntry` port over whatever asks the session's user for a PIN."""

    def __init__(self, ui: ProviderInteraction, min_length: int) -> None:
        self._ui = ui
        self._min_length = min_length

    def ask(self, retries_left: int | None) -> str | None:
        """Ask. The PIN is handed on and not kept."""
        pin = self._ui.request_pin(retries_left, self._min_length)
        if pin is None:
            return None
        with pin:
            return pin.reveal() or None

    def on_pad(self, retries_left: int | None) -> None:
        """Say so, with the tries that are left where they are known."""
        left = "" if retries_left is None else f" ({tries_left(retries_left)})"
        self._ui.tell(f"{_ON_PAD}{left}.")
