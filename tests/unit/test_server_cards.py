"""Card authorities of a server: their tables, their files, lists that are replaced; what a policy asks of a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch.assurance import Protection, Verification
from keyvouch.attestation.card_certificate import NameMatch
from keyvouch.errors import KeyvouchError, Reason, RefusedError
from keyvouch_server import config
from keyvouch_server.bootstrap import init
from keyvouch_server.card_authorities import CardFiles, read_settings
from keyvouch_server.domain.policy import Policy, RegistrationPolicy, decide_card_pin
from keyvouch_server.rpc.policy_messages import policy_from, policy_message
from keyvouch_server.use_cases.opening import _untold
from support.card_certificates import BADGES, GOOD, HARDWARE_POLICY, LOGON, ORGANISATION, badge, crl_der
from support.certificate_forge import INSTANT, NOT_AFTER, Issued, intermediate, rsa_key
from support.live_server import configuration

TABLE: Mapping[str, Any] = {"name": "Example Badges", "file": "badges.pem", "match": "upn"}
FULL: Mapping[str, Any] = {
    **TABLE,
    "tenant": "Example",
    "protection": "smartcard",
    "verification": "hardware_gated",
    "crls": ["root.crl", "badges.crl"],
    "required_eku": [LOGON.dotted_string],
    "required_policies": [HARDWARE_POLICY.dotted_string],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, ORGANISATION)
    (tmp_path / "root.crl").write_bytes(crl_der(ORGANISATION))
    (tmp_path / "badges.crl").write_bytes(crl_der(BADGES))
    return tmp_path


def write(folder: Path, *certificates: Issued) -> None:
    pem = b"".join(one.certificate.public_bytes(Encoding.PEM) for one in certificates)
    (folder / "badges.pem").write_bytes(pem)


def files(folder: Path, *tables: Mapping[str, Any], instant: datetime = INSTANT, taken: Any = ()) -> CardFiles:
    return CardFiles(read_settings(list(tables), folder=folder), instant=instant, taken=taken)


def test_no_table_is_no_authority(tmp_path: Path):
    assert read_settings(None, folder=tmp_path) == ()
    found = files(tmp_path)
    assert found.trust.authorities == ()
    assert not found.may_change
    found.refresh()


def test_a_whole_table_and_a_short_one(folder: Path):
    found = files(folder, FULL, {**TABLE, "name": "Short", "match": "subject_cn"})
    (tenant, full), (every, short) = found.trust.authorities
    assert (tenant, every) == ("example", "")
    assert (full.match, full.protection, full.verification) == (
        NameMatch.UPN,
        Protection.SMARTCARD,
        Verification.HARDWARE_GATED,
    )
    assert (full.purposes, full.policies) == ({LOGON}, {HARDWARE_POLICY})
    assert [len(authority.revocation) for authority in (full, short)] == [2, 0]
    assert short.assurance.text() == "software/software_gated/certified/Short"
    assert found.trust.of_tenant("example") == (full, short)
    assert found.trust.of_tenant("other") == (short,)
    assert found.trust.named("Short") is short
    assert found.trust.named("short") is None
    assert found.may_change


@pytest.mark.parametrize(
    "table",
    [
        {**TABLE, "name": ""},
        {**TABLE, "name": 1},
        {**TABLE, "match": "name"},
        {**TABLE, "match": ["upn"]},
        {**TABLE, "protection": "card"},
        {**TABLE, "verification": True},
        {**TABLE, "tenant": 1},
        {**TABLE, "tenant": ""},
        {**TABLE, "tenant": " "},
        {**TABLE, "tenant": "x" * 300},
        {**TABLE, "crls": "root.crl"},
        {**TABLE, "crls": [""]},
        {**TABLE, "required_eku": ["logon"]},
        {**TABLE, "required_policies": [1]},
        {**TABLE, "anchor": "x"},
        {name: value for name, value in TABLE.items() if name != "match"},
        {name: value for name, value in TABLE.items() if name != "file"},
    ],
    ids=str,
)
def test_a_table_that_is_none(folder: Path, table: Mapping[str, Any]):
    assert files(folder, TABLE).trust.named("Example Badges")
    with unusable():
        files(folder, table)


def unusable() -> Any:
    return pytest.raises(KeyvouchError, check=lambda e: e.reason is Reason.CONFIGURATION and bool(e.fix))


def test_tables_that_do_not_go_together(folder: Path):
    for tables in ("x", {"name": "x"}, ["x"]):
        with unusable():
            read_settings(tables, folder=folder)
    with unusable():
        files(folder, TABLE, {**TABLE, "match": "email"})
    with unusable():
        files(folder, TABLE, taken={"Example Badges"})
    assert files(folder, TABLE, taken={"Other"}).trust.authorities


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("badges.pem", None),
        ("badges.pem", b""),
        ("badges.pem", b"no certificate"),
        ("badges.crl", None),
        ("badges.crl", b"no list"),
    ],
)
def test_a_file_that_cannot_be_used_keeps_the_server_from_starting(folder: Path, name: str, content: bytes | None):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with unusable() as refusal:
        files(folder, FULL)
    assert str(folder / name) in refusal.value.message


@pytest.mark.parametrize("certificate", [GOOD, intermediate(ORGANISATION, key=rsa_key(1024))])
def test_a_certificate_under_which_nothing_could_be_valid(folder: Path, certificate: Issued):
    write(folder, ORGANISATION, certificate)
    with unusable():
        files(folder, TABLE)


def test_what_is_out_of_date_is_told_and_no_reason_to_stop(folder: Path, caplog: pytest.LogCaptureFixture):
    files(folder, FULL)
    assert not caplog.records
    files(folder, FULL, instant=NOT_AFTER.replace(year=NOT_AFTER.year + 1))
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "card authority Example Badges",
        "card authorities",
        "card authorities",
    ]


def test_a_promise_for_whatever_an_authority_issues_is_told(folder: Path, caplog: pytest.LogCaptureFixture):
    bare = {name: value for name, value in FULL.items() if not name.startswith("required")}
    for less in ({"required_eku": FULL["required_eku"]}, {"required_policies": FULL["required_policies"]}, TABLE):
        files(folder, {**(bare if less is not TABLE else {}), **less})
    assert not caplog.records
    for promised in ("protection", "verification"):
        files(folder, {**TABLE, promised: FULL[promised]})
    assert [record.message.partition(":")[0] for record in caplog.records] == ["card authority Example Badges"] * 2


def test_a_list_that_is_replaced_counts_and_one_that_is_broken_does_not(folder: Path, caplog: pytest.LogCaptureFixture):
    found = files(folder, FULL)

    def revoked() -> int:
        return sum(len(one.revoked) for _, authority in found.trust.authorities for one in authority.revocation)

    found.refresh()
    assert revoked() == 0
    put(folder / "badges.crl", crl_der(BADGES, GOOD))
    found.refresh()
    assert revoked() == 1
    for broken in (b"no list", None):
        put(folder / "badges.crl", broken)
        caplog.clear()
        for _ in range(2):
            found.refresh()
        assert revoked() == 1
        assert len(caplog.records) == 1
    put(folder / "badges.crl", crl_der(BADGES, GOOD, badge()))
    found.refresh()
    assert revoked() == 2


def test_a_list_that_is_too_long_is_not_read_to_its_end(folder: Path, caplog: pytest.LogCaptureFixture):
    found = files(folder, FULL)
    with (folder / "badges.crl").open("wb") as endless:
        endless.truncate(2**40)
    found.refresh()
    assert len(caplog.records) == 1
    with unusable():
        files(folder, FULL)


def put(path: Path, content: bytes | None) -> None:
    """Replace a file as administrators' tools do, or take it away."""
    if content is None:
        path.unlink()
        return
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def test_the_tables_stand_in_the_configuration(folder: Path):
    data = folder / "data"
    init(data, configuration(1), "example", "admin")
    text = (data / config.FILE).read_text()
    (data / config.FILE).write_text(
        f'{text}\n[[card_authorities]]\nname = "Badges"\nfile = "{folder / "badges.pem"}"\nmatch = "email"\n'
    )
    (found,) = config.load_config(data).cards
    assert (found.name, found.match) == ("Badges", NameMatch.EMAIL)
    assert CardFiles((found,), instant=datetime.now(UTC)).trust.named("Badges")


# What a stranger is told


def test_whoever_only_names_a_user_hears_one_thing_of_a_badge_whatever_is_wrong_with_it():
    told = [
        _untold(RefusedError(reason, f"It is {reason}.", fix="Do.", metadata={"detail": "validity", "match": "upn"}))
        for reason in (Reason.CARD_CERTIFICATE, Reason.CARD_USER, Reason.WEAK_KEY_ROCA)
    ]
    assert {(one.reason, one.message, one.fix, str(one.metadata)) for one in told} == {
        (Reason.CARD_CERTIFICATE, told[0].message, told[0].fix, "{}")
    }
    health = RefusedError(Reason.DEVICE_HEALTH, "It is not well.", fix="Do.")
    assert _untold(health) is health


# Policy


def test_a_policy_that_wants_the_pin_before_each_signature_a7():
    lax = Policy()
    strict = replace(lax, registration=replace(RegistrationPolicy(), card_pin_always=True))
    for found in ("", "always", "once", "never", "unproved"):
        decide_card_pin(lax, found)
    for found in ("", "always"):
        decide_card_pin(strict, found)
    for found in ("once", "never", "unproved"):
        with pytest.raises(RefusedError) as refusal:
            decide_card_pin(strict, found)
        assert refusal.value.reason is Reason.ASSURANCE_TOO_LOW
        assert refusal.value.metadata["found"] == f"pin_policy={found}"
    assert Policy.load(strict.document()) == strict
    assert policy_from(policy_message(strict)) == strict
