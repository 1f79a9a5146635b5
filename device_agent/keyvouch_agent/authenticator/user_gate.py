"""What stands between a command and the vault: the token that a PIN was traded for, and the user's presence.

The steps that several commands of section 6 have in common. What is *not* here: how a token comes to be (`client_pin`),
how long it lasts (`pin_token`), and how a vault verifies its user itself (`built_in_uv`).
"""

from __future__ import annotations

from keyvouch.webauthn import Flags
from keyvouch_agent.authenticator.built_in_uv import BuiltInUv
from keyvouch_agent.authenticator.parameters import GetAssertionParameters, MakeCredentialParameters
from keyvouch_agent.authenticator.pin_protocol import PinProtocols
from keyvouch_agent.authenticator.pin_token import Permission, TokenKeeper
from keyvouch_agent.authenticator.ports import Ask, Presence, PresenceRequest, Purpose
from keyvouch_agent.authenticator.standing import Standing
from keyvouch_agent.authenticator.status import CommandError, Status

__all__ = ["UserGate", "require_presence"]

_NO_FLAGS = Flags(0)
_Parameters = MakeCredentialParameters | GetAssertionParameters


class UserGate:
    """Checks a pinUvAuthParam for every command that takes one, and the "uv" option that may stand in its place."""

    def __init__(
        self, standing: Standing, tokens: TokenKeeper, protocols: PinProtocols, built_in_uv: BuiltInUv
    ) -> None:
        self._standing = standing
        self._tokens = tokens
        self._protocols = protocols
        self._built_in_uv = built_in_uv

    @property
    def is_protected(self) -> bool:
        """Whether there is some user verification. A token in use answers that without asking the vault."""
        return self._tokens.is_in_use or self._standing.is_protected

    def answer_selection_probe(self, param: bytes | None, ask: Ask) -> None:
        """A zero length pinUvAuthParam only asks "which of these authenticators do you mean?"."""
        if param != b"":
            return
        require_presence(ask(PresenceRequest(Purpose.SELECTION)))
        has_pin = self._standing.takes_pin and self.is_protected
        raise CommandError(Status.PIN_INVALID if has_pin else Status.PIN_NOT_SET)

    def check_protocol(self, param: bytes | None, version: int | None) -> None:
        """Section 6.1.2 step 2: a pinUvAuthParam needs a protocol that is known."""
        if param is not None:
            self._protocols.named(version)

    def wants_built_in_uv(self, given: _Parameters, ask: Ask) -> bool:
        """What "uv" comes to (section 6.1.2 step 5, section 6.2.2 step 4): a pinUvAuthParam makes it false."""
        if not given.options.uv or given.pin_uv_auth_param is not None:
            return False
        if not self._built_in_uv.is_ready(ask):
            raise CommandError(Status.INVALID_OPTION)
        return True

    def require_uv(self, given: _Parameters, ask: Ask, *, built_in: bool) -> bool:
        """User verification is always required (section 6.1.2 step 6, section 6.2.2 step 5).

        Return whether it is to be the built-in one, which is taken where no pinUvAuthParam is there.
        """
        if not self.is_protected:
            raise self.lack_of_uv()
        if given.pin_uv_auth_param is not None:
            return False
        if not built_in and not self._built_in_uv.is_ready(ask):
            raise self.lack_of_uv()
        return True

    def lack_of_uv(self) -> CommandError:
        """What a command without user verification is answered. Without clientPin it is just denied."""
        return CommandError(Status.PUAT_REQUIRED if self._standing.takes_pin else Status.OPERATION_DENIED)

    def verify_user(self, given: _Parameters, needed: Permission, ask: Ask, *, built_in: bool) -> Flags:
        """Return the UV flag for a valid pinUvAuthParam or a user who was verified here, and no flag for neither.

        The specification looks at a pinUvAuthParam only when a PIN is set. Without a PIN there is no token, so
        none can be valid: refusing is stricter, and no platform does it.
        """
        if built_in:
            self._built_in_uv.perform(ask, wrong=Status.OPERATION_DENIED, blocked=Status.PIN_BLOCKED)
            return Flags.UV
        if given.pin_uv_auth_param is None or given.pin_uv_auth_protocol is None:
            return _NO_FLAGS
        self._tokens.authorize(given.pin_uv_auth_protocol, given.client_data_hash, given.pin_uv_auth_param, needed)
        self._tokens.bind(given.rp_id)
        return Flags.UV

    def authorize(self, version: int | None, param: bytes | None, message: bytes, needed: Permission) -> None:
        """Check the pinUvAuthParam of a command that manages the authenticator (sections 6.8, 6.10 and 6.11)."""
        if param is None:
            raise CommandError(Status.PUAT_REQUIRED)
        self._tokens.authorize(self._protocols.named(version).version, message, param, needed)


def require_presence(presence: Presence) -> None:
    """Declined and timed out look alike here (section 6.1.2 step 14); a cancelled command has its own status."""
    if presence is Presence.CANCELLED:
        raise CommandError(Status.KEEPALIVE_CANCEL)
    if presence is not Presence.GRANTED:
        raise CommandError(Status.OPERATION_DENIED)
