"""`keyvouch verify` and what it cannot use: it is named with its place, and everything else is judged."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch_client.evidence.ceremonies import anchors_in, subject_of
from keyvouch_client.evidence.members import Members
from keyvouch_client.evidence.stream import Found, read
from support.certificate_forge import element, resign
from support.certificate_paths import TOP
from support.recorded import (
    KINDS,
    SWTPM,
    Run,
    Vector,
    authenticated,
    certified,
    judge,
    quoted,
    registered,
)
from support.vectors import ROOT as VECTORS


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return partial(judge, capsys, tmp_path)


# Vectors


def missing(kind: str, path: str) -> Vector:
    vector = KINDS[kind]()
    *outer, name = path.split(".")
    inner = vector
    for member in outer:
        inner = inner[member]
    del inner[name]
    return vector


WEBAUTHN_NEEDS = ("policy", "expectedChallenge", "policy.rpId", "policy.origins", "policy.requireUserVerification")
RECORD = ("credentialId", "publicKey", "signCount", "userHandle", "backupEligible")
NEEDS = {
    "registration": (*WEBAUTHN_NEEDS, "response", "policy.allowedAlgs", "policy.attestation"),
    "authentication": (*WEBAUTHN_NEEDS, "response", "stored", *(f"stored.{name}" for name in RECORD)),
    "certify": ("akPublic", "subjectPublic", "attest", "signature", "nonce"),
    "quote": ("akPublic", "attest", "signature", "nonce", "requiredSelection", "pcrValues"),
}


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in NEEDS.items() for path in paths])
def test_a_member_that_is_needed_is_named(run: Run, kind: str, path: str) -> None:
    outcome = run({"vectors": [missing(kind, path), registered()]})
    assert outcome.status == 2
    assert f"The member {path} is missing." in outcome.err
    assert "line 1 vectors[0]" in outcome.err
    assert outcome.only["id"] == registered()["id"]


@pytest.mark.parametrize("name", ["allowCrossOrigin", "topOrigins", "trustAnchorsPem", "now"])
def test_members_of_a_policy_that_may_be_missing(run: Run, name: str) -> None:
    assert run(missing("registration", f"policy.{name}")).status == 0


def test_a_response_without_its_members_is_refused_and_not_unusable(run: Run) -> None:
    vector = registered()
    del vector["response"]["response"]["clientDataJSON"]
    outcome = run(vector | {"response": []}, vector, vector | {"response": None})
    assert [result["reason"] for result in outcome.results] == ["missing_field"] * 3
    assert outcome.status == 1


def policy(**members: object) -> Vector:
    vector = registered()
    vector["policy"] |= members
    return vector


def record(**members: object) -> Vector:
    vector = authenticated()
    vector["stored"] |= members
    return vector


WRONG = {
    "a list as policy": registered() | {"policy": []},
    "challenge with padding": registered() | {"expectedChallenge": "AAAA="},
    "challenge too short": registered() | {"expectedChallenge": "AAAA"},
    "challenge a number": registered() | {"expectedChallenge": 1},
    "no origin": policy(origins=[]),
    "origins one text": policy(origins="https://rp.example"),
    "an origin that is no text": policy(origins=[1]),
    "half a character": policy(rpId="\ud800"),
    "half a character in a list": policy(origins=["\udfff"]),
    "empty rp id": policy(rpId=""),
    "flag as number": policy(requireUserVerification=1),
    "flag as null": policy(allowCrossOrigin=None),
    "algorithms as text": policy(allowedAlgs=["ES256"]),
    "algorithm true": policy(allowedAlgs=[True]),
    "algorithms not a list": policy(allowedAlgs=-7),
    "requirement unknown": policy(attestation="none"),
    "anchor no certificate": policy(trustAnchorsPem=["certificate"]),
    "anchor broken": policy(trustAnchorsPem=["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]),
    "instant without zone": policy(now="2026-08-01T00:00:00"),
    "instant no instant": policy(now="tomorrow"),
    "instant a number": policy(now=1),
    "ceremony unknown": registered() | {"ceremony": "marriage"},
    "kind unknown": certified() | {"kind": "creation"},
    "verdict unknown": registered() | {"expect": "maybe"},
    "reason a number": registered() | {"reason": 1},
    "stored key of no kind": record(publicKey="AAAA"),
    "counter negative": record(signCount=-1),
    "counter true": record(signCount=True),
    "counter a fraction": record(signCount=1.0),
    "hex odd": certified() | {"attest": "abc"},
    "hex with blanks": certified() | {"attest": "ab cd"},
    "hex of other digits": certified() | {"attest": "\u0661\u0661"},
    "nonce empty": certified() | {"nonce": ""},
    "bank unknown": quoted() | {"requiredSelection": {"md5": [0]}},
    "no bank": quoted() | {"requiredSelection": {}},
    "pcr twice": quoted() | {"requiredSelection": {"sha256": [0, 0]}},
    "pcr 24": quoted() | {"requiredSelection": {"sha256": [24]}},
    "pcr negative": quoted() | {"requiredSelection": {"sha256": [-1]}},
    "pcr true": quoted() | {"requiredSelection": {"sha256": [True]}},
    "pcrs none": quoted() | {"requiredSelection": {"sha256": []}},
    "pcrs a number": quoted() | {"requiredSelection": {"sha256": 7}},
    "resettable pcr": quoted() | {"requiredSelection": {"sha256": [16]}},
    "values a list": quoted() | {"pcrValues": []},
    "values of a bank a list": quoted() | {"pcrValues": {"sha256": []}},
    "a value no hex": quoted() | {"pcrValues": {"sha256": {"0": "zz"}}},
    "a value no text": quoted() | {"pcrValues": {"sha256": {"0": 0}}},
    "a name no number": quoted() | {"pcrValues": {"sha256": {"zero": "00"}}},
    "a name of other digits": quoted() | {"pcrValues": {"sha256": {"\u0661": "00"}}},
    "a name of three digits": quoted() | {"pcrValues": {"sha256": {"000": "00"}}},
    "one pcr by two names": quoted() | {"pcrValues": {"sha256": {"0": "00", "00": "00"}}},
    "a literal that calls": quoted() | {"pcrValues": "__import__('os').getpid()"},
    "a literal that is cut": quoted() | {"pcrValues": "{'sha256': "},
    "a literal too deep": quoted() | {"pcrValues": "(" * 30000},
    "a literal too long": quoted() | {"pcrValues": "{}" + " " * 70000},
    "a literal no mapping": quoted() | {"pcrValues": "[1]"},
    "a literal that cannot be hashed": quoted() | {"pcrValues": "{[]: 1}"},
    "a literal with a bank that cannot be compared": quoted() | {"pcrValues": "{1: {}}"},
    "nothing": {},
    "only an id": {"id": "x"},
    "not an object": 7,
    "a list in a list": [],
}


@pytest.mark.parametrize("what", list(WRONG))
def test_a_vector_that_is_written_wrongly(run: Run, what: str) -> None:
    outcome = run([WRONG[what], certified()])
    assert outcome.status == 2
    assert outcome.only["id"] == certified()["id"]
    message, fix = outcome.err.splitlines()
    assert "[0]" in message
    assert message.startswith("keyvouch: ")
    assert message.endswith(".")
    assert fix.strip().endswith(".")


NOT_JSON = {
    "empty": b"",
    "blank": b" \n\n",
    "text": b"hello",
    "no vectors": b'{"vectors": []}',
    "an empty list": b"[]",
    "cut": b'{"id":',
    "a name twice": b'{"id": "a", "id": "b"}',
    "a number of no kind": b"[NaN]",
    "endless digits": b"[" + b"1" * 5000 + b"]",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"id": "\xff"}',
    "not UTF-8 below": b'{"id":\n"\xff"}',
    "UTF-16": "\ufeff[]".encode("utf-16-le"),
}


@pytest.mark.parametrize("what", list(NOT_JSON))
def test_what_is_no_evidence_at_all(run: Run, what: str) -> None:
    outcome = run(NOT_JSON[what], registered())
    assert outcome.status == 2
    assert outcome.only["id"] == registered()["id"]
    assert len(outcome.err.splitlines()) == 2


def test_a_file_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    outcome = run(options=[str(tmp_path / "none.json"), str(tmp_path), "a\0b", str(VECTORS / SWTPM)])
    assert outcome.status == 2
    assert len(outcome.results) == 10
    assert outcome.err.count("cannot be read") == 3
    assert "none.json" in outcome.err


def test_errors_for_programs_name_the_place(run: Run) -> None:
    outcome = run([registered(), {"id": "x"}], options=["--json"])
    error = json.loads(outcome.err)["error"]
    assert (error["kind"], error["reason"]) == ("UsageError", "usage")
    assert error["metadata"]["place"] == "line 1 [1]"
    assert error["metadata"]["id"] == "x"
    assert error["metadata"]["file"].endswith("0.json")


@pytest.mark.parametrize("option", [("--now", "noon"), ("--now", "2026-08-01"), ("--anchors", "none.pem")])
def test_options_that_make_no_sense(run: Run, option: tuple[str, str]) -> None:
    outcome = run(registered(), options=option)
    assert (outcome.status, outcome.out) == (2, "")
    assert option[1] in outcome.err


def test_anchors_that_are_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = tmp_path / "text.pem"
    text.write_text("certificate")
    for path in (tmp_path / "empty", text):
        outcome = run(registered(), options=["--anchors", str(path)])
        assert (outcome.status, outcome.out) == (2, "")


def test_unknown_options_and_profiles(run: Run) -> None:
    assert run(options=["--sever"]).status == 2
    assert run(options=["--profile", "lax"]).status == 2
    assert run(options=["--server", "localhost:1"]).status == 2


# Streams


def found(data: bytes, **options: int) -> list[Found]:
    return list(read(io.BytesIO(data), **options))


def places(data: bytes, **options: int) -> list[tuple[str, object]]:
    return [(item.place, item.value if item.fault is None else "fault") for item in found(data, **options)]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b'{"a": 1}', [("line 1", {"a": 1})]),
        (b'{\n"a": 1}', [("", {"a": 1})]),
        (b'\xef\xbb\xbf{"a": 1}\r\n', [("line 1", {"a": 1})]),
        (b'{"a": 1}\n\n{"a": 2}', [("line 1", {"a": 1}), ("line 3", {"a": 2})]),
        (b'{"a": 1}\n{"a":\n{"a": 3}\n', [("line 1", {"a": 1}), ("line 2", "fault"), ("line 3", {"a": 3})]),
        (b'{"a": 1} {"a": 2}\n', [("line 1", {"a": 1}), ("line 1", {"a": 2})]),
        (b'{"a":\n{"a": 2}\n{"a": 3}', [("line 1", "fault"), ("line 2", {"a": 2}), ("line 3", {"a": 3})]),
        (b'{"a":\n[2]\n', [("line 3", "fault")]),
        (b'{"a":\n}\n{"a": 3}', [("line 2", "fault")]),
        (b'{\n"a": 1}\n{\n"a": 2}', [("", {"a": 1}), ("line 3", {"a": 2})]),
        (b'\n\n{\n"a": 1}\n{"a": 2}', [("", {"a": 1}), ("line 5", {"a": 2})]),
        (b'\n{\n"a" 1}', [("line 3", "fault")]),
        (b'[{"a": 1},\n2]', [("[0]", {"a": 1}), ("[1]", 2)]),
        (b'{"vectors":\n[1]}', [("vectors[0]", 1)]),
        (b'{"vectors": [1]}\n{"vectors": {}}', [("line 1 vectors[0]", 1), ("line 2", {"vectors": {}})]),
        (b'hello\n{"a": 2}', [("line 1", "fault"), ("line 2", {"a": 2})]),
    ],
    ids=str,
)
def test_the_shapes_of_a_stream(data: bytes, wanted: list[tuple[str, object]]) -> None:
    assert places(data) == wanted


def test_a_line_without_end_does_no_harm_to_the_next() -> None:
    long = b'{"a": "' + b"x" * 40 + b'"}'
    data = b'{"a": 1}\n' + long + b'\n{"a": 3}'
    assert places(data, limit=20) == [("line 1", {"a": 1}), ("line 2", "fault"), ("line 3", {"a": 3})]
    assert places(long, limit=20) == [("line 1", "fault")]
    assert places(b'{"a": "45678901234"}\n', limit=21) == [("line 1", {"a": "45678901234"})]
    assert places(b'{"a": "45678901234"}\n', limit=20) == [("line 1", "fault")]


def test_a_document_has_a_limit() -> None:
    data = b'{\n"a": "45678"}'
    assert places(data, limit=len(data)) == [("", {"a": "45678"})]
    assert places(data, limit=len(data) - 1) == [("", "fault")]


def test_members_are_named_with_what_is_around_them() -> None:
    inner = Members({"a": {"b": {}}}).within("a").within("b")
    assert inner.path("c") == "a.b.c"
    assert "c" not in inner


def test_names_that_cannot_be_read_are_shown_as_fingerprints() -> None:
    """A path is valid whatever is in the names above the leaf, as long as they are the same."""

    def nameless(fields: list[bytes]) -> list[bytes]:
        attribute = element(0x30, bytes.fromhex("0603550403"), b"\x02\x01\x05")
        return [*fields[:5], element(0x30, element(0x31, attribute)), *fields[6:]]

    odd = resign(TOP, TOP, nameless).certificate
    with pytest.raises(ValueError, match=r"."):
        odd.subject  # noqa: B018
    printed = f"sha256:{odd.fingerprint(hashes.SHA256()).hex()}"
    assert [anchor.name for anchor in anchors_in(odd.public_bytes(Encoding.PEM))] == [printed]
    assert subject_of(odd) == printed
    assert subject_of(TOP.certificate) == "CN=Root"
