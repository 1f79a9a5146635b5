"""What goes into and comes out of verification: expectations, records and verified evidence.

Verified evidence is only ever made by `keyvouch.attestation`. It states what was proved and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique

from cryptography import x509

from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AttestationObject, AuthenticatorData, CollectedClientData

__all__ = [
    "AttestationEvidence",
    "AttestationRequirement",
    "CredentialRecord",
    "TrustAnchor",
    "VerifiedAssertion",
    "VerifiedRegistration",
    "assurance_of",
]


@unique
class AttestationRequirement(Enum):
    """Whether a registration must prove where its key comes from. A statement that is there is always verified."""

    OPTIONAL = "optional"
    """No attestation and self attestation are good too."""
    TRUSTED = "trusted"
    """Only a chain to one of the anchors will do."""


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """A certificate that is trusted to vouch for authenticators. `name` is what policy and assurance call it."""

    name: str
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class AttestationEvidence:
    """What an attestation statement proves about the authenticator.

    `anchor` is the name of the trust anchor, empty unless `provenance` is attested. `protection` is where the
    chain says the key lives, `verification` what a set UV flag of this authenticator is worth.
    """

    format: str
    provenance: Provenance
    anchor: str = ""
    protection: Protection = Protection.SOFTWARE
    verification: Verification = Verification.SOFTWARE_GATED


@dataclass(frozen=True, slots=True)
class VerifiedRegistration:
    """A registration that passed every check of `verify_registration`."""

    client_data: CollectedClientData
    attestation_object: AttestationObject
    attestation: AttestationEvidence

    @property
    def authenticator_data(self) -> AuthenticatorData:
        """The authenticator data inside the attestation object."""
        return self.attestation_object.authenticator_data

    @property
    def credential_id(self) -> CredentialId:
        """The id of the new credential, 1 to 1023 bytes."""
        return self.attestation_object.attested.credential_id

    @property
    def public_key(self) -> CoseKey:
        """The public key of the new credential."""
        return self.attestation_object.attested.public_key

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm of the new credential."""
        return self.public_key.algorithm

    @property
    def aaguid(self) -> bytes:
        """The model the authenticator claims to be, 16 bytes. Proved only if `attestation` is attested."""
        return self.attestation_object.attested.aaguid

    @property
    def sign_count(self) -> int:
        """The signature counter at registration."""
        return self.authenticator_data.sign_count

    @property
    def user_verified(self) -> bool:
        """The UV flag at registration."""
        return self.authenticator_data.user_verified

    @property
    def backup_eligible(self) -> bool:
        """The BE flag, to be stored for good."""
        return self.authenticator_data.backup_eligible

    @property
    def backup_state(self) -> bool:
        """The BS flag at registration."""
        return self.authenticator_data.backup_state


def assurance_of(evidence: VerifiedRegistration) -> Assurance:
    """Derive the assurance of a new key from its verified registration.

    With a trusted chain, protection and the worth of a set UV flag are what the attestation proves. Without one
    the key counts as software, and a set UV flag as a gate in software.
    """
    attestation = evidence.attestation
    if attestation.provenance is Provenance.ATTESTED:
        protection, verification = attestation.protection, attestation.verification
    else:
        protection, verification = Protection.SOFTWARE, Verification.SOFTWARE_GATED
    proved = Assurance(protection, verification, attestation.provenance, attestation.anchor)
    return proved.in_ceremony(user_verified=evidence.user_verified)


@dataclass(frozen=True, slots=True)
class CredentialRecord:
    """What a relying party stores of a credential (WebAuthn Level 3 section 4, credential record)."""

    credential_id: CredentialId
    public_key: CoseKey
    sign_count: int
    user_handle: bytes
    backup_eligible: bool


@dataclass(frozen=True, slots=True)
class VerifiedAssertion:
    """An assertion that passed every check of `verify_assertion`. Store `sign_count` in the same transaction."""

    credential_id: CredentialId
    client_data: CollectedClientData
    authenticator_data: AuthenticatorData

    @property
    def sign_count(self) -> int:
        """The new signature counter."""
        return self.authenticator_data.sign_count

    @property
    def user_verified(self) -> bool:
        """The UV flag of this ceremony."""
        return self.authenticator_data.user_verified

    @property
    def backup_state(self) -> bool:
        """The BS flag of this ceremony."""
        return self.authenticator_data.backup_state
