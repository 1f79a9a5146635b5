"""What goes into and comes out of verification: expectations, records and verified evidence.

Verified evidence is only ever made by `keyvouch.attestation`. It states what was proved and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import TypeAlias

from cryptography import x509

from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AttestationObject, AuthenticatorData, CollectedClientData

__all__ = [
    "AndroidKeyFacts",
    "AttestationEvidence",
    "AttestationRequirement",
    "CredentialRecord",
    "Facts",
    "PivFacts",
    "TpmFacts",
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
class TpmFacts:
    """What an attestation key certificate says of its TPM (WebAuthn section 8.3.1): TCG vendor, part, firmware."""

    manufacturer: str
    model: str
    version: str


@dataclass(frozen=True, slots=True)
class AndroidKeyFacts:
    """What an Android key attestation says (WebAuthn section 8.4.1): `software`, `tee` or `strongbox`."""

    security_level: str
    version: int


@dataclass(frozen=True, slots=True)
class PivFacts:
    """What a PIV attestation certificate says of the card and the slot. `serial` is None where it is not stated.

    `pin_policy` is `never`, `once` or `always`; `touch_policy` is `never`, `always` or `cached`.
    """

    slot: str
    firmware: str
    serial: int | None
    pin_policy: str
    touch_policy: str
    form_factor: int | None


Facts: TypeAlias = TpmFacts | AndroidKeyFacts | PivFacts


@dataclass(frozen=True, slots=True)
class AttestationEvidence:
    """What an attestation statement proves about the authenticator.

    `anchor` is the name of the trust anchor, empty unless `provenance` is attested. `protection` is where the
    chain says the key lives, `verification` what a set UV flag of this authenticator is worth. `path` is the
    validated certification path, leaf first and without the anchor; `facts` what only this format tells.
    """

    format: str
    provenance: Provenance
    anchor: str = ""
    protection: Protection = Protection.SOFTWARE
    verification: Verification = Verification.SOFTWARE_GATED
    path: tuple[x509.Certificate, ...] = ()
    facts: Facts | None = None


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
        """The model the authenticator claims to be, 16 bytes.

        Proved only by `packed` with a chain, and by `tpm` where the certificate names it too. Everywhere else it is the
        word of the platform or of nobody.
        """
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
