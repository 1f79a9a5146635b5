"""Backup and check of a SQLite store: what only that has. What stores have in common is in `contract/test_check.py`."""
# ruff: noqa: ASYNC240 - nothing else runs in these loops while a file is looked at

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import Reason, UnavailableError
from keyvouch_server.domain.model import SignIn
from keyvouch_server.stores.sqlite import SqliteStore
from keyvouch_server.stores.sqlite_upkeep import backup, check
from support.sample_records import EVERY_RECORD, SIGN_IN, open_sign_in


async def make_store(path: Path) -> SqliteStore:
    store = SqliteStore.open(path)

    async def work(tx: Any) -> None:
        for record in EVERY_RECORD:
            await tx.insert(record)

    await store.write(work)
    return store


async def test_a_sound_store_passes_open_or_closed(tmp_path: Path) -> None:
    store = await make_store(tmp_path / "a.db")
    while_open = check(tmp_path / "a.db")
    await store.close()
    report = check(tmp_path / "a.db")
    assert report == while_open
    assert report.problems == ()
    assert report.counts["sign_in"] == 1
    assert report.counts["audit_record"] == 3


async def test_backup_during_load_is_whole_and_private(tmp_path: Path) -> None:
    store = await make_store(tmp_path / "a.db")
    stop = asyncio.Event()
    acknowledged = 0

    async def load(number: int) -> None:
        nonlocal acknowledged
        turn = 0
        while not stop.is_set():
            record = open_sign_in(f"{number}_{turn}", binding_message="x" * 500)
            await store.write(lambda tx, record=record: tx.insert(record))
            acknowledged += 1
            turn += 1

    clients = [asyncio.create_task(load(n)) for n in range(16)]
    for number in range(5):
        await asyncio.sleep(0.05)
        before = acknowledged
        copy = tmp_path / f"copy_{number % 2}.db"
        await asyncio.to_thread(backup, tmp_path / "a.db", copy)
        report = await asyncio.to_thread(check, copy)
        assert report.problems == ()
        assert report.counts["sign_in"] >= before + 1
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    stop.set()
    await asyncio.gather(*clients)
    await store.close()
    assert {file.name for file in tmp_path.iterdir()} == {"a.db", "a.db.lock", "copy_0.db", "copy_1.db"}
    restored = SqliteStore.open(tmp_path / "copy_1.db")
    assert await restored.read(lambda snapshot: snapshot.get(SignIn, id=SIGN_IN.id)) == SIGN_IN
    await restored.close()


def test_a_backup_into_a_folder_that_is_not_there_names_it(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"There is no folder .*nowhere\."):
        backup(tmp_path / "kv.db", tmp_path / "nowhere" / "copy.db")


async def test_a_backup_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    (tmp_path / "garbage.db").write_bytes(b"garbage " * 1000)
    (tmp_path / "copy.db").write_bytes(b"older")
    for source in ("garbage.db", "missing.db"):
        with pytest.raises(UnavailableError) as refused:
            backup(tmp_path / source, tmp_path / "copy.db")
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
        with pytest.raises(UnavailableError):
            check(tmp_path / source)
    assert {file.name for file in tmp_path.iterdir()} == {"garbage.db", "copy.db"}
    assert (tmp_path / "copy.db").read_bytes() == b"older"


BREAKAGES = {
    "PRAGMA user_version = 7": "the schema has version 7",
    "PRAGMA ignore_check_constraints = ON; UPDATE tenant SET home = 5": "CHECK constraint failed in tenant",
}


@pytest.mark.parametrize(("statement", "sentence"), BREAKAGES.items())
async def test_check_finds_what_is_broken(tmp_path: Path, statement: str, sentence: str) -> None:
    path = tmp_path / "a.db"
    await (await make_store(path)).close()
    assert check(path).problems == ()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(statement)
    assert any(sentence in problem for problem in check(path).problems), check(path).problems


async def test_check_finds_damaged_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await (await make_store(path)).close()
    pages = bytearray(path.read_bytes())
    found = 0
    for page in range(1, len(pages) // 4096):
        damaged = pages.copy()
        damaged[page * 4096 : page * 4096 + 12] = b"\xff" * 12
        path.write_bytes(damaged)
        try:
            found += bool(check(path).problems)
        except UnavailableError:
            found += 1
    assert found == len(pages) // 4096 - 1
