"""Judgement of authenticator models by what is reported about their status.

Doubt is resolved against the authenticator: a report that warns applies where it is not known whether it does, one
that certifies does not. An unknown word is a warning.

What is not here: whether the metadata is authentic (`keyvouch.attestation.metadata_blob`), and the anchors of models
that are accepted (`keyvouch.attestation.metadata_anchors`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import IntEnum, unique
from typing import Final

from cryptography import x509

from keyvouch.attestation.metadata import (
    AuthenticatorStatus,
    MetadataEntry,
    StatusReport,
)
from keyvouch.attestation.subject_key import public_key_bits
from keyvouch.errors import EvidenceError, Reason, UsageError

__all__ = [
    "CertificationLevel",
    "MetadataPolicy",
    "StatusVerdict",
    "check_status",
    "judge_status",
]


@unique
class CertificationLevel(IntEnum):
    """Certification by FIDO, rising. `FIDO_CERTIFIED`, the word of old, is level 1 (section 3.1.4)."""

    NOT_CERTIFIED = 0
    L1 = 1
    L1_PLUS = 2
    L2 = 3
    L2_PLUS = 4
    L3 = 5
    L3_PLUS = 6


LEVELS: Final[Mapping[str, CertificationLevel]] = {
    AuthenticatorStatus.NOT_FIDO_CERTIFIED: CertificationLevel.NOT_CERTIFIED,
    AuthenticatorStatus.FIDO_CERTIFIED: CertificationLevel.L1,
    AuthenticatorStatus.FIDO_CERTIFIED_L1: CertificationLevel.L1,
    AuthenticatorStatus.FIDO_CERTIFIED_L1_PLUS: CertificationLevel.L1_PLUS,
    AuthenticatorStatus.FIDO_CERTIFIED_L2: CertificationLevel.L2,
    AuthenticatorStatus.FIDO_CERTIFIED_L2_PLUS: CertificationLevel.L2_PLUS,
    AuthenticatorStatus.FIDO_CERTIFIED_L3: CertificationLevel.L3,
    AuthenticatorStatus.FIDO_CERTIFIED_L3_PLUS: CertificationLevel.L3_PLUS,
}
"""What each word about certification is worth. A self-assertion certifies nothing and takes nothing away."""

REFUSED: Final = frozenset(
    {
        AuthenticatorStatus.REVOKED,
        AuthenticatorStatus.RETIRED,
        AuthenticatorStatus.ATTESTATION_KEY_COMPROMISE,
        AuthenticatorStatus.USER_VERIFICATION_BYPASS,
        AuthenticatorStatus.USER_KEY_REMOTE_COMPROMISE,
        AuthenticatorStatus.USER_KEY_PHYSICAL_COMPROMISE,
    }
)
"""The words after which a model is not accepted, unless a policy says otherwise."""


@dataclass(frozen=True, slots=True)
class MetadataPolicy:
    """Which models are accepted. Statuses are words as published.

    A word that is in none of the two sets and not one of `AuthenticatorStatus` is refused; `ignored_statuses` lets
    such words pass, and known ones too. `minimum_certification` None asks for no certification.
    """

    refused_statuses: frozenset[str] = REFUSED
    ignored_statuses: frozenset[str] = frozenset()
    minimum_certification: CertificationLevel | None = None

    def __post_init__(self) -> None:
        if both := self.refused_statuses & self.ignored_statuses:
            raise UsageError(f"A policy refuses and ignores {sorted(both)[0]}.", fix="Name each status once.")

    def refuses(self, status: str) -> bool:
        """Whether a report with this word is a warning that counts."""
        is_known = status in set(AuthenticatorStatus)
        return status in self.refused_statuses or not (is_known or status in self.ignored_statuses)


@dataclass(frozen=True, slots=True)
class StatusVerdict:
    """Whether a model is accepted, and why. `report` decided it, None where it was no single one.

    `warnings` are reports to tell an administrator of that do not decide: an update, or a certificate that is
    compromised and not the one in question.
    """

    accepted: bool
    reason: str
    report: StatusReport | None = None
    warnings: tuple[StatusReport, ...] = ()


def judge_status(
    entry: MetadataEntry,
    *,
    policy: MetadataPolicy,
    instant: datetime,
    version: int | None = None,
    certificates: Collection[x509.Certificate] | None = None,
) -> StatusVerdict:
    """Judge a model by its reports (sections 3.1.3 and 3.1.4).

    `instant` is aware. `version` is the firmware version of the authenticator, None where it is not proved;
    `certificates` are those of its validated path and the anchor's, None where they are not known.

    In this order: a report that is refused and applies decides; then a version below the lowest that its maker trusts;
    then there has to be a report at all; then the certification has to be high enough. A report counts from its
    effective date on (UTC), without a date always. One about a compromised attestation key that names certificates
    applies to paths with their keys only, in these certificates or others. One about an earlier version than the
    lowest trusted one does not apply to an authenticator that is known to have at least that, unless it is a
    revocation.
    """
    day = _day(instant)
    lowest = entry.statement.authenticator_version if entry.statement else None
    effective = [r for r in entry.status_reports if r.effective_date is None or r.effective_date <= day]
    refused = [report for report in effective if policy.refuses(report.status)]
    applying = [report for report in refused if _applies(report, version, lowest, certificates)]
    warnings = tuple(r for r in effective if r in refused or r.status == AuthenticatorStatus.UPDATE_AVAILABLE)
    if applying:
        return StatusVerdict(False, f"Its status is {applying[0].status}.", applying[0], warnings)
    if version is not None and lowest is not None and version < lowest:
        return StatusVerdict(False, f"Its version {version} is older than {lowest}.", None, warnings)
    if not effective:
        return StatusVerdict(False, "Nothing is reported about its status.")
    return _judge_certification(effective, policy, day, lowest if version is None else version, warnings)


def check_status(
    entry: MetadataEntry,
    *,
    policy: MetadataPolicy,
    instant: datetime,
    version: int | None = None,
    certificates: Collection[x509.Certificate] | None = None,
) -> StatusVerdict:
    """Judge a model as `judge_status` does. Raises `EvidenceError` with `AUTHENTICATOR_STATUS` if it is refused."""
    verdict = judge_status(entry, policy=policy, instant=instant, version=version, certificates=certificates)
    if not verdict.accepted:
        status = verdict.report.status if verdict.report else ""
        raise EvidenceError(
            Reason.AUTHENTICATOR_STATUS,
            f"Authenticators of this model are not accepted. {verdict.reason}",
            fix="Use an authenticator of another model, or update its firmware.",
            metadata={"model": entry.name, "status": status},
        )
    return verdict


def _applies(
    report: StatusReport,
    version: int | None,
    lowest: int | None,
    certificates: Collection[x509.Certificate] | None,
) -> bool:
    """Whether a warning is about the authenticator in question, as far as anybody knows."""
    if report.status == AuthenticatorStatus.REVOKED:
        return True
    if report.status == AuthenticatorStatus.ATTESTATION_KEY_COMPROMISE and report.certificates:
        named = {public_key_bits(certificate) for certificate in report.certificates}
        return certificates is None or not named.isdisjoint(map(public_key_bits, certificates))
    if version is None or lowest is None or report.authenticator_version is None:
        return True
    return not report.authenticator_version < lowest <= version


def _judge_certification(
    effective: list[StatusReport],
    policy: MetadataPolicy,
    day: date,
    version: int | None,
    warnings: tuple[StatusReport, ...],
) -> StatusVerdict:
    """Compare the certification that is in force with the least the policy accepts."""
    reports = [report for report in effective if _certifies(report, day, version)]
    decisive = min(_latest(reports), key=lambda report: LEVELS[report.status], default=None)
    level = LEVELS[decisive.status] if decisive else CertificationLevel.NOT_CERTIFIED
    if policy.minimum_certification is not None and level < policy.minimum_certification:
        return StatusVerdict(False, "Its certification is too low.", decisive, warnings)
    return StatusVerdict(True, "Nothing is reported against it.", decisive, warnings)


def _certifies(report: StatusReport, day: date, version: int | None) -> bool:
    """Whether a report about certification holds for the authenticator in question, beyond doubt."""
    if report.status not in LEVELS:
        return False
    if LEVELS[report.status] is CertificationLevel.NOT_CERTIFIED:
        return True
    if report.certificates or (report.sunset_date is not None and report.sunset_date < day):
        return False
    return report.authenticator_version is None or (version is not None and report.authenticator_version <= version)


def _latest(reports: list[StatusReport]) -> list[StatusReport]:
    """The reports of the last date, and those without one: nobody knows whether they are later."""
    last = max((r.effective_date for r in reports if r.effective_date is not None), default=None)
    return [report for report in reports if report.effective_date in (last, None)]


def _day(instant: datetime) -> date:
    if instant.tzinfo is None:
        raise UsageError("The instant of judgement has no time zone.", fix="Pass an aware datetime.")
    return instant.astimezone(UTC).date()
