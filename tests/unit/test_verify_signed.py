"""`keyvouch verify` on receipts and exported logs: files and standard input, beside vectors, in words (H8, G10)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyvouch.audit_lines import LogHeader, write_line
from keyvouch_client.__main__ import main
from keyvouch_client.evidence.receipts import is_receipt, server_id_of
from support.audit_logs import SERVER_ID, chain, exported
from support.programs import PYTHON_PATH
from support.receipts import receipt, sealed
from support.recorded import certified

PINNED = ("--server-id", SERVER_ID.hex())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sign-in.cbor"
    path.write_bytes(sealed(receipt()))
    return path


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    status = main(["verify", *map(str, arguments)])
    said = capsys.readouterr()
    return status, [json.loads(line) for line in said.out.splitlines()], said.err


def test_h8_a_receipt_is_told_from_a_vector_and_judged_beside_one(file: Path, capsys: pytest.CaptureFixture[str]):
    vector = file.with_name("vector.json")
    vector.write_text(json.dumps(certified()))
    status, results, said = lines_of(capsys, file, vector, "--summary", *PINNED)
    assert (status, [r["decision"] for r in results]) == (0, ["accept", "accept"])
    assert results[0] == {
        "id": None,
        "decision": "accept",
        "reason": None,
        "assurance": {
            "protection": "software",
            "verification": "software_gated",
            "provenance": "unattested",
            "anchor": "",
        },
    }
    assert "receipt" in said


def test_the_words_say_first_what_the_key_signed_and_then_what_the_server_says(
    file: Path, capsys: pytest.CaptureFixture[str]
):
    _, _, said = lines_of(capsys, file, "--explain", *PINNED)
    words = said.splitlines()
    assert "signed this very approval" in words[0]
    assert "the server" in words[0]
    assert "that you named" in words[0]
    assert "Shop (shop) from 192.0.2.7" in words[0]
    assert "The server says" in said
    assert "not proved" not in said
    assert "not proved" in lines_of(capsys, file, "--explain")[2]
    assert lines_of(capsys, file, "--explain", "--json")[2] == ""


def test_names_cannot_pretend_to_be_output(file: Path, capsys: pytest.CaptureFixture[str]):
    file.write_bytes(
        sealed(receipt(username="ada\x1b[2J\nok", assurance="nothing that is one", acr="new", decided_at=0))
    )
    _, results, said = lines_of(capsys, file, "--explain")
    assert results[0]["assurance"] is None
    assert "\x1b" not in said
    assert "approved;" in said


def test_a_receipt_comes_through_standard_input_too(file: Path):
    command = [sys.executable, "-m", "keyvouch_client", "verify", *PINNED]
    done = subprocess.run(
        command, input=file.read_bytes(), capture_output=True, timeout=60, env={"PYTHONPATH": PYTHON_PATH}, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["decision"]) == (0, "accept")


def test_what_looks_like_a_receipt_and_is_none_is_refused(file: Path, capsys: pytest.CaptureFixture[str]):
    for data in (b"\xa2", b"\xa2" * 70_000, file.read_bytes()[:-1]):
        file.write_bytes(data)
        status, results, _ = lines_of(capsys, file, "--explain")
        assert (status, results[0]["reason"], results[0]["expected"]) == (1, "receipt", {"decision": "accept"})
    assert not is_receipt(b"")
    assert not is_receipt(b"{}")


def test_a_log_with_blank_lines_is_one(file: Path, capsys: pytest.CaptureFixture[str]):
    records = chain(3)
    lines = exported(records)
    log = file.with_name("log.jsonl")
    log.write_text("\n\n".join(write_line(line) for line in lines))
    status, results, said = lines_of(capsys, "--audit", log, "--explain", *PINNED)
    assert (status, results[0]["last"]) == (0, 3)
    assert "2027" in said
    assert "signed them" in said


def test_g10_several_logs_and_the_worst_of_them_decides(file: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = file.with_name("good"), file.with_name("bad")
    text = "".join(write_line(line) + "\n" for line in exported(chain(5)))
    good.write_text(text)
    bad.write_text(text.replace("act.2", "act.3"))
    status, results, _ = lines_of(capsys, "--audit", bad, "--audit", good)
    assert (status, [r["decision"] for r in results]) == (1, ["reject", "accept"])
    assert lines_of(capsys, "--audit", bad, "--audit", file.with_name("none"))[0] == 2
    bad.write_bytes(b"\xff")
    assert lines_of(capsys, "--audit", bad)[1][0]["reason"] == "audit_chain"


def test_whose_receipts_are_expected_is_said_once_and_rightly(file: Path, capsys: pytest.CaptureFixture[str]):
    assert server_id_of(SERVER_ID.hex()) == SERVER_ID
    for wrong in (["--server-id", "zz"], ["--server-id", "00"], ["--ca", str(file)], ["--ca", str(file) + ".none"]):
        assert main(["verify", str(file), *wrong]) == 2
    assert main(["verify", str(file), "--ca", "a", "--server-id", "b"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_h8_a_receipt_beside_a_log_is_judged_too(file: Path, capsys: pytest.CaptureFixture[str]):
    log, forged = file.with_name("log"), file.with_name("forged.cbor")
    log.write_text("".join(write_line(line) + "\n" for line in exported(chain(5))))
    forged.write_bytes(file.read_bytes()[:-1] + b"\x00")
    status, results, _ = lines_of(capsys, file, "--audit", log, *PINNED)
    assert (status, [r["decision"] for r in results]) == (0, ["accept", "accept"])
    status, results, _ = lines_of(capsys, forged, "--audit", log, *PINNED)
    assert (status, [r["decision"] for r in results]) == (1, ["accept", "reject"])
    assert lines_of(capsys, file.with_name("none"), "--audit", log, *PINNED)[0] == 2


def test_g10_the_name_of_the_tenant_is_told_as_what_nobody_signed(file: Path, capsys: pytest.CaptureFixture[str]):
    log = file.with_name("log")
    first, *rest = exported(chain(3))
    assert isinstance(first, LogHeader)
    log.write_text("".join(write_line(line) + "\n" for line in (replace(first, tenant="bank\x1b"), *rest)))
    status, _, said = lines_of(capsys, "--audit", log, "--explain", *PINNED)
    assert status == 0
    assert "of tenant ten_example are all there" in said
    assert "bank" in said
    assert "which nobody signed" in said
    assert "\x1b" not in said


def test_a_log_that_is_not_named_as_one_is_told_to_be_and_a_bad_line_has_a_number(
    file: Path, capsys: pytest.CaptureFixture[str]
):
    log = file.with_name("log")
    lines = [write_line(line) + "\n" for line in exported(chain(3))]
    log.write_text("".join(lines), encoding="utf-8-sig")
    assert lines_of(capsys, "--audit", log)[0] == 0, "a mark that some editors write says nothing"
    status, _, said = lines_of(capsys, log)
    assert (status, "Name the log with --audit." in said) == (2, True)
    log.write_text("".join([*lines[:3], "{", *lines[3:]]))
    status, (result,), _ = lines_of(capsys, "--audit", log, "--explain")
    assert (status, result["details"], "export" in result["fix"]) == (1, {"line": "4"}, True)
    log.write_text("".join(lines), encoding="utf-16")
    assert "it is not UTF-8" in lines_of(capsys, "--audit", log)[1][0]["message"]
