"""CBOR, COSE keys, and the three containers of WebAuthn."""

from __future__ import annotations

import json

from keyvouch import base64url, cbor
from keyvouch.client_data import CollectedClientData
from keyvouch.cose import CoseKey
from keyvouch.webauthn import AttestationObject, AuthenticatorData
from keyvouch.webauthn_json import AuthenticationResponse, RegistrationResponse

from .target import Shape, Target

__all__ = ["TARGETS"]


def _cbor(data: bytes) -> None:
    if cbor.encode(cbor.decode(data)) != data:
        raise AssertionError("a second encoding of the same value")


def _base64url(data: bytes) -> None:
    text = data.decode("latin-1")
    if base64url.encode(base64url.decode(text)) != text:
        raise AssertionError("a second spelling of the same bytes")


def _webauthn_json(data: bytes) -> None:
    """The parser takes what a JSON parser made; a document that is none is not its part."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    for response in (RegistrationResponse, AuthenticationResponse):
        Target("", response.from_json).try_on(document)


TARGETS = (
    Target("base64url", _base64url, refusals=(ValueError,), max_length=256),
    Target("cbor", _cbor, Shape.CBOR, nests=True),
    Target("cose-key", CoseKey, Shape.CBOR, 700),
    Target("client-data", CollectedClientData, nests=True),
    Target("authenticator-data", AuthenticatorData, nests=True),
    Target("attestation-object", AttestationObject, Shape.CBOR, nests=True),
    Target("webauthn-json", _webauthn_json, nests=True),
)
