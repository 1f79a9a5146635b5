"""A ceremony with any `CtapDevice`, through python-fido2's own client: roaming keys and built-in ones alike.

The relying party is the one the session was opened for. What comes back is checked against what was asked before it
leaves. What is *not* here: finding devices, the words of a request (`ctap_requests`), and trust in what devices attest,
which is the server's business.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from types import TracebackType
from typing import Self, TypeVar

from fido2.client import ClientError, Fido2Client, UserInteraction
from fido2.ctap import CtapDevice, CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.extensions import CredProtectExtension
from fido2.ctap2.pin import ClientPin

from keyvouch.errors import DeviceError, MalformedError, Reason, RefusedError, UsageError
from keyvouch.webauthn import AttestationObject, AuthenticatorData
from keyvouch_agent.ports import (
    Assertion,
    GateOffer,
    KeyCreation,
    KeyUse,
    NativeSteps,
    Pin,
    PinControl,
    ProviderInteraction,
    Registration,
    TpmEvidence,
    TpmGrant,
    TpmPreparation,
)
from keyvouch_agent.providers.ctap_pin import CtapPinControl, PinDemand
from keyvouch_agent.providers.ctap_preflight import WithoutPreflight
from keyvouch_agent.providers.ctap_requests import (
    AgentClientData,
    CredentialWish,
    creation_options,
    inconsistent,
    request_options,
    require_consistent,
)
from keyvouch_agent.providers.touch import TouchPatience, TouchWatch
from keyvouch_client.security_keys.failures import device_error, removed, status_of
from keyvouch_client.security_keys.standing import MALFORMED

__all__ = ["CtapSession"]

_PROTECT_LEVEL = 2
_T = TypeVar("_T")


class CtapSession:
    """`ProviderSession` over one device, which it closes. See `keyvouch_agent.ports` for the methods.

    `explain` may know more about a CTAP status, where the device is one of our own. `patience` is for devices that wait
    for a touch; None for those that do not. `steps` is what the holder does beside WebAuthn. Credentials are
    non-discoverable unless `wish` says otherwise: the server names the key it wants, a roaming key's few slots stay
    free, and a registration that stops half-way has not replaced the key before it.

    A device of our own may verify its user itself, by a PIN that is none of CTAP's. Then `asks_itself` says that it
    asks in words of its own, and `pin` is that PIN, where it can be changed.
    """

    def __init__(
        self,
        device: CtapDevice,
        ui: ProviderInteraction,
        *,
        rp_id: str,
        min_pin_length: int,
        patience: TouchPatience | None = None,
        explain: Callable[[int | None], DeviceError | None] = lambda _status: None,
        steps: NativeSteps | None = None,
        wish: CredentialWish | None = None,
        asks_itself: bool = False,
        pin: PinControl | None = None,
        certificates: tuple[bytes, ...] = (),
    ) -> None:
        self._device = device
        self._ui = ui
        self._rp_id = rp_id
        self._known = explain
        self._steps = steps
        self._wish = wish or CredentialWish()
        self._own_pin = pin
        self._certificates = certificates
        self._cancel = Event()
        self._closed = False
        self._touch = TouchWatch(patience, ui.touch_needed, self._cancel.set) if patience else None
        try:
            self._ctap = Ctap2(device)
            self._pin = CtapPinControl(self._ctap, min_pin_length, explain=explain)
            self._user = _User(ui, self._pin, self._touch, tells_of_uv=not asks_itself)
            self._client = Fido2Client(
                WithoutPreflight(device), AgentClientData(rp_id), self._user, extensions=[CredProtectExtension()]
            )
        except (CtapError, OSError, *MALFORMED) as error:
            device.close()
            known = explain(status_of(error)) if isinstance(error, CtapError) else None
            raise known or _no_ctap2(error) from error

    def prepare(self, offer: GateOffer) -> TpmPreparation | None:
        """A FIDO authenticator has nothing to show before its key is made; what is behind one of our own may have."""
        return self._steps.prepare(offer) if self._steps else None

    def accept(self, grant: TpmGrant) -> None:
        """Hand a server's leave on."""
        if self._steps is None:
            raise UsageError("Nothing was shown to the server, so it allows nothing.")
        self._steps.accept(grant)

    def evidence(self, statement: bytes, channel_key: bytes) -> TpmEvidence | None:
        """What the attestation object does not carry."""
        return self._steps.evidence(statement, channel_key) if self._steps else None

    def create_key(self, creation: KeyCreation) -> Registration:
        """authenticatorMakeCredential with user verification and direct attestation."""
        self._require_rp(creation.rp_id)
        return self._run(lambda: self._created(creation))

    def sign(self, use: KeyUse) -> Assertion:
        """authenticatorGetAssertion with user verification, for one credential."""
        self._require_rp(use.rp_id)
        return self._run(lambda: self._signed(use))

    def pin(self) -> PinControl | None:
        """The authenticator's PIN; None for one that has no clientPin, nor a PIN of its own to manage."""
        return self._pin if self._takes_pin() else self._own_pin

    def cancel(self) -> None:
        """Make the device stop waiting for the user. The session can only be closed after this."""
        self._cancel.set()

    def close(self) -> None:
        """Drop the PIN and close the device."""
        if not self._closed:
            self._closed = True
            self._user.forget_pin()
            self._device.close()
            if self._steps is not None:
                self._steps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_rp(self, rp_id: str) -> None:
        if rp_id != self._rp_id:
            raise RefusedError(
                Reason.WRONG_SERVER,
                "The request is for another server than the one this device is registered with.",
                fix="Do not approve it; tell the administrator.",
                metadata={"rp_id": rp_id, "expected": self._rp_id},
            )

    def _created(self, creation: KeyCreation) -> Registration:
        demand = self._pin.read()
        if self._lacks_pin(demand):
            self._set_first_pin()
        elif demand.must_change:
            self._change_pin()
        protects = self._wish.protect and "credProtect" in self._ctap.info.extensions
        wish = CredentialWish(self._wish.resident, protects)
        response = self._client.make_credential(creation_options(creation, wish), self._cancel)
        raw = bytes(response.response.attestation_object)
        attestation = _checked(lambda: AttestationObject(raw))
        data = attestation.authenticator_data
        require_consistent(data, creation.rp_id)
        if protects and (data.extensions or {}).get("credProtect") != _PROTECT_LEVEL:
            raise inconsistent("another protection of the credential than it was asked for")
        return Registration(
            credential_id=attestation.attested.credential_id,
            client_data=bytes(response.response.client_data),
            attestation_object=raw,
            certificates=self._certificates,
        )

    def _signed(self, use: KeyUse) -> Assertion:
        demand = self._pin.read()
        if self._lacks_pin(demand):
            raise _was_reset()
        if demand.must_change:
            self._change_pin()
        response = self._client.get_assertion(request_options(use), self._cancel).get_response(0)
        data = _checked(lambda: AuthenticatorData(bytes(response.response.authenticator_data)))
        require_consistent(data, use.rp_id)
        if response.raw_id != use.credential_id:
            raise inconsistent("another key")
        return Assertion(
            credential_id=use.credential_id,
            client_data=bytes(response.response.client_data),
            authenticator_data=bytes(data),
            signature=response.response.signature,
            user_handle=response.response.user_handle,
        )

    def _takes_pin(self) -> bool:
        return "clientPin" in self._ctap.info.options

    def _verifies_itself(self) -> bool:
        return bool(self._ctap.info.options.get("uv"))

    def _lacks_pin(self, demand: PinDemand) -> bool:
        """Whether the authenticator could verify its user by a PIN, and has neither that nor anything else."""
        return self._takes_pin() and not demand.is_set and not self._verifies_itself()

    def _set_first_pin(self) -> None:
        """No PIN, no key: set the one the user gives now, or refuse."""
        pin = self._pin
        if self._touch is not None:
            self._ui.tell("This security key has no PIN yet. The one you choose is the key's own, wherever it is used.")
        new = self._ui.request_new_pin(pin.min_length)
        if new is None:
            raise DeviceError(
                Reason.PIN_NOT_SET,
                "A key needs a PIN to protect it, and none is set.",
                fix=f"Set a PIN of at least {pin.min_length} characters, then register again.",
            )
        try:
            pin.set(new)
        except DeviceError:
            new.close()
            raise
        self._user.use_once(new)

    def _change_pin(self) -> None:
        """The authenticator demands another PIN before it goes on."""
        pin = self._pin
        self._ui.tell("The authenticator wants a new PIN before it is used: enter the old one, then the new one.")
        old = self._ui.request_pin(pin.require_usable(), pin.min_length)
        new = self._ui.request_new_pin(pin.min_length) if old is not None else None
        if old is None or new is None:
            raise DeviceError(
                Reason.PIN_CHANGE_REQUIRED,
                "The authenticator wants a new PIN before it is used.",
                fix=f"Change it with `keyvouch-agent pin`: {pin.min_length} characters or more.",
            )
        with old:
            pin.change(old, new)
        self._user.use_once(new)

    def _run(self, operation: Callable[[], _T]) -> _T:
        """Run one operation, and turn every failure into a `DeviceError`."""
        try:
            return operation()
        except (ClientError, CtapError) as error:
            raise self._explain(error) from error
        except OSError as error:
            raise removed(error) from error
        except MALFORMED as error:
            raise inconsistent("a malformed response") from error
        finally:
            self._user.forget_pin()
            self._forget_touch()

    def _forget_touch(self) -> None:
        """A question that was taken back because nobody touched is no reason to cancel the next one."""
        if self._touch is not None:
            self._touch.end()
            if self._touch.timed_out:
                self._touch.timed_out = False
                self._cancel.clear()

    def _explain(self, error: ClientError | CtapError) -> DeviceError:
        status = status_of(error)
        if self._touch is not None:
            self._touch.end()
            if self._touch.timed_out:
                return device_error(CtapError(CtapError.ERR.USER_ACTION_TIMEOUT))
        if (known := self._known(status)) is not None:
            return known
        if status is None and self._verifies_itself() and _cannot_verify(error):
            return device_error(CtapError(CtapError.ERR.UV_BLOCKED))
        return device_error(error, retries_left=self._pin.retries_left)


class _User(UserInteraction):
    """What python-fido2's client asks the user, passed on to our port."""

    def __init__(
        self, ui: ProviderInteraction, pin: CtapPinControl, touch: TouchWatch | None, *, tells_of_uv: bool
    ) -> None:
        self._ui = ui
        self._tells_of_uv = tells_of_uv
        self._control = pin
        self._touch = touch
        self._pin: Pin | None = None
        self._tried_itself = False

    def use_once(self, pin: Pin) -> None:
        """Answer the next question for the PIN with this one, which was typed a moment ago."""
        self._pin = pin

    def forget_pin(self) -> None:
        """Drop the PIN."""
        self._tried_itself = False
        if self._pin is not None:
            self._pin.close()
            self._pin = None

    def prompt_up(self) -> None:
        """The authenticator waits for a touch."""
        if self._touch is not None:
            self._touch.begin()

    def request_uv(self, permissions: ClientPin.PERMISSION, rp_id: str | None) -> bool:  # noqa: ARG002
        """The authenticator is about to verify its user itself."""
        self._tried_itself = True
        if self._tells_of_uv:
            self._ui.tell("The authenticator verifies you itself: touch its sensor with the finger that is enrolled.")
        return True

    def request_pin(self, permissions: ClientPin.PERMISSION, rp_id: str | None) -> str | None:  # noqa: ARG002
        """Ask once, with the retries left, and not at all when no PIN can succeed."""
        if self._touch is not None:
            self._touch.end()
        if self._pin is None:
            left = self._control.require_usable()
            if self._tried_itself:
                self._ui.tell("The authenticator takes no more fingers or faces for now; it takes its PIN.")
            self._pin = self._ui.request_pin(left, self._control.min_length)
        return self._pin.reveal() if self._pin is not None else None


def _checked(parse: Callable[[], _T]) -> _T:
    try:
        return parse()
    except MalformedError as error:
        raise inconsistent("a malformed response") from error


def _cannot_verify(error: ClientError | CtapError) -> bool:
    return isinstance(error, ClientError) and error.code is ClientError.ERR.CONFIGURATION_UNSUPPORTED


def _was_reset() -> DeviceError:
    return DeviceError(
        Reason.KEY_NOT_FOUND,
        "The authenticator has no PIN, so it was reset after this key was made, and the key is gone.",
        fix="Sign in another way and register this device again.",
    )


def _no_ctap2(error: Exception) -> DeviceError:
    if isinstance(error, OSError):
        return removed(error)
    return DeviceError(
        Reason.UNSUPPORTED,
        f"The device does not answer as a FIDO2 authenticator ({type(error).__name__}).",
        fix="Connect it again, or use another one.",
    )
