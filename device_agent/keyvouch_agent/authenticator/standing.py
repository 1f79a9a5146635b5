"""How the authenticator stands: what its options, its vault and what was set in it add up to at this moment.

The vault's settings can change with any command, so nothing is remembered here. What is *not* here: changing them
(`configuration`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from keyvouch.cose import Algorithm
from keyvouch_agent.authenticator.vault import KeyVault, VaultProperties, VerifyingVault

__all__ = ["MAX_FRAGMENT_LENGTH", "MAX_MESSAGE_SIZE", "RESET_SECONDS", "AuthenticatorOptions", "Standing"]

RESET_SECONDS = 10.0
"""A reset is accepted only this long after power-up (section 6.6)."""
MAX_MESSAGE_SIZE = 7609
"""Bytes of a request, the command byte included: as many as one message over USB can have (section 11.2.4)."""
FRAGMENT_OVERHEAD = 64
"""Bytes of a message about large blobs besides the fragment itself (section 6.10)."""
MAX_FRAGMENT_LENGTH = MAX_MESSAGE_SIZE - FRAGMENT_OVERHEAD
"""The longest fragment where nothing else was chosen."""


@dataclass(frozen=True, slots=True)
class AuthenticatorOptions:
    """What is chosen for an authenticator by who makes it."""

    min_pin_length: int = 4
    """In code points; a vault can ask for more."""
    make_cred_uv_not_required: bool = False
    """As in section 6.4; it counts only while user verification is not always required."""
    transports: tuple[str, ...] = ("internal",)
    """How it can be reached, in the words of WebAuthn section 5.8.4."""
    reset_window: float | None = RESET_SECONDS
    """Seconds after power-up in which it can be reset; None for a card, whose reader can cut its power at will."""
    max_message_size: int = MAX_MESSAGE_SIZE
    """Bytes of a request that are taken; less where its transport may lose packets of a longer one."""
    u2f: bool = False
    """Whether it speaks CTAP1/U2F too, where the vault makes ES256 keys and gates none with the PIN."""


class Standing:
    """Asks the vault anew for every answer."""

    def __init__(self, vault: KeyVault, options: AuthenticatorOptions) -> None:
        self._vault = vault
        self._options = options

    @property
    def options(self) -> AuthenticatorOptions:
        """What was chosen for good."""
        return self._options

    @property
    def max_fragment_length(self) -> int:
        """Bytes of the large-blob array that are read or written at a time (section 6.10)."""
        return self._options.max_message_size - FRAGMENT_OVERHEAD

    @property
    def properties(self) -> VaultProperties:
        """What holds the keys."""
        return self._vault.properties

    @property
    def is_protected(self) -> bool:
        """Whether it is protected by some form of user verification: whether a PIN is set."""
        verifier = self.verifier
        return self._vault.pin_state().is_set if verifier is None else verifier.uv_state().is_configured

    @property
    def verifier(self) -> VerifyingVault | None:
        """The vault, where it verifies its user itself."""
        return cast(VerifyingVault, self._vault) if self._vault.properties.verifies_itself else None

    @property
    def takes_pin(self) -> bool:
        """Whether it knows PINs in the sense of CTAP (clientPin): whether the vault is content with their hashes."""
        return not self._vault.properties.verifies_itself

    @property
    def keeps_secrets(self) -> bool:
        """Whether credBlob, hmac-secret and hmac-secret-mc are known."""
        return self._vault.properties.keeps_secrets

    @property
    def always_uv(self) -> bool:
        """Section 7.2. Keys that the PIN gates cannot be used otherwise."""
        return self._vault.properties.pin_gated or self._vault.settings.always_uv

    @property
    def make_cred_uv_not_required(self) -> bool:
        """The option makeCredUvNotRqd, which is false beside alwaysUv (section 6.1.2 step 6)."""
        return self._options.make_cred_uv_not_required and not self.always_uv

    @property
    def min_pin_length(self) -> int:
        """In Unicode code points: the highest that anybody asks for."""
        least = max(self._options.min_pin_length, self._vault.properties.min_pin_length)
        return max(least, self._vault.settings.min_pin_length)

    @property
    def must_change_pin(self) -> bool:
        """Whether no token is given out before the PIN is changed (forcePINChange)."""
        return self._vault.settings.force_pin_change

    @property
    def keeps_large_blobs(self) -> bool:
        """Whether there is room for a large-blob array at all, and for the keys that open what is in it."""
        return self._vault.properties.max_large_blobs > 0 and self.keeps_secrets

    @property
    def speaks_u2f(self) -> bool:
        """Whether CTAP1/U2F messages are answered now. They cannot carry user verification (section 7.2.4)."""
        return self._options.u2f and Algorithm.ES256 in self._vault.properties.algorithms and not self.always_uv

    def tells_min_pin_length_to(self, rp_id: str) -> bool:
        """Whether the minPinLength extension answers this relying party (section 12.4)."""
        return rp_id in self._vault.settings.min_pin_length_rp_ids
