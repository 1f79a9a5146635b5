"""Attacks on the audit log by somebody who can write to the store: whole chains gone, texts that are none (G10).

Not here: single records changed, moved or taken out, which are in `test_audit_log`.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import Reason
from keyvouch_client.__main__ import main as client
from keyvouch_server.__main__ import main as server
from support.live_server import LiveServer, refused

OTHER = "other.example"


def change(live: LiveServer, *statements: str) -> None:
    """Change the store from outside, as whoever can write to its file."""
    with closing(sqlite3.connect(live.data / "keyvouch.db", isolation_level=None, timeout=5)) as connection:
        for statement in ("PRAGMA foreign_keys = OFF", *statements):
            connection.execute(statement)


def verified(capsys: pytest.CaptureFixture[str], live: LiveServer, *more: object) -> tuple[int, list[dict[str, Any]]]:
    """What `audit verify` says, while the server runs."""
    capsys.readouterr()
    status = server(["audit", "verify", "--data", str(live.data), "--json", *map(str, more)])
    tenants: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["tenants"]
    return status, tenants


@pytest.fixture
async def two_tenants(live: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> LiveServer:
    """A server with two tenants and records of none, and its checkpoints in `kept`."""
    await live.tenant(OTHER)
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", "AAAA2222", tenant="nowhere.example")
    await live.app.audit_log.sign_checkpoints()
    assert server(["audit", "checkpoint", "--data", str(live.data)]) == 0
    (tmp_path / "kept").write_text(capsys.readouterr().out)
    return live


def tenant_called(live: LiveServer, name: str) -> str:
    with closing(sqlite3.connect(live.data / "keyvouch.db")) as connection:
        return str(connection.execute("SELECT id FROM tenant WHERE name = ?", (name,)).fetchone()[0])


@pytest.mark.parametrize("name", ["", OTHER])
@pytest.mark.parametrize("forgotten", [False, True], ids=["checkpoints left", "checkpoints gone"])
async def test_g10_a_chain_that_is_gone_as_a_whole_is_missed(
    two_tenants: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, forgotten: bool
) -> None:
    tenant = tenant_called(two_tenants, name) if name else ""
    assert (verified(capsys, two_tenants)[0], len(verified(capsys, two_tenants)[1])) == (0, 3)
    change(
        two_tenants,
        f"DELETE FROM audit_record WHERE tenant_id = '{tenant}'",
        f"DELETE FROM tenant WHERE id = '{tenant}'",
        *([f"DELETE FROM audit_checkpoint WHERE tenant_id = '{tenant}'"] if forgotten else []),
    )
    status, reports = verified(capsys, two_tenants, "--against", tmp_path / "kept")
    problems = [report["problem"] for report in reports if not report["ok"]]
    assert status == 1
    assert [(p["tenant_id"], p["kind"], p["number"]) for p in problems] == [(tenant, "cut_off", "1")]
    assert verified(capsys, two_tenants)[0] == (0 if forgotten else 1), "the store alone knows what it still has"
    if tenant:
        assert verified(capsys, two_tenants, "--against", tmp_path / "kept", "--tenant", tenant)[0] == 1


async def test_g10_the_records_of_two_tenants_swapped_are_found(
    two_tenants: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tenant_called(two_tenants, "example"), tenant_called(two_tenants, OTHER)
    for table in ("audit_record", "audit_checkpoint"):
        change(
            two_tenants,
            f"UPDATE {table} SET tenant_id = 'ten_x' WHERE tenant_id = '{one}'",
            f"UPDATE {table} SET tenant_id = '{one}' WHERE tenant_id = '{other}'",
            f"UPDATE {table} SET tenant_id = '{other}' WHERE tenant_id = 'ten_x'",
        )
    status, reports = verified(capsys, two_tenants)
    assert (status, [report["ok"] for report in reports if report["tenant"]]) == (1, [False, False])


@pytest.mark.parametrize("column", ["details", "actor", "tenant_id"])
async def test_g10_a_text_that_is_none_is_a_changed_record_and_no_broken_store(
    two_tenants: LiveServer, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    wrong, tenant = "CAST(x'7bff7d' AS TEXT)", tenant_called(two_tenants, "example")
    change(
        two_tenants,
        f"UPDATE audit_record SET {column} = {wrong} WHERE chain_number = 2 AND tenant_id = '{tenant}'",
        f"INSERT INTO audit_checkpoint VALUES ({wrong}, 1, x'', 0, x'')",
    )
    status, reports = verified(capsys, two_tenants)
    assert status == 1
    (problem,) = [r["problem"] for r in reports if r["tenant"] == "example"]
    assert (problem["reason"], problem["number"]) == (Reason.AUDIT_CHAIN, "2")
    assert server(["audit", "verify", "--data", str(two_tenants.data)]) == 1
    assert "Record 2" in capsys.readouterr().out


async def test_g10_what_stands_beside_the_chain_is_not_exported(
    two_tenants: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    tenant = tenant_called(two_tenants, "example")
    before = "at, tenant_id, action, actor, subject, user_id, outcome, details, 0, x'', x''"
    one = f"FROM audit_record WHERE tenant_id = '{tenant}' AND chain_number = 2"
    for sequence in ("NULL", "-7"):
        change(two_tenants, f"INSERT INTO audit_record SELECT {sequence}, {before} {one}")
        status, reports = verified(capsys, two_tenants, "--tenant", "example")
        assert (status, reports[0]["problem"]["kind"]) == (1, "inserted"), sequence
        for form in ("jsonl", "ocsf"):
            arguments = ["audit", "export", "--data", str(two_tenants.data), "--tenant", "example", "--format", form]
            assert server(arguments) == 1
            said = capsys.readouterr()
            assert (said.out, "put in later" in said.err) == ("", True)
        change(two_tenants, "DELETE FROM audit_record WHERE chain_number = 0")
    assert verified(capsys, two_tenants)[0] == 0


async def test_a_damaged_checkpoint_is_not_passed_over(
    two_tenants: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    whole = kept.read_text().splitlines()
    for damaged in (whole[0][:-9], whole[0].replace('"number"', '"numbre"')):
        kept.write_text("\n".join([damaged, *whole[1:]]))
        assert server(["audit", "verify", "--data", str(two_tenants.data), "--against", str(kept)]) == 1
        assert "no line of an audit log" in capsys.readouterr().err


async def test_g10_the_log_of_what_belongs_to_nobody_is_exported_and_verifies(
    two_tenants: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert server(["audit", "export", "--data", str(two_tenants.data), "--tenant", ""]) == 0
    log = tmp_path / "log.jsonl"
    log.write_text(capsys.readouterr().out)
    assert client(["verify", "--audit", str(log), "--ca", str(two_tenants.data / "ca.pem"), "--explain"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["tenant_id"] == ""
    assert "no tenant" in said.err
