"""`keyvouch-server audit` beside a serving process: while it runs, after it stopped, after it was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keyvouch_bench.server_process import ServerProcess
from support.programs import PYTHON_PATH, run_program


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_program("keyvouch-server", "audit", *map(str, arguments))


def report_of(server: ServerProcess, *more: object) -> dict[str, Any]:
    done = run("verify", "--data", server.data, "--json", *more)
    assert done.returncode == 0, done
    (tenant,) = json.loads(done.stdout)["tenants"]
    assert tenant["tenant"] == "example"
    report: dict[str, Any] = tenant
    return report


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess.make(tmp_path) as process:
        yield process


def test_g10_it_verifies_beside_a_running_server_and_stopping_leaves_a_checkpoint_in_the_log(server: ServerProcess):
    server.start()
    assert report_of(server)["vouched"] == 0
    printed = server.data.parent / "printed.jsonl"
    printed.write_text(run("checkpoint", "--data", server.data).stdout)
    assert report_of(server, "--against", printed)["vouched"] > 0
    assert server.stop() == 0
    logged = [line for line in server.log.read_text().splitlines() if "keyvouch.audit checkpoint {" in line]
    assert len(logged) == 1
    report = report_of(server, "--against", server.log)
    assert report["vouched"] == report["records"] > 0
    server.start()
    assert server.stop() == 0
    assert server.log.read_text().count("keyvouch.audit checkpoint {") == 1, "nothing has happened since"


def test_g10_it_verifies_and_exports_what_a_killed_server_left(server: ServerProcess):
    server.start()
    server.kill()
    before = {path.name: path.read_bytes() for path in server.data.iterdir() if path.suffix == ".key"}
    assert report_of(server)["records"] > 0
    done = run("export", "--data", server.data, "--tenant", "example")
    assert done.returncode == 0
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()][:3] == ["log", "checkpoint", "record"]
    assert {name: (server.data / name).read_bytes() for name in before} == before


def test_what_is_no_server_is_refused_in_each_of_its_acts(tmp_path: Path):
    for act in (("verify",), ("checkpoint",), ("export", "--tenant", "example")):
        done = run(*act, "--json", "--data", tmp_path)
        assert done.returncode == 1
        assert json.loads(done.stderr)["error"]["reason"] == "configuration"
    assert run("nothing").returncode == 2


def test_a_store_of_another_schema_is_refused(server: ServerProcess, tmp_path: Path):
    import sqlite3

    with sqlite3.connect(server.data / "keyvouch.db") as connection:
        connection.execute("PRAGMA user_version = 3")
    connection.close()
    done = run("verify", "--json", "--data", server.data)
    assert json.loads(done.stderr)["error"]["reason"] == "store_schema"


ACTS = (("verify",), ("verify", "--json"), ("export", "--tenant", "example"), ("checkpoint",))


@pytest.mark.parametrize("act", ACTS, ids=" ".join)
def test_whoever_reads_may_stop_reading(server: ServerProcess, act: tuple[str, ...]):
    reads, writes = os.pipe()
    os.close(reads)
    status, said = _into(writes, server, act)
    assert (status, said) == (1, "")


@pytest.mark.parametrize("act", ACTS, ids=" ".join)
def test_a_full_disk_is_told(server: ServerProcess, act: tuple[str, ...]):
    status, said = _into(os.open("/dev/full", os.O_WRONLY), server, act)
    assert status == 1
    assert "cannot be written: No space left" in said
    assert "Traceback" not in said


def _into(output: int, server: ServerProcess, act: tuple[str, ...]) -> tuple[int, str]:
    command = [sys.executable, "-m", "keyvouch_server", "audit", act[0], "--data", str(server.data), *act[1:]]
    environment = {"PYTHONPATH": PYTHON_PATH, "PATH": "/usr/bin:/bin"}
    with os.fdopen(output, "wb") as stdout:
        done = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, env=environment, timeout=60, text=True, check=False
        )
    return done.returncode, done.stderr
