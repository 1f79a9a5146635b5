"""`Provider` over roaming FIDO2 security keys.

A provider is one of an account: then it knows which credential to look for among the keys that are connected. Without
an account (`pin`, a new registration) it is about the only key, or the one that is touched. Presence and user
verification are the key's own, so nothing is confirmed in the agent. What is not here: trust in what a key says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event, Lock

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import SOFTWARE_AAGUID
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
from keyvouch_agent.providers.ctap_requests import CredentialWish
from keyvouch_agent.providers.touch import TouchPatience
from keyvouch_agent.roaming.search import WAIT_SECONDS, EnrolledKey, KeySearch
from keyvouch_agent.roaming.session import RoamingSession
from keyvouch_client.security_keys.discovery import ConnectedKey, SecurityKeys
from keyvouch_client.security_keys.standing import KeyStanding, read_standing, require_usable

__all__ = ["EnrolledKey", "RoamingProvider"]

_ES256 = -7
_NO_KEY = "Security key"


class RoamingProvider:
    """`Provider` over the keys that are connected. See `keyvouch_agent.ports` for the methods.

    `enrolled` tells the account's key, None for no account yet. `seconds` is how long a key is waited for.
    """

    def __init__(
        self,
        keys: SecurityKeys,
        *,
        enrolled: Callable[[], EnrolledKey | None] = lambda: None,
        wish: CredentialWish | None = None,
        min_pin_length: int = DEFAULT_MIN_PIN_LENGTH,
        patience: TouchPatience | None = None,
        seconds: float = WAIT_SECONDS,
    ) -> None:
        self._keys = keys
        self._enrolled = enrolled
        self._wish = wish or CredentialWish(protect=True)
        self._min_pin_length = min_pin_length
        self._patience = patience or TouchPatience()
        self._seconds = seconds
        self._chosen: ConnectedKey | None = None
        self._seen: ProviderCapabilities | None = None
        self._in_use = Lock()

    def capabilities(self) -> ProviderCapabilities:
        """How the key stands, or that it is not connected. Disturbs no ceremony: during one, what was known before."""
        if not self._in_use.acquire(blocking=False):
            return self._seen or self._absent()
        try:
            self._seen = self._look()
        finally:
            self._in_use.release()
        return self._seen

    def ready(self, ui: ProviderInteraction, cancelled: Event) -> None:
        """Wait for a key, choose one of several by touch, and make sure that it can verify its user."""
        with self._in_use:
            self._chosen = None
            self._chosen = self._search(ui, cancelled).any()

    def open(self, ui: ProviderInteraction, *, rp_id: str) -> RoamingSession:
        """Start a ceremony. The key is looked for when it is needed, and waited for."""
        cancelled, enrolled = Event(), self._enrolled()
        self._in_use.acquire()
        return RoamingSession(
            self._search(ui, cancelled),
            ui,
            rp_id=rp_id,
            enrolled=enrolled,
            chosen=self._chosen,
            wish=self._wish,
            min_pin_length=self._min_pin_length,
            patience=self._patience,
            cancelled=cancelled,
            on_close=self._in_use.release,
        )

    def health(self, qualifying_data: bytes, pcrs: Sequence[int]) -> HealthReport | None:  # noqa: ARG002
        """A security key says nothing of its health."""
        return None

    def replacement(self) -> ReplacementSteps | None:
        """None: a new key is registered with an access pass."""
        return None

    def forget(self, credential_id: CredentialId | None) -> None:
        """Nothing is kept for a server-side credential. A discoverable one stays on the key, and that is said.

        Raises `DeviceError(PIN_REQUIRED)`: to delete it takes the PIN, and nobody is asked for it here.
        """
        if credential_id is None or not self._wish.resident:
            return
        raise DeviceError(
            Reason.PIN_REQUIRED,
            "The credential stays on the security key: the key deletes it only with its PIN.",
            fix=f"Delete it with the key's own tool, such as `fido2-token -D -i ID DEVICE`. ID: {credential_id.hex()}",
        )

    def _search(self, ui: ProviderInteraction, cancelled: Event) -> KeySearch:
        return KeySearch(self._keys, tell=ui.tell, cancelled=cancelled, seconds=self._seconds)

    def _look(self) -> ProviderCapabilities:
        key = self._the_key()
        if key is None:
            return self._absent()
        try:
            return self._described(key, read_standing(key))
        except DeviceError as error:
            return self._unusable(key) if error.reason is Reason.UNSUPPORTED else self._absent()

    def _the_key(self) -> ConnectedKey | None:
        """The key this is about, as far as can be told without asking anybody."""
        connected = self._keys.connected()
        enrolled = self._enrolled()
        if enrolled is not None:
            found = KeySearch(self._keys, tell=lambda _text: None, cancelled=Event()).silently(enrolled)
            return found[0] if found and len(found) == 1 else None
        if self._chosen in connected:
            return self._chosen
        return connected[0] if len(connected) == 1 else None

    def _described(self, key: ConnectedKey, standing: KeyStanding) -> ProviderCapabilities:
        require_usable(standing)
        return ProviderCapabilities(
            kind=ProviderKind.FIDO2,
            name=key.name,
            algorithms=standing.algorithms or (_ES256,),
            key_protection=_protection(standing.aaguid),
            uv_by=Gate.AUTHENTICATOR,
            up_by=Gate.AUTHENTICATOR,
            pin_is_set=standing.pin_is_set,
            pin_retries_left=standing.pin_retries_left,
            min_pin_length=max(self._min_pin_length, standing.min_pin_length),
            attestation_formats=standing.attestation_formats,
            aaguid=standing.aaguid,
            asks_pin=standing.asks_pin,
        )

    def _unusable(self, key: ConnectedKey) -> ProviderCapabilities:
        """A key that can verify nobody. Why, says `ready`."""
        return self._bare(key.name, Gate.NONE, connected=True)

    def _absent(self) -> ProviderCapabilities:
        enrolled = self._enrolled()
        return self._bare((enrolled.name if enrolled else "") or _NO_KEY, Gate.AUTHENTICATOR, connected=False)

    def _bare(self, name: str, uv_by: Gate, *, connected: bool) -> ProviderCapabilities:
        return ProviderCapabilities(
            kind=ProviderKind.FIDO2,
            name=name,
            algorithms=(_ES256,),
            key_protection=KeyProtection.HARDWARE,
            uv_by=uv_by,
            up_by=Gate.AUTHENTICATOR,
            pin_is_set=False,
            pin_retries_left=None,
            min_pin_length=self._min_pin_length,
            attestation_formats=(),
            connected=connected,
        )


def _protection(aaguid: bytes) -> KeyProtection:
    """A key that says it is our own authenticator over the software vault is a program, and is called so here."""
    return KeyProtection.SOFTWARE if aaguid == SOFTWARE_AAGUID else KeyProtection.HARDWARE
