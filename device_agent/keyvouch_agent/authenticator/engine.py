"""The authenticator: one request in, one response out (section 8.1, message encoding).

`Authenticator.handle` answers any bytes at all with a status. It holds the state that lasts until the next
power cycle: the PIN/UV auth token, the wrong PINs in a row, what is still to be fetched or written. What is
*not* here: transports, which turn messages into bytes (`device`, `keyvouch_agent.transports`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from enum import IntEnum, unique

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.asserting import CredentialUser
from keyvouch_agent.authenticator.built_in_uv import BuiltInUv
from keyvouch_agent.authenticator.client_pin import ClientPin
from keyvouch_agent.authenticator.configuration import Configuration
from keyvouch_agent.authenticator.credential_management import CredentialManagement
from keyvouch_agent.authenticator.get_info import get_info
from keyvouch_agent.authenticator.large_blobs import LargeBlobs
from keyvouch_agent.authenticator.making import CredentialMaker
from keyvouch_agent.authenticator.management_parameters import (
    parse_config,
    parse_credential_management,
    parse_large_blobs,
)
from keyvouch_agent.authenticator.parameters import parse_client_pin, parse_get_assertion, parse_make_credential
from keyvouch_agent.authenticator.pin_protocol import PinProtocols
from keyvouch_agent.authenticator.pin_token import TokenKeeper
from keyvouch_agent.authenticator.ports import (
    Ask,
    Clock,
    Entropy,
    PinEntry,
    Presence,
    PresenceRequest,
    Purpose,
    UserPresence,
)
from keyvouch_agent.authenticator.standing import AuthenticatorOptions, Standing
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.u2f import StatusWord, U2f, U2fAnswer
from keyvouch_agent.authenticator.user_gate import UserGate
from keyvouch_agent.authenticator.vault import KeyVault, PinState, UvState, VaultProperties

__all__ = ["Authenticator", "AuthenticatorOptions", "Command"]

_STATUS_OF = {
    Reason.PIN_NOT_SET: Status.PIN_NOT_SET,
    Reason.PIN_REQUIRED: Status.PUAT_REQUIRED,
    Reason.PIN_WRONG: Status.PIN_INVALID,
    Reason.PIN_BLOCKED: Status.PIN_BLOCKED,
    Reason.PIN_POLICY: Status.PIN_POLICY_VIOLATION,
    Reason.KEY_NOT_FOUND: Status.NO_CREDENTIALS,
    Reason.KEY_STORE_FULL: Status.KEY_STORE_FULL,
}
_STATUS_WITHOUT_PRESENCE = {
    Presence.CANCELLED: Status.KEEPALIVE_CANCEL,
    Presence.TIMEOUT: Status.USER_ACTION_TIMEOUT,
}


@unique
class Command(IntEnum):
    """Section 6, the supported commands."""

    MAKE_CREDENTIAL = 0x01
    GET_ASSERTION = 0x02
    GET_INFO = 0x04
    CLIENT_PIN = 0x06
    RESET = 0x07
    GET_NEXT_ASSERTION = 0x08
    CREDENTIAL_MANAGEMENT = 0x0A
    SELECTION = 0x0B
    LARGE_BLOBS = 0x0C
    CONFIG = 0x0D
    CREDENTIAL_MANAGEMENT_PREVIEW = 0x41


_WITHOUT_PARAMETERS = frozenset((Command.GET_INFO, Command.RESET, Command.GET_NEXT_ASSERTION, Command.SELECTION))
_DEFAULT_OPTIONS = AuthenticatorOptions()
_MANAGES_CREDENTIALS = frozenset((Command.CREDENTIAL_MANAGEMENT, Command.CREDENTIAL_MANAGEMENT_PREVIEW))


class Authenticator:
    """A CTAP 2.1 authenticator over one vault, powered up when it is made."""

    def __init__(
        self,
        vault: KeyVault,
        clock: Clock,
        entropy: Entropy,
        options: AuthenticatorOptions = _DEFAULT_OPTIONS,
    ) -> None:
        self._vault = vault
        self._clock = clock
        self._entropy = entropy
        self._standing = Standing(vault, options)
        self._busy = threading.Lock()
        self._failure: DeviceError | None = None
        self._power_up()

    @property
    def failure(self) -> DeviceError | None:
        """What the vault said when the last command failed, where CTAP has only a status for it."""
        return self._failure

    @property
    def properties(self) -> VaultProperties:
        """What holds the keys."""
        return self._vault.properties

    @property
    def min_pin_length(self) -> int:
        """In Unicode code points."""
        return self._standing.min_pin_length

    def pin_state(self) -> PinState:
        """The PIN's state, without a prompt."""
        return self._vault.pin_state()

    def uv_state(self) -> UvState | None:
        """How built-in user verification stands, without a prompt; None where the vault leaves it to CTAP's PIN."""
        verifier = self._standing.verifier
        return verifier.uv_state() if verifier else None

    def forget(self, credential: CredentialId) -> None:
        """Destroy a key that its owner gave up by other means than CTAP. Does nothing for one that is not there."""
        with self._busy:
            try:
                self._vault.delete(credential)
            except DeviceError as error:
                if error.reason is not Reason.KEY_NOT_FOUND:
                    raise

    def power_cycle(self) -> None:
        """Start afresh, as after unplugging: no token, no wrong PINs in a row, reset possible."""
        with self._busy:
            self._tokens.end()
            self._power_up()

    def close_session(self) -> None:
        """End the token and pending assertions, and lock the vault. Wrong PINs in a row stay counted."""
        with self._busy:
            self._forget_pending()
            self._tokens.end()

    def tick(self) -> None:
        """Drop what has timed out. Commands do this too; a transport calls it about once a second while idle."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            self._observe_timers()
        finally:
            self._busy.release()

    def handle(
        self,
        request: bytes,
        presence: UserPresence,
        cancelled: Callable[[], bool] = lambda: False,
        entry: PinEntry | None = None,
    ) -> bytes:
        """Carry out one request. Return a status byte, then for a success the response map, if there is one.

        Blocks while the user is asked. A second request meanwhile gets `CHANNEL_BUSY`. Without an `entry` a vault that
        verifies its user itself cannot; the authenticator then says that it is not set up to.
        """
        if not self._busy.acquire(blocking=False):
            return bytes([Status.CHANNEL_BUSY])
        try:
            return self._answer(request, Ask(presence, cancelled, entry))
        finally:
            self._busy.release()

    def handle_u2f(
        self,
        instruction: int,
        p1: int,
        p2: int,
        data: bytes,
        presence: UserPresence,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> U2fAnswer:
        """Carry out one CTAP1/U2F message, its APDU taken apart. Return response data and a status word.

        Blocks while the user is asked. A second request meanwhile is told to try again.
        """
        del p2
        if not self._busy.acquire(blocking=False):
            return b"", StatusWord.CONDITIONS_NOT_SATISFIED
        try:
            self._forget_pending()
            self._observe_timers()
            return self._u2f.handle(instruction, p1, data, Ask(presence, cancelled))
        finally:
            self._busy.release()

    def _power_up(self) -> None:
        """Everything that lasts until the next power cycle is made anew."""
        vault, standing = self._vault, self._standing
        self._powered_up = self._clock.monotonic()
        self._protocols = PinProtocols(self._entropy)
        self._tokens = TokenKeeper(self._clock, self._when_token_ends)
        self._built_in_uv = BuiltInUv(standing, self._tokens)
        gate = UserGate(standing, self._tokens, self._protocols, self._built_in_uv)
        self._client_pin = ClientPin(vault, self._entropy, standing, self._tokens, self._protocols, self._built_in_uv)
        self._maker = CredentialMaker(vault, standing, gate, self._tokens, self._protocols)
        self._user = CredentialUser(vault, self._clock, standing, gate, self._tokens, self._protocols)
        self._management = CredentialManagement(vault, self._clock, gate, self._tokens)
        self._large_blobs = LargeBlobs(vault, standing, gate)
        self._configuration = Configuration(vault, standing, gate, self._tokens)
        self._u2f = U2f(vault, self._entropy, standing)

    def _when_token_ends(self) -> None:
        """What the token had begun ends with it (section 6, stateful commands)."""
        self._management.forget_pending()
        self._user.forget_verified()
        self._large_blobs.forget_pending()
        self._vault.lock()

    def _answer(self, request: bytes, ask: Ask) -> bytes:
        self._failure = None
        self._observe_timers()
        try:
            response = self._dispatch(request, ask)
        except CommandError as error:
            self._failure = error.__cause__ if isinstance(error.__cause__, DeviceError) else None
            return bytes([error.status])
        except DeviceError as error:
            self._failure = error
            return bytes([_STATUS_OF.get(error.reason, Status.OTHER)])
        finally:
            self._lock_when_done()
        return bytes([Status.SUCCESS]) + (cbor.encode(response) if response else b"")

    def _dispatch(self, request: bytes, ask: Ask) -> Mapping[int, object]:
        if not request:
            raise CommandError(Status.INVALID_LENGTH)
        if len(request) > self._standing.options.max_message_size:
            raise CommandError(Status.REQUEST_TOO_LARGE)
        command, data = request[0], request[1:]
        if command not in frozenset(Command):
            self._forget_pending()
            raise CommandError(Status.INVALID_COMMAND)
        self._forget_pending(but=Command(command))
        if command in _WITHOUT_PARAMETERS:
            return self._dispatch_without_parameters(Command(command), data, ask)
        return self._dispatch_with_parameters(Command(command), data, ask)

    def _dispatch_with_parameters(self, command: Command, data: bytes, ask: Ask) -> Mapping[int, object]:
        match command:
            case Command.MAKE_CREDENTIAL:
                return self._maker.make_credential(parse_make_credential(data), ask)
            case Command.GET_ASSERTION:
                return self._user.get_assertion(parse_get_assertion(data), ask)
            case Command.CLIENT_PIN:
                return self._client_pin.handle(parse_client_pin(data), ask)
            case Command.LARGE_BLOBS if self._standing.keeps_large_blobs:
                return self._large_blobs.handle(parse_large_blobs(data))
            case Command.CONFIG:
                return self._configuration.handle(parse_config(data))
            case Command.CREDENTIAL_MANAGEMENT | Command.CREDENTIAL_MANAGEMENT_PREVIEW:
                return self._management.handle(parse_credential_management(data))
            case _:
                raise CommandError(Status.INVALID_COMMAND)

    def _dispatch_without_parameters(self, command: Command, data: bytes, ask: Ask) -> Mapping[int, object]:
        if data:
            raise CommandError(Status.INVALID_LENGTH)
        match command:
            case Command.RESET:
                return self._reset(ask)
            case Command.SELECTION:
                _require_selection(ask(PresenceRequest(Purpose.SELECTION)))
                return {}
            case Command.GET_INFO:
                ready = self._built_in_uv.is_ready(ask)
                return get_info(self._vault, self._standing, self._protocols.versions, uv_is_ready=ready)
            case _:
                return self._user.get_next_assertion()

    def _forget_pending(self, but: Command | None = None) -> None:
        """Drop the state of stateful commands, save of the one that `but` may go on with (section 6)."""
        if but is not Command.GET_NEXT_ASSERTION:
            self._user.forget_pending()
        if but not in _MANAGES_CREDENTIALS:
            self._management.forget_pending()

    def _reset(self, ask: Ask) -> Mapping[int, object]:
        """Section 6.6."""
        window = self._standing.options.reset_window
        if window is not None and self._clock.monotonic() - self._powered_up > window:
            raise CommandError(Status.NOT_ALLOWED)
        _require_selection(ask(PresenceRequest(Purpose.RESET)))
        self._tokens.end()
        self._vault.reset()
        powered_up = self._powered_up
        self._power_up()
        self._powered_up = powered_up
        return {}

    def _observe_timers(self) -> None:
        self._tokens.observe()
        self._user.observe()
        self._management.observe()
        self._lock_when_done()

    def _lock_when_done(self) -> None:
        """A spent token unlocks nothing, unless more assertions of the same approval are still to be fetched.

        One that is left with lbw goes on, but no key is needed for that. Without a token, the user was verified for one
        command alone.
        """
        if self._user.has_pending_assertions:
            return
        if self._tokens.is_spent:
            self._tokens.end()
        elif self._tokens.is_in_use and not self._tokens.opens_keys:
            self._vault.lock()
        self._built_in_uv.close()


def _require_selection(presence: Presence) -> None:
    """Sections 6.6 and 6.9 tell declining from a timeout. What is no known answer is none."""
    if presence is not Presence.GRANTED:
        raise CommandError(_STATUS_WITHOUT_PRESENCE.get(presence, Status.OPERATION_DENIED))
