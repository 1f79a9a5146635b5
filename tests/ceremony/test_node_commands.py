"""`keyvouch-server` with a store in PostgreSQL, as people set up several servers: `init`, copies of the data directory,
`serve` on each, `recover` while they serve; and everything that is refused on the way there.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest

from keyvouch_bench.device import enrol_with_pass
from keyvouch_bench.server_process import ServerProcess, free_ports
from keyvouch_client import Connection
from support.node_processes import NodeStage, copied
from support.postgres_server import PostgresCluster
from support.programs import run_program
from support.stubborn import begin

WHO = ("--tenant", "example", "--administrator", "admin")
FAR = "postgresql://keyvouch:secret@db.example.org/keyvouch"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_program("keyvouch-server", *map(str, arguments))


def init(data: Path, store: str, *who: str) -> subprocess.CompletedProcess[str]:
    return run("init", "--json", "--data", data, "--store", store, *(who or WHO))


def refusal(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The error that a command printed as JSON, at the end of what a server may have logged."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
    error: dict[str, str] = json.loads(done.stderr.strip().splitlines()[-1])["error"]
    assert all(error[part] for part in ("reason", "message", "fix"))
    return error


def asked(url: str, query: str) -> list[tuple[object, ...]]:
    async def ask() -> list[tuple[object, ...]]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def schemas(url: str) -> set[object]:
    """What `init` would leave in a database."""
    query = (
        r"SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')"
    )
    return {name for (name,) in asked(url, query)}


@pytest.fixture
def server(tmp_path: Path, postgres_url: str) -> Iterator[ServerProcess]:
    with ServerProcess.make(tmp_path / "one", store=postgres_url) as made:
        yield made


def told_where(data: Path, old: str, new: str) -> None:
    """Have the configuration name another database."""
    file = data / "keyvouch.toml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


# init


def test_init_leaves_another_servers_database_as_it_is(server: ServerProcess, tmp_path: Path, postgres_url: str):
    before = asked(postgres_url, "SELECT sequence, hash FROM keyvouch.audit_record ORDER BY sequence")
    new, empty = tmp_path / "new", tmp_path / "empty"
    empty.mkdir()
    for data in (new, empty):
        error = refusal(init(data, postgres_url))
        assert error["reason"] == "configuration"
        assert error["message"].startswith("No server was made: the store belongs to the server ")
        assert "another database" in error["fix"]
    assert not new.exists()
    assert list(empty.iterdir()) == []
    assert asked(postgres_url, "SELECT sequence, hash FROM keyvouch.audit_record ORDER BY sequence") == before
    server.start()


def test_init_that_fails_half_way_leaves_nothing_in_the_database(tmp_path: Path, postgres_url: str):
    data = tmp_path / "server"
    error = refusal(init(data, postgres_url, "--tenant", "example", "--administrator", "x" * 65))
    assert error["reason"] == "field_invalid"
    assert not data.exists()
    assert schemas(postgres_url) == set()
    assert init(data, postgres_url).returncode == 0
    assert schemas(postgres_url) == {"keyvouch"}


def test_of_several_inits_at_once_one_has_the_database(tmp_path: Path, postgres_url: str):
    folders = [tmp_path / f"server{number}" for number in range(4)]
    with ThreadPoolExecutor(len(folders)) as threads:
        done = list(threads.map(lambda data: init(data, postgres_url), folders))
    made = [data for data, one in zip(folders, done, strict=True) if one.returncode == 0]
    assert len(made) == 1
    for data, one in zip(folders, done, strict=True):
        assert data.exists() is (data in made)
        if data not in made:
            assert refusal(one)["reason"] == "configuration"
    assert run("recover", "--data", made[0], *WHO).returncode == 0
    assert asked(postgres_url, "SELECT count(*) FROM keyvouch.tenant") == [(1,)]


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (FAR, "db.example.org, and its address does not say sslmode"),
        ("postgresql://keyvouch:secret@10.0.0.7:5432/keyvouch", "10.0.0.7"),
        ("postgresql://keyvouch:secret@localhost,db.example.org/keyvouch", "db.example.org"),
        ("postgresql:///keyvouch?host=db.example.org&user=keyvouch&password=secret", "db.example.org"),
        ("postgresql://keyvouch:secret@db.example.org", "postgresql://USER@HOST/DATABASE"),
        ("mysql://keyvouch:secret@localhost/keyvouch", "postgresql://USER@HOST/DATABASE"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_before_anything_is_made(tmp_path: Path, store: str, words: str):
    error = refusal(init(tmp_path / "server", store))
    assert error["reason"] == "configuration"
    assert words in error["message"]
    assert not (tmp_path / "server").exists()


def test_init_where_no_database_answers_says_what_why_and_what_to_do(tmp_path: Path):
    (nobody,) = free_ports(1)
    for store in (f"postgresql://kv:secret@127.0.0.1:{nobody}/kv", f"postgresql://kv@/kv?host={tmp_path}"):
        error = refusal(init(tmp_path / "server", store))
        assert error["reason"] == "store_unavailable"
        assert store.replace(":secret", "") in error["message"]
        assert "address" in error["fix"]
        assert not (tmp_path / "server").exists()


# serve


def serve(data: Path) -> dict[str, str]:
    """Why a server does not start."""
    return refusal(run("serve", "--json", "--data", data))


def test_serve_with_the_keys_of_another_server_is_refused(
    server: ServerProcess, tmp_path: Path, postgres_url: str, postgres_cluster: PostgresCluster
):
    other = postgres_cluster.database()
    with ServerProcess.make(tmp_path / "two", store=other) as stranger:
        told_where(stranger.data, other, postgres_url)
        error = serve(stranger.data)
        assert error["reason"] == "configuration"
        assert "the keys here are another's" in error["message"]
        assert "data directory" in error["fix"]
        assert refusal(run("recover", "--json", "--data", stranger.data, *WHO))["reason"] == "configuration"
    server.start()  # the control: with its own keys
    postgres_cluster.discard(other)


def test_serve_with_an_address_that_does_not_say_how_the_way_is_protected_is_refused(
    server: ServerProcess, postgres_url: str
):
    told_where(server.data, postgres_url, FAR)
    error = serve(server.data)
    assert error["reason"] == "configuration"
    assert "sslmode" in error["message"]
    assert "sslmode=verify-full" in error["fix"]


def test_serve_without_its_database_says_what_why_and_what_to_do(
    server: ServerProcess, postgres_url: str, postgres_cluster: PostgresCluster
):
    postgres_cluster.stop()
    error = serve(server.data)
    assert error["reason"] == "store_unavailable"
    assert error["message"].startswith(f"The database {postgres_url} cannot be reached: ")
    assert "address" in error["fix"]
    postgres_cluster.start()
    told_where(server.data, postgres_url, postgres_url.replace("/kv_", "/no_"))
    assert "does not exist" in serve(server.data)["message"]
    told_where(server.data, "/no_", "/kv_")
    server.start()


# recover, and a node more, while others serve


async def test_recover_helps_while_nodes_serve_and_its_pass_is_good_at_each_T18(tmp_path: Path, postgres_url: str):
    with NodeStage.open_nodes(tmp_path, postgres_url, count=2) as stage:
        tenant, administrator = stage.server.tenant, stage.server.administrator
        done = await asyncio.to_thread(
            run, "recover", "--json", "--data", stage.nodes[1].data,
            "--tenant", tenant, "--administrator", administrator,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        code = json.loads(done.stdout)["access_pass"]
        async with stage.connect_to(0) as connection:
            await enrol_with_pass(connection, tenant, administrator, code)
        added = copied(stage.nodes[1], tmp_path / "node3")
        with added:
            await asyncio.to_thread(added.start)
            async with Connection(added.endpoint, ca_file=added.ca) as connection:
                assert (await begin(connection, tenant, administrator)).begun.number
        checked = await asyncio.to_thread(run, "check", "--json", "--data", stage.nodes[0].data)
        assert json.loads(checked.stdout)["problems"] == []
