"""The JSON form of WebAuthn responses (WebAuthn Level 3 section 5.1: RegistrationResponseJSON and its sibling).

Takes what a JSON parser made of `PublicKeyCredential.toJSON()` apart into bytes, strictly: members that are
needed must be there and be strings, and strings must be base64url without padding. Members that nobody verifies
(transports, extension results, the copies of what the attestation object holds) are not looked at.

What is not here: any judgement of the bytes; see `keyvouch.attestation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from keyvouch import base64url
from keyvouch.errors import MalformedError, Reason
from keyvouch.ids import CredentialId

__all__ = ["AuthenticationResponse", "RegistrationResponse"]


@dataclass(frozen=True, slots=True)
class RegistrationResponse:
    """The bytes of a RegistrationResponseJSON.

    `credential_id` is the client's word; the id that counts is the one inside the attestation object.
    """

    credential_id: CredentialId
    client_data: bytes
    attestation_object: bytes

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Take `document` apart.

        Raises `MalformedError`: `MISSING_FIELD` for a member that is absent or no string, `ENCODING` for one that is
        not base64url, `CREDENTIAL_TYPE` if it is no public key, `CREDENTIAL_ID` if id and rawId differ.
        """
        credential_id, response = _open(document)
        return cls(credential_id, _bytes(response, "clientDataJSON"), _bytes(response, "attestationObject"))


@dataclass(frozen=True, slots=True)
class AuthenticationResponse:
    """The bytes of an AuthenticationResponseJSON. `user_handle` is None where there is none."""

    credential_id: CredentialId
    client_data: bytes
    authenticator_data: bytes
    signature: bytes
    user_handle: bytes | None

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Take `document` apart; raises as `RegistrationResponse.from_json` does."""
        credential_id, response = _open(document)
        has_user_handle = response.get("userHandle") is not None
        return cls(
            credential_id,
            _bytes(response, "clientDataJSON"),
            _bytes(response, "authenticatorData"),
            _bytes(response, "signature"),
            _bytes(response, "userHandle") if has_user_handle else None,
        )


def _open(document: object) -> tuple[CredentialId, Mapping[str, object]]:
    """Check the members around the response."""
    if not isinstance(document, dict):
        raise _malformed(Reason.MISSING_FIELD, "The response is not a JSON object.")
    if _string(document, "type") != "public-key":
        raise _malformed(Reason.CREDENTIAL_TYPE, "The credential is not of the type public-key.")
    raw_id = _bytes(document, "rawId")
    if _string(document, "id") != document["rawId"]:
        raise _malformed(Reason.CREDENTIAL_ID, "The members id and rawId differ.")
    response = document.get("response")
    if not isinstance(response, dict):
        raise _malformed(Reason.MISSING_FIELD, "The member response is missing or not an object.")
    return CredentialId(raw_id), response


def _string(members: Mapping[str, object], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise _malformed(Reason.MISSING_FIELD, f"The member {name} is missing or not a string.")
    return value


def _bytes(members: Mapping[str, object], name: str) -> bytes:
    try:
        return base64url.decode(_string(members, name))
    except ValueError:
        raise _malformed(Reason.ENCODING, f"The member {name} is not base64url without padding.") from None


def _malformed(reason: Reason, message: str) -> MalformedError:
    return MalformedError(reason, message, fix="Send the credential as PublicKeyCredential.toJSON() makes it.")
