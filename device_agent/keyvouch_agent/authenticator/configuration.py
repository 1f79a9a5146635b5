"""authenticatorConfig (0x0D): what its owner or an enterprise sets in the authenticator (section 6.11).

toggleAlwaysUv and setMinPINLength. What is *not* here: enterprise attestation, which this authenticator never makes,
and commands of vendors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import IntEnum, unique

from keyvouch_agent.authenticator.client_pin import MAX_PIN_BYTES
from keyvouch_agent.authenticator.management_parameters import ConfigParameters
from keyvouch_agent.authenticator.pin_token import Permission, TokenKeeper
from keyvouch_agent.authenticator.standing import Standing
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.user_gate import UserGate
from keyvouch_agent.authenticator.vault import KeyVault

__all__ = ["MAX_MIN_PIN_LENGTH_RP_IDS", "Configuration"]

MAX_MIN_PIN_LENGTH_RP_IDS = 8
"""Relying parties that may be allowed to learn the minimum PIN length (maxRPIDsForSetMinPINLength)."""

_CONTEXT = b"\xff" * 32 + b"\x0d"


@unique
class Subcommand(IntEnum):
    """Section 6.11, the supported ones."""

    TOGGLE_ALWAYS_UV = 0x02
    SET_MIN_PIN_LENGTH = 0x03


class Configuration:
    """The command. All it changes are the vault's settings."""

    def __init__(self, vault: KeyVault, standing: Standing, gate: UserGate, tokens: TokenKeeper) -> None:
        self._vault = vault
        self._standing = standing
        self._gate = gate
        self._tokens = tokens

    def handle(self, given: ConfigParameters) -> Mapping[int, object]:
        """Carry out one subcommand. There is never a response map."""
        if given.subcommand not in self._supported:  # step 2
            raise CommandError(Status.INVALID_PARAMETER)
        subcommand = Subcommand(given.subcommand)
        if self._needs_token(subcommand):  # steps 3 and 4
            message = _CONTEXT + bytes([subcommand]) + given.encoded_params
            self._gate.authorize(
                given.pin_uv_auth_protocol,
                given.pin_uv_auth_param,
                message,
                Permission.AUTHENTICATOR_CONFIGURATION,
            )
        if subcommand is Subcommand.TOGGLE_ALWAYS_UV:
            self._toggle_always_uv()
        else:
            self._set_min_pin_length(given)
        return {}

    @property
    def _supported(self) -> frozenset[Subcommand]:
        """The length of a PIN that is none of CTAP's is not set here (section 6.4, setMinPINLength)."""
        return frozenset(Subcommand) if self._standing.takes_pin else frozenset((Subcommand.TOGGLE_ALWAYS_UV,))

    def _needs_token(self, subcommand: Subcommand) -> bool:
        """Without a PIN there is no token; only then may alwaysUv be switched off without one."""
        if self._gate.is_protected:
            return True
        return self._standing.always_uv and subcommand is not Subcommand.TOGGLE_ALWAYS_UV

    def _toggle_always_uv(self) -> None:
        """Section 6.11.2. Where the PIN gates the keys it cannot be switched off."""
        if self._standing.properties.pin_gated:
            raise CommandError(Status.OPERATION_DENIED)
        settings = self._vault.settings
        self._vault.store_settings(replace(settings, always_uv=not settings.always_uv))

    def _set_min_pin_length(self, given: ConfigParameters) -> None:
        """Section 6.11.4. The minimum only ever grows, until a reset."""
        if not given.encoded_params:
            raise CommandError(Status.MISSING_PARAMETER)
        settings, current = self._vault.settings, self._standing.min_pin_length
        least = current if given.new_min_pin_length is None else given.new_min_pin_length
        if not current <= least <= MAX_PIN_BYTES:
            raise CommandError(Status.PIN_POLICY_VIOLATION)
        forced = self._forces_change(given, current, least)
        rp_ids = given.min_pin_length_rp_ids or settings.min_pin_length_rp_ids  # step 8: an empty list says nothing
        if len(rp_ids) > MAX_MIN_PIN_LENGTH_RP_IDS:
            raise CommandError(Status.KEY_STORE_FULL)
        changed = replace(settings, min_pin_length_rp_ids=rp_ids, force_pin_change=settings.force_pin_change or forced)
        if given.new_min_pin_length is not None:
            changed = replace(changed, min_pin_length=least)
        self._vault.store_settings(changed)
        if forced:
            self._tokens.end()

    def _forces_change(self, given: ConfigParameters, current: int, least: int) -> bool:
        """Whether the PIN has to be changed now: it was asked for, or the PIN is too short, or may be."""
        pin = self._vault.pin_state()
        if given.force_change_pin and not pin.is_set:
            raise CommandError(Status.PIN_NOT_SET)
        too_short = pin.code_points < least if pin.code_points else least > current
        return pin.is_set and (given.force_change_pin or too_short)
