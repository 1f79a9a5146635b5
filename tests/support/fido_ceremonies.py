"""Registrations and assertions through python-fido2's client, judged twice: by its server and by our core."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from fido2.client import DefaultClientDataCollector, Fido2Client, UserInteraction
from fido2.ctap import CtapDevice
from fido2.ctap2.pin import ClientPin
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestationConveyancePreference,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from keyvouch.attestation.assertion import verify_assertion
from keyvouch.attestation.evidence import AttestationRequirement, CredentialRecord, VerifiedAssertion
from keyvouch.attestation.registration import verify_registration
from keyvouch.attestation.trust import TrustStore
from keyvouch.cose import Algorithm

RP_ID: Final = "login.example.org"
ORIGIN: Final = "https://login.example.org"
USER_HANDLE: Final = b"alice"


class Typist(UserInteraction):
    """Types a PIN, and counts how often she is asked for a touch."""

    def __init__(self, pin: str) -> None:
        self.pin, self.needed = pin, 0

    def prompt_up(self) -> None:
        self.needed += 1

    def request_pin(self, permissions: ClientPin.PERMISSION, rp_id: str | None) -> str:
        return self.pin


class RelyingParty:
    """A relying party that asks both judges, and keeps what it accepted."""

    def __init__(self) -> None:
        self._server = Fido2Server(
            PublicKeyCredentialRpEntity(name="Example", id=RP_ID), attestation=AttestationConveyancePreference.DIRECT
        )
        self._known: list[Any] = []

    def register(self, device: CtapDevice, pin: str, *, discoverable: bool = False) -> CredentialRecord:
        """Make a credential with the PIN."""
        user = PublicKeyCredentialUserEntity(name="alice", id=USER_HANDLE, display_name="Alice")
        wish = ResidentKeyRequirement.REQUIRED if discoverable else ResidentKeyRequirement.DISCOURAGED
        begun, state = self._server.register_begin(
            user, user_verification=UserVerificationRequirement.REQUIRED, resident_key_requirement=wish
        )
        given = _client(device, pin).make_credential(begun.public_key)
        self._known.append(self._server.register_complete(state, given).credential_data)
        verified = verify_registration(
            client_data=bytes(given.response.client_data),
            attestation_object=bytes(given.response.attestation_object),
            challenge=begun.public_key.challenge,
            rp_id=RP_ID,
            origins=[ORIGIN],
            require_user_verification=True,
            algorithms=[Algorithm.ES256, Algorithm.ES384, Algorithm.EDDSA],
            attestation=AttestationRequirement.OPTIONAL,
            anchors=TrustStore(),
            instant=datetime.now(UTC),
        )
        return CredentialRecord(
            verified.credential_id, verified.public_key, verified.sign_count, USER_HANDLE, verified.backup_eligible
        )

    def authenticate(self, device: CtapDevice, pin: str, record: CredentialRecord) -> VerifiedAssertion:
        """Have the credential sign, with the PIN."""
        begun, state = self._server.authenticate_begin(
            self._known, user_verification=UserVerificationRequirement.REQUIRED
        )
        given = _client(device, pin).get_assertion(begun.public_key).get_response(0)
        self._server.authenticate_complete(state, self._known, given)
        return verify_assertion(
            credential=record,
            credential_id=given.raw_id,
            client_data=bytes(given.response.client_data),
            authenticator_data=bytes(given.response.authenticator_data),
            signature=given.response.signature,
            user_handle=given.response.user_handle,
            challenge=begun.public_key.challenge,
            rp_id=RP_ID,
            origins=[ORIGIN],
            require_user_verification=True,
        )


def _client(device: CtapDevice, pin: str) -> Fido2Client:
    return Fido2Client(device, DefaultClientDataCollector(ORIGIN), Typist(pin))
