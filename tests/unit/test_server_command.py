"""The `keyvouch-server` command as people and programs run it: each command in a process of its own."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from keyvouch_bench.server_process import ServerProcess
from keyvouch_server.__main__ import main
from support.programs import run_program

COMMANDS = ("init", "serve", "backup", "check", "recover")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_program("keyvouch-server", *map(str, arguments))


def error_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The error a failed command printed as JSON, and nothing beside it."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    document: dict[str, dict[str, str]] = json.loads(done.stderr)
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"kind", "reason", "message", "fix"}
    assert all(document["error"].values())
    return document["error"]


def init(data: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return run("init", "--json", "--data", data, "--tenant", "example", "--administrator", "admin", *more)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mode, p.read_bytes()) for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A data directory that is only read, and what `init` reported."""
    data = tmp_path_factory.mktemp("made") / "deep" / "server"
    done = init(data)
    assert done.returncode == 0, done.stderr
    return data, json.loads(done.stdout)


@pytest.fixture
def data(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(made[0], tmp_path / "server"))


# init


def test_init_makes_private_files_and_one_pass(made: tuple[Path, dict[str, Any]]):
    data, report = made
    assert (report["tenant"], report["administrator"], report["access_pass_minutes"]) == ("example", "admin", 60)
    assert len(report["access_pass"]) == 8
    assert Path(report["ca"]) == data / "ca.pem"
    assert data.stat().st_mode & 0o777 == 0o700
    keys = {"identity.key", "token.key", "pepper.key", "ca.pem", "attestation.key", "attestation-ca.pem"}
    assert keys | {"keyvouch.toml", "keyvouch.db"} <= {p.name for p in data.iterdir()}
    assert [p.name for p in data.iterdir() if p.stat().st_mode & 0o077] == []
    assert report["access_pass"].encode() not in b"".join(p.read_bytes() for p in data.iterdir())


def test_init_speaks_to_people_too(tmp_path: Path):
    done = run("init", "--data", tmp_path / "s", "--tenant", "example", "--administrator", "admin")
    assert done.returncode == 0
    assert "keyvouch-server serve --data" in done.stdout
    assert "Next:" in done.stdout


def test_init_refuses_a_directory_that_is_not_empty_and_changes_nothing(tmp_path: Path, data: Path):
    for folder in (tmp_path / "mine", data):
        folder.mkdir(exist_ok=True)
        (folder / "letter.txt").write_text("mine")
        before = snapshot(folder)
        assert error_of(init(folder))["reason"] == "configuration"
        assert snapshot(folder) == before


@pytest.mark.parametrize("spoiled", [("--tenant", ""), ("--administrator", "a\u202eb"), ("--administrator", "x" * 65)])
def test_init_that_fails_leaves_nothing_half_made(tmp_path: Path, spoiled: tuple[str, str]):
    new, empty = tmp_path / "new", tmp_path / "empty"
    empty.mkdir()
    for folder in (new, empty):
        assert error_of(init(folder, *spoiled))["reason"] == "field_invalid"
    assert not new.exists()
    assert list(empty.iterdir()) == []
    assert init(new).returncode == 0


def test_init_where_nothing_can_be_made_says_so(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert error_of(init(place))["reason"] in ("configuration", "store_unavailable")


# serve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess.make(tmp_path) as process:
        yield process


def test_serve_says_when_it_is_ready_and_ends_cleanly_on_sigterm(server: ServerProcess):
    server.start()
    busy = error_of(run("serve", "--json", "--data", server.data))
    assert busy["reason"] == "store_unavailable"
    locked = error_of(
        run("recover", "--json", "--data", server.data, "--tenant", "example", "--administrator", "admin")
    )
    assert locked["reason"] == "store_unavailable"
    copy = server.data.parent / "while-running.db"
    assert run("backup", "--data", server.data, "--to", copy).returncode == 0
    assert run("check", "--data", server.data).returncode == 0
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()
    server.start()
    assert server._end(signal.SIGINT) == 0
    assert json.loads(run("check", "--json", "--data", server.data).stdout) == {"ok": True, "problems": []}


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda d: (d / "keyvouch.toml").unlink(), "init"),
        (lambda d: (d / "keyvouch.toml").write_text("[server]\n"), "missing"),
        (lambda d: (d / "identity.key").unlink(), "identity.key"),
        (lambda d: (d / "token.key").write_text("nonsense"), "token.key"),
        (lambda d: (d / "pepper.key").unlink(), "keys"),
        (lambda d: (d / "pepper.key").chmod(0o640), "pepper.key"),
        (lambda d: (d / "identity.key").chmod(0o604), "identity.key"),
        (lambda d: (d / "attestation.key").chmod(0o640), "attestation.key"),
        (lambda d: (d / "attestation.key").unlink(), "attestation.key"),
        (lambda d: (d / "attestation-ca.pem").write_text("nonsense"), "attestation-ca.pem"),
        (lambda d: d.chmod(0o755), "chmod"),
        (lambda d: (d / "ca.pem").write_text("nonsense"), "keys"),
    ],
)
def test_serve_refuses_a_directory_that_is_not_in_order(data: Path, spoil: Any, word: str):
    spoil(data)
    error = error_of(run("serve", "--json", "--data", data))
    assert error["reason"] == "configuration"
    assert word in error["message"] + error["fix"]


@pytest.mark.parametrize("left", ["neither", "the key"])
def test_a_directory_of_an_older_release_gets_an_attestation_authority(data: Path, left: str):
    key, certificate = data / "attestation.key", data / "attestation-ca.pem"
    before = key.read_bytes(), certificate.read_bytes()
    certificate.unlink()
    if left == "neither":
        key.unlink()
        (data / "attestation.key.new").write_bytes(b"half")  # what a crash left
    assert run("recover", "--json", "--data", data, "--tenant", "example", "--administrator", "admin").returncode == 0
    assert (key.read_bytes() == before[0]) is (left == "the key")
    assert certificate.read_bytes() != before[1]
    assert {path.stat().st_mode & 0o777 for path in (key, certificate)} == {0o600}
    assert not (data / "attestation.key.new").exists()
    kept = key.read_bytes(), certificate.read_bytes()
    assert run("recover", "--json", "--data", data, "--tenant", "example", "--administrator", "admin").returncode == 0
    assert (key.read_bytes(), certificate.read_bytes()) == kept


def test_serve_refuses_an_address_it_cannot_have(server: ServerProcess, tmp_path: Path):
    server.start()
    other = tmp_path / "other"
    assert init(other, "--public-listen", f"127.0.0.1:{server.public_port}").returncode == 0
    error = error_of(last_line(run("serve", "--json", "--data", other)))
    assert error["reason"] == "configuration"
    assert str(server.public_port) in error["message"]


def last_line(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Its standard error may begin with log lines of the transport."""
    lines = done.stderr.strip().splitlines()
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, lines[-1] if lines else "")


# backup, check, recover


def test_backup_is_a_sound_private_store_of_its_own(data: Path, tmp_path: Path):
    to = tmp_path / "copy.db"
    done = run("backup", "--json", "--data", data, "--to", to)
    assert json.loads(done.stdout) == {"backup": str(to), "bytes": to.stat().st_size}
    assert to.stat().st_mode & 0o777 == 0o600
    (data / "keyvouch.db").unlink()
    shutil.copy2(to, data / "keyvouch.db")
    assert run("check", "--data", data).returncode == 0


def test_backup_of_nothing_or_to_nowhere_says_so(data: Path, tmp_path: Path):
    assert error_of(run("backup", "--json", "--data", data, "--to", tmp_path / "no" / "x"))["fix"]
    nothing = error_of(run("backup", "--json", "--data", tmp_path / "no", "--to", tmp_path / "x"))
    assert nothing["reason"] == "configuration"


def test_check_finds_a_broken_store(data: Path):
    assert run("check", "--data", data).returncode == 0
    with closing(sqlite3.connect(data / "keyvouch.db")) as connection, connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("DELETE FROM user")
    done = run("check", "--json", "--data", data)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["ok"], bool(report["problems"])) == (False, True)
    people = run("check", "--data", data)
    assert (people.returncode, "restore a backup" in people.stdout) == (1, True)


@pytest.mark.parametrize("content", [b"", b"nonsense" * 1000])
def test_check_of_what_is_no_store(data: Path, content: bytes):
    for beside in data.glob("keyvouch.db-*"):
        beside.unlink()
    (data / "keyvouch.db").write_bytes(content)
    done = run("check", "--json", "--data", data)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout or done.stderr)


def test_recover_gives_a_one_time_pass_to_administrators_only(data: Path):
    done = run("recover", "--json", "--data", data, "--tenant", " EXAMPLE", "--administrator", "Admin")
    report = json.loads(done.stdout)
    assert (len(report["access_pass"]), report["access_pass_minutes"]) == (8, 60)
    with closing(sqlite3.connect(data / "keyvouch.db")) as connection:
        assert connection.execute("SELECT one_time, count(*) FROM access_pass").fetchall() == [(1, 1)]
    for tenant, administrator in (("example", "nobody"), ("elsewhere", "admin")):
        error = error_of(run("recover", "--json", "--data", data, "--tenant", tenant, "--administrator", administrator))
        assert error["reason"] == "user_unknown"
    who = ("--data", data, "--tenant", "example", "--administrator", "admin")
    assert run("recover", "--json", *who, "--default-policy").returncode == 0
    with closing(sqlite3.connect(data / "keyvouch.db")) as connection:
        assert connection.execute("SELECT max(version) FROM policy_version").fetchall() == [(2,)]


# the command line itself


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--data" in capsys.readouterr().out


def test_help_names_every_command_and_wrong_usage_is_2():
    done = run("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)
    assert run("--version").stdout.startswith("keyvouch-server ")
    for arguments in ((), ("fly",), ("serve",), ("init", "--data", "/nowhere")):
        wrong = run(*arguments)
        assert (wrong.returncode, wrong.stdout) == (2, "")


def test_errors_for_people_are_a_sentence_and_a_way_on(tmp_path: Path):
    done = run("serve", "--data", tmp_path / "nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("keyvouch-server: The server cannot start")
    assert "keyvouch-server init" in done.stderr
