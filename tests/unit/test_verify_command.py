"""`keyvouch verify`: every vector through the command, agreement, options, and the command as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch import base64url
from support.attestation_forge import ROOT
from support.forge import AAGUID, Forge
from support.programs import PYTHON_PATH
from support.recorded import (
    KINDS,
    SWTPM,
    TPM,
    WEBAUTHN,
    Run,
    Vector,
    authenticated,
    bench_vector,
    certified,
    first,
    judge,
    quoted,
    registered,
    vectors_of,
)
from support.vectors import ROOT as VECTORS

CONTRADICTING = {
    **dict.fromkeys(("p00403", "p00504", "p00735", "p00923"), ("attested_data", "authdata_length")),
    "p00879": ("tpm", "attestation_statement"),
}
"""Vectors with what they want and what they get: others of the same kind of bytes want the other reason.

`at_set_no_data` of each registration is `authdata_len_37` byte for byte, and nobody can tell from a signature that does
not verify whether it was changed (`sig_bitflip`) or what it is over (`certinfo_tampered_after_sign`).
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return partial(judge, capsys, tmp_path)


# Every vector


def disagreements(results: Iterable[dict[str, Any]]) -> set[str]:
    return {result["id"] for result in results if "expected" in result}


def test_every_generated_ceremony(run: Run) -> None:
    outcome = run(options=[str(VECTORS / WEBAUTHN)])
    vectors = vectors_of(WEBAUTHN)
    assert [result["id"] for result in outcome.results] == [vector["id"] for vector in vectors]
    assert Counter(result["decision"] for result in outcome.results) == {"accept": 71, "reject": 603}
    assert disagreements(outcome.results) == set(CONTRADICTING)
    assert outcome.status == 1
    assert outcome.err == ""
    for result, vector in zip(outcome.results, vectors, strict=True):
        is_proof = vector["ceremony"] == "registration" and vector["expect"] == "accept"
        assert (result["assurance"] is not None) is is_proof
        assert result["decision"] == vector["expect"]
        wanted, given = CONTRADICTING.get(vector["id"], (vector["reason"], vector["reason"]))
        assert (vector["reason"], result["reason"]) == (wanted, given)
        if wanted != given:
            assert result["expected"] == {"decision": "reject", "reason": wanted}


@pytest.mark.parametrize(("file", "accepted", "refused"), [(TPM, 8, 112), (SWTPM, 4, 6)])
def test_all_tpm_evidence(run: Run, file: str, accepted: int, refused: int) -> None:
    outcome = run(options=[str(VECTORS / file)])
    assert outcome.status == 0
    assert [r["reason"] for r in outcome.results] == [v["reason"] for v in vectors_of(file)]
    assert Counter(r["decision"] for r in outcome.results) == {"accept": accepted, "reject": refused}
    assert all(result["assurance"] is None for result in outcome.results)


def test_one_line_for_each_vector_and_the_same_each_time(run: Run) -> None:
    outcomes = [run(options=[str(VECTORS / WEBAUTHN), "--explain"]) for _ in range(2)]
    assert outcomes[0].out == outcomes[1].out
    assert outcomes[0].out.isascii()


# Agreement


@pytest.mark.parametrize("file", [WEBAUTHN, TPM, SWTPM])
def test_a_flipped_expectation_is_a_disagreement(run: Run, file: str) -> None:
    for expect, flipped in (("accept", "reject"), ("reject", "accept")):
        vector = first(file, expect=expect)
        assert run(vector).status == 0
        outcome = run(vector | {"expect": flipped})
        assert outcome.status == 1
        assert outcome.only["expected"]["decision"] == flipped
        assert outcome.only["decision"] == expect


def test_another_reason_is_a_disagreement(run: Run) -> None:
    vector = first(WEBAUTHN, reason="challenge")
    outcome = run(vector | {"reason": "origin"})
    assert outcome.status == 1
    assert outcome.only == {
        "id": vector["id"],
        "decision": "reject",
        "reason": "challenge",
        "assurance": None,
        "expected": {"decision": "reject", "reason": "origin"},
    }


def test_what_is_not_expected_is_not_compared(run: Run) -> None:
    vector = first(WEBAUTHN, reason="challenge")
    del vector["expect"]
    assert run(vector).status == 0
    assert run(vector | {"reason": "origin"}).only["expected"] == {"reason": "origin"}
    assert run(vector | {"reason": None}).only == {
        "id": vector["id"],
        "decision": "reject",
        "reason": "challenge",
        "assurance": None,
    }
    assert run(vector | {"reason": None, "expect": "reject"}).status == 0


def test_reasons_of_tpm_evidence_have_no_prefix(run: Run) -> None:
    assert run(first(TPM, reason="nonce")).only["reason"] == "nonce"
    assert run(first(TPM, reason="signature")).only["reason"] == "signature"
    assert run(first(WEBAUTHN, reason="tpm_key_attributes")).only["reason"] == "tpm_key_attributes"


def test_the_assurance_of_a_registration(run: Run) -> None:
    assert run(registered()).only["assurance"] == {
        "protection": "software",
        "verification": "software_gated",
        "provenance": "unattested",
        "anchor": "",
    }
    attested = run(first(WEBAUTHN, base="reg-tpm-ES256", expect="accept")).only["assurance"]
    assert (attested["protection"], attested["provenance"]) == ("tpm", "attested")
    assert attested["anchor"] == "Vector Root CA"


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_vector_need_not_say_what_it_is(run: Run, kind: str) -> None:
    vector = KINDS[kind]()
    for name in ("ceremony", "kind", "class", "profile", "expect", "reason"):
        vector.pop(name, None)
    assert run(vector).only["decision"] == "accept"


def test_a_vector_without_an_id_is_called_by_its_place(run: Run) -> None:
    vector = registered()
    del vector["id"]
    assert run(vector).only["id"] == "line 1"
    assert run(json.dumps(vector, indent=1).encode()).only["id"] is None
    document = json.dumps({"vectors": [vector, vector]}, indent=1).encode()
    assert [result["id"] for result in run(document).results] == ["vectors[0]", "vectors[1]"]
    assert run(vector | {"id": 7}).only["id"] == "7"


def test_pcr_values_as_text_of_a_dictionary(run: Run) -> None:
    vector = quoted()
    numbered = {bank: {int(pcr): value for pcr, value in pcrs.items()} for bank, pcrs in vector["pcrValues"].items()}
    assert run(vector | {"pcrValues": repr(vector["pcrValues"])}).status == 0
    assert run(vector | {"pcrValues": repr(numbered)}).status == 0
    numbered["sha256"][7] = "00" * 31 + "01"
    assert run(vector | {"pcrValues": repr(numbered)}).only["reason"] == "pcr_digest"


# Options


def test_explain_tells_why_and_what_to_do(run: Run) -> None:
    told = run(first(WEBAUTHN, reason="origin"), options=["--explain"]).only
    assert told["message"].endswith(".")
    assert told["fix"].endswith(".")
    assert "facts" not in told
    assert "message" not in run(first(WEBAUTHN, reason="origin")).only


def test_explain_tells_the_facts_that_are_proved(run: Run) -> None:
    facts = run(first(WEBAUTHN, base="reg-tpm-ES256", expect="accept"), options=["--explain"]).only["facts"]
    assert facts["format"] == "tpm"
    assert facts["algorithm"] == "ES256"
    assert len(facts["aaguid"]) == 36
    assert facts["certificates"]
    assert set(facts["authenticator"]) == {"manufacturer", "model", "version"}
    assert run(authenticated(), options=["--explain"]).only["facts"]["signCount"] == 7
    key = run(certified(), options=["--explain"]).only["facts"]
    assert key["keyName"].startswith("000b")
    assert set(key["clock"]) == {"clock", "reset_count", "restart_count", "safe"}
    assert len(run(quoted(), options=["--explain"]).only["facts"]["pcrs"]["sha256"]) == 8


def test_explain_tells_what_makes_a_refusal_concrete(run: Run) -> None:
    told = run(without_anchors(), options=["--explain"]).only
    assert told["details"] == {"detail": "anchor"}
    assert told["claims"]["format"] == "packed"
    assert told["claims"]["algorithm"] == "ES256"
    assert told["claims"]["issuer"].startswith("CN=Vector Root CA")
    assert "facts" not in told


def explained_claims(run: Run, **statement: object) -> dict[str, Any]:
    vector = bench_vector()
    made = Forge().registration(statement={"alg": -7, "sig": b"x", **statement})
    vector["response"]["response"]["attestationObject"] = base64url.encode(made["attestation_object"])
    claims: dict[str, Any] = run(vector, options=["--explain"]).only["claims"]
    return claims


def test_claims_that_cannot_be_read_are_left_out(run: Run) -> None:
    assert explained_claims(run) == {"format": "packed", "aaguid": str(UUID(bytes=AAGUID)), "algorithm": "ES256"}
    for x5c in ([], b"x", ["x"], [b"x"]):
        assert "issuer" not in explained_claims(run, x5c=x5c)
    for refused in (first(TPM, reason="nonce"), first(WEBAUTHN, reason="missing_field")):
        assert "claims" not in run(refused, options=["--explain"]).only


def test_a_sentence_sums_up(run: Run) -> None:
    vector, silent = registered(), bench_vector()
    assert run(vector, options=["--summary"]).err.endswith("\n1 tried: 1 accepted, 0 refused, all as expected.\n")
    assert run(silent, options=["--summary"]).err.endswith("\n1 tried: 1 accepted, 0 refused.\n")
    assert run(vector, silent, options=["--summary"]).err.endswith("2 accepted, 0 refused, 1 as expected.\n")
    assert run({}, options=["--summary"]).err.endswith("\n0 tried: 0 accepted, 0 refused; 1 could not be used.\n")


def test_what_a_bench_records(run: Run) -> None:
    vector = bench_vector()
    told = run(vector, options=["--explain"])
    assert (told.status, told.only["decision"], told.only["assurance"]["provenance"]) == (0, "accept", "self")
    assert (told.only["facts"]["format"], told.only["message"]) == ("packed", None)
    vector["policy"]["attestation"] = "required"
    told = run(vector, options=["--explain"])
    assert (told.status, told.only["reason"]) == (0, "attestation_required")
    vector["policy"]["allowedAlgs"] = [-65535]
    assert run(vector).only["reason"] == "alg_not_allowed"


def without_anchors() -> Vector:
    """A good registration with a chain, whose anchor and instant are not in the vector."""
    vector = first(WEBAUTHN, base="reg-packed-ES256", expect="accept")
    pem = vector["policy"].pop("trustAnchorsPem")
    del vector["policy"]["now"]
    return vector | {"pem": "".join(pem)}


def test_anchors_from_files_and_directories(run: Run, tmp_path: Path) -> None:
    vector = without_anchors()
    assert run(vector).only["reason"] == "trust_chain"
    folder = tmp_path / "roots"
    folder.mkdir()
    (folder / "root.pem").write_text(vector["pem"])
    (folder / "notes.txt").write_text("not a certificate")
    for named in (folder, folder / "root.pem"):
        assert run(vector, options=["--anchors", str(named)]).only["assurance"]["anchor"] == "Vector Root CA"
    other = tmp_path / "other.pem"
    other.write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    assert run(vector, options=["--anchors", str(other)]).only["reason"] == "trust_chain"
    assert run(vector, options=["--anchors", str(other), "--anchors", str(folder)]).status == 0


def test_the_instant_of_the_command_goes_before_that_of_the_vector(run: Run) -> None:
    vector = first(WEBAUTHN, base="reg-packed-ES256", expect="accept")
    assert run(vector, options=["--now", "2026-08-01T00:00:00Z"]).status == 0
    assert run(vector, options=["--now", "2100-01-01T00:00:00+01:00"]).only["reason"] == "trust_chain"


def test_a_profile_chooses_vectors(run: Run) -> None:
    strict = sum(vector["profile"] == "strict" for vector in vectors_of(WEBAUTHN))
    outcome = run(options=[str(VECTORS / WEBAUTHN), "--profile", "strict"])
    assert len(outcome.results) == strict == 41
    assert len(run(options=[str(VECTORS / SWTPM), "--profile", "core"]).results) == 10
    assert run(options=[str(VECTORS / SWTPM), "--profile", "strict"]).results == []


def test_a_summary_counts_by_class(run: Run) -> None:
    outcome = run(options=[str(VECTORS / WEBAUTHN), "--summary"])
    lines = outcome.err.splitlines()
    assert lines[0].split() == ["CLASS", "TRIED", "ACCEPTED", "REFUSED", "DISAGREED"]
    assert ["control", "71", "71", "0", "0"] in [line.split() for line in lines]
    assert ["flags", "36", "0", "36", "4"] in [line.split() for line in lines]
    assert lines[-1] == "674 tried: 71 accepted, 603 refused, 5 not as expected."
    assert run(options=[str(VECTORS / WEBAUTHN)]).err == ""


def test_a_summary_for_programs(run: Run) -> None:
    outcome = run(registered(), {}, options=["--summary", "--json"])
    errors = [json.loads(line) for line in outcome.err.splitlines()]
    assert errors[0]["error"]["reason"] == "usage"
    assert errors[1]["summary"] == {
        "tried": 1,
        "accepted": 1,
        "refused": 0,
        "disagreed": 0,
        "unusable": 1,
        "classes": [{"class": "control", "tried": 1, "accepted": 1, "refused": 0, "disagreed": 0}],
    }


def test_classes_without_end_are_counted_together(run: Run) -> None:
    vector = first(TPM, reason="nonce")
    outcome = run([vector | {"class": f"class {n}"} for n in range(202)], options=["--summary"])
    assert ["(others)", "2", "0", "2", "0"] in [line.split() for line in outcome.err.splitlines()]


def test_a_class_cannot_pretend_to_be_output(run: Run) -> None:
    outcome = run(registered() | {"class": "\x1b[2Jx", "id": "\x1b[2J\u202e"}, options=["--summary"])
    assert "\x1b" not in outcome.out + outcome.err


# In a process of its own


def keyvouch(*words: str, data: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH}
    command = [sys.executable, "-m", "keyvouch_client", "verify", *words]
    if "stdout" not in options:
        options["stdout"] = subprocess.PIPE
    return subprocess.run(
        command, input=data, stderr=subprocess.PIPE, env=environment, timeout=60, check=False, **options
    )


def json_lines(*vectors: Vector) -> bytes:
    return b"".join(json.dumps(vector).encode() + b"\n" for vector in vectors)


def test_standard_input_by_default_and_by_its_name() -> None:
    for words in ((), ("-",)):
        done = keyvouch(*words, data=json_lines(registered(), quoted()))
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2
    assert b"standard input" in keyvouch(data=b"").stderr


def test_lines_are_judged_as_they_come() -> None:
    command = [sys.executable, "-m", "keyvouch_client", "verify"]
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for vector in (registered(), certified()):
            process.stdin.write(json_lines(vector))
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == vector["id"]
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def test_an_interruption() -> None:
    command = [sys.executable, "-m", "keyvouch_client", "verify", "--summary"]
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json_lines(certified()))
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=30)[1]
    assert (process.returncode, told) == (130, b"\nInterrupted.\n")


def test_a_reader_that_has_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = keyvouch(str(VECTORS / TPM), stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_results_that_cannot_be_written() -> None:
    with Path("/dev/full").open("wb") as full:
        done = keyvouch(str(VECTORS / TPM), stdout=full)
    assert done.returncode == 2
    assert b"cannot be written" in done.stderr
    assert b"Traceback" not in done.stderr


def test_neither_grpc_nor_messages_are_loaded() -> None:
    code = (
        "import sys; from keyvouch_client.__main__ import main; "
        f"main(['verify', {str(VECTORS / SWTPM)!r}]); "
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('grpc', 'google', 'asyncio')), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": PYTHON_PATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.strip() == ""
