"""A ceremony with any `CtapDevice`, through python-fido2's own client: roaming keys and built-in ones alike.

The client data is ours to the byte: our origin, exactly the challenge given. The relying party is the one
the session was opened for. What comes back is checked against what was asked before it leaves. What is *not*
here: finding devices, and trust in what they attest, which is the server's business.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from threading import Event
from types import TracebackType
from typing import Self, TypeVar

from fido2.client import ClientDataCollector, ClientError, Fido2Client, UserInteraction
from fido2.ctap import CtapDevice, CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin
from fido2.webauthn import (
    AttestationConveyancePreference,
    AuthenticatorSelectionCriteria,
    CollectedClientData,
    PublicKeyCredentialCreationOptions,
    PublicKeyCredentialDescriptor,
    PublicKeyCredentialParameters,
    PublicKeyCredentialRequestOptions,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialType,
    PublicKeyCredentialUserEntity,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from keyvouch.errors import DeviceError, MalformedError, Reason, RefusedError, UsageError
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AttestationObject, AuthenticatorData, Flags
from keyvouch_agent.ports import (
    Assertion,
    GateOffer,
    KeyCreation,
    KeyUse,
    NativeSteps,
    Pin,
    ProviderInteraction,
    Registration,
    TpmEvidence,
    TpmGrant,
    TpmPreparation,
)
from keyvouch_agent.providers.ctap_failures import device_error, status_of
from keyvouch_agent.providers.ctap_pin import CtapPinControl
from keyvouch_agent.providers.ctap_preflight import WithoutPreflight

__all__ = ["CtapSession", "origin_for"]

_MALFORMED = (ValueError, TypeError, LookupError, struct.error)
"""What python-fido2 raises while it reads an answer that is not what it should be."""
_NEEDED = Flags.UP | Flags.UV
_T = TypeVar("_T")
_Options = PublicKeyCredentialCreationOptions | PublicKeyCredentialRequestOptions


def origin_for(rp_id: str) -> str:
    """The origin the agent writes into client data."""
    return f"keyvouch-agent://{rp_id}"


class CtapSession:
    """`ProviderSession` over one device, which it closes. See `keyvouch_agent.ports` for the methods.

    `explain` may know more about a CTAP status, where the device is one of our own. `reminds_of_touch` is for
    devices that wait for a touch. `steps` is what the holder does beside WebAuthn. Credentials are made
    non-discoverable: the server names the key it wants, a roaming key's few slots stay free, and a registration that
    stops half-way has not replaced the key before it.
    """

    def __init__(
        self,
        device: CtapDevice,
        ui: ProviderInteraction,
        *,
        rp_id: str,
        min_pin_length: int,
        reminds_of_touch: bool = True,
        explain: Callable[[int | None], DeviceError | None] = lambda _status: None,
        steps: NativeSteps | None = None,
    ) -> None:
        self._device = device
        self._ui = ui
        self._rp_id = rp_id
        self._known = explain
        self._steps = steps
        self._cancel = Event()
        self._closed = False
        try:
            self._ctap = Ctap2(device)
        except (CtapError, OSError, *_MALFORMED) as error:
            device.close()
            known = explain(status_of(error)) if isinstance(error, CtapError) else None
            raise known or _no_ctap2(error) from error
        self._pin = CtapPinControl(self._ctap, min_pin_length, explain=explain)
        self._user = _User(ui, self._pin, reminds_of_touch)
        self._client = Fido2Client(WithoutPreflight(device), _ClientData(rp_id), self._user, extensions=())

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
        self._require_pin_or_set_one()
        response = self._run(lambda: self._client.make_credential(_creation_options(creation), self._cancel))
        raw = bytes(response.response.attestation_object)
        attestation = _checked(lambda: AttestationObject(raw))
        _require_consistent(attestation.authenticator_data, creation.rp_id)
        return Registration(
            credential_id=attestation.attested.credential_id,
            client_data=bytes(response.response.client_data),
            attestation_object=raw,
        )

    def sign(self, use: KeyUse) -> Assertion:
        """authenticatorGetAssertion with user verification, for one credential."""
        self._require_rp(use.rp_id)
        if self._lacks_pin():
            raise _was_reset()
        selection = self._run(lambda: self._client.get_assertion(_request_options(use), self._cancel))
        response = selection.get_response(0)
        data = _checked(lambda: AuthenticatorData(bytes(response.response.authenticator_data)))
        _require_consistent(data, use.rp_id)
        if response.raw_id != use.credential_id:
            raise _inconsistent("another key")
        return Assertion(
            credential_id=use.credential_id,
            client_data=bytes(response.response.client_data),
            authenticator_data=bytes(data),
            signature=response.response.signature,
            user_handle=response.response.user_handle,
        )

    def pin(self) -> CtapPinControl | None:
        """The authenticator's PIN; None for one that has no clientPin."""
        return self._pin if "clientPin" in self._ctap.info.options else None

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

    def _lacks_pin(self) -> bool:
        """Whether the authenticator could verify its user by a PIN, and has neither that nor anything else."""
        pin = self.pin()
        return pin is not None and not pin.is_set and not self._ctap.info.options.get("uv")

    def _require_pin_or_set_one(self) -> None:
        """No PIN, no key: set the one the user gives now, or refuse."""
        if not self._lacks_pin():
            return
        pin = self._pin
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

    def _run(self, operation: Callable[[], _T]) -> _T:
        """Run one client operation, and turn every failure into a `DeviceError`."""
        try:
            return operation()
        except (ClientError, CtapError) as error:
            raise self._explain(error) from error
        except OSError as error:
            raise _gone(error) from error
        except _MALFORMED as error:
            raise _inconsistent("a malformed response") from error
        finally:
            self._user.forget_pin()

    def _explain(self, error: ClientError | CtapError) -> DeviceError:
        known = self._known(status_of(error))
        return known or device_error(error, retries_left=self._pin.retries_left)


class _User(UserInteraction):
    """What python-fido2's client asks the user, passed on to our port."""

    def __init__(self, ui: ProviderInteraction, pin: CtapPinControl, reminds_of_touch: bool) -> None:
        self._ui = ui
        self._control = pin
        self._reminds_of_touch = reminds_of_touch
        self._pin: Pin | None = None

    def use_once(self, pin: Pin) -> None:
        """Answer the next question for the PIN with this one, which was typed a moment ago."""
        self._pin = pin

    def forget_pin(self) -> None:
        """Drop the PIN."""
        if self._pin is not None:
            self._pin.close()
            self._pin = None

    def prompt_up(self) -> None:
        """The authenticator waits for a touch."""
        if self._reminds_of_touch:
            self._ui.touch_needed()

    def request_pin(self, permissions: ClientPin.PERMISSION, rp_id: str | None) -> str | None:  # noqa: ARG002
        """Ask once, with the retries left, and not at all when no PIN can succeed."""
        if self._pin is None:
            left = self._control.require_usable()
            self._pin = self._ui.request_pin(left, self._control.min_length)
        return self._pin.reveal() if self._pin is not None else None


class _ClientData(ClientDataCollector):
    """Client data for the relying party of the session, with the agent's own origin."""

    def __init__(self, rp_id: str) -> None:
        self._rp_id = rp_id

    def collect_client_data(self, options: _Options) -> tuple[CollectedClientData, str]:
        making = isinstance(options, PublicKeyCredentialCreationOptions)
        kind = CollectedClientData.TYPE.CREATE if making else CollectedClientData.TYPE.GET
        return CollectedClientData.create(kind, options.challenge, origin_for(self._rp_id)), self._rp_id


def _creation_options(creation: KeyCreation) -> PublicKeyCredentialCreationOptions:
    kind = PublicKeyCredentialType.PUBLIC_KEY
    return PublicKeyCredentialCreationOptions(
        rp=PublicKeyCredentialRpEntity(name=creation.rp_name or creation.rp_id, id=creation.rp_id),
        user=PublicKeyCredentialUserEntity(
            name=creation.user_name, id=creation.user_id, display_name=creation.user_name
        ),
        challenge=creation.challenge,
        pub_key_cred_params=[PublicKeyCredentialParameters(type=kind, alg=alg) for alg in creation.algorithms],
        exclude_credentials=[_descriptor(credential) for credential in creation.exclude],
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.DISCOURAGED, user_verification=UserVerificationRequirement.REQUIRED
        ),
        attestation=AttestationConveyancePreference.DIRECT,
    )


def _request_options(use: KeyUse) -> PublicKeyCredentialRequestOptions:
    return PublicKeyCredentialRequestOptions(
        challenge=use.challenge,
        rp_id=use.rp_id,
        allow_credentials=[_descriptor(use.credential_id)],
        user_verification=UserVerificationRequirement.REQUIRED,
    )


def _descriptor(credential: CredentialId) -> PublicKeyCredentialDescriptor:
    return PublicKeyCredentialDescriptor(type=PublicKeyCredentialType.PUBLIC_KEY, id=credential)


def _checked(parse: Callable[[], _T]) -> _T:
    try:
        return parse()
    except MalformedError as error:
        raise _inconsistent("a malformed response") from error


def _require_consistent(data: AuthenticatorData, rp_id: str) -> None:
    if data.rp_id_hash != hashlib.sha256(rp_id.encode()).digest():
        raise _inconsistent("another server's name")
    if data.flags & _NEEDED != _NEEDED:
        raise _inconsistent("no sign that it verified its user")


def _was_reset() -> DeviceError:
    return DeviceError(
        Reason.KEY_NOT_FOUND,
        "The authenticator has no PIN, so it was reset after this key was made, and the key is gone.",
        fix="Sign in another way and register this device again.",
    )


def _inconsistent(what: str) -> DeviceError:
    return DeviceError(
        Reason.DEVICE_FAILED, f"The authenticator answered with {what}.", fix="Use another authenticator."
    )


def _no_ctap2(error: Exception) -> DeviceError:
    return DeviceError(
        Reason.UNSUPPORTED,
        f"The device does not answer as a FIDO2 authenticator ({type(error).__name__}).",
        fix="Connect it again, or use another one.",
    )


def _gone(_error: OSError) -> DeviceError:
    return DeviceError(
        Reason.DEVICE_FAILED, "The authenticator was removed or stopped answering.", fix="Connect it and start again."
    )
