"""A model is judged by its reports, and doubt counts against it."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from keyvouch.attestation.metadata import AuthenticatorStatus, MetadataEntry, MetadataStatement, StatusReport
from keyvouch.attestation.metadata_policy import (
    LEVELS,
    REFUSED,
    CertificationLevel,
    MetadataPolicy,
    StatusVerdict,
    check_status,
    judge_status,
)
from keyvouch.errors import EvidenceError, Reason, UsageError
from support.metadata_forge import AAGUID, AAGUID_TEXT, INSTANT, MAKER, ROOT, SIGNER, renewed

POLICY = MetadataPolicy()
DAY = timedelta(days=1)
TODAY = INSTANT.date()
CERTIFIED = StatusReport("FIDO_CERTIFIED_L1", date(2025, 1, 1))
UPDATE = StatusReport("UPDATE_AVAILABLE", date(2025, 1, 1))


def model(*reports: StatusReport, lowest: int | None = 5) -> MetadataEntry:
    """A model with these reports, whose lowest trusted version is `lowest`; None for one without a statement."""
    statement = MetadataStatement("", "fido2", lowest or 0, frozenset(), frozenset(), frozenset(), (), ())
    return MetadataEntry(AAGUID, frozenset(), reports, TODAY, None if lowest is None else statement)


def verdict(*reports: StatusReport, lowest: int | None = 5, **changes: Any) -> StatusVerdict:
    """The verdict over a model; `check_status` has to agree with it."""
    expected: dict[str, Any] = {"policy": POLICY, "instant": INSTANT} | changes
    entry = model(*reports, lowest=lowest)
    judged = judge_status(entry, **expected)
    assert judged.reason
    if judged.accepted:
        assert check_status(entry, **expected) == judged
        return judged
    with pytest.raises(EvidenceError) as caught:
        check_status(entry, **expected)
    assert caught.value.reason is Reason.AUTHENTICATOR_STATUS
    status = judged.report.status if judged.report else ""
    assert caught.value.metadata == {"model": f"mds:{AAGUID_TEXT}", "status": status}
    return judged


def is_accepted(*reports: StatusReport, **changes: Any) -> bool:
    return verdict(*reports, **changes).accepted


def test_a_certified_model_is_accepted() -> None:
    assert verdict(CERTIFIED) == StatusVerdict(True, verdict(CERTIFIED).reason, CERTIFIED)


@pytest.mark.parametrize("status", AuthenticatorStatus)
def test_every_known_status_alone_and_after_a_certification(status: AuthenticatorStatus) -> None:
    report = StatusReport(status.value, date(2025, 6, 1))
    assert (
        is_accepted(report)
        is is_accepted(CERTIFIED, report)
        is is_accepted(report, CERTIFIED)
        is (status not in REFUSED)
    )
    if status in REFUSED:
        assert verdict(CERTIFIED, report).report == report


def test_the_statuses_that_are_refused() -> None:
    assert {status.value for status in REFUSED} == {
        "REVOKED",
        "RETIRED",
        "ATTESTATION_KEY_COMPROMISE",
        "USER_VERIFICATION_BYPASS",
        "USER_KEY_REMOTE_COMPROMISE",
        "USER_KEY_PHYSICAL_COMPROMISE",
    }


@pytest.mark.parametrize("status", ["UNHEARD_OF", "revoked", "FIDO_CERTIFIED_L1PLUS", " FIDO_CERTIFIED"])
def test_an_unknown_status_is_refused_unless_a_policy_ignores_it(status: str) -> None:
    report = StatusReport(status)
    assert verdict(CERTIFIED, report).report == report
    assert is_accepted(CERTIFIED, report, policy=MetadataPolicy(ignored_statuses=frozenset({status})))


def test_a_policy_names_the_statuses_it_refuses() -> None:
    revoked, bypass = StatusReport("REVOKED"), StatusReport("USER_VERIFICATION_BYPASS")
    lenient = MetadataPolicy(refused_statuses=frozenset({"REVOKED", "UPDATE_AVAILABLE", "LATER"}))
    assert is_accepted(CERTIFIED, bypass, policy=lenient)
    assert not is_accepted(CERTIFIED, revoked, policy=lenient)
    assert not is_accepted(CERTIFIED, UPDATE, policy=lenient)
    assert not is_accepted(CERTIFIED, StatusReport("LATER"), policy=lenient)
    with pytest.raises(UsageError):
        MetadataPolicy(ignored_statuses=frozenset({"REVOKED"}))


def test_a_report_counts_from_its_day_on() -> None:
    revoked = StatusReport("REVOKED", TODAY)
    assert not is_accepted(CERTIFIED, revoked)
    assert not is_accepted(CERTIFIED, StatusReport("REVOKED"))
    assert is_accepted(CERTIFIED, StatusReport("REVOKED", TODAY + DAY))
    assert not is_accepted(CERTIFIED, StatusReport("REVOKED", TODAY + DAY), instant=INSTANT + DAY)


def test_the_day_is_that_of_utc() -> None:
    east = timezone(timedelta(hours=14))
    revoked = StatusReport("REVOKED", date(2026, 8, 1))
    assert is_accepted(CERTIFIED, revoked, instant=datetime(2026, 8, 1, 13, 59, tzinfo=east))
    assert not is_accepted(CERTIFIED, revoked, instant=datetime(2026, 8, 1, 14, tzinfo=east))
    with pytest.raises(UsageError):
        judge_status(model(CERTIFIED), policy=POLICY, instant=datetime(2026, 8, 1))  # noqa: DTZ001


def test_the_day_is_not_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    revoked = StatusReport("REVOKED", date(2026, 8, 2))
    with monkeypatch.context() as patch:
        for zone in ("ABC-14", "ABC+12"):
            patch.setenv("TZ", zone)
            time.tzset()
            assert is_accepted(CERTIFIED, revoked, instant=datetime(2026, 8, 1, 23, 59, tzinfo=UTC))
            assert not is_accepted(CERTIFIED, revoked, instant=datetime(2026, 8, 2, tzinfo=UTC))
    time.tzset()


def test_nothing_reported_is_not_enough() -> None:
    assert verdict().accepted is False
    assert not is_accepted(StatusReport("FIDO_CERTIFIED_L1", TODAY + DAY))
    assert is_accepted(StatusReport("FIDO_CERTIFIED_L1", TODAY))


# Compromised attestation keys


def test_a_compromised_attestation_key_concerns_its_paths() -> None:
    limited = StatusReport("ATTESTATION_KEY_COMPROMISE", certificates=(MAKER.certificate, ROOT.certificate))
    assert not is_accepted(CERTIFIED, limited)
    assert not is_accepted(CERTIFIED, limited, certificates=[SIGNER.certificate, ROOT.certificate])
    assert not is_accepted(CERTIFIED, limited, certificates=[MAKER.certificate])
    passed = verdict(CERTIFIED, limited, certificates=[SIGNER.certificate])
    assert (passed.accepted, passed.warnings) == (True, (limited,))
    assert is_accepted(CERTIFIED, limited, certificates=[])


def test_a_compromised_attestation_key_concerns_every_edition_of_its_certificate() -> None:
    edition, other = renewed(MAKER), ROOT.issue("Maker Root", key=SIGNER.key).certificate
    limited = StatusReport("ATTESTATION_KEY_COMPROMISE", certificates=(ROOT.certificate, edition))
    assert edition != MAKER.certificate
    assert not is_accepted(CERTIFIED, limited, certificates=[SIGNER.certificate, MAKER.certificate])
    assert is_accepted(CERTIFIED, limited, certificates=[other])  # of the same name


def test_a_compromise_without_a_certificate_concerns_all() -> None:
    assert not is_accepted(CERTIFIED, StatusReport("ATTESTATION_KEY_COMPROMISE"), certificates=[])


@pytest.mark.parametrize("status", sorted(REFUSED - {AuthenticatorStatus.ATTESTATION_KEY_COMPROMISE}))
def test_a_certificate_limits_no_other_warning(status: str) -> None:
    assert not is_accepted(CERTIFIED, StatusReport(status, certificates=(MAKER.certificate,)), certificates=[])


# Versions

BYPASS = StatusReport("USER_VERIFICATION_BYPASS", authenticator_version=3)


@pytest.mark.parametrize(
    ("version", "lowest", "accepted"),
    [(None, 5, False), (5, 5, True), (6, 5, True), (4, 4, True), (3, 3, False), (6, 3, False), (6, None, False)],
)
def test_a_fixed_weakness_does_not_concern_later_versions(
    version: int | None, lowest: int | None, accepted: bool
) -> None:
    assert is_accepted(CERTIFIED, BYPASS, version=version, lowest=lowest) is accepted


def test_a_weakness_of_no_version_concerns_all() -> None:
    assert not is_accepted(CERTIFIED, StatusReport("USER_VERIFICATION_BYPASS"), version=9)


def test_a_revocation_concerns_every_version() -> None:
    assert not is_accepted(CERTIFIED, StatusReport("REVOKED", authenticator_version=3), version=9)


def test_a_version_below_the_lowest_trusted_one_is_refused() -> None:
    assert is_accepted(CERTIFIED, version=5)
    assert is_accepted(CERTIFIED, version=0, lowest=None)
    refused = verdict(CERTIFIED, UPDATE, version=4)
    assert (refused.accepted, refused.report, refused.warnings) == (False, None, (UPDATE,))
    assert verdict(BYPASS, version=4).report == BYPASS


# Warnings


def test_an_update_is_a_warning() -> None:
    passed = verdict(CERTIFIED, UPDATE)
    assert (passed.accepted, passed.report, passed.warnings) == (True, CERTIFIED, (UPDATE,))
    assert verdict(CERTIFIED, StatusReport("UPDATE_AVAILABLE", TODAY + DAY)).warnings == ()


def test_a_refusal_lists_its_warnings() -> None:
    later = StatusReport("REVOKED", date(2025, 1, 2))
    refused = verdict(CERTIFIED, UPDATE, BYPASS, later)
    assert (refused.report, refused.warnings) == (BYPASS, (UPDATE, BYPASS, later))


# Certification


def level(*reports: StatusReport, **changes: Any) -> CertificationLevel:
    """The highest certification that a policy may ask for."""
    accepted = [
        one
        for one in CertificationLevel
        if is_accepted(*reports, policy=MetadataPolicy(minimum_certification=one), **changes)
    ]
    assert accepted == [one for one in CertificationLevel if one <= accepted[-1]]
    return accepted[-1]


def test_the_levels_rise() -> None:
    assert list(CertificationLevel) == list(range(7))
    assert [LEVELS[word] for word in LEVELS] == [0, 1, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("status", LEVELS)
def test_every_word_about_certification(status: str) -> None:
    assert level(StatusReport(status)) is LEVELS[status]


def test_no_certification() -> None:
    for status in ("SELF_ASSERTION_SUBMITTED", "FIPS140_CERTIFIED_L3", "UPDATE_AVAILABLE"):
        assert level(StatusReport(status)) is CertificationLevel.NOT_CERTIFIED
        assert is_accepted(StatusReport(status))


def at(status: str, year: int | None, **changes: Any) -> StatusReport:
    return StatusReport(status, date(year, 1, 1) if year else None, **changes)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([at("FIDO_CERTIFIED", 2019), at("FIDO_CERTIFIED_L2", 2020)], CertificationLevel.L2),
        ([at("FIDO_CERTIFIED_L2", 2020), at("FIDO_CERTIFIED", 2019)], CertificationLevel.L2),
        ([at("FIDO_CERTIFIED_L2", 2019), at("FIDO_CERTIFIED", 2020)], CertificationLevel.L1),
        ([at("FIDO_CERTIFIED_L2", 2019), at("NOT_FIDO_CERTIFIED", 2020)], CertificationLevel.NOT_CERTIFIED),
        ([at("NOT_FIDO_CERTIFIED", 2019), at("FIDO_CERTIFIED_L3", 2020)], CertificationLevel.L3),
        ([at("FIDO_CERTIFIED_L2", 2020), at("FIDO_CERTIFIED_L1plus", 2020)], CertificationLevel.L1_PLUS),
        ([at("FIDO_CERTIFIED_L1plus", 2020), at("FIDO_CERTIFIED_L2", 2020)], CertificationLevel.L1_PLUS),
        ([at("FIDO_CERTIFIED_L2", 2020), at("FIDO_CERTIFIED", None)], CertificationLevel.L1),
        ([at("FIDO_CERTIFIED_L2", 2020), at("FIDO_CERTIFIED_L3", None)], CertificationLevel.L2),
        ([at("FIDO_CERTIFIED_L2", 2020), at("SELF_ASSERTION_SUBMITTED", 2021)], CertificationLevel.L2),
        ([at("FIDO_CERTIFIED_L2", 2020), at("FIDO_CERTIFIED_L3", 2030)], CertificationLevel.L2),
    ],
)
def test_the_last_certification_is_in_force(reports: list[StatusReport], expected: CertificationLevel) -> None:
    assert level(*reports) is expected


def test_a_certification_ends_after_its_last_day() -> None:
    assert level(at("FIDO_CERTIFIED_L2", 2020, sunset_date=TODAY)) is CertificationLevel.L2
    ended = at("FIDO_CERTIFIED_L2", 2020, sunset_date=TODAY - DAY)
    assert level(ended) is CertificationLevel.NOT_CERTIFIED
    assert level(ended, at("FIDO_CERTIFIED", 2019)) is CertificationLevel.L1
    assert level(at("NOT_FIDO_CERTIFIED", 2021, sunset_date=TODAY - DAY), at("FIDO_CERTIFIED", 2019)) == 0


def test_a_certification_of_a_batch_is_not_one_of_the_model() -> None:
    batch = at("FIDO_CERTIFIED_L2", 2020, certificates=(MAKER.certificate,))
    assert level(batch) is CertificationLevel.NOT_CERTIFIED
    assert level(batch, certificates=[MAKER.certificate]) is CertificationLevel.NOT_CERTIFIED


@pytest.mark.parametrize(
    ("certified", "lowest", "version", "expected"),
    [
        (5, 5, None, CertificationLevel.L2),
        (6, 5, None, CertificationLevel.NOT_CERTIFIED),
        (6, 5, 6, CertificationLevel.L2),
        (6, 5, 7, CertificationLevel.L2),
        (7, 5, 6, CertificationLevel.NOT_CERTIFIED),
        (0, None, None, CertificationLevel.NOT_CERTIFIED),
        (1, None, 1, CertificationLevel.L2),
    ],
)
def test_a_certification_holds_from_its_version_on(
    certified: int, lowest: int | None, version: int | None, expected: CertificationLevel
) -> None:
    report = at("FIDO_CERTIFIED_L2", 2020, authenticator_version=certified)
    assert level(report, lowest=lowest, version=version) is expected


def test_a_certification_that_is_too_low_is_named() -> None:
    refused = verdict(CERTIFIED, UPDATE, policy=MetadataPolicy(minimum_certification=CertificationLevel.L2))
    assert (refused.accepted, refused.report, refused.warnings) == (False, CERTIFIED, (UPDATE,))
