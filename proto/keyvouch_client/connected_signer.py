"""`SecurityKeySigner` over the keys that are connected to this computer (CTAP 2.1 section 6.2).

1. a key has to be there; 2. which of them holds one of the credentials is asked silently, without PIN and touch; where
several do, the touched one is used; 3. the key verifies its user: itself where it can, else by a PIN that is asked for
now, with the tries left; 4. one assertion, with a touch. A key that shows its credentials only after the PIN
(credProtect level 3) is searched with the PIN.

Needs python-fido2: the extra `security-key`. What is not here: finding keys (`security_keys`), what is signed
(`security_key`), and the words on the screen (`AtTheKey` is a port).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Final, Protocol

from fido2.client import ClientError
from fido2.ctap import CtapError
from fido2.ctap2.base import AssertionResponse, Ctap2
from fido2.ctap2.pin import ClientPin

from keyvouch.errors import DeviceError, MalformedError, Reason
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_client.security_key import KeyAssertion, KeyRequest
from keyvouch_client.security_keys.discovery import ConnectedKey, SecurityKeys, connected_security_keys
from keyvouch_client.security_keys.failures import device_error, removed
from keyvouch_client.security_keys.selection import choose_by_touch, holding
from keyvouch_client.security_keys.standing import MALFORMED, KeyStanding, require_usable, standing_of

__all__ = ["AtTheKey", "ConnectedSigner"]

CONNECT_SECONDS: Final = 60.0
"""How long a key that is not there is waited for, and how long a touch is."""

_PERMISSION: Final = ClientPin.PERMISSION.GET_ASSERTION
_ERR: Final = CtapError.ERR
_NEEDED: Final = Flags.UP | Flags.UV
_GIVES_UP: Final = frozenset({_ERR.UV_BLOCKED, _ERR.UV_INVALID})
_ABSENT: Final = frozenset({_ERR.NO_CREDENTIALS, _ERR.INVALID_CREDENTIAL})


class AtTheKey(Protocol):
    """The person, who is told what to do and asked for the PIN. Called on the signer's thread."""

    def connect(self, *, another: bool) -> None:
        """No key is connected, or (`another`) none that holds a credential of this sign-in."""

    def touch(self, names: Sequence[str]) -> None:
        """These keys wait for a touch."""

    def pin(self, name: str, tries_left: int | None, *, wrong: bool, cancelled: Event) -> str | None:
        """The PIN of the key `name`; None to give up, and soon after `cancelled` is set. `wrong`: the last one was."""


class ConnectedSigner:
    """Signs with a connected security key. `keys` are those of this computer where nothing else is said."""

    def __init__(self, person: AtTheKey, keys: SecurityKeys | None = None, *, seconds: float = CONNECT_SECONDS) -> None:
        self._person = person
        self._keys = keys or connected_security_keys()
        self._seconds = seconds

    def sign(self, request: KeyRequest, cancelled: Event) -> KeyAssertion:
        """See `SecurityKeySigner`.

        Raises `DeviceError` with AUTHENTICATOR_NOT_CONNECTED (or what keeps a key from use), KEY_NOT_FOUND, the reasons
        of PINs, USER_CANCELLED, USER_TIMEOUT, UNSUPPORTED, AUTHENTICATOR_REMOVED or DEVICE_FAILED.
        """
        key, credential = self._find(request, cancelled)
        device = key.open()
        try:
            with _in_words():
                standing = standing_of(device)
                require_usable(standing)
                assertion = _Assertion(Ctap2(device), standing, key.name, request, self._person, cancelled)
                return assertion.make([credential] if credential else tuple(request.client_data))
        finally:
            device.close()

    def _find(self, request: KeyRequest, cancelled: Event) -> tuple[ConnectedKey, CredentialId | None]:
        """The key to use and the credential it holds, None where it tells only after the PIN."""
        end = time.monotonic() + self._seconds
        keys = self._keys.connected()
        if not keys:
            self._person.connect(another=False)
            keys = self._keys.wait_for(bool, seconds=self._seconds, cancelled=cancelled)
        while True:
            found = holding(keys, request.rp_id, tuple(request.client_data), may_be_hidden=True)
            if found.holders:
                key = self._touched(found.holders, cancelled)
                return key, found.holders[key]
            if found.unsure:
                return self._touched(dict.fromkeys(found.unsure), cancelled), None
            self._person.connect(another=True)
            keys = self._another(keys, end - time.monotonic(), cancelled)

    def _touched(self, among: Mapping[ConnectedKey, object], cancelled: Event) -> ConnectedKey:
        return choose_by_touch(
            self._keys,
            seconds=self._seconds,
            cancelled=cancelled,
            among=lambda key: key in among,
            asking=lambda asked: self._person.touch([key.name for key in asked]),
        )

    def _another(self, known: Sequence[ConnectedKey], seconds: float, cancelled: Event) -> tuple[ConnectedKey, ...]:
        """Wait for a key that has not been asked. Raises `DeviceError(KEY_NOT_FOUND)` when none comes."""

        def is_new(keys: Sequence[ConnectedKey]) -> bool:
            return any(key not in known for key in keys)

        try:
            return self._keys.wait_for(is_new, seconds=max(seconds, 0.0), cancelled=cancelled)
        except DeviceError as error:
            if error.reason is Reason.USER_CANCELLED:
                raise
            raise _holds_nothing() from error


@dataclass(frozen=True, slots=True)
class _Verified:
    """By what the key knows that its user was verified: a token; without one it verifies at each operation itself."""

    pin: ClientPin | None = None
    token: bytes = field(default=b"", repr=False)


class _Assertion:
    """One assertion of one open key."""

    def __init__(
        self,
        ctap: Ctap2,
        standing: KeyStanding,
        name: str,
        request: KeyRequest,
        person: AtTheKey,
        cancelled: Event,
    ) -> None:
        self._ctap = ctap
        self._standing = standing
        self._name = name
        self._request = request
        self._person = person
        self._cancelled = cancelled

    def make(self, credentials: Sequence[CredentialId]) -> KeyAssertion:
        """With the one credential, or with the one of several that the key shows once its user is verified."""
        verified = self._verify()
        credential = credentials[0] if len(credentials) == 1 else self._searched(credentials, verified)
        digest = hashlib.sha256(self._request.client_data[credential]).digest()
        self._person.touch([self._name])
        return _checked(self._ask(credential, digest, verified), credential, self._request.rp_id)

    def _verify(self) -> _Verified:
        standing = self._standing
        if standing.built_in and standing.built_in_retries_left != 0:
            if not self._ctap.info.options.get("pinUvAuthToken"):
                return _Verified()
            try:
                return self._by_token(self._built_in_token)
            except CtapError as error:
                if error.code not in _GIVES_UP or not standing.pin_is_set:
                    raise
        return self._by_token(self._pin_token)

    def _by_token(self, ask: Callable[[ClientPin], bytes]) -> _Verified:
        pin = ClientPin(self._ctap)
        return _Verified(pin, ask(pin))

    def _built_in_token(self, pin: ClientPin) -> bytes:
        self._person.touch([self._name])
        return pin.get_uv_token(_PERMISSION, self._request.rp_id, self._cancelled)

    def _pin_token(self, pin: ClientPin) -> bytes:
        """Ask for the PIN until it is right, the key takes no more, or the person gives up."""
        self._require_pin()
        failure: CtapError | None = None
        while True:
            left, cycle = pin.get_pin_retries()
            if failure is not None and (cycle or left == 0):
                raise device_error(
                    CtapError(_ERR.PIN_BLOCKED if left == 0 else _ERR.PIN_AUTH_BLOCKED), retries_left=left
                )
            text = self._person.pin(self._name, left, wrong=failure is not None, cancelled=self._cancelled)
            if text is None:
                raise device_error(failure, retries_left=left) if failure else _no_pin()
            try:
                return pin.get_pin_token(text, _PERMISSION, self._request.rp_id)
            except CtapError as error:
                if error.code != _ERR.PIN_INVALID:
                    raise device_error(error, retries_left=pin.get_pin_retries()[0]) from error
                failure = error

    def _require_pin(self) -> None:
        standing = self._standing
        if not standing.pin_is_set:
            raise device_error(CtapError(_ERR.PIN_NOT_SET))
        if standing.pin_retries_left == 0:
            raise device_error(CtapError(_ERR.PIN_BLOCKED), retries_left=0)
        if standing.needs_power_cycle:
            raise device_error(CtapError(_ERR.PIN_AUTH_BLOCKED), retries_left=standing.pin_retries_left)
        if standing.must_change_pin:
            raise DeviceError(
                Reason.PIN_CHANGE_REQUIRED,
                "This security key wants another PIN before it goes on.",
                fix="Change it with `keyvouch-agent pin --provider fido2`, or with its maker's tool.",
            )

    def _searched(self, credentials: Sequence[CredentialId], verified: _Verified) -> CredentialId:
        for credential in credentials:
            try:
                self._ask(credential, bytes(32), verified, silently=True)
            except CtapError as error:
                if error.code not in _ABSENT:
                    raise
            else:
                return credential
        raise _holds_nothing()

    def _ask(
        self, credential: CredentialId, digest: bytes, verified: _Verified, *, silently: bool = False
    ) -> AssertionResponse:
        """authenticatorGetAssertion; `silently` without a touch, which proves nothing to anybody."""
        options = {**({} if verified.pin else {"uv": True}), **({"up": False} if silently else {})}
        return self._ctap.get_assertion(
            self._request.rp_id,
            digest,
            [{"type": "public-key", "id": bytes(credential)}],
            options=options or None,
            pin_uv_param=verified.pin.protocol.authenticate(verified.token, digest) if verified.pin else None,
            pin_uv_protocol=verified.pin.protocol.VERSION if verified.pin else None,
            event=self._cancelled,
        )


def _checked(response: AssertionResponse, credential: CredentialId, rp_id: str) -> KeyAssertion:
    """What comes back is of this relying party, of this credential, and says that its user was there and verified."""
    data = AuthenticatorData(bytes(response.auth_data))
    told = response.credential.get("id", credential) if response.credential else credential
    of_another = data.rp_id_hash != hashlib.sha256(rp_id.encode()).digest() or bytes(told) != credential
    if of_another or data.flags & _NEEDED != _NEEDED:
        raise _inconsistent()
    handle = response.user.get("id", b"") if response.user else b""
    return KeyAssertion(credential, bytes(data), bytes(response.signature), bytes(handle))


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn whatever a key or its connection fails with into a `DeviceError`."""
    try:
        yield
    except (ClientError, CtapError) as error:
        raise device_error(error) from error
    except OSError as error:
        raise removed(error) from error
    except (MalformedError, *MALFORMED) as error:
        raise _inconsistent() from error


def _holds_nothing() -> DeviceError:
    return DeviceError(
        Reason.KEY_NOT_FOUND,
        "No connected security key is one you can sign in with here.",
        fix="Connect one that is registered for this user. If it is, it was reset or policy does not accept it any "
        "more: ask an administrator, or sign in another way.",
    )


def _inconsistent() -> DeviceError:
    return DeviceError(
        Reason.DEVICE_FAILED, "The security key answered with something else than was asked.", fix="Use another one."
    )


def _no_pin() -> DeviceError:
    return DeviceError(Reason.USER_CANCELLED, "No PIN was entered.", fix="Start again and enter the PIN.")
