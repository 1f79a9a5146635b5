"""authenticatorClientPIN (0x06): set, change and check the PIN, hand out PIN/UV auth tokens (section 6.5.5).

Counting down the retries and blocking the PIN for good is the vault's part. Here is the limit per power
cycle: after three wrong PINs in a row nothing but a restart helps, so that malware which tries PINs cannot
block the authenticator behind its owner's back. An authenticator whose vault verifies its user itself has no PIN of
CTAP's: of the subcommands it knows only those of built-in user verification. What is *not* here: how the user is
verified then (`built_in_uv`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import IntEnum, unique

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.built_in_uv import BuiltInUv
from keyvouch_agent.authenticator.fields import need
from keyvouch_agent.authenticator.parameters import ClientPinParameters
from keyvouch_agent.authenticator.pin_protocol import PinProtocol, PinProtocols
from keyvouch_agent.authenticator.pin_token import TOKEN_LENGTH, Permission, TokenKeeper
from keyvouch_agent.authenticator.ports import Ask, Entropy
from keyvouch_agent.authenticator.standing import Standing
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.vault import PIN_HASH_LENGTH, KeyVault

__all__ = ["ClientPin", "Subcommand"]

MAX_WRONG_PER_POWER_CYCLE = 3
PADDED_PIN_LENGTH = 64
MAX_PIN_BYTES = 63

_DEFAULT = Permission.MAKE_CREDENTIAL | Permission.GET_ASSERTION
_DEFINED = ~Permission(0)


@unique
class Subcommand(IntEnum):
    """Section 6.5.5, the supported ones."""

    GET_PIN_RETRIES = 0x01
    GET_KEY_AGREEMENT = 0x02
    SET_PIN = 0x03
    CHANGE_PIN = 0x04
    GET_PIN_TOKEN = 0x05
    GET_PIN_UV_AUTH_TOKEN_USING_UV_WITH_PERMISSIONS = 0x06
    GET_UV_RETRIES = 0x07
    GET_PIN_UV_AUTH_TOKEN_USING_PIN_WITH_PERMISSIONS = 0x09


class ClientPin:
    """State of the PIN commands between two power cycles."""

    def __init__(
        self,
        vault: KeyVault,
        entropy: Entropy,
        standing: Standing,
        tokens: TokenKeeper,
        protocols: PinProtocols,
        built_in_uv: BuiltInUv,
    ) -> None:
        self._vault = vault
        self._entropy = entropy
        self._standing = standing
        self._tokens = tokens
        self._protocols = protocols
        self._built_in_uv = built_in_uv
        self._wrong_in_a_row = 0

    def handle(self, parameters: ClientPinParameters, ask: Ask) -> Mapping[int, object]:
        """Carry out one subcommand and return its response map, empty for none."""
        if parameters.subcommand == Subcommand.GET_KEY_AGREEMENT:
            return {1: self._protocols.named(parameters.protocol).public_key()}
        if self._standing.takes_pin:
            return self._handle_pin(parameters)
        return self._handle_built_in_uv(parameters, ask)

    def _handle_built_in_uv(self, parameters: ClientPinParameters, ask: Ask) -> Mapping[int, object]:
        match parameters.subcommand:
            case Subcommand.GET_UV_RETRIES:  # section 6.5.5.3
                return {5: self._built_in_uv.retries_left}
            case Subcommand.GET_PIN_UV_AUTH_TOKEN_USING_UV_WITH_PERMISSIONS:
                return self._get_token_using_uv(parameters, ask)
            case _:
                raise CommandError(Status.INVALID_SUBCOMMAND)

    def _handle_pin(self, parameters: ClientPinParameters) -> Mapping[int, object]:
        match parameters.subcommand:
            case Subcommand.GET_PIN_RETRIES:
                return self._get_pin_retries()
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
        """Section 6.5.5.2; powerCycleState is there because the limit per power cycle can be reached.

        Without a PIN there is nothing to count. The text leaves that open; security keys say so, and platforms know it.
        """
        state = self._vault.pin_state()
        if not state.is_set:
            raise CommandError(Status.PIN_NOT_SET)
        return {3: state.retries_left, 4: self._needs_power_cycle}

    def _set_pin(self, given: ClientPinParameters) -> Mapping[int, object]:
        """Section 6.5.5.5."""
        peer, new_pin_enc = need(given.key_agreement), need(given.new_pin_enc)
        param = need(given.pin_uv_auth_param)
        protocol = self._protocols.named(given.protocol)
        if self._vault.pin_state().is_set:
            raise CommandError(Status.PIN_AUTH_INVALID)
        secret = protocol.decapsulate(peer)
        protocol.verify(secret, new_pin_enc, param)
        self._vault.set_pin(self._new_pin(protocol.decrypt(secret, new_pin_enc)))
        self._wrong_in_a_row = 0
        return {}

    def _change_pin(self, given: ClientPinParameters) -> Mapping[int, object]:
        """Section 6.5.5.6. The old PIN is checked, and counted, before the new one is looked at."""
        peer, new_pin_enc = need(given.key_agreement), need(given.new_pin_enc)
        pin_hash_enc, param = need(given.pin_hash_enc), need(given.pin_uv_auth_param)
        protocol = self._protocols.named(given.protocol)
        self._require_pin()
        secret = protocol.decapsulate(peer)
        protocol.verify(secret, new_pin_enc + pin_hash_enc, param)
        old_hash = self._verify_pin(protocol, secret, pin_hash_enc)
        try:
            new = self._new_pin(protocol.decrypt(secret, new_pin_enc))
            if self._standing.must_change_pin and _hash(new) == old_hash:  # step 13
                raise CommandError(Status.PIN_POLICY_VIOLATION)
            self._vault.change_pin(new)
        finally:
            self._tokens.end()
        return {}

    def _get_pin_token(self, given: ClientPinParameters) -> Mapping[int, object]:
        """Section 6.5.5.7.1: a token with mc and ga, bound to the relying party that uses it first."""
        peer, pin_hash_enc = need(given.key_agreement), need(given.pin_hash_enc)
        protocol = self._protocols.named(given.protocol)
        if given.permissions is not None or given.rp_id is not None:
            raise CommandError(Status.INVALID_PARAMETER)
        secret = self._check_pin(protocol, peer, pin_hash_enc, forced_change=Status.PIN_INVALID)
        return self._issue(protocol, secret, _DEFAULT, None)

    def _get_token_with_permissions(self, given: ClientPinParameters) -> Mapping[int, object]:
        """Section 6.5.5.7.2."""
        peer, pin_hash_enc = need(given.key_agreement), need(given.pin_hash_enc)
        protocol, permissions = self._protocol_and_permissions(given)
        secret = self._check_pin(protocol, peer, pin_hash_enc, forced_change=Status.PIN_POLICY_VIOLATION)
        return self._issue(protocol, secret, permissions, given.rp_id)

    def _get_token_using_uv(self, given: ClientPinParameters, ask: Ask) -> Mapping[int, object]:
        """Section 6.5.5.7.3. The user is asked when nothing else can fail."""
        peer = need(given.key_agreement)
        protocol, permissions = self._protocol_and_permissions(given)
        if not self._built_in_uv.is_ready(ask):  # step 5
            raise CommandError(Status.NOT_ALLOWED)
        secret = protocol.decapsulate(peer)
        self._built_in_uv.perform(ask, wrong=Status.UV_INVALID, blocked=Status.UV_BLOCKED)  # steps 7 to 10
        return self._issue(protocol, secret, permissions, given.rp_id)

    def _protocol_and_permissions(self, given: ClientPinParameters) -> tuple[PinProtocol, Permission]:
        """What a token is asked for. Undefined permissions are ignored; mc and ga are bound to a relying party."""
        asked = need(given.permissions)
        protocol = self._protocols.named(given.protocol)
        if asked <= 0:
            raise CommandError(Status.INVALID_PARAMETER)
        permissions = Permission(asked & _DEFINED)
        if permissions & self._unauthorized:
            raise CommandError(Status.UNAUTHORIZED_PERMISSION)
        if not permissions:
            raise CommandError(Status.INVALID_PARAMETER)
        if permissions & _DEFAULT:
            need(given.rp_id)
        return protocol, permissions

    @property
    def _unauthorized(self) -> Permission:
        """What getInfo has no option for (section 6.5.5.7.2 step 4)."""
        missing = Permission.BIO_ENROLLMENT
        return missing if self._standing.keeps_large_blobs else missing | Permission.LARGE_BLOB_WRITE

    def _check_pin(
        self, protocol: PinProtocol, peer: Mapping[object, object], pin_hash_enc: bytes, *, forced_change: Status
    ) -> bytes:
        """Return the shared secret once the PIN is right and need not be changed."""
        self._require_pin()
        secret = protocol.decapsulate(peer)
        self._verify_pin(protocol, secret, pin_hash_enc)
        if self._standing.must_change_pin:  # step 11
            self._tokens.end()
            raise CommandError(forced_change)
        return secret

    def _issue(
        self, protocol: PinProtocol, secret: bytes, permissions: Permission, rp_id: str | None
    ) -> Mapping[int, object]:
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

    def _verify_pin(self, protocol: PinProtocol, secret: bytes, pin_hash_enc: bytes) -> bytes:
        """Let the vault count and compare. A wrong PIN also ends the key agreement (section 6.5.5.6 step 7).

        What cannot be decrypted to a hash is a mismatch like any other, and counted like one.
        """
        pin_hash = self._decrypted_hash(protocol, secret, pin_hash_enc)
        try:
            self._vault.verify_pin(pin_hash)
        except DeviceError as error:
            self._count_wrong_pin(protocol, error)
            raise
        self._wrong_in_a_row = 0
        return pin_hash

    def _decrypted_hash(self, protocol: PinProtocol, secret: bytes, pin_hash_enc: bytes) -> bytes:
        try:
            pin_hash = protocol.decrypt(secret, pin_hash_enc)
        except CommandError:
            pin_hash = b""
        return pin_hash if len(pin_hash) == PIN_HASH_LENGTH else self._entropy.token(PIN_HASH_LENGTH)

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
        if code_points < self._standing.min_pin_length:
            raise CommandError(Status.PIN_POLICY_VIOLATION)
        return pin


def _hash(pin: bytes) -> bytes:
    return hashlib.sha256(pin).digest()[:PIN_HASH_LENGTH]
