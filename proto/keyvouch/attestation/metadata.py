"""What FIDO metadata says about authenticators, as types (FIDO Metadata Service 3.0 and 3.1, section 3.1).

    verify   bytes to Metadata           keyvouch.attestation.metadata_blob
    parse    payload to Metadata         keyvouch.attestation.metadata_payload, called by verify alone
    decide   entry to verdict, anchors   keyvouch.attestation.metadata_policy, metadata_anchors

What is said here is what the makers of authenticators say of themselves, and what FIDO adds about their status. It is
not here whether it is believed. Members that nobody judges by, such as icons, are not kept.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from enum import StrEnum, unique

from cryptography import x509

__all__ = [
    "AuthenticatorStatus",
    "Metadata",
    "MetadataEntry",
    "MetadataStatement",
    "RejectedEntry",
    "StatusReport",
    "model_name",
]


@unique
class AuthenticatorStatus(StrEnum):
    """The words of section 3.1.4. A report keeps the word it has; one that is not here is an unknown status."""

    NOT_FIDO_CERTIFIED = "NOT_FIDO_CERTIFIED"
    SELF_ASSERTION_SUBMITTED = "SELF_ASSERTION_SUBMITTED"
    FIDO_CERTIFIED = "FIDO_CERTIFIED"
    FIDO_CERTIFIED_L1 = "FIDO_CERTIFIED_L1"
    FIDO_CERTIFIED_L1_PLUS = "FIDO_CERTIFIED_L1plus"
    FIDO_CERTIFIED_L2 = "FIDO_CERTIFIED_L2"
    FIDO_CERTIFIED_L2_PLUS = "FIDO_CERTIFIED_L2plus"
    FIDO_CERTIFIED_L3 = "FIDO_CERTIFIED_L3"
    FIDO_CERTIFIED_L3_PLUS = "FIDO_CERTIFIED_L3plus"
    FIPS140_CERTIFIED_L1 = "FIPS140_CERTIFIED_L1"
    FIPS140_CERTIFIED_L2 = "FIPS140_CERTIFIED_L2"
    FIPS140_CERTIFIED_L3 = "FIPS140_CERTIFIED_L3"
    FIPS140_CERTIFIED_L4 = "FIPS140_CERTIFIED_L4"
    USER_VERIFICATION_BYPASS = "USER_VERIFICATION_BYPASS"
    ATTESTATION_KEY_COMPROMISE = "ATTESTATION_KEY_COMPROMISE"
    USER_KEY_REMOTE_COMPROMISE = "USER_KEY_REMOTE_COMPROMISE"
    USER_KEY_PHYSICAL_COMPROMISE = "USER_KEY_PHYSICAL_COMPROMISE"
    UPDATE_AVAILABLE = "UPDATE_AVAILABLE"
    RETIRED = "RETIRED"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True)
class StatusReport:
    """One report about a model (section 3.1.3). `status` is the word as published, known or not.

    `effective_date` and `sunset_date` are None where the report has none. `certificates` are the ones it is limited to
    (`certificate`, and `batchCertificate` of 3.1), `authenticator_version` the version it relates to.
    """

    status: str
    effective_date: date | None = None
    authenticator_version: int | None = None
    certificates: tuple[x509.Certificate, ...] = ()
    sunset_date: date | None = None


@dataclass(frozen=True, slots=True)
class MetadataStatement:
    """What the maker says of a model (FIDO Metadata Statement 3.0, section 3). Words are those of the FIDO registry.

    `authenticator_version` is the lowest firmware version that can be trusted. `user_verification` is a list of
    alternatives, each of methods that are used together. `description` is fit for display: at most 200 characters,
    all printable.
    """

    description: str
    protocol_family: str
    authenticator_version: int
    attestation_types: frozenset[str]
    key_protection: frozenset[str]
    matcher_protection: frozenset[str]
    user_verification: tuple[tuple[str, ...], ...]
    attestation_roots: tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """One model (section 3.1.1), named either by its AAGUID (16 bytes) or by the identifiers of its attestation keys.

    A key identifier has 20 bytes: SHA-1 of the subject public key (RFC 5280 section 4.2.1.2 method 1).
    """

    aaguid: bytes | None
    key_ids: frozenset[bytes]
    status_reports: tuple[StatusReport, ...]
    time_of_last_status_change: date
    statement: MetadataStatement | None

    @property
    def models(self) -> tuple[bytes, ...]:
        """Every model of the entry: its AAGUID, or its key identifiers in ascending order."""
        return tuple(sorted(self.key_ids)) if self.aaguid is None else (self.aaguid,)

    @property
    def name(self) -> str:
        """What the entry is called: that of its first model."""
        return model_name(self.models[0])


@dataclass(frozen=True, slots=True)
class RejectedEntry:
    """An entry that nothing good is believed of. `position` counts from zero; `model` is as published, or empty.

    So that no warning is lost with it: `models` is every model that it may be about (16 bytes an AAGUID, 20 a key
    identifier), however they are spelled, and `statuses` every word that is reported in it, whatever its date.
    """

    position: int
    model: str
    why: str
    models: frozenset[bytes] = frozenset()
    statuses: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Metadata:
    """A verified BLOB (section 3.1.6). Every model occurs in one entry at most.

    `number` rises with every release; the caller stores it, and hands it in the next time. `next_update` is the day by
    which there is a new release. `ignored` counts the entries of UAF authenticators, which are not for WebAuthn.
    """

    number: int
    next_update: date
    entries: tuple[MetadataEntry, ...]
    rejected: tuple[RejectedEntry, ...]
    ignored: int

    def find(self, *, aaguid: bytes, key_ids: Collection[bytes] = ()) -> MetadataEntry | None:
        """Return the entry of a model, the one of its AAGUID first. A lookup: a claimed AAGUID proves nothing."""
        by_aaguid = (entry for entry in self.entries if entry.aaguid == aaguid)
        by_key_id = (entry for entry in self.entries if not entry.key_ids.isdisjoint(key_ids))
        return next(by_aaguid, None) or next(by_key_id, None)


def model_name(model: bytes) -> str:
    """Return what a model is called in policies: `mds:` and the AAGUID as a UUID, or the key identifier in hex."""
    digits = model.hex()
    if len(model) == 16:
        digits = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return f"mds:{digits}"
