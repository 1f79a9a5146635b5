"""The provider for everything without a FIDO2 interface of its own: our authenticator over a `KeyVault`.

    BuiltInProvider(Authenticator(vault, clock, entropy))

One `Authenticator` lives as long as the agent; that is its power cycle, over which wrong PINs in a row are
counted. What is *not* here: which vault; the program's bootstrap chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fido2.ctap import CtapError

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.device import AuthenticatorDevice
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest
from keyvouch_agent.ports import (
    Gate,
    HealthReport,
    KeyProtection,
    NativeSteps,
    PresenceContext,
    ProviderCapabilities,
    ProviderInteraction,
    ProviderKind,
    ReplacementSteps,
)
from keyvouch_agent.providers.ctap_failures import device_error
from keyvouch_agent.providers.ctap_session import CtapSession

__all__ = ["DEFAULT_MIN_PIN_LENGTH", "BuiltInProvider", "NativeHolder"]

DEFAULT_MIN_PIN_LENGTH = 6
"""Characters the agent asks for by default (NIST SP 800-63B section 3.2.10 recommends six)."""

_UV_BY = {
    ProviderKind.TPM: Gate.TPM_POLICY,
    ProviderKind.SMARTCARD: Gate.CARD_POLICY,
    ProviderKind.SOFTWARE: Gate.HOST,
    ProviderKind.FIDO2: Gate.AUTHENTICATOR,
}


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

    def capabilities(self) -> ProviderCapabilities:
        """What the vault says about itself; its PIN's state is read without a prompt."""
        properties, pin = self._authenticator.properties, self._authenticator.pin_state()
        return ProviderCapabilities(
            kind=self._kind,
            name=self._native.name or _NAMES[self._kind],
            algorithms=properties.algorithms,
            key_protection=self._native.protection or _KEY_PROTECTION.get(self._kind, KeyProtection.HARDWARE),
            uv_by=_UV_BY[self._kind],
            up_by=Gate.HOST,
            pin_is_set=pin.is_set,
            pin_retries_left=pin.retries_left,
            min_pin_length=self._min_pin_length,
            attestation_formats=properties.attestation_formats,
            aaguid=properties.aaguid,
            verifies=self._native.verifies,
        )

    def open(self, ui: ProviderInteraction, *, rp_id: str) -> CtapSession:
        """Start a ceremony. Presence is an explicit confirmation in the agent."""
        presence = _ConfirmedPresence(ui)
        device = AuthenticatorDevice(self._authenticator, presence)

        def explain(status: int | None) -> DeviceError | None:
            if status == CtapError.ERR.OPERATION_DENIED and presence.timed_out:
                return device_error(CtapError(CtapError.ERR.USER_ACTION_TIMEOUT))
            if status == CtapError.ERR.NO_CREDENTIALS and self._native.no_such_key:
                return self._native.no_such_key()
            return _in_its_own_words(status, device.failure)

        return CtapSession(
            device,
            ui,
            rp_id=rp_id,
            min_pin_length=self._min_pin_length,
            reminds_of_touch=False,
            explain=explain,
            steps=self._native.steps() if self._native.steps else None,
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


def _in_its_own_words(status: int | None, failure: DeviceError | None) -> DeviceError | None:
    """What the vault said, where it knows more than CTAP can say; a wrong PIN that blocks is told as a blocked one."""
    blocked = failure is not None and failure.reason is Reason.PIN_BLOCKED
    return failure if status == CtapError.ERR.OTHER or (status == CtapError.ERR.PIN_BLOCKED and blocked) else None


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
