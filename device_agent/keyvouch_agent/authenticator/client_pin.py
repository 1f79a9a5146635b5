"""authenticatorClientPIN (0x06): set, change and check the PIN, hand out PIN/UV auth tokens (section 6.5.5).

Counting down the retries and blocking the PIN for good is the vault's part. Here is the limit per power
cycle: after three wrong PINs in a row nothing but a restart helps, so that malware which tries PINs cannot
block the authenticator behind its owner's back. What is *not* here: built-in user verification.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, unique
from typing import TypeVar

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.parameters import ClientPinParameters
from keyvouch_agent.authenticator.pin_protocol import PinProtocol, pin_protocols
from keyvouch_agent.authenticator.pin_token import TOKEN_LENGTH, Permission, TokenKeeper
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.vault import PIN_HASH_LENGTH, KeyVault

__all__ = ["ClientPin", "Subcommand"]

MAX_WRONG_PER_POWER_CYCLE = 3
PADDED_PIN_LENGTH = 64
MAX_PIN_BYTES = 63

_SUPPORTED = Permission.MAKE_CREDENTIAL | Permission.GET_ASSERTION
_DEFINED = ~Permission(0)

_T = TypeVar("_T")


@unique
class Subcommand(IntEnum):
    """Section 6.5.5, the supported ones."""

    GET_PIN_RETRIES = 0x01
    GET_KEY_AGREEMENT = 0x02
    SET_PIN = 0x03
    CHANGE_PIN = 0x04
    GET_PIN_TOKEN = 0x05
    GET_PIN_UV_AUTH_TOKEN_USING_PIN_WITH_PERMISSIONS = 0x09


class ClientPin:
    """State of the PIN commands between two power cycles."""

    def __init__(self, vault: KeyVault, entropy: Entropy, tokens: TokenKeeper, min_pin_length: int) -> None:
        self._vault = vault
        self._entropy = entropy
        self._tokens = tokens
        self._min_pin_length = max(min_pin_length, vault.properties.min_pin_length)
        self._protocols: Mapping[int, PinProtocol] = {p.version: p for p in pin_protocols(entropy)}
        self._wrong_in_a_row = 0

    @property
    def min_pin_length(self) -> int:
        """In Unicode code points."""
        return self._min_pin_length

    @property
    def versions(self) -> tuple[int, ...]:
        """Supported protocols, the preferred one first."""
        return tuple(self._protocols)

    def require_supported(self, version: int | None) -> int:
        """Return the protocol asked for (section 6.1.2 step 2): absent and unknown have their own status."""
        if version is None:
            raise CommandError(Status.MISSING_PARAMETER)
        if version not in self._protocols:
            raise CommandError(Status.INVALID_PARAMETER)
        return version

    def handle(self, parameters: ClientPinParameters) -> Mapping[int, object]:
        """Carry out one subcommand and return its response map, empty for none."""
        match parameters.subcommand:
            case Subcommand.GET_PIN_RETRIES:
                return self._get_pin_retries()
            case Subcommand.GET_KEY_AGREEMENT:
                return {1: self._protocol(parameters).public_key()}
            case Subcommand.SET_PIN:
                return self._set_pin(parameters)
            case Subcommand.CHANGE_PIN:
                return self._change_pin(parameters)
            case Subcommand.GET_PIN_TOKEN:
                return self._get_pin_token(parameters)
            case Subcommand.GET_PIN_UV_AUTH_TOKEN_USING_PIN_WITH_PERMISSIONS:
                return self._get_token_with_permissions(parameters)
            case _:
                raise CommandError(Status.INVALID_SUBCOMMAND)

    def _get_pin_retries(self) -> Mapping[int, object]:
        """Section 6.5.5.2; powerCycleState is there because the limit per power cycle can be reached."""
        return {3: self._vault.pin_state().retries_left, 4: self._needs_power_cycle}

    def _set_pin(self, given: ClientPinParameters) -> Mapping[int, object]:
        """Section 6.5.5.5."""
        peer, new_pin_enc = _need(given.key_agreement), _need(given.new_pin_enc)
        param = _need(given.pin_uv_auth_param)
        protocol = self._protocol(given)
        if self._vault.pin_state().is_set:
            raise CommandError(Status.PIN_AUTH_INVALID)
        secret = protocol.decapsulate(peer)
        protocol.verify(secret, new_pin_enc, param)
        self._vault.set_pin(self._new_pin(protocol.decrypt(secret, new_pin_enc)))
        self._wrong_in_a_row = 0
        return {}

    def _change_pin(self, given: ClientPinParameters) -> Mapping[int, object]:
        """Section 6.5.5.6. The old PIN is checked, and counted, before the new one is looked at."""
        peer, new_pin_enc = _need(given.key_agreement), _need(given.new_pin_enc)
        pin_hash_enc, param = _need(given.pin_hash_enc), _need(given.pin_uv_auth_param)
        protocol = self._protocol(given)
        self._require_pin()
        secret = protocol.decapsulate(peer)
        protocol.verify(secret, new_pin_enc + pin_hash_enc, param)
        self._verify_pin(protocol, secret, pin_hash_enc)
        try:
            self._vault.change_pin(self._new_pin(protocol.decrypt(secret, new_pin_enc)))
        finally:
            self._tokens.end()
        return {}

    def _get_pin_token(self, given: ClientPinParameters) -> Mapping[int, object]:
        """Section 6.5.5.7.1: a token with mc and ga, bound to the relying party that uses it first."""
        peer, pin_hash_enc = _need(given.key_agreement), _need(given.pin_hash_enc)
        protocol = self._protocol(given)
        if given.permissions is not None or given.rp_id is not None:
            raise CommandError(Status.INVALID_PARAMETER)
        return self._issue(protocol, peer, pin_hash_enc, _SUPPORTED, None)

    def _get_token_with_permissions(self, given: ClientPinParameters) -> Mapping[int, object]:
        """Section 6.5.5.7.2: mc and ga, each bound to a relying party. Undefined permissions are ignored."""
        peer, pin_hash_enc = _need(given.key_agreement), _need(given.pin_hash_enc)
        asked = _need(given.permissions)
        protocol = self._protocol(given)
        if asked <= 0:
            raise CommandError(Status.INVALID_PARAMETER)
        permissions = Permission(asked & _DEFINED)
        if permissions & ~_SUPPORTED:
            raise CommandError(Status.UNAUTHORIZED_PERMISSION)
        if not permissions:
            raise CommandError(Status.INVALID_PARAMETER)
        return self._issue(protocol, peer, pin_hash_enc, permissions, _need(given.rp_id))

    def _issue(
        self,
        protocol: PinProtocol,
        peer: Mapping[object, object],
        pin_hash_enc: bytes,
        permissions: Permission,
        rp_id: str | None,
    ) -> Mapping[int, object]:
        self._require_pin()
        secret = protocol.decapsulate(peer)
        self._verify_pin(protocol, secret, pin_hash_enc)
        token = self._entropy.token(TOKEN_LENGTH)
        self._tokens.begin(protocol, token, permissions, rp_id)
        return {2: protocol.encrypt(secret, token)}

    def _require_pin(self) -> None:
        state = self._vault.pin_state()
        if not state.is_set:
            raise CommandError(Status.PIN_NOT_SET)
        if state.retries_left == 0:
            raise CommandError(Status.PIN_BLOCKED)
        if self._needs_power_cycle:
            raise CommandError(Status.PIN_AUTH_BLOCKED)

    def _verify_pin(self, protocol: PinProtocol, secret: bytes, pin_hash_enc: bytes) -> None:
        """Let the vault count and compare. A wrong PIN also ends the key agreement (section 6.5.5.6 step 7)."""
        pin_hash = protocol.decrypt(secret, pin_hash_enc)
        if len(pin_hash) != PIN_HASH_LENGTH:
            raise CommandError(Status.PIN_AUTH_INVALID)
        try:
            self._vault.verify_pin(pin_hash)
        except DeviceError as error:
            self._count_wrong_pin(protocol, error)
            raise
        self._wrong_in_a_row = 0

    def _count_wrong_pin(self, protocol: PinProtocol, error: DeviceError) -> None:
        if error.reason not in (Reason.PIN_WRONG, Reason.PIN_BLOCKED):
            return
        protocol.regenerate()
        self._wrong_in_a_row += 1
        if error.reason is Reason.PIN_BLOCKED or error.retries_left == 0:
            raise CommandError(Status.PIN_BLOCKED) from error
        if self._needs_power_cycle:
            raise CommandError(Status.PIN_AUTH_BLOCKED) from error
        raise CommandError(Status.PIN_INVALID) from error

    @property
    def _needs_power_cycle(self) -> bool:
        return self._wrong_in_a_row >= MAX_WRONG_PER_POWER_CYCLE

    def _new_pin(self, padded: bytes) -> bytes:
        """Take the padding off a new PIN and hold it against the policy (section 6.5.5.5, steps 7 to 10)."""
        if len(padded) != PADDED_PIN_LENGTH:
            raise CommandError(Status.INVALID_PARAMETER)
        pin = padded.rstrip(b"\0")
        if len(pin) > MAX_PIN_BYTES:
            raise CommandError(Status.PIN_POLICY_VIOLATION)
        try:
            code_points = len(pin.decode())
        except UnicodeDecodeError:
            raise CommandError(Status.PIN_POLICY_VIOLATION) from None
        if code_points < self._min_pin_length:
            raise CommandError(Status.PIN_POLICY_VIOLATION)
        return pin

    def _protocol(self, given: ClientPinParameters) -> PinProtocol:
        return self._protocols[self.require_supported(given.protocol)]


def _need(value: _T | None) -> _T:
    if value is None:
        raise CommandError(Status.MISSING_PARAMETER)
    return value
