"""What is asked of an authenticator: the WebAuthn options and the client data of a ceremony, and what must come back.

The client data is ours to the byte: our origin, exactly the challenge given, the relying party of the session.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from fido2.client import ClientDataCollector
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

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_agent.ports import KeyCreation, KeyUse

__all__ = [
    "AgentClientData",
    "CredentialWish",
    "creation_options",
    "inconsistent",
    "origin_for",
    "request_options",
    "require_consistent",
]

PROTECT_POLICY: Final = "userVerificationOptionalWithCredentialIDList"
"""credProtect level 2 (CTAP 2.1 section 12.1)."""
_NEEDED: Final = Flags.UP | Flags.UV
_Options = PublicKeyCredentialCreationOptions | PublicKeyCredentialRequestOptions


@dataclass(frozen=True, slots=True)
class CredentialWish:
    """What kind of credential to make.

    `resident`: discoverable, so that it takes one of the key's few slots. `protect`: credProtect level 2, where the
    authenticator knows it: whoever finds the key is not told which accounts are on it, and the agent still finds out
    silently which of several keys holds a credential that it names. Level 3 would hide that, too; that every signature
    needs user verification is the server's rule and needs no level.
    """

    resident: bool = False
    protect: bool = False


def origin_for(rp_id: str) -> str:
    """The origin the agent writes into client data."""
    return f"keyvouch-agent://{rp_id}"


class AgentClientData(ClientDataCollector):
    """Client data for the relying party of the session, with the agent's own origin."""

    def __init__(self, rp_id: str) -> None:
        self._rp_id = rp_id

    def collect_client_data(self, options: _Options) -> tuple[CollectedClientData, str]:
        """Client data and relying party id, for python-fido2."""
        making = isinstance(options, PublicKeyCredentialCreationOptions)
        kind = CollectedClientData.TYPE.CREATE if making else CollectedClientData.TYPE.GET
        return CollectedClientData.create(kind, options.challenge, origin_for(self._rp_id)), self._rp_id


def creation_options(creation: KeyCreation, wish: CredentialWish) -> PublicKeyCredentialCreationOptions:
    """For authenticatorMakeCredential, with user verification and direct attestation."""
    kind = PublicKeyCredentialType.PUBLIC_KEY
    resident = ResidentKeyRequirement.REQUIRED if wish.resident else ResidentKeyRequirement.DISCOURAGED
    return PublicKeyCredentialCreationOptions(
        rp=PublicKeyCredentialRpEntity(name=creation.rp_name or creation.rp_id, id=creation.rp_id),
        user=PublicKeyCredentialUserEntity(
            name=creation.user_name, id=creation.user_id, display_name=creation.user_name
        ),
        challenge=creation.challenge,
        pub_key_cred_params=[PublicKeyCredentialParameters(type=kind, alg=alg) for alg in creation.algorithms],
        exclude_credentials=[_descriptor(credential) for credential in creation.exclude],
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=resident, user_verification=UserVerificationRequirement.REQUIRED
        ),
        attestation=AttestationConveyancePreference.DIRECT,
        extensions={"credentialProtectionPolicy": PROTECT_POLICY} if wish.protect else None,
    )


def request_options(use: KeyUse) -> PublicKeyCredentialRequestOptions:
    """For authenticatorGetAssertion, with user verification, for one credential."""
    return PublicKeyCredentialRequestOptions(
        challenge=use.challenge,
        rp_id=use.rp_id,
        allow_credentials=[_descriptor(use.credential_id)],
        user_verification=UserVerificationRequirement.REQUIRED,
    )


def require_consistent(data: AuthenticatorData, rp_id: str) -> None:
    """Raise `DeviceError(DEVICE_FAILED)` for an answer about another server, or without presence and verification."""
    if data.rp_id_hash != hashlib.sha256(rp_id.encode()).digest():
        raise inconsistent("another server's name")
    if data.flags & _NEEDED != _NEEDED:
        raise inconsistent("no sign that it verified its user")


def inconsistent(what: str) -> DeviceError:
    """An answer that is not what was asked for."""
    return DeviceError(
        Reason.DEVICE_FAILED, f"The authenticator answered with {what}.", fix="Use another authenticator."
    )


def _descriptor(credential: CredentialId) -> PublicKeyCredentialDescriptor:
    return PublicKeyCredentialDescriptor(type=PublicKeyCredentialType.PUBLIC_KEY, id=credential)
