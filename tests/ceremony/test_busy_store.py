"""G8: another program holds the write lock of the store's file, again and again. What cannot be written is refused as
UNAVAILABLE and leaves nothing; what is won is won once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from keyvouch.errors import KeyvouchError, Reason, UnavailableError
from keyvouch_server.bootstrap import DATABASE
from keyvouch_server.domain.model import Session, SignIn, SignInState
from keyvouch_server.stores.sqlite import SqliteStore
from keyvouch_server.stores.sqlite_upkeep import check
from support.live_server import LiveServer, live_server, refused
from support.sample_records import TENANT, USER, audit, open_sign_in

PATIENCE = 0.02
"""Seconds that these stores wait for the lock."""

RACERS = 16


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "keyvouch.db", busy_seconds=PATIENCE)
    yield opened
    await opened.close()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else is writing while the block lasts."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def storm(path: Path) -> Iterator[None]:
    """Somebody else takes the lock and lets it go, by turns for longer and for less than anybody waits."""
    over = threading.Event()
    waits = random.Random(8)

    def blow() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=1)) as other:
            while not over.is_set():
                with contextlib.suppress(sqlite3.OperationalError):
                    other.execute("BEGIN IMMEDIATE")
                    over.wait(waits.choice((0.0, PATIENCE / 2, PATIENCE * 2)))
                    other.execute("ROLLBACK")
                over.wait(waits.choice((0.0, 0.001)))

    thread = threading.Thread(target=blow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)


async def test_what_meets_the_lock_is_unavailable_and_leaves_nothing_G8(store: SqliteStore, tmp_path: Path):
    async def work(tx: Any) -> None:
        await tx.insert(open_sign_in("a"))

    with locked(tmp_path / "keyvouch.db"):
        tries = await asyncio.gather(*(store.write(work) for _ in range(RACERS)), return_exceptions=True)
        assert {type(one) for one in tries} == {UnavailableError}
        assert {one.reason for one in tries if isinstance(one, KeyvouchError)} == {Reason.STORE_UNAVAILABLE}
        assert await store.read(lambda tx: tx.count(SignIn, {})) == 0  # whoever only reads is served
    await store.write(work)
    assert await store.read(lambda tx: tx.count(SignIn, {})) == 1


async def test_in_a_storm_of_locks_each_state_is_won_once_G8(store: SqliteStore, tmp_path: Path):
    """Racers come again until they know: of those who want one sign-in, one has it, with one record of it."""
    rounds = [f"r{number}" for number in range(20)]

    async def prepare(tx: Any) -> None:
        await tx.insert(TENANT)
        await tx.insert(USER)
        for name in rounds:
            await tx.insert(open_sign_in(name))

    await store.write(prepare)

    async def attempt(name: str, racer: int) -> bool:
        async def work(tx: Any) -> bool:
            pending = {"id": f"sin_{name}", "state": SignInState.PENDING}
            won = await tx.update(SignIn, pending, {"state": SignInState.CONSUMED, "decided_at": racer + 1})
            if won:
                await tx.insert(audit("sign_in.consume", subject=f"sin_{name}", actor=str(racer + 1)))
            return bool(won)

        return await store.write(work)

    for name in rounds:
        with locked(tmp_path / "keyvouch.db"):
            tries = await asyncio.gather(*(attempt(name, n) for n in range(RACERS)), return_exceptions=True)
            assert {type(one) for one in tries} == {UnavailableError}
        with storm(tmp_path / "keyvouch.db"):
            won = await asyncio.gather(*(patiently(attempt, name, number) for number in range(RACERS)))
        assert sum(won) == 1
    records = await store.read(lambda tx: tx.find(type(audit("x")), {"action": "sign_in.consume"}))
    rows = await store.read(lambda tx: tx.find(SignIn, {"state": SignInState.CONSUMED}))
    assert sorted((r.subject, r.actor) for r in records) == sorted((s.id, str(s.decided_at)) for s in rows)
    assert len(rows) == len(rounds)


def impatient(store: Any) -> Any:
    store._busy_seconds = PATIENCE
    return store


@pytest.fixture
async def live(server_template: Path, tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with live_server(server_template, tmp_path, around=impatient) as running:
        yield running


async def test_over_the_wire_a_held_lock_is_unavailable_and_an_approval_stays_to_be_redeemed_G8(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.approved(ada)
    with locked(live.data / DATABASE):
        with refused(Reason.STORE_UNAVAILABLE, status=grpc.StatusCode.UNAVAILABLE):
            await opened.redeem()
        with refused(Reason.STORE_UNAVAILABLE, status=grpc.StatusCode.UNAVAILABLE):
            await live.begin("ada")
    assert (await opened.redeem()).session.username == "ada"


async def test_in_a_storm_copies_of_one_redemption_open_one_session_G8(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.approved(ada)
    with storm(live.data / DATABASE):
        done = await asyncio.gather(*(patiently(opened.redeem) for _ in range(RACERS)))
    assert len({signed_in.session.session_id for signed_in in done}) == 1
    where = {"user_id": done[0].session.user_id, "kind": "approval"}
    assert await live.app.store.read(lambda tx: tx.count(Session, where)) == 1
    assert check(live.data / DATABASE).problems == ()


async def patiently(act: Any, *details: Any) -> Any:
    """Do it again for as long as the store does not answer."""
    while True:
        try:
            return await act(*details)
        except UnavailableError:
            continue
