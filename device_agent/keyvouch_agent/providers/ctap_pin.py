"""`PinControl` over CTAP's clientPin: the PIN of any authenticator, roaming or our own (CTAP 2.1 section 6.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fido2.ctap import CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.ports import Pin
from keyvouch_agent.providers.ctap_requests import inconsistent
from keyvouch_client.security_keys.failures import device_error, removed, status_of
from keyvouch_client.security_keys.standing import MALFORMED

__all__ = ["MAX_PIN_BYTES", "CtapPinControl", "PinDemand"]

MAX_PIN_BYTES = 63
"""UTF-8 bytes of a PIN (section 6.5.1)."""


@dataclass(frozen=True, slots=True)
class PinDemand:
    """Whether there is a PIN, and whether another one is wanted before it is used (section 6.4, forcePINChange)."""

    is_set: bool
    must_change: bool


class CtapPinControl:
    """The PIN of one connected authenticator. `min_length` is the agent's policy, at least the authenticator's.

    `explain` may know more about a CTAP status, as in `CtapSession`.

    The policy is a length and nothing else: the retry limit makes guessing hopeless, and rules about digits
    and sequences move people to the few PINs that satisfy them (NIST SP 800-63B section 3.1.1.2).
    """

    def __init__(
        self,
        ctap: Ctap2,
        min_length: int,
        *,
        explain: Callable[[int | None], DeviceError | None] = lambda _status: None,
    ) -> None:
        self._ctap = ctap
        self._known = explain
        self._min_length = max(min_length, ctap.info.min_pin_length)

    @property
    def is_set(self) -> bool:
        """Whether there is a PIN, as the authenticator says now."""
        return self.read().is_set

    def read(self) -> PinDemand:
        """What the authenticator says of its PIN now."""
        with self._in_words():
            info = self._ctap.get_info()
        return PinDemand(bool(info.options.get("clientPin")), info.force_pin_change)

    @property
    def retries_left(self) -> int | None:
        """Wrong PINs left until it is blocked for good; None where the authenticator does not say."""
        try:
            return ClientPin(self._ctap).get_pin_retries()[0]
        except (CtapError, OSError, *MALFORMED):
            return None

    @property
    def needs_power_cycle(self) -> bool:
        """Whether the authenticator takes no PIN before it is restarted, as far as it tells."""
        try:
            return bool(ClientPin(self._ctap).get_pin_retries()[1])
        except (CtapError, OSError, *MALFORMED):
            return False

    @property
    def min_length(self) -> int:
        """In characters."""
        return self._min_length

    def require_usable(self) -> int | None:
        """Return the retries left, or raise `PIN_NOT_SET`, `PIN_BLOCKED`, `PIN_POWER_CYCLE` instead of a prompt."""
        if not self.is_set:
            raise device_error(CtapError(CtapError.ERR.PIN_NOT_SET))
        left = self.retries_left
        if left == 0:
            raise device_error(CtapError(CtapError.ERR.PIN_BLOCKED), retries_left=0)
        if self.needs_power_cycle:
            raise device_error(CtapError(CtapError.ERR.PIN_AUTH_BLOCKED), retries_left=left)
        return left

    def set(self, new: Pin) -> None:
        """Set the first PIN."""
        self._check(new)
        if self.is_set:
            raise DeviceError(Reason.PIN_POLICY, "A PIN is set already.", fix="Change it with the old PIN.")
        with self._in_words():
            ClientPin(self._ctap).set_pin(new.reveal())

    def change(self, old: Pin, new: Pin) -> None:
        """Put `new` in the place of `old`."""
        self._check(new)
        self.require_usable()
        with self._in_words():
            ClientPin(self._ctap).change_pin(old.reveal(), new.reveal())

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except CtapError as error:
            known = self._known(status_of(error))  # asking for the retries is the next command, and forgets it
            raise known or device_error(error, retries_left=self.retries_left) from error
        except OSError as error:
            raise removed(error) from error
        except MALFORMED as error:
            raise inconsistent("a malformed response") from error

    def _check(self, pin: Pin) -> None:
        text = pin.reveal()
        if len(text) < self._min_length:
            raise DeviceError(
                Reason.PIN_POLICY,
                "The PIN is too short.",
                fix=f"Choose a PIN of at least {self._min_length} characters.",
                metadata={"min_length": str(self._min_length)},
            )
        if len(text.encode()) > MAX_PIN_BYTES or "\0" in text:
            raise DeviceError(
                Reason.PIN_POLICY, "The PIN is too long.", fix=f"Choose a PIN of at most {MAX_PIN_BYTES} bytes."
            )
