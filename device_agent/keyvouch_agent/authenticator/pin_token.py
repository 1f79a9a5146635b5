"""The PIN/UV auth token: what a verified PIN is good for, for whom, and for how long (section 6.5.2.1).

There is one token at a time: issuing one for either protocol ends the other's (section 6.5.5.7.1).
When it ends, `on_end` runs, which is where the vault gets locked again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

from keyvouch_agent.authenticator.pin_protocol import PinProtocol
from keyvouch_agent.authenticator.ports import Clock
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.vault import hash_of

__all__ = ["Permission", "TokenKeeper"]

INITIAL_USE_SECONDS = 30.0
"""An unused token ends after this time (initial usage time limit)."""
MAX_USE_SECONDS = 600.0
"""Any token ends after this time (max usage time period)."""
TOKEN_LENGTH = 32


class Permission(IntFlag):
    """Section 6.5.5.7, table of permissions. All but bioEnrollment mean something here."""

    MAKE_CREDENTIAL = 0x01
    GET_ASSERTION = 0x02
    CREDENTIAL_MANAGEMENT = 0x04
    BIO_ENROLLMENT = 0x08
    LARGE_BLOB_WRITE = 0x10
    AUTHENTICATOR_CONFIGURATION = 0x20


_NEEDS_KEYS = Permission.MAKE_CREDENTIAL | Permission.GET_ASSERTION | Permission.CREDENTIAL_MANAGEMENT


@dataclass(slots=True)
class _Token:
    value: bytes
    protocol: PinProtocol
    permissions: Permission
    rp_id: str | None
    started: float
    user_verified: bool = True
    used: bool = False

    def __repr__(self) -> str:
        return "_Token(...)"


class TokenKeeper:
    """Holds the token in use. User presence is never taken over from PIN entry (`userIsPresent: false`)."""

    def __init__(self, clock: Clock, on_end: Callable[[], None]) -> None:
        self._clock = clock
        self._on_end = on_end
        self._token: _Token | None = None

    def begin(self, protocol: PinProtocol, value: bytes, permissions: Permission, rp_id: str | None) -> None:
        """Start using `value` in place of any token before it (beginUsingPinUvAuthToken, user not present)."""
        self._token = _Token(value, protocol, permissions, rp_id, self._clock.monotonic())

    def observe(self) -> None:
        """End the token when its time is up (pinUvAuthTokenUsageTimerObserver)."""
        if self._token is None:
            return
        age = self._clock.monotonic() - self._token.started
        if age > MAX_USE_SECONDS or (age > INITIAL_USE_SECONDS and not self._token.used):
            self.end()

    def end(self) -> None:
        """Stop using the token (stopUsingPinUvAuthToken)."""
        self._token = None
        self._on_end()

    def authorize(self, protocol: int, message: bytes, signature: bytes, permission: Permission) -> None:
        """Check a pinUvAuthParam: a token is in use for that protocol, the MAC is right, it has the permission.

        Each failure is `PIN_AUTH_INVALID`. What the token must be bound to is asked afterwards.
        """
        token = self._token
        if token is None or token.protocol.version != protocol:
            raise CommandError(Status.PIN_AUTH_INVALID)
        token.protocol.verify(token.value, message, signature)
        if permission not in token.permissions:
            raise CommandError(Status.PIN_AUTH_INVALID)
        token.used = True

    def bind(self, rp_id: str) -> None:
        """For a command of a relying party: the user verified flag is set, and the token is bound to it or unbound.

        An unbound token becomes bound (section 6.1.2 step 11.1, section 6.2.2 step 6.1).
        """
        token = self._token
        if token is None or not token.user_verified or token.rp_id not in (None, rp_id):
            raise CommandError(Status.PIN_AUTH_INVALID)
        token.rp_id = rp_id

    def require_unbound(self) -> None:
        """For a command about all relying parties (section 6.8.2, section 6.8.3)."""
        if self._token is None or self._token.rp_id is not None:
            raise CommandError(Status.PIN_AUTH_INVALID)

    def require_not_bound_elsewhere(self, rp_id_hash: bytes) -> None:
        """For a command about the credentials of one relying party (section 6.8.4 and after)."""
        token = self._token
        if token is None or (token.rp_id is not None and hash_of(token.rp_id) != rp_id_hash):
            raise CommandError(Status.PIN_AUTH_INVALID)

    def spend(self) -> None:
        """Clear the user verified flag and all permissions but lbw, as after every command with user presence.

        The token is not ended here: the vault stays unlocked until the command has signed.
        """
        if self._token is not None:
            self._token.user_verified = False
            self._token.permissions &= Permission.LARGE_BLOB_WRITE

    @property
    def is_in_use(self) -> bool:
        """Whether there is a token at all. Then there is a PIN, too."""
        return self._token is not None

    @property
    def is_spent(self) -> bool:
        """Whether a token is in use that can authorize nothing any more."""
        return self._token is not None and not self._token.permissions

    @property
    def opens_keys(self) -> bool:
        """Whether a command that needs the vault unlocked can still be authorized."""
        return self._token is not None and bool(self._token.permissions & _NEEDS_KEYS)
