"""The authenticator: one request in, one response out (section 8.1, message encoding).

`Authenticator.handle` answers any bytes at all with a status. It holds the state that lasts until the next
power cycle: the PIN/UV auth token, the wrong PINs in a row, the assertions still to be fetched. What is
*not* here: transports, which turn messages into bytes (`device`, `keyvouch_agent.transports`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, unique

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.client_pin import ClientPin
from keyvouch_agent.authenticator.credentials import Ask, CredentialCommands
from keyvouch_agent.authenticator.get_info import MAX_MESSAGE_SIZE, get_info
from keyvouch_agent.authenticator.parameters import parse_client_pin, parse_get_assertion, parse_make_credential
from keyvouch_agent.authenticator.pin_token import TokenKeeper
from keyvouch_agent.authenticator.ports import Clock, Entropy, Presence, PresenceRequest, Purpose, UserPresence
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.vault import KeyVault, PinState, VaultProperties

__all__ = ["Authenticator", "AuthenticatorOptions", "Command"]

RESET_SECONDS = 10.0
"""A reset is accepted only this long after power-up (section 6.6)."""

_STATUS_OF = {
    Reason.PIN_NOT_SET: Status.PIN_NOT_SET,
    Reason.PIN_REQUIRED: Status.PUAT_REQUIRED,
    Reason.PIN_WRONG: Status.PIN_INVALID,
    Reason.PIN_BLOCKED: Status.PIN_BLOCKED,
    Reason.PIN_POLICY: Status.PIN_POLICY_VIOLATION,
    Reason.KEY_NOT_FOUND: Status.NO_CREDENTIALS,
    Reason.KEY_STORE_FULL: Status.KEY_STORE_FULL,
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
    SELECTION = 0x0B


@dataclass(frozen=True, slots=True)
class AuthenticatorOptions:
    """`min_pin_length` in code points (a vault can ask for more); `make_cred_uv_not_required` as in section 6.4."""

    min_pin_length: int = 4
    make_cred_uv_not_required: bool = False


class Authenticator:
    """A CTAP 2.1 authenticator over one vault, powered up when it is made."""

    def __init__(
        self,
        vault: KeyVault,
        clock: Clock,
        entropy: Entropy,
        options: AuthenticatorOptions = AuthenticatorOptions(),
    ) -> None:
        self._vault = vault
        self._clock = clock
        self._entropy = entropy
        self._options = options
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
        return self._client_pin.min_pin_length

    def pin_state(self) -> PinState:
        """The PIN's state, without a prompt."""
        return self._vault.pin_state()

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
            self._commands.forget_pending()
            self._tokens.end()

    def tick(self) -> None:
        """Drop what has timed out. Commands do this too; a transport calls it about once a second while idle."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            self._observe_timers()
        finally:
            self._busy.release()

    def handle(self, request: bytes, presence: UserPresence, cancelled: Callable[[], bool] = lambda: False) -> bytes:
        """Carry out one request. Return a status byte, then for a success the response map, if there is one.

        Blocks while the user is asked. A second request meanwhile gets `CHANNEL_BUSY`.
        """
        if not self._busy.acquire(blocking=False):
            return bytes([Status.CHANNEL_BUSY])
        try:
            return self._answer(request, lambda question: presence.confirm(question, cancelled))
        finally:
            self._busy.release()

    def _power_up(self) -> None:
        self._powered_up = self._clock.monotonic()
        self._tokens = TokenKeeper(self._clock, self._vault.lock)
        self._client_pin = ClientPin(self._vault, self._entropy, self._tokens, self._options.min_pin_length)
        self._commands = CredentialCommands(
            self._vault,
            self._clock,
            self._client_pin,
            self._tokens,
            make_cred_uv_not_required=self._options.make_cred_uv_not_required,
        )

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
        if len(request) > MAX_MESSAGE_SIZE:
            raise CommandError(Status.REQUEST_TOO_LARGE)
        command, data = request[0], request[1:]
        if command != Command.GET_NEXT_ASSERTION:
            self._commands.forget_pending()
        match command:
            case Command.MAKE_CREDENTIAL:
                return self._commands.make_credential(parse_make_credential(data), ask)
            case Command.GET_ASSERTION:
                return self._commands.get_assertion(parse_get_assertion(data), ask)
            case Command.CLIENT_PIN:
                return self._client_pin.handle(parse_client_pin(data))
            case _:
                return self._dispatch_without_parameters(command, data, ask)

    def _dispatch_without_parameters(self, command: int, data: bytes, ask: Ask) -> Mapping[int, object]:
        if command not in frozenset(Command):
            raise CommandError(Status.INVALID_COMMAND)
        if data:
            raise CommandError(Status.INVALID_LENGTH)
        if command == Command.GET_NEXT_ASSERTION:
            return self._commands.get_next_assertion()
        if command == Command.GET_INFO:
            uv_not_required = self._options.make_cred_uv_not_required
            return get_info(self._vault, self._client_pin, make_cred_uv_not_required=uv_not_required)
        if command == Command.SELECTION:
            _require_selection(ask(PresenceRequest(Purpose.SELECTION)))
            return {}
        return self._reset(ask)

    def _reset(self, ask: Ask) -> Mapping[int, object]:
        """Section 6.6."""
        if self._clock.monotonic() - self._powered_up > RESET_SECONDS:
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
        self._commands.observe()
        self._lock_when_done()

    def _lock_when_done(self) -> None:
        """A spent token unlocks nothing, unless more assertions of the same approval are still to be fetched."""
        if self._tokens.is_spent and not self._commands.has_pending_assertions:
            self._tokens.end()


def _require_selection(presence: Presence) -> None:
    """Sections 6.6 and 6.9 tell declining from a timeout."""
    match presence:
        case Presence.GRANTED:
            return
        case Presence.CANCELLED:
            raise CommandError(Status.KEEPALIVE_CANCEL)
        case Presence.TIMEOUT:
            raise CommandError(Status.USER_ACTION_TIMEOUT)
        case Presence.DENIED:
            raise CommandError(Status.OPERATION_DENIED)
