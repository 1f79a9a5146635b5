"""Verifiers that are measured: ours and two Python libraries, each as its documentation says, roots and all.

Everybody gets the same: the response as a JSON parser made it, and what the relying party knows. Trust is checked by
everybody who can; what does not depend on the response is made once, outside of what is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch import base64url
from keyvouch.attestation import CredentialRecord, verify_assertion, verify_registration
from keyvouch.cose import CoseKey
from keyvouch.ids import CredentialId
from keyvouch.webauthn_json import AuthenticationResponse, RegistrationResponse
from support.samples import Registration, samples
from support.vectors import load

__all__ = [
    "Assertion",
    "Verifier",
    "assertion",
    "document_of",
    "ours",
    "ours_from_bytes",
    "ours_with_stored_key",
    "py_webauthn",
    "python_fido2",
]

Act = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Assertion:
    """A control of the generated vectors: the response and the stored record."""

    document: dict[str, Any]
    public_key: bytes
    credential_id: bytes
    user_handle: bytes
    sign_count: int
    challenge: bytes
    rp_id: str
    origin: str


@dataclass(frozen=True, slots=True)
class Verifier:
    """A library. A function of a registration gives what is to be measured, or None if it has no such format."""

    name: str
    assertion: Callable[[Assertion], Act]
    registration: Callable[[Registration], Act | None]


def assertion() -> Assertion:
    """The plainest ES256 assertion."""
    vectors = load("generated-webauthn/webauthn_mutations.json")["vectors"]
    vector = next(v for v in vectors if v["base"] == "auth-ES256" and v["mutation"] == "pos_plain")
    stored, policy = vector["stored"], vector["policy"]
    return Assertion(
        vector["response"],
        base64url.decode(stored["publicKey"]),
        base64url.decode(stored["credentialId"]),
        base64url.decode(stored["userHandle"]),
        stored["signCount"],
        base64url.decode(vector["expectedChallenge"]),
        policy["rpId"],
        policy["origins"][0],
    )


def document_of(registration: Registration) -> dict[str, Any]:
    """A RegistrationResponseJSON."""
    response = {
        "clientDataJSON": base64url.encode(registration.client_data),
        "attestationObject": base64url.encode(registration.attestation_object),
        "transports": ["usb"],
    }
    return {
        "id": registration.credential_id,
        "rawId": registration.credential_id,
        "type": "public-key",
        "response": response,
        "clientExtensionResults": {},
    }


# Ours


def _record(given: Assertion, key: CoseKey) -> CredentialRecord:
    return CredentialRecord(CredentialId(given.credential_id), key, given.sign_count, given.user_handle, False)


def _expected(given: Assertion) -> dict[str, Any]:
    return {
        "challenge": given.challenge,
        "rp_id": given.rp_id,
        "origins": frozenset({given.origin}),
        "require_user_verification": True,
    }


def _ours_assertion(given: Assertion) -> Act:
    record, expected = _record(given, CoseKey(given.public_key)), _expected(given)

    def act() -> object:
        response = AuthenticationResponse.from_json(given.document)
        return verify_assertion(
            credential=record,
            credential_id=response.credential_id,
            client_data=response.client_data,
            authenticator_data=response.authenticator_data,
            signature=response.signature,
            user_handle=response.user_handle,
            **expected,
        )

    return act


def _ours_assertion_from_bytes(given: Assertion, *, parse_key: bool = False) -> Act:
    response, expected = AuthenticationResponse.from_json(given.document), _expected(given)
    record = _record(given, CoseKey(given.public_key))
    parts = {
        "credential_id": response.credential_id,
        "client_data": response.client_data,
        "authenticator_data": response.authenticator_data,
        "signature": response.signature,
        "user_handle": response.user_handle,
    }
    if parse_key:
        return lambda: verify_assertion(credential=_record(given, CoseKey(given.public_key)), **parts, **expected)
    return lambda: verify_assertion(credential=record, **parts, **expected)


def _ours_registration(given: Registration) -> Act:
    document, arguments = document_of(given), given.arguments()
    del arguments["client_data"], arguments["attestation_object"]

    def act() -> object:
        response = RegistrationResponse.from_json(document)
        return verify_registration(
            client_data=response.client_data, attestation_object=response.attestation_object, **arguments
        )

    return act


def _ours_registration_from_bytes(given: Registration) -> Act:
    arguments = given.arguments()
    return lambda: verify_registration(**arguments)


ours = Verifier("keyvouch", _ours_assertion, _ours_registration)
ours_from_bytes = Verifier("keyvouch, bytes", _ours_assertion_from_bytes, _ours_registration_from_bytes)
ours_with_stored_key = Verifier(
    "keyvouch, bytes, key parsed",
    lambda given: _ours_assertion_from_bytes(given, parse_key=True),
    lambda given: None,  # a registration has no stored key
)


# python-fido2


def python_fido2() -> Verifier:
    """As its examples/verify_attestation.py does it. Validity times of certificates are nothing it looks at."""
    from fido2.attestation import AttestationVerifier
    from fido2.server import Fido2Server
    from fido2.utils import websafe_encode
    from fido2.webauthn import AttestedCredentialData, PublicKeyCredentialRpEntity

    class Roots(AttestationVerifier):
        def __init__(self, root: bytes) -> None:
            super().__init__()
            self._root = root

        def ca_lookup(self, attestation_result: object, auth_data: object) -> bytes:
            return self._root

    def state(challenge: bytes) -> dict[str, Any]:
        return {"challenge": websafe_encode(challenge), "user_verification": None}

    def authenticate(given: Assertion) -> Act:
        server = Fido2Server(PublicKeyCredentialRpEntity(id=given.rp_id, name="Bench"))
        stored = AttestedCredentialData(
            bytes(16) + len(given.credential_id).to_bytes(2, "big") + given.credential_id + given.public_key
        )
        return lambda: server.authenticate_complete(state(given.challenge), [stored], given.document)

    # A self attestation has no chain; a root is wanted all the same.
    (any_root,) = (_der(pem) for pem in samples()["packed"].roots)

    def register(given: Registration) -> Act | None:
        if given.name == "android-key":
            return None
        roots = [_der(pem) for pem in given.roots]
        server = Fido2Server(
            PublicKeyCredentialRpEntity(id=given.rp_id, name="Bench"),
            attestation="none" if given.name == "none" else "direct",
            verify_attestation=Roots(roots[0] if roots else any_root),
            verify_origin=lambda origin: origin == given.origin,
        )
        document = document_of(given)
        return lambda: server.register_complete(state(given.challenge), document)

    return Verifier("python-fido2", authenticate, register)


def _der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


# py_webauthn


def py_webauthn() -> Verifier:
    """As its examples do it. Its clock is set through the hook that it has for its own tests."""
    from webauthn import verify_authentication_response, verify_registration_response
    from webauthn.helpers.structs import AttestationFormat

    def authenticate(given: Assertion) -> Act:
        return lambda: verify_authentication_response(
            credential=given.document,
            expected_challenge=given.challenge,
            expected_rp_id=given.rp_id,
            expected_origin=given.origin,
            credential_public_key=given.public_key,
            credential_current_sign_count=given.sign_count,
            require_user_verification=True,
        )

    def register(given: Registration) -> Act:
        document, kind = document_of(given), given.name.removesuffix("-self")
        roots: Mapping[Any, list[bytes]] = {AttestationFormat(kind): [pem.encode() for pem in given.roots]}

        def act() -> object:
            return verify_registration_response(
                credential=document,
                expected_challenge=given.challenge,
                expected_rp_id=given.rp_id,
                expected_origin=given.origin,
                pem_root_certs_bytes_by_fmt=roots,
            )

        return at(given.instant, act)

    return Verifier("py_webauthn", authenticate, register)


def at(instant: datetime, act: Act) -> Act:
    """Let py_webauthn's certificate stores have the time that certificates were made for."""
    from OpenSSL.crypto import X509Store
    from webauthn.helpers.validate_certificate_chain import validate_certificate_chain

    def store() -> X509Store:
        made = X509Store()
        made.set_time(instant)
        return made

    module = sys.modules[validate_certificate_chain.__module__]

    def set_and_act() -> object:
        module._generate_new_cert_store = store
        return act()

    return set_and_act
