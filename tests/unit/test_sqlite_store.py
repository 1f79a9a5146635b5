"""What is particular to the SQLite store: its files, its schema, its groups."""
# ruff: noqa: ASYNC221, ASYNC240 - nothing else runs in these loops while a file is looked at

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_server.domain.model import (
    Device,
    GroupMember,
    LoginName,
    Registration,
    RegistrationState,
    Session,
    SignIn,
    User,
    UserGroup,
)
from keyvouch_server.domain.model import SignInState as State
from keyvouch_server.domain.oversight_model import AuditRecord, Block, DoneRequest, RiskEvent, Throttle, UsedProof
from keyvouch_server.ports import Above, AtMost, OneOf
from keyvouch_server.stores import records, sqlite_files
from keyvouch_server.stores.records import Statements
from keyvouch_server.stores.sqlite import MOST_WORKS, SqliteStore
from keyvouch_server.stores.sqlite_files import Migration
from keyvouch_server.stores.sqlite_upkeep import check
from support.sample_records import CREDENTIAL, EVERY_RECORD, LOGIN_NAME, SIGN_IN, TENANT, audit, open_sign_in
from support.store_files import add, count, raw

PACKAGED = sqlite_files.packaged_migrations()
SECOND = Migration(
    len(PACKAGED) + 1,
    "9999_second",
    "ALTER TABLE tenant ADD COLUMN note TEXT NOT NULL DEFAULT 'none'; CREATE TABLE later (id TEXT) STRICT;"
    "INSERT INTO later SELECT id FROM tenant; CREATE INDEX later_by_id ON later (id);",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keyvouch.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(path)
    yield opened
    await opened.close()


# Files


async def test_files_are_for_their_owner_only(store: SqliteStore, path: Path) -> None:
    await add(store, TENANT)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {path.name + end: 0o600 for end in ("", "-wal", "-shm", ".lock")}


async def test_a_wider_mode_is_narrowed(path: Path) -> None:
    await SqliteStore.open(path).close()
    path.chmod(0o644)
    store = SqliteStore.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await store.close()


async def test_a_second_server_is_refused_until_the_first_has_gone(store: SqliteStore, path: Path) -> None:
    script = (
        "import sys, pathlib; from keyvouch_server.stores.sqlite import SqliteStore;"
        "SqliteStore.open(pathlib.Path(sys.argv[1]))"
    )
    for _ in range(2):
        with pytest.raises(UnavailableError, match="Another server uses") as refused:
            SqliteStore.open(path)
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
    other = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "Another server uses" in other.stderr
    await add(store, TENANT)
    await store.close()
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["garbage", "folder", "other_program"])
async def test_what_is_not_a_store_is_refused_and_left_alone(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "garbage":
        path.write_bytes(b"not a database " * 500)
    elif kind == "folder":
        path.mkdir()
    else:
        with raw(path) as connection:
            connection.execute("CREATE TABLE theirs (id TEXT)")
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(UnavailableError) as refused:
        SqliteStore.open(path)
    assert refused.value.reason is (Reason.STORE_SCHEMA if kind == "other_program" else Reason.STORE_UNAVAILABLE)
    if kind == "garbage":
        assert path.read_bytes() == before


async def test_pragmas_are_really_set(store: SqliteStore) -> None:
    wanted = {"foreign_keys": 1, "synchronous": 2, "journal_mode": "wal", "trusted_schema": 0, "temp_store": 2}
    for name, value in (wanted | {"busy_timeout": 0, "query_only": 0}).items():
        assert store._writer.execute(f"PRAGMA {name}").fetchone() == (value,), name
    for name, value in {"foreign_keys": 1, "journal_mode": "wal", "trusted_schema": 0, "query_only": 1}.items():
        assert store._reader.execute(f"PRAGMA {name}").fetchone() == (value,), name
    for connection in (store._writer, store._reader):
        assert connection.isolation_level is None
    with pytest.raises(sqlite3.OperationalError):
        store._reader.execute("DELETE FROM tenant")


async def test_every_table_is_strict(store: SqliteStore) -> None:
    tables = store._reader.execute("PRAGMA table_list").fetchall()
    strict = {row[1]: row[5] for row in tables if not row[1].startswith("sqlite_")}
    assert len(strict) == len({type(record) for record in EVERY_RECORD})
    assert set(strict.values()) == {1}


# Migrations


async def test_a_fresh_store_and_a_second_start_have_the_newest_schema(path: Path) -> None:
    for _ in range(2):
        store = SqliteStore.open(path)
        assert sqlite_files.schema_version(store._reader) == len(PACKAGED)
        await store.close()


async def test_an_older_store_is_brought_up_to_date_with_its_data(path: Path) -> None:
    store = SqliteStore.open(path)
    await add(store, TENANT)
    await store.close()
    store = SqliteStore.open(path, migrations=(*PACKAGED, SECOND))
    assert store._reader.execute("SELECT note FROM tenant").fetchall() == [("none",)]
    await store.close()
    with pytest.raises(UnavailableError, match="this program knows versions up to") as refused:
        SqliteStore.open(path)
    assert refused.value.reason is Reason.STORE_SCHEMA
    assert refused.value.fix


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE later (id TEXT)", "nonsense", "INSERT INTO policy_version VALUES ('ten_none', 1, '', 1, '')"],
)
async def test_a_migration_that_fails_leaves_no_trace(path: Path, statement: str) -> None:
    await SqliteStore.open(path).close()
    with raw(path) as connection:
        before = connection.execute("SELECT * FROM sqlite_schema").fetchall()
    broken = Migration(SECOND.version, "broken", SECOND.script + statement)
    with pytest.raises(UnavailableError) as refused:
        SqliteStore.open(path, migrations=(*PACKAGED, broken))
    assert refused.value.reason is Reason.STORE_SCHEMA
    with raw(path) as connection:
        assert connection.execute("SELECT * FROM sqlite_schema").fetchall() == before
    await SqliteStore.open(path).close()


_KILL_EACH_STATEMENT = """
import os, pathlib, signal, sqlite3, sys
from keyvouch_server.stores import sqlite_files as files
packaged = files.packaged_migrations()
newest = len(packaged) + 1
steps = (*packaged, files.Migration(newest, "newest", sys.argv[2]))

def child(path, fatal):
    connection = sqlite3.connect(path, isolation_level=None)
    seen = 0
    def trace(statement):
        nonlocal seen
        seen += 1
        if seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    connection.set_trace_callback(trace)
    files.migrate(connection, steps)
    os._exit(0)

versions = set()
for fatal in range(1, 1000):
    path = pathlib.Path(sys.argv[1]) / f"{fatal}.db"
    pid = os.fork()
    if pid == 0:
        child(path, fatal)
    killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    connection = sqlite3.connect(path, isolation_level=None)
    version = files.schema_version(connection)
    versions.add(version)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert ("tenant" in tables) == (version >= 1), (fatal, version)
    assert ("device_tpm" in tables) == (version >= 2), (fatal, version)
    assert ("later" in tables) == (version == newest), (fatal, version)
    files.migrate(connection, steps)
    assert files.schema_version(connection) == newest
    connection.close()
    if not killed:
        print(fatal - 1, sorted(versions))
        break
"""


def test_a_migration_killed_at_any_statement_goes_on_at_the_next_start(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILL_EACH_STATEMENT, tmp_path, SECOND.script]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    points, versions = run.stdout.split(" ", 1)
    assert int(points) > 25
    assert versions.strip() == str(list(range(len(PACKAGED) + 2)))


@pytest.mark.parametrize("version", range(1, len(PACKAGED)))
async def test_an_old_store_is_brought_up_to_date_with_all_its_records(path: Path, version: int) -> None:
    """What a release did not know has its default afterwards; what can be told from the rest is filled in."""
    sqlite_files.prepare_file(path)
    with raw(path) as connection:
        sqlite_files.migrate(connection, PACKAGED[:version])
        kept = [r for r in EVERY_RECORD if _columns(connection, r)]
        wanted = [_as_known(r, _columns(connection, r)) for r in kept]
        for record in kept:
            _insert_what_was_known(connection, record)
    store = SqliteStore.open(path)
    for record in wanted:
        assert record in await find(store, type(record))
    for record_class in {type(record) for record in EVERY_RECORD}:
        found = await find(store, record_class)
        assert len(found) == sum(type(record) is record_class for record in kept) or found == [LOGIN_NAME]
    assert await find(store, LoginName) == ([r for r in wanted if isinstance(r, LoginName)] or [LOGIN_NAME])
    await store.close()
    assert check(path).problems == ()


def _columns(connection: sqlite3.Connection, record: Any) -> dict[str, bool]:
    """Columns of the record's table as it is now, and whether they must be given a value."""
    rows = connection.execute(f"PRAGMA table_info({records.table_of(type(record)).name})")
    return {row[1]: bool(row[3]) and row[4] is None for row in rows}


def _as_known(record: Any, known: dict[str, bool]) -> Any:
    """The record with defaults where its columns are newer."""
    fields = {f.name: f.default for f in dataclasses.fields(record) if f.name not in known}
    if "sign_in_id" in fields:
        fields["sign_in_id"] = SIGN_IN.id
    fields.pop("last_used_at", None)  # that of the device moves to its key
    return dataclasses.replace(record, **fields)


def _insert_what_was_known(connection: sqlite3.Connection, record: Any) -> None:
    table = records.table_of(type(record))
    given = dict(zip(table.columns, table.row(record), strict=True))
    known = _columns(connection, record)
    given.setdefault("last_used_at", CREDENTIAL.last_used_at)  # which was a device's
    values = {name: given.get(name, 0) for name, needed in known.items() if name in given or needed}
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table.name} ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))


async def find(store: SqliteStore, table: Any) -> list[Any]:
    return await store.read(lambda snapshot: snapshot.find(table, {}))


# Groups


def record_statements(store: SqliteStore) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    store._writer.set_trace_callback(lambda text: seen.append((text, threading.current_thread().name)))
    return seen


async def test_many_works_share_one_commit_and_its_sync_is_off_the_loop(store: SqliteStore) -> None:
    seen = record_statements(store)
    await asyncio.gather(*(add(store, open_sign_in(str(n))) for n in range(100)))
    commits = [thread for text, thread in seen if text == "COMMIT"]
    assert len(commits) <= 3
    assert set(commits) == {"keyvouch-store"}
    assert {thread for text, thread in seen if text != "COMMIT"} == {threading.current_thread().name}
    assert [text for text, _ in seen].count("BEGIN IMMEDIATE") == len(commits)


async def test_a_group_is_bounded(store: SqliteStore) -> None:
    seen = record_statements(store)
    await asyncio.gather(*(add(store, audit(str(n))) for n in range(2 * MOST_WORKS + 1)))
    sizes, size = [], 0
    for text, _ in seen:
        size += text == "SAVEPOINT work"
        if text == "COMMIT":
            sizes.append(size)
            size = 0
    assert sum(sizes) == 2 * MOST_WORKS + 1
    assert max(sizes) <= MOST_WORKS


async def test_callers_that_go_away_do_not_disturb_the_others(store: SqliteStore) -> None:
    for moment in range(6):
        tasks = [asyncio.create_task(add(store, open_sign_in(f"{moment}_{n}"))) for n in range(40)]
        for _ in range(moment):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[1::2] == [None] * 20
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    kept = await store.read(lambda snapshot: snapshot.find(SignIn, {}))
    assert {f"sin_{moment}_{n}" for moment in range(6) for n in range(1, 40, 2)} <= {record.id for record in kept}
    assert "sin_0_0" not in {record.id for record in kept}, "cancelled before it had begun"


async def test_a_work_keeps_the_context_of_its_caller(store: SqliteStore) -> None:
    request = contextvars.ContextVar("request", default=-1)

    async def caller(number: int) -> int:
        request.set(number)

        async def work(tx: Any) -> int:
            return request.get()

        return await store.write(work)

    assert await asyncio.gather(*(caller(n) for n in range(20))) == list(range(20))


async def test_a_store_call_inside_a_work_is_a_mistake(store: SqliteStore) -> None:
    with pytest.raises(UsageError):
        await store.write(lambda tx: add(store, TENANT))
    with pytest.raises(UsageError):
        await store.read(lambda snapshot: count(store, SignIn))
    await add(store, open_sign_in("a"))
    assert await count(store, SignIn) == 1


# Cost


def test_frequent_questions_are_answered_from_an_index() -> None:
    statements = Statements()
    connection = sqlite3.connect(":memory:", isolation_level=None)
    sqlite_files.migrate(connection, PACKAGED)
    open_states = OneOf((State.PENDING, State.APPROVED))
    questions: list[tuple[Any, dict[str, Any]]] = [
        (SignIn, {"id": "a", "state": State.APPROVED, "expires_at": Above(5)}),
        (SignIn, {"user_id": "a", "state": open_states}),
        (SignIn, {"user_id": "a", "state": State.PENDING}),
        (SignIn, {"state": open_states, "expires_at": AtMost(5)}),
        (SignIn, {"state": State.PENDING, "expires_at": AtMost(5)}),
        (Session, {"user_id": "a"}),
        (Session, {"device_id": "a", "revoked_at": 0}),
        (Device, {"user_id": "a"}),
        (Registration, {"state": RegistrationState.PENDING, "expires_at": AtMost(5)}),
        (LoginName, {"tenant_id": "a", "name_key": "a"}),
        (LoginName, {"user_id": "a", "alias": True}),
        (GroupMember, {"user_id": "a"}),
        (GroupMember, {"group_id": "a", "user_id": Above("a")}),
        (User, {"tenant_id": "a", "id": Above("a")}),
        (UserGroup, {"tenant_id": "a", "id": Above("a")}),
        (Session, {"tenant_id": "a", "id": Above("a")}),
        (RiskEvent, {"user_id": "a", "closed_at": 0}),
        (RiskEvent, {"tenant_id": "a", "closed_at": 0}),
        (Throttle, {"arrival": AtMost(5)}),
        (Block, {"until": AtMost(5)}),
        (Block, {"user_id": "a"}),
        (DoneRequest, {"at": AtMost(5)}),
        (UsedProof, {"expires_at": AtMost(5)}),
        (AuditRecord, {"user_id": "a"}),
        (AuditRecord, {"tenant_id": "a", "sequence": Above(5)}),
    ]
    for record, where in questions:
        table = statements.table(record)
        order = "sequence" if record is AuditRecord else ""
        for text, values in (
            statements.select(table, where, order, True, 10),
            statements.count(table, where),
            statements.update(table, where, {table.columns[1]: 1}),
            statements.delete(table, where),
        ):
            plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + text, values)]
            own = [step for step in plan if table.name in step]
            assert own, text
            assert not any(step.startswith("SCAN") for step in own), (text, plan)
    connection.close()


def test_the_number_of_texts_depends_on_shapes_not_on_values() -> None:
    statements = Statements()
    table = statements.table(SignIn)
    for number in range(1, 200):
        statements.insert(open_sign_in(str(number)))
        where = {"id": str(number), "expires_at": Above(number), "app_id": OneOf(tuple(map(str, range(number))))}
        statements.select(table, where, "", False, number)
    assert len(statements._texts) == 1 + 9
