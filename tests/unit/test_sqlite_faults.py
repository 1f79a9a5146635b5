"""The SQLite store when the world fails it: killed, out of room, locked out."""
# ruff: noqa: ASYNC220 - nothing else runs in these loops while a file is looked at

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keyvouch.errors import UnavailableError
from keyvouch_server.domain.model import SignIn
from keyvouch_server.stores.sqlite import SqliteStore
from support.sample_records import open_sign_in
from support.store_files import add, count, raw


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keyvouch.db"


async def test_another_programs_lock_is_waited_for_off_the_loop_then_refused_G8(path: Path) -> None:
    store = SqliteStore.open(path, busy_seconds=0.3)
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        blocked = [asyncio.create_task(add(store, open_sign_in(str(n)))) for n in range(5)]
        ticks = 0
        while not all(task.done() for task in blocked):
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 10
        results = await asyncio.gather(*blocked, return_exceptions=True)
        assert {type(result) for result in results} == {UnavailableError}
        late = asyncio.create_task(add(store, open_sign_in("late")))
        await asyncio.sleep(0.05)
        other.execute("ROLLBACK")
        await late
    assert await count(store, SignIn) == 1
    assert store._writer.execute("PRAGMA busy_timeout").fetchone() == (0,)
    await store.close()


_WRITER = """
import asyncio, pathlib, sys
from keyvouch_server.stores.sqlite import SqliteStore
from support.sample_records import audit, open_sign_in

async def main(path, prefix):
    store = SqliteStore.open(pathlib.Path(path))
    async def client(number):
        for turn in range(10000):
            name = f"{prefix}_{number}_{turn}"
            async def work(tx):
                await tx.insert(open_sign_in(name))
                await tx.insert(audit("begin", subject="sin_" + name))
            await store.write(work)
            sys.stdout.write(name + "\\n")
            sys.stdout.flush()
    await asyncio.gather(*(client(n) for n in range(8)))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def test_everything_acknowledged_is_there_after_kill_9_and_act_and_audit_agree_G11(path: Path) -> None:
    acknowledged: set[str] = set()
    for kill in range(22):
        tests = Path(__file__).parents[1]
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, path, str(kill)], stdout=subprocess.PIPE, text=True, cwd=tests
        )
        assert writer.stdout is not None
        for _ in range(1 + kill * 5 % 37):
            acknowledged.add("sin_" + writer.stdout.readline().strip())
        writer.send_signal(signal.SIGKILL)
        acknowledged |= {"sin_" + line.strip() for line in writer.stdout if line.endswith("\n")}
        writer.wait()
        writer.stdout.close()
        store = SqliteStore.open(path)
        acts = {row[0] for row in store._reader.execute("SELECT id FROM sign_in")}
        audits = [row[0] for row in store._reader.execute("SELECT subject FROM audit_record")]
        assert acknowledged <= acts
        assert sorted(acts) == sorted(audits)
        await store.close()
    assert len(acknowledged) > 300
    with raw(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


_FULL_DISK = """
import asyncio, pathlib, resource, sys
from keyvouch.errors import Reason, UnavailableError
from keyvouch_server.domain.model import SignIn
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.stores.sqlite import SqliteStore
from support.sample_records import audit, open_sign_in

async def add(store, name):
    async def work(tx):
        await tx.insert(open_sign_in(name, binding_message="x" * 20000))
        await tx.insert(audit("begin"))
    await store.write(work)

async def counts(store):
    async def work(snapshot):
        return await snapshot.count(SignIn, {}), await snapshot.count(AuditRecord, {})
    return await store.read(work)

async def main(path):
    store = SqliteStore.open(path)
    await asyncio.gather(*(add(store, f"before_{n}") for n in range(5)))
    written = 5
    wal = path.with_name(path.name + "-wal")
    for round_ in range(8):
        limit = wal.stat().st_size + round_ * 9000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        results = await asyncio.gather(
            *(add(store, f"full_{round_}_{n}") for n in range(20)), return_exceptions=True
        )
        assert all(type(r) is UnavailableError and r.reason is Reason.STORE_UNAVAILABLE for r in results), results
        assert await counts(store) == (written, written)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await add(store, f"after_{round_}")
        written += 1
        assert await counts(store) == (written, written)
    await store.close()
    store = SqliteStore.open(path)
    assert await counts(store) == (written, written)
    await store.close()

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


def test_a_full_disk_acknowledges_nothing_and_the_store_recovers_when_there_is_room(path: Path) -> None:
    tests = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, path], capture_output=True, text=True, check=False, cwd=tests
    )
    assert run.returncode == 0, run.stderr
