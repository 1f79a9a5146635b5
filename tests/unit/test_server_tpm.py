"""The server's own parts about TPMs: its settings, its transcripts, what policy says, what a health report means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch import cbor
from keyvouch.attestation.tpm_health import VerifiedHealth
from keyvouch.attestation.tpm_structures import TpmClock
from keyvouch.errors import KeyvouchError, MalformedError, Reason, RefusedError, UnavailableError
from keyvouch.ids import DeviceId, RegistrationId, TenantId, UserId
from keyvouch_server.config import FILE, ServerConfig, load_config
from keyvouch_server.domain.health import accepted, decide_health, heard, judge_report
from keyvouch_server.domain.model import DeviceTpm, Health
from keyvouch_server.domain.policy import HealthPolicy, Policy, decide_accounts, decide_tenant
from keyvouch_server.domain.policy_check import check_policy
from keyvouch_server.ek_trust import TpmSettings, load_settings
from keyvouch_server.keyring import Keyring
from keyvouch_server.ports import EndorsedTpm
from keyvouch_server.use_cases.tpm_ceremony import (
    PreparedTpm,
    TpmGrant,
    draw_ceremony_key,
    read_transcript,
    seal_ceremony_key,
)
from support.endorsement_forge import root
from support.sample_records import DEVICE_TPM
from support.tpm_forge import attestation_key, ec_key
from support.tpm_stage import AUTHORITY

SERVER = """[server]
public_listen = "127.0.0.1:1"
device_listen = "127.0.0.1:2"
hosts = ["localhost"]
device_endpoint = "localhost:2"
rp_id = "localhost"
issuer = "https://localhost"
"""


# The table [tpm]


def loaded(folder: Path, table: str) -> ServerConfig:
    (folder / FILE).write_text(SERVER + table, encoding="utf-8")
    return load_config(folder)


def test_makers_beside_those_in_the_wheel_come_from_a_folder(tmp_path: Path):
    assert loaded(tmp_path, "").tpm == TpmSettings()
    assert loaded(tmp_path, "[tpm]\n").tpm == TpmSettings()
    config = loaded(tmp_path, '[tpm]\nendorsement_trust = "makers"\nunregistered_manufacturers = ["id:00001014"]\n')
    assert config.tpm == TpmSettings(tmp_path / "makers", frozenset({"id:00001014"}))
    (tmp_path / "makers").mkdir()
    (tmp_path / "makers" / "Own.pem").write_bytes(root().certificate.public_bytes(Encoding.PEM))
    wheel, both = load_settings(TpmSettings()), load_settings(config.tpm)
    assert {anchor.name for anchor in both.anchors} - {anchor.name for anchor in wheel.anchors} == {"tpm-ek:Own"}
    assert (wheel.manufacturers, both.manufacturers) == (frozenset(), frozenset({"id:00001014"}))
    assert len(wheel.anchors) > 10


@pytest.mark.parametrize(
    "table",
    [
        "tpm = 1\n",
        "[[tpm]]\n",
        "[tpm]\nother = 1\n",
        "[tpm]\nendorsement_trust = 1\n",
        '[tpm]\nunregistered_manufacturers = "id:00001014"\n',
        '[tpm]\nunregistered_manufacturers = ["00001014"]\n',
        '[tpm]\nunregistered_manufacturers = ["id:0000101"]\n',
        '[tpm]\nunregistered_manufacturers = ["id:ffffffff"]\n',
        "[tpm]\nunregistered_manufacturers = [1]\n",
    ],
)
def test_a_table_that_is_not_quite_right_is_refused(tmp_path: Path, table: str):
    text = table + SERVER if table.startswith("tpm") else SERVER + table
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(KeyvouchError) as refused:
        load_config(tmp_path)
    assert (refused.value.reason, bool(refused.value.fix)) == (Reason.CONFIGURATION, True)


def test_a_folder_that_is_not_there_keeps_the_server_from_starting(tmp_path: Path):
    with pytest.raises(KeyvouchError) as refused:
        load_settings(TpmSettings(tmp_path / "missing"))
    assert refused.value.reason is Reason.CONFIGURATION


# Transcripts


def keyring() -> Keyring:
    return Keyring(ec_key(1), bytes(32), None, AUTHORITY)  # type: ignore[arg-type] # no device is certified here


@pytest.mark.parametrize("algorithm", [-7, -35, -257])
def test_a_ceremony_key_is_sealed_for_one_registration(algorithm: int):
    keys, mine = keyring(), RegistrationId("reg_a")
    key = draw_ceremony_key([-8, algorithm, -7])
    begun = seal_ceremony_key(key, 3, keys=keys, registration_id=mine, token="kve_mine")
    read = read_transcript(begun.encode())
    assert read == begun
    assert begun.open(keys, mine, "kve_mine").private_numbers() == key.private_numbers()
    for other, token in ((RegistrationId("reg_b"), "kve_mine"), (mine, "kve_other"), (mine, "")):
        with pytest.raises(InvalidTag):
            begun.open(keys, other, token)
    assert begun.sealed_key.hex() not in repr(begun)
    assert isinstance(key, rsa.RSAPrivateKey if algorithm == -257 else ec.EllipticCurvePrivateKey)


def test_a_key_for_no_algorithm_that_is_known():
    with pytest.raises(MalformedError) as refused:
        draw_ceremony_key([-8, -36, -37])
    assert refused.value.reason is Reason.UNSUPPORTED


AREA = attestation_key(ec_key(2))
PREPARED = PreparedTpm(
    ceremony_key=AREA,
    pin_limit=3,
    request=b"r" * 32,
    grant=TpmGrant(*(bytes([n]) for n in range(6))),
    attestation_key=AREA,
    certificate=b"c",
    handle=0x01800001,
    activation=b"a" * 32,
    endorsement_key=AREA,
    endorsement_certificates=(b"1", b"2"),
    tpm=EndorsedTpm("id:4E544300", "model", "version", "anchor"),
)


@pytest.mark.parametrize("prepared", [PREPARED, replace(PREPARED, tpm=None, certificate=b"")])
def test_a_transcript_comes_back_equal_and_tells_no_secret(prepared: PreparedTpm):
    assert read_transcript(prepared.encode()) == prepared
    assert repr(prepared.activation) not in repr(prepared)


@pytest.mark.parametrize(
    "change",
    [
        {2: "3"},
        {2: True},
        {4: "r"},
        {5: [b"1"]},
        {5: b"1"},
        {5: [1, 2, 3, 4, 5, 6]},
        {6: b"no public area"},
        {11: {}},
        {11: [1]},
        {12: ["one"]},
        {12: [1, 2, 3, 4]},
        {13: 0},
        {3: b"sealed"},
    ],
)
def test_a_transcript_that_is_not_one_of_ours(change: dict[int, Any]):
    document: Any = cbor.decode(PREPARED.encode(), max_depth=2)
    for encoded in (cbor.encode({**document, **change}), b"\xff", cbor.encode([1]), cbor.encode({1: bytes(AREA)})):
        with pytest.raises(UnavailableError) as refused:
            read_transcript(encoded)
        assert refused.value.reason is Reason.STORE_UNAVAILABLE


# Policy


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("registration", {"accounts_per_device": 0}),
        ("registration", {"accounts_per_device": 21}),
        ("registration", {"pin_tries": 1}),
        ("registration", {"pin_tries": 11}),
        ("health", {"max_age_minutes": 4}),
        ("health", {"max_age_minutes": 43201}),
        ("health", {"pcrs": ()}),
        ("health", {"pcrs": (16,)}),
        ("health", {"pcrs": (0, 23)}),
        ("health", {"pcrs": (7, 0)}),
        ("health", {"pcrs": (0, 0)}),
        ("health", {"pcrs": (-1,)}),
    ],
)
def test_what_policy_cannot_say_of_tpms(part: str, changes: dict[str, Any]):
    policy = Policy()
    check_policy(policy)
    with pytest.raises(MalformedError) as refused:
        check_policy(replace(policy, **{part: replace(getattr(policy, part), **changes)}))
    assert refused.value.metadata["field"] == f"{part}.{next(iter(changes))}"


def test_the_bounds_of_what_it_can_say():
    policy = Policy()
    for part, changes in (
        ("registration", {"accounts_per_device": 20, "pin_tries": 10}),
        ("registration", {"accounts_per_device": 1, "pin_tries": 2}),
        ("health", {"max_age_minutes": 5, "pcrs": tuple(n for n in range(23) if n != 16)}),
        ("health", {"max_age_minutes": 43200, "pcrs": (22,)}),
    ):
        changed: Any = replace(policy, **{part: replace(getattr(policy, part), **changes)})
        assert Policy.load(check_policy(changed).document()) == changed


def test_ps17_decisions():
    mine, others = TenantId("ten_a"), [UserId("usr_b"), UserId("usr_c")]
    decide_tenant(mine, [])
    decide_tenant(mine, [mine, mine])
    with pytest.raises(RefusedError):
        decide_tenant(mine, [mine, TenantId("ten_b")])
    policy = replace(Policy(), registration=replace(Policy().registration, accounts_per_device=2))
    decide_accounts(policy, [])
    decide_accounts(policy, others[:1])
    with pytest.raises(RefusedError) as refused:
        decide_accounts(policy, others)
    assert refused.value.metadata == {"limit": "2"}


# Health


ROW = heard(
    replace(
        DEVICE_TPM, health=Health.UNKNOWN, reported_at=0, findings="[]", pcr_values="{}", device_id=DeviceId("dev_a")
    ),
    TpmClock(1000, 5, 1, safe=True),
    0x0007_0002_0004_0001,
)


def said(clock: int = 2000, resets: int = 5, restarts: int = 1, *, safe: bool = True) -> VerifiedHealth:
    return VerifiedHealth(TpmClock(clock, resets, restarts, safe), 0x0007_0002_0004_0001, {7: b"\x07" * 32}, None)


def after(row: DeviceTpm, report: VerifiedHealth, now: int = 100) -> DeviceTpm:
    return replace(row, **judge_report(row, report, now=now).changes())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("report", "state"),
    [
        (said(), Health.GOOD),
        (said(1000), Health.GOOD),
        (said(999), Health.FAILED),
        (said(resets=4), Health.FAILED),
        (said(resets=4, restarts=9), Health.FAILED),
        (said(restarts=0), Health.FAILED),
        (said(resets=6, restarts=0), Health.GOOD),
        (said(1, resets=6, restarts=0), Health.FAILED),
        (said(1, resets=6, restarts=0, safe=False), Health.GOOD),
        (said(1, restarts=2, safe=False), Health.GOOD),
        (said(1, safe=False), Health.FAILED),
        (said(2000, resets=4, safe=False), Health.FAILED),
    ],
)
def test_a_clock_goes_forward_but_after_a_power_cut(report: VerifiedHealth, state: Health):
    assert judge_report(ROW, report, now=100).state is state


def test_a_register_that_policy_adds_is_taken_as_it_is_first_seen():
    row = after(ROW, said())
    more = replace(said(3000), pcr_values={0: b"\0" * 32, 7: b"\x07" * 32})
    assert judge_report(row, more, now=100).state is Health.GOOD
    row = after(row, more)
    other = replace(said(4000), pcr_values={0: b"\1" * 32})
    assert judge_report(row, other, now=100).codes == ("pcr_changed",)


def test_what_was_accepted_once_is_no_finding_and_what_is_new_is():
    row = after(ROW, replace(said(), firmware_version=0x0007_0002_0003_0000))
    assert row.health is Health.DRIFTED
    row = replace(row, **accepted(row))  # type: ignore[arg-type]
    again = replace(said(3000), firmware_version=0x0007_0002_0003_0000)
    assert judge_report(row, again, now=100).state is Health.GOOD
    lying = judge_report(row, replace(again), now=100, log_trouble="It does not lead to the quote.")
    assert (lying.state, lying.codes) == (Health.DRIFTED, ("event_log",))
    back = judge_report(row, said(4000), now=100)
    assert back.codes == ("firmware_changed",)


@pytest.mark.parametrize("health", [Health.UNKNOWN, Health.GOOD, Health.FAILED])
def test_nothing_but_a_drift_can_be_accepted(health: Health):
    with pytest.raises(RefusedError) as refused:
        accepted(replace(ROW, health=health))
    assert refused.value.metadata == {"health": health.value}


@pytest.mark.parametrize(
    ("row", "fit"),
    [
        (None, True),
        (replace(ROW, anchor=""), True),
        (ROW, False),
        (replace(ROW, health=Health.GOOD, reported_at=1000), True),
        (replace(ROW, health=Health.DRIFTED, reported_at=1000), True),
        (replace(ROW, health=Health.FAILED, reported_at=1000), False),
        (replace(ROW, health=Health.GOOD, reported_at=1), False),
        (replace(ROW, health=Health.DRIFTED, reported_at=0), False),
    ],
)
def test_which_health_stands(row: DeviceTpm | None, fit: bool):
    policy = HealthPolicy(required=True, max_age_minutes=10)
    decide_health(row, replace(policy, required=False), now=1599)
    if fit:
        decide_health(row, policy, now=1599)
        return
    with pytest.raises(RefusedError) as refused:
        decide_health(row, policy, now=1599)
    assert refused.value.reason is Reason.DEVICE_HEALTH
