"""The JSON front end: strict about presence, type and base64url."""

from __future__ import annotations

from typing import Any

import pytest

from keyvouch.errors import MalformedError, Reason
from keyvouch.webauthn_json import AuthenticationResponse, RegistrationResponse

REGISTRATION = {
    "id": "AQI",
    "rawId": "AQI",
    "type": "public-key",
    "response": {"clientDataJSON": "AQ", "attestationObject": "Ag", "transports": ["usb"]},
    "clientExtensionResults": {},
}
AUTHENTICATION = {
    "id": "AQI",
    "rawId": "AQI",
    "type": "public-key",
    "response": {"clientDataJSON": "AQ", "authenticatorData": "Ag", "signature": "Aw", "userHandle": "BA"},
}


def without(document: dict[str, Any], *names: str, **changes: object) -> dict[str, Any]:
    return {name: value for name, value in (document | changes).items() if name not in names}


def test_controls() -> None:
    assert RegistrationResponse.from_json(REGISTRATION) == RegistrationResponse(b"\x01\x02", b"\x01", b"\x02")  # type: ignore[arg-type]
    parsed = AuthenticationResponse.from_json(AUTHENTICATION)
    assert (parsed.client_data, parsed.authenticator_data, parsed.signature) == (b"\x01", b"\x02", b"\x03")
    assert (parsed.credential_id, parsed.user_handle) == (b"\x01\x02", b"\x04")


@pytest.mark.parametrize("response", [without(AUTHENTICATION["response"], "userHandle")])  # type: ignore[arg-type]
def test_an_absent_user_handle_is_none_and_an_empty_one_is_not(response: dict[str, Any]) -> None:
    for absent in (response, response | {"userHandle": None}):
        assert AuthenticationResponse.from_json(AUTHENTICATION | {"response": absent}).user_handle is None
    empty = AUTHENTICATION | {"response": response | {"userHandle": ""}}
    assert AuthenticationResponse.from_json(empty).user_handle == b""


@pytest.mark.parametrize("name", ["id", "rawId", "type", "response"])
@pytest.mark.parametrize("value", [None, 7, ["AQI"]])
def test_missing_members_w12(name: str, value: object) -> None:
    for document in (without(AUTHENTICATION, name), AUTHENTICATION | {name: value}):
        with pytest.raises(MalformedError) as caught:
            AuthenticationResponse.from_json(document)
        assert caught.value.reason is Reason.MISSING_FIELD


@pytest.mark.parametrize("name", ["clientDataJSON", "authenticatorData", "signature"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.MISSING_FIELD),
        (7, Reason.MISSING_FIELD),
        ("AQ==", Reason.ENCODING),
        ("A+", Reason.ENCODING),
        ("!", Reason.ENCODING),
        ("AR", Reason.ENCODING),
    ],
)
def test_members_of_the_response_w12(name: str, value: object, reason: Reason) -> None:
    response: Any = AUTHENTICATION["response"]
    with pytest.raises(MalformedError) as caught:
        AuthenticationResponse.from_json(AUTHENTICATION | {"response": response | {name: value}})
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "password"}, Reason.CREDENTIAL_TYPE),
        ({"id": "AQM"}, Reason.CREDENTIAL_ID),
        ({"rawId": "AQI=", "id": "AQI="}, Reason.ENCODING),
    ],
)
def test_the_credential_itself(changes: dict[str, str], reason: Reason) -> None:
    with pytest.raises(MalformedError) as caught:
        RegistrationResponse.from_json(REGISTRATION | changes)
    assert caught.value.reason is reason


def test_what_is_no_object() -> None:
    with pytest.raises(MalformedError):
        RegistrationResponse.from_json([])


@pytest.mark.parametrize("kind", [RegistrationResponse, AuthenticationResponse])
@pytest.mark.parametrize("document", [None, [], "text", 1])
def test_what_is_no_object_is_a_missing_member(kind: Any, document: object) -> None:
    with pytest.raises(MalformedError) as caught:
        kind.from_json(document)
    assert caught.value.reason is Reason.MISSING_FIELD
