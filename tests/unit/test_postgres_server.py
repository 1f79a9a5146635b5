"""The PostgreSQL of the tests does what others lean on: fresh databases, crashes, pauses, and an end in any case."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from keyvouch.errors import UnavailableError, UsageError
from support import postgres_keeper, postgres_server
from support.postgres_server import PostgresCluster
from support.programs import PYTHON_PATH
from support.repository import ROOT

OWNER = """
import sys, time
from support.postgres_server import PostgresCluster
cluster = PostgresCluster()
cluster.start()
cluster.database()
if sys.argv[1] == "paused":
    cluster.pause()
if sys.argv[1] == "crashed":
    cluster.crash()
print(cluster.folder, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    """One of our own: these tests treat it badly."""
    with PostgresCluster() as made:
        yield made


async def run(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


def kill_postmaster(cluster: PostgresCluster) -> None:
    """Kill the server process alone, and wait until it has ended."""
    number = int((cluster.folder / "data/postmaster.pid").read_text().splitlines()[0])
    os.kill(number, signal.SIGKILL)
    os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)


async def table_with_a_row(url: str) -> None:
    await run(url, "CREATE TABLE kept (a INTEGER)")
    await run(url, "INSERT INTO kept VALUES (7)")


async def test_each_database_is_another_and_empty(cluster: PostgresCluster):
    cluster.start()
    one, two = cluster.database(), cluster.database()
    await table_with_a_row(one)
    assert await run(one, "SELECT a FROM kept") == [(7,)]
    with pytest.raises(asyncpg.UndefinedTableError):
        await run(two, "SELECT a FROM kept")


async def test_it_is_utf8_reached_by_its_socket_only_and_closed_to_others(cluster: PostgresCluster):
    cluster.start()
    url = cluster.database()
    assert await run(url, "SHOW server_encoding") == [("UTF8",)]
    assert await run(url, "SHOW listen_addresses") == [("",)]
    assert cluster.folder.stat().st_mode & 0o777 == 0o700


async def test_a_crash_keeps_what_was_committed_and_nothing_else(cluster: PostgresCluster):
    cluster.start()
    url = cluster.database()
    await table_with_a_row(url)
    connection = await asyncpg.connect(url)
    await connection.execute("BEGIN; INSERT INTO kept VALUES (8)")
    cluster.crash()
    assert (cluster.running, cluster.processes) == (False, frozenset())
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetch("SELECT 1")
    connection.terminate()
    cluster.start()
    assert await run(url, "SELECT a FROM kept") == [(7,)]
    assert "was not properly shut down; automatic recovery in progress" in cluster.log.read_text()


async def test_stopped_and_started_it_is_the_same(cluster: PostgresCluster):
    cluster.start()
    url = cluster.database()
    await table_with_a_row(url)
    cluster.stop()
    cluster.stop()
    assert (cluster.running, cluster.processes) == (False, frozenset())
    cluster.start()
    assert await run(url, "SELECT a FROM kept") == [(7,)]


async def test_paused_it_answers_nothing_and_resumed_it_answers_all(cluster: PostgresCluster):
    cluster.start()
    url = cluster.database()
    connection = await asyncpg.connect(url)
    cluster.pause()
    old = asyncio.create_task(connection.fetchval("SELECT 1"))
    new = asyncio.create_task(run(url, "SELECT 2"))
    done, _ = await asyncio.wait({old, new}, timeout=0.5)
    assert done == set()
    cluster.resume()
    assert (await old, await new) == (1, [(2,)])
    await connection.close()


@pytest.mark.parametrize("ending", ["stop", "crash"])
async def test_paused_it_can_still_be_ended(cluster: PostgresCluster, ending: str):
    cluster.start()
    url = cluster.database()
    cluster.pause()
    getattr(cluster, ending)()
    assert cluster.processes == frozenset()
    cluster.start()
    assert await run(url, "SELECT 1") == [(1,)]


async def test_start_mends_a_pause_and_a_server_that_others_killed(cluster: PostgresCluster):
    cluster.start()
    url = cluster.database()
    cluster.pause()
    cluster.start()
    assert await run(url, "SELECT 1") == [(1,)]
    kill_postmaster(cluster)
    cluster.start()
    assert await run(url, "SELECT 1") == [(1,)]


async def test_a_discarded_database_goes_with_the_next_one(cluster: PostgresCluster):
    cluster.start()
    url = cluster.database()
    connection = await asyncpg.connect(url)
    cluster.discard(url)
    cluster.database()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await connection.fetch("SELECT 1")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(url)
    connection.terminate()


def test_without_a_running_server_there_is_no_database(cluster: PostgresCluster):
    cluster.start()
    cluster.pause()
    with pytest.raises(UsageError, match=r"Call start\(\) first"):
        cluster.database()
    cluster.stop()
    with pytest.raises(UsageError, match=r"Call start\(\) first"):
        cluster.database()
    with pytest.raises(UsageError, match=r"Call start\(\) first"):
        cluster.pause()


async def test_the_fixture_gives_a_database_that_works(postgres_cluster: PostgresCluster, postgres_url: str):
    assert postgres_url.endswith(f"?host={postgres_cluster.folder}")
    await table_with_a_row(postgres_url)


# Its end


def test_closed_it_leaves_nothing_and_can_be_made_anew():
    cluster = PostgresCluster()
    cluster.start()
    folder = cluster.folder
    cluster.close()
    cluster.close()
    assert (folder.exists(), postgres_keeper.processes(folder)) == (False, {})
    with cluster:
        assert cluster.database()
        assert cluster.folder != folder


@pytest.mark.parametrize("state", ["running", "paused", "crashed"])
def test_it_ends_with_its_owner_also_when_that_is_killed(state: str):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([PYTHON_PATH, str(ROOT / "tests")])}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, state], env=environment, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert folder.name.startswith("kv-pg-")
        assert bool(postgres_keeper.processes(folder)) == (state != "crashed")
        owner.kill()
    end = time.monotonic() + postgres_keeper.PATIENCE_SECONDS
    while folder.exists() or postgres_keeper.processes(folder):
        assert time.monotonic() < end, postgres_keeper.processes(folder)
        time.sleep(0.02)


# What cannot be


def test_without_postgresql_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres_server, "_DEBIAN", tmp_path)
    with pytest.raises(UnavailableError, match="apt-get install postgresql"):
        PostgresCluster().start()


def test_the_newest_of_several_versions_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres_server, "_DEBIAN", tmp_path)
    for version in ("9.6", "14", "15", "16"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for name in ("postgres", "initdb", "psql")[: 1 if version == "16" else 3]:  # of 16 the server alone
            (folder / name).touch(0o755)
    assert postgres_server._find_programs() == tmp_path / "15/bin"


def test_what_postgresql_says_when_it_does_not_start_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(postgres_server._SETTINGS, "wal_level", "none-such")
    cluster = PostgresCluster()
    with pytest.raises(UnavailableError, match="did not start") as caught:
        cluster.start()
    assert 'invalid value for parameter "wal_level": "none-such"' in str(caught.value)
    assert not cluster.running
    cluster.close()


def test_without_room_in_memory_it_lives_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(postgres_server, "_MEMORY_BYTES", 1 << 60)
    with PostgresCluster() as cluster:
        assert cluster.folder.parent == Path(tempfile.gettempdir()).resolve()
        assert cluster.database()


def test_a_folder_whose_sockets_would_have_too_long_a_path_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / ("f" * 100)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(UsageError, match="TMPDIR"):
        PostgresCluster().start()
    assert list(folder.iterdir()) == []
