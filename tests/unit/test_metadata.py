"""The payload of a metadata BLOB: strict where it is known, patient where it is not, and one bad entry stays alone."""

from __future__ import annotations

import base64
import json
from datetime import date
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch.attestation import metadata_payload
from keyvouch.attestation.metadata import (
    AuthenticatorStatus,
    Metadata,
    MetadataEntry,
    RejectedEntry,
    StatusReport,
    model_name,
)
from keyvouch.attestation.metadata_payload import parse_payload
from keyvouch.errors import MalformedError, Reason
from support.metadata_forge import (
    AAGUID,
    AAGUID_TEXT,
    MAKER,
    ROOT,
    der64,
    entry,
    new_root,
    payload,
    report,
    statement,
    u2f_entry,
)

OTHER = "0132d110-bf4e-4208-a403-ab4f5f12efe5"
KEY_ID, OTHER_KEY_ID = "0a" * 20, "ff" * 20
DER = MAKER.certificate.public_bytes(Encoding.DER)
KEY_IDS = "attestationCertificateKeyIdentifiers"


def parse(*entries: Any, **changes: Any) -> Metadata:
    return parse_payload(json.dumps(payload(*entries, **changes)).encode())


def parsed(item: Any) -> MetadataEntry:
    """The one entry of a payload that holds it alone."""
    metadata = parse(item)
    assert metadata.rejected == ()
    assert metadata.ignored == 0
    (found,) = metadata.entries
    return found


def is_rejected(item: Any) -> bool:
    """Whether an entry is rejected, and a good one beside it is not."""
    metadata = parse(entry(aaguid=OTHER), item)
    assert [good.name for good in metadata.entries] == [f"mds:{OTHER}"]
    if metadata.ignored:
        return False
    (rejected,) = metadata.rejected
    return rejected.position == 1 and bool(rejected.why)


# The document


def test_a_payload() -> None:
    metadata = parse(entry(), no=0, nextUpdate="2026-12-31")
    assert (metadata.number, metadata.next_update, metadata.ignored) == (0, date(2026, 12, 31), 0)
    assert parse(entry(), legalHeader=None, unknown={"a": 1}).number == 15
    assert parse(entry(), entries=[]).entries == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"no": None},
        {"no": -1},
        {"no": 15.0},
        {"no": True},
        {"no": "15"},
        {"nextUpdate": None},
        {"nextUpdate": ""},
        {"nextUpdate": 20260901},
        {"nextUpdate": "20260901"},
        {"nextUpdate": "2026-W10-1"},
        {"nextUpdate": "2026-9-1"},
        {"nextUpdate": "2026-02-29"},
        {"nextUpdate": "2026-09-01\n"},
        {"nextUpdate": "2026-09-01T00:00:00Z"},
        {"nextUpdate": "2026-09-\N{ARABIC-INDIC DIGIT ZERO}\N{ARABIC-INDIC DIGIT ONE}"},
        {"nextUpdate": "0000-00-00"},
        {"nextUpdate": "9999-12-32"},
        {"entries": None},
        {"entries": {}},
        {"entries": "x"},
    ],
)
def test_a_payload_that_is_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedError) as caught:
        parse(entry(), **changes)
    assert caught.value.reason is Reason.METADATA_MALFORMED


def test_a_payload_with_a_name_twice() -> None:
    text = json.dumps(payload())
    assert parse_payload(text.encode()).number == 15
    for twice in (
        text.replace('"no": 15', '"no": 15, "no": 15'),
        text.replace('"status":', '"status": "REVOKED", "status":'),
    ):
        assert twice != text
        with pytest.raises(MalformedError):
            parse_payload(twice.encode())


def test_the_limit_of_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_payload, "MAX_ENTRIES", 2)
    assert parse(entry(), entry(aaguid=OTHER)).rejected == ()
    with pytest.raises(MalformedError) as caught:
        parse(entry(), entry(aaguid=OTHER), {})
    assert caught.value.reason is Reason.METADATA_MALFORMED


# Entries


def test_an_entry() -> None:
    found = parsed(entry(unknown=1, rogueListURL="https://maker.example", biometricStatusReports=[{}]))
    assert (found.aaguid, found.key_ids, found.models) == (AAGUID, frozenset(), (AAGUID,))
    assert found.name == model_name(AAGUID) == f"mds:{AAGUID_TEXT}"
    assert found.time_of_last_status_change == date(2025, 1, 1)
    said = found.statement
    assert said
    assert (said.description, said.protocol_family, said.authenticator_version) == ("Example Key", "fido2", 5)
    assert said.attestation_types == {"basic_full"}
    assert said.key_protection == {"hardware", "secure_element"}
    assert said.matcher_protection == {"on_chip"}
    assert said.user_verification == (("none",), ("presence_internal", "passcode_external"))
    assert said.attestation_roots == (MAKER.certificate,)


def test_an_entry_of_u2f() -> None:
    found = parsed(u2f_entry(OTHER_KEY_ID, KEY_ID))
    assert found.aaguid is None
    assert found.models == (bytes.fromhex(KEY_ID), bytes.fromhex(OTHER_KEY_ID))
    assert found.name == f"mds:{KEY_ID}"


def test_an_entry_without_a_statement() -> None:
    assert parsed(entry(metadataStatement=None)).statement is None


def test_an_entry_of_uaf_is_ignored() -> None:
    metadata = parse({"aaid": "1234#5678", "statusReports": 0}, entry(), {"aaid": 0})
    assert (metadata.ignored, len(metadata.entries), metadata.rejected) == (2, 1, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"aaguid": None},
        {"aaguid": ""},
        {"aaguid": 1},
        {"aaguid": AAGUID_TEXT.upper()},
        {"aaguid": "{" + AAGUID_TEXT + "}"},
        {"aaguid": "urn:uuid:" + AAGUID_TEXT},
        {"aaguid": AAGUID_TEXT.replace("-", "")},
        {"aaguid": AAGUID_TEXT + "\n"},
        {"aaguid": AAGUID_TEXT[:-1]},
        {"aaguid": "g" + AAGUID_TEXT[1:]},
        {"aaguid": AAGUID_TEXT.replace("2", "\N{ARABIC-INDIC DIGIT TWO}")},
        {"aaguid": "00000000-0000-0000-0000-000000000000"},
        {KEY_IDS: [KEY_ID]},
        {KEY_IDS: []},
        {"aaid": "1234#5678"},
        {"statusReports": None},
        {"statusReports": {}},
        {"statusReports": [1]},
        {"statusReports": [report(), None]},
        {"timeOfLastStatusChange": None},
        {"timeOfLastStatusChange": "2025-13-01"},
        {"metadataStatement": 1},
        {"metadataStatement": []},
        {"metadataStatement": "e30"},
    ],
)
def test_an_entry_that_is_rejected(changes: dict[str, Any]) -> None:
    assert not is_rejected({"aaid": "1234#5678"})
    assert is_rejected(entry(**changes))


@pytest.mark.parametrize("item", [None, 1, "x", [], {}, [entry()]])
def test_what_is_no_entry(item: Any) -> None:
    assert is_rejected(item)


@pytest.mark.parametrize(
    "changes",
    [
        {KEY_IDS: []},
        {KEY_IDS: KEY_ID},
        {KEY_IDS: {KEY_ID: 1}},
        {KEY_IDS: [1]},
        {KEY_IDS: [KEY_ID, OTHER_KEY_ID.upper()]},
        {KEY_IDS: [KEY_ID[:-2]]},
        {KEY_IDS: [KEY_ID + "00"]},
        {KEY_IDS: [KEY_ID, KEY_ID]},
        {"metadataStatement": statement()},
        {"metadataStatement": statement(protocolFamily="uaf")},
        {"aaid": "1234#5678"},
    ],
)
def test_an_entry_of_u2f_that_is_rejected(changes: dict[str, Any]) -> None:
    assert not parse(u2f_entry(KEY_ID)).rejected
    assert is_rejected(u2f_entry(KEY_ID) | changes)


def test_what_a_list_of_rejected_entries_says() -> None:
    metadata = parse(
        1, entry(aaguid="x\ny"), u2f_entry(KEY_ID, "x"), entry(aaguid="z" * 500), {"aaid": "1#2", "aaguid": 5}
    )
    assert [item.position for item in metadata.rejected] == [0, 1, 2, 3, 4]
    assert [item.model for item in metadata.rejected] == ["", "x?y", f"['{KEY_ID}', 'x']", "z" * 200, "5"]
    assert parse({"aaid": "1#2", KEY_IDS: 1}).rejected[0].model == "1"


@pytest.mark.parametrize(
    "changes",
    [
        {"aaguid": "\ud800"},
        {"statusReports": [report("\ud800")]},
        {"metadataStatement": statement(description="\ud800")},
        {"\udfff": 1},
    ],
)
def test_half_of_a_character_is_nowhere(changes: dict[str, Any]) -> None:
    """What is read can be shown and written anywhere; half of a character has no encoding."""
    assert parse(entry(unknown="\U0001f600"))
    with pytest.raises(MalformedError) as caught:
        parse(entry(**changes))
    assert caught.value.reason is Reason.METADATA_MALFORMED
    assert str(caught.value).encode()


def test_what_a_rejected_entry_may_be_about() -> None:
    text, model, key_id = AAGUID_TEXT, AAGUID, bytes.fromhex(KEY_ID)
    unread = statement(description=None)
    for item, models in (
        (entry(metadataStatement=unread), {model}),
        (entry(aaguid=text.upper()), {model}),
        (entry(aaguid=text.replace("-", "")), {model}),
        (entry(aaguid=[text]), {model}),
        (entry(metadataStatement=statement(aaguid=OTHER)), {model, bytes.fromhex(OTHER.replace("-", ""))}),
        (u2f_entry(KEY_ID.upper()), {key_id}),
        (u2f_entry(KEY_ID, OTHER_KEY_ID, metadataStatement=unread), {key_id, bytes.fromhex(OTHER_KEY_ID)}),
        (entry(aaguid=None, **{KEY_IDS: KEY_ID}), {key_id}),
        (entry(aaguid=text + "0"), set()),
        (entry(aaguid=text[:-1]), set()),
        (u2f_entry(KEY_ID + "00"), set()),
        (u2f_entry(KEY_ID[2:]), set()),
        (entry(aaguid="00000000-0000-0000-0000-000000000000"), set()),
        (entry(aaguid=7), set()),
        (7, set()),
    ):
        (rejected,) = parse(item).rejected
        assert rejected.models == models


def test_what_a_rejected_entry_warns_of() -> None:
    both = [report("REVOKED", effectiveDate="soon"), report()]
    for reports, statuses in (
        (both, {"REVOKED", "FIDO_CERTIFIED_L1"}),
        ([report("RETIRED", effectiveDate="2999-01-01"), 7], {"RETIRED"}),
        ([{"status": 1}, {"status": None}, {}, "REVOKED"], set()),
        (report("REVOKED"), {"REVOKED"}),
        ("REVOKED", set()),
        ([], set()),
        (None, set()),
    ):
        (rejected,) = parse(entry(statusReports=reports, timeOfLastStatusChange=None)).rejected
        assert rejected.statuses == statuses
    assert [item.statuses for item in parse(7, entry(), entry(statusReports=both)).rejected] == [
        set(),
        {"FIDO_CERTIFIED_L1"},
        {"FIDO_CERTIFIED_L1", "REVOKED"},
    ]


# Contradictions


WARNING = [report("REVOKED")]
BROKEN = [{"status": 1}]


@pytest.mark.parametrize(
    "second",
    [
        entry(),
        entry(statusReports=WARNING),
        entry(statusReports=BROKEN),
        entry(aaguid=AAGUID_TEXT.upper(), statusReports=WARNING),
        entry(aaguid="{" + AAGUID_TEXT + "}", statusReports=WARNING),
        entry(aaguid=OTHER, metadataStatement=statement(aaguid=AAGUID_TEXT)),
        entry(aaguid=None, metadataStatement=statement(aaguid=AAGUID_TEXT)),
        entry(**{KEY_IDS: [KEY_ID]}),
        entry(aaguid=[AAGUID_TEXT]),
        u2f_entry(AAGUID_TEXT),
        entry(aaguid=None, **{KEY_IDS: AAGUID_TEXT}),
    ],
)
def test_a_model_in_two_entries_is_believed_in_neither(second: Any) -> None:
    for both in ((entry(), second), (second, entry())):
        metadata = parse(*both)
        assert metadata.entries == ()
        assert [item.position for item in metadata.rejected] == [0, 1]
    assert len(parse(entry(), u2f_entry(KEY_ID)).entries) == 2


def test_a_key_identifier_in_two_entries() -> None:
    metadata = parse(u2f_entry(KEY_ID, "11" * 20), u2f_entry("22" * 20, KEY_ID), u2f_entry(OTHER_KEY_ID), entry())
    assert [item.name for item in metadata.entries] == [f"mds:{OTHER_KEY_ID}", f"mds:{AAGUID_TEXT}"]
    statements = [
        u2f_entry(KEY_ID),
        u2f_entry("11" * 20, metadataStatement=statement(protocolFamily="u2f", **{KEY_IDS: [KEY_ID]})),
    ]
    assert parse(*statements).entries == ()


def test_a_statement_is_about_the_model_of_its_entry() -> None:
    assert not parse(entry(metadataStatement=statement(aaguid=AAGUID_TEXT))).rejected
    u2f = statement(protocolFamily="u2f")
    assert not parse(u2f_entry(KEY_ID, metadataStatement=u2f | {KEY_IDS: [KEY_ID]})).rejected
    for other in (
        entry(metadataStatement=statement(aaguid="11111111-2222-4333-8444-555555555555")),
        entry(metadataStatement=statement(aaid="1234#5678")),
        entry(metadataStatement=statement(**{KEY_IDS: [KEY_ID]})),
        u2f_entry(KEY_ID, metadataStatement=u2f | {KEY_IDS: [KEY_ID, OTHER_KEY_ID]}),
        u2f_entry(KEY_ID, metadataStatement=u2f | {"aaguid": AAGUID_TEXT}),
    ):
        assert is_rejected(other)


# Statements


@pytest.mark.parametrize(
    "changes",
    [
        {"description": None},
        {"description": ""},
        {"description": ["x"]},
        {"protocolFamily": None},
        {"protocolFamily": "u2f"},
        {"protocolFamily": "FIDO2"},
        {"authenticatorVersion": None},
        {"authenticatorVersion": -1},
        {"authenticatorVersion": "5"},
        {"authenticatorVersion": False},
        {"attestationTypes": None},
        {"attestationTypes": "basic_full"},
        {"attestationTypes": ["basic_full", 15880]},
        {"keyProtection": None},
        {"keyProtection": 10},
        {"keyProtection": [None]},
        {"matcherProtection": None},
        {"matcherProtection": 4},
        {"matcherProtection": [["on_chip"]]},
        {"userVerificationDetails": None},
        {"userVerificationDetails": {}},
        {"userVerificationDetails": [{"userVerificationMethod": "none"}]},
        {"userVerificationDetails": [["none"]]},
        {"userVerificationDetails": [[{}]]},
        {"userVerificationDetails": [[{"userVerificationMethod": 1}]]},
        {"attestationRootCertificates": None},
        {"attestationRootCertificates": der64(MAKER.certificate)},
        {"attestationRootCertificates": [1]},
        {"attestationRootCertificates": [""]},
        {"attestationRootCertificates": ["AAAA"]},
        {"attestationRootCertificates": ["not base64"]},
        {"attestationRootCertificates": ["é"]},
        {"attestationRootCertificates": [der64(MAKER.certificate), "AA=="]},
        {"attestationRootCertificates": ["AB=="]},
        {"attestationRootCertificates": [der64(MAKER.certificate).replace("+", "-").replace("/", "_") + "-_"]},
        {"attestationRootCertificates": ["-----BEGIN CERTIFICATE-----\n" + der64(MAKER.certificate)]},
        {"attestationRootCertificates": [der64(DER + b"\x00")]},
        {"attestationRootCertificates": [der64(DER[:-1])]},
    ],
)
def test_a_statement_that_is_wrong(changes: dict[str, Any]) -> None:
    assert not parse(entry(metadataStatement=statement())).rejected
    assert is_rejected(entry(metadataStatement=statement(**changes)))


def test_a_statement_with_more_than_is_known() -> None:
    found = parsed(
        entry(metadataStatement=statement(icon=5, schema="x", friendlyNames={}, attestationRootCertificates=[]))
    )
    assert found.statement
    assert found.statement.attestation_roots == ()


def test_certificates_with_line_breaks() -> None:
    text = der64(MAKER.certificate)
    folded = "\n".join(text[at : at + 64] for at in range(0, len(text), 64)) + " \r\n"
    found = parsed(entry(metadataStatement=statement(attestationRootCertificates=[folded, der64(ROOT.certificate)])))
    assert found.statement
    assert found.statement.attestation_roots == (MAKER.certificate, ROOT.certificate)


def test_a_certificate_in_another_spelling_of_base64() -> None:
    text = der64(MAKER.certificate)
    for other in (text.rstrip("=") + "===", text[:-4] + "====", text + "AAAA"):
        assert is_rejected(entry(metadataStatement=statement(attestationRootCertificates=[other])))


@pytest.mark.parametrize("pad", [1, 2])
def test_the_bits_of_base64_that_are_not_needed_are_zero(pad: int) -> None:
    """Else one certificate would have several spellings."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    names = (new_root("x" * length).certificate for length in range(1, 60))
    root = next(item for item in names if der64(item).count("=") == pad)
    text = der64(root)
    last = digits.index(text[-pad - 1])
    other = text[: -pad - 1] + digits[last + 1] + "=" * pad
    assert base64.b64decode(other) == base64.b64decode(text)
    assert parsed(entry(metadataStatement=statement(attestationRootCertificates=[text])))
    assert is_rejected(entry(metadataStatement=statement(attestationRootCertificates=[other])))


def test_a_description_is_fit_for_display() -> None:
    found = parsed(entry(metadataStatement=statement(description="a\x1b[31m\ue000\u202e é" + "x" * 300)))
    assert found.statement
    assert found.statement.description == "a?[31m?? é" + "x" * 190


# Status reports


def test_a_status_report() -> None:
    (found,) = parsed(
        entry(
            statusReports=[
                report(
                    "ATTESTATION_KEY_COMPROMISE",
                    authenticatorVersion=0,
                    certificate=der64(MAKER.certificate),
                    batchCertificate=der64(ROOT.certificate),
                    sunsetDate="2027-01-01",
                    url="",
                    fipsRevision="x",
                )
            ]
        )
    ).status_reports
    assert (found.status, found.effective_date) == ("ATTESTATION_KEY_COMPROMISE", date(2025, 1, 1))
    assert (found.authenticator_version, found.sunset_date) == (0, date(2027, 1, 1))
    assert found.certificates == (MAKER.certificate, ROOT.certificate)


def test_a_status_report_with_its_status_alone() -> None:
    members = ("effectiveDate", "authenticatorVersion", "certificate", "batchCertificate", "sunsetDate")
    for item in ({"status": "LATER"}, {"status": "LATER"} | dict.fromkeys(members)):
        (found,) = parsed(entry(statusReports=[item])).status_reports
        assert (found.status, found.effective_date, found.authenticator_version) == ("LATER", None, None)
        assert (found.certificates, found.sunset_date) == ((), None)


def test_no_status_report() -> None:
    assert parsed(entry(statusReports=[])).status_reports == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"status": None},
        {"status": ""},
        {"status": 1},
        {"status": ["REVOKED"]},
        {"effectiveDate": "2025-02-30"},
        {"effectiveDate": 2025},
        {"effectiveDate": ""},
        {"authenticatorVersion": "1"},
        {"authenticatorVersion": -1},
        {"certificate": "x"},
        {"certificate": 1},
        {"batchCertificate": "AAAA"},
        {"sunsetDate": "soon"},
    ],
)
def test_a_status_report_that_is_wrong_drops_its_entry(changes: dict[str, Any]) -> None:
    assert is_rejected(entry(statusReports=[report(), report() | changes]))


# Finding entries


def test_finding_an_entry() -> None:
    metadata = parse(entry(), entry(aaguid=OTHER), u2f_entry(KEY_ID, OTHER_KEY_ID))
    first, second, third = metadata.entries
    key_id = bytes.fromhex(OTHER_KEY_ID)
    assert metadata.find(aaguid=AAGUID) is first
    assert metadata.find(aaguid=bytes.fromhex(OTHER.replace("-", "")), key_ids=[key_id]) is second
    assert metadata.find(aaguid=bytes(16), key_ids=[bytes(20), key_id]) is third
    assert metadata.find(aaguid=bytes(16)) is None
    assert metadata.find(aaguid=bytes(16), key_ids=[bytes(20)]) is None


def test_the_words_of_a_status_are_those_of_the_specification() -> None:
    assert [status.value for status in AuthenticatorStatus] == [
        "NOT_FIDO_CERTIFIED",
        "SELF_ASSERTION_SUBMITTED",
        "FIDO_CERTIFIED",
        "FIDO_CERTIFIED_L1",
        "FIDO_CERTIFIED_L1plus",
        "FIDO_CERTIFIED_L2",
        "FIDO_CERTIFIED_L2plus",
        "FIDO_CERTIFIED_L3",
        "FIDO_CERTIFIED_L3plus",
        "FIPS140_CERTIFIED_L1",
        "FIPS140_CERTIFIED_L2",
        "FIPS140_CERTIFIED_L3",
        "FIPS140_CERTIFIED_L4",
        "USER_VERIFICATION_BYPASS",
        "ATTESTATION_KEY_COMPROMISE",
        "USER_KEY_REMOTE_COMPROMISE",
        "USER_KEY_PHYSICAL_COMPROMISE",
        "UPDATE_AVAILABLE",
        "RETIRED",
        "REVOKED",
    ]


def test_a_report_by_itself_is_limited_to_nothing() -> None:
    assert StatusReport("REVOKED") == StatusReport("REVOKED", None, None, (), None)


def test_an_entry_rejected_for_nothing_known_warns_of_nothing() -> None:
    rejected = RejectedEntry(0, "", "It is no entry.")
    assert (rejected.models, rejected.statuses) == (frozenset(), frozenset())
