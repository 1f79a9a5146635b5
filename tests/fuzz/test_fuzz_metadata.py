"""Whatever bytes come as metadata, they are refused with a reason, or they are the one BLOB that was signed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyvouch import base64url
from keyvouch.attestation.metadata import model_name
from keyvouch.attestation.metadata_anchors import distrust, trust_anchors
from keyvouch.attestation.metadata_blob import verify_metadata_blob
from keyvouch.attestation.metadata_payload import parse_payload
from keyvouch.attestation.metadata_policy import MetadataPolicy
from keyvouch.attestation.metadata_revocation import parse_crl
from keyvouch.attestation.strict_json import read_object
from keyvouch.errors import EvidenceError, MalformedError, Reason
from support.metadata_forge import INSTANT, MAKER, ROOT, blob, entry, expectations, payload, report, u2f_entry
from support.mutations import damaged

GOOD = blob()
PAYLOAD = json.dumps(payload(entry(), u2f_entry("0a" * 20))).encode()
CRL = ROOT.crl(MAKER.certificate)
HEADER = base64url.decode(GOOD.partition(b".")[0].decode())
REASONS = {Reason.METADATA_MALFORMED, Reason.METADATA_UNTRUSTED}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def names_of(members: dict[str, Any]) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(members))


def is_refused(call: Callable[[], object]) -> bool:
    """Whether a call is refused; if it is, for one of the reasons that bytes can have."""
    try:
        call()
    except (MalformedError, EvidenceError) as error:
        return error.reason in REASONS or pytest.fail(f"An unexpected reason: {error.reason}")
    return False


def check_payload(data: bytes) -> None:
    if is_refused(lambda: parse_payload(data)):
        return
    metadata = parse_payload(data)
    anchors = trust_anchors(metadata, policy=MetadataPolicy(), instant=INSTANT)
    models = {model_name(model) for item in metadata.entries for model in item.models}
    assert {anchor.name for anchor in anchors} <= models
    assert all(len(anchor.aaguids) + len(anchor.key_ids) == 1 and anchor.formats for anchor in anchors)
    refused = distrust(metadata, policy=MetadataPolicy(), instant=INSTANT).models
    assert all(item.models <= refused.keys() for item in metadata.rejected if "REVOKED" in item.statuses)
    assert all(len(model) in (16, 20) and any(model) for model in refused)


def test_the_control() -> None:
    assert verify_metadata_blob(GOOD, **expectations()).number == 15
    assert len(parse_payload(PAYLOAD).entries) == 2
    assert parse_crl(CRL).revoked == {MAKER.certificate.serial_number}


@settings(max_examples=300, deadline=None)
@given(damaged(GOOD))
def test_a_damaged_blob_is_refused(data: bytes) -> None:
    assert is_refused(lambda: verify_metadata_blob(data, **expectations()))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80) | damaged(HEADER))
@example(b"")
def test_any_header(data: bytes) -> None:
    signed = blob(header=data)
    assert is_refused(lambda: verify_metadata_blob(signed, **expectations())) or data.startswith(b"{")


@settings(max_examples=300, deadline=None)
@given(damaged(PAYLOAD))
def test_a_damaged_payload(data: bytes) -> None:
    check_payload(data)


@settings(max_examples=200, deadline=None)
@given(names_of(entry()), JSON)
def test_any_member_of_an_entry(name: str, value: Any) -> None:
    check_payload(json.dumps(payload(entry() | {name: value})).encode())


@settings(max_examples=200, deadline=None)
@given(names_of(entry()["metadataStatement"]), JSON)
def test_any_member_of_a_statement(name: str, value: Any) -> None:
    said = entry()["metadataStatement"] | {name: value}
    check_payload(json.dumps(payload(entry(metadataStatement=said))).encode())


@settings(max_examples=200, deadline=None)
@given(names_of(report() | dict.fromkeys(("authenticatorVersion", "certificate", "sunsetDate"))), JSON)
def test_any_member_of_a_report(name: str, value: Any) -> None:
    check_payload(json.dumps(payload(entry(statusReports=[report(), report() | {name: value}]))).encode())


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=10), JSON, max_size=4))
def test_json_there_and_back(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    try:
        assert read_object(text.encode()) == document
    except ValueError:
        assert any(word in text for word in ("NaN", "Infinity")) or any(len(run) > 18 for run in digit_runs(text))


def digit_runs(text: str) -> list[str]:
    return "".join(character if character.isdigit() else " " for character in text).split()


@settings(max_examples=300, deadline=None)
@given(damaged(CRL))
def test_a_damaged_crl(data: bytes) -> None:
    assert is_refused(lambda: verify_metadata_blob(GOOD, **expectations(crls=[data], require_crls=True)))
