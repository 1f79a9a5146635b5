"""The server's disk and process under faults: full, slow, frozen, told to stop, killed under load.

What is acknowledged is durable, what is refused has left no trace, and the server recovers without a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyvouch.errors import KeyvouchError, Reason, UnavailableError
from keyvouch_bench.device import enrol_with_pass
from keyvouch_client import Connection, Session, SignIn
from keyvouch_client.sign_in import Begun
from keyvouch_server.stores.sqlite import SqliteStore
from keyvouch_server.stores.sqlite_upkeep import check
from support.contest import at_once
from support.crash_stage import Account, Stage
from support.killable_server import SLOW_DISK
from support.live_server import LiveServer
from support.sample_records import EVERY_RECORD
from support.stubborn import StubbornDevice, begin

NO_LIMIT = resource.RLIM_INFINITY
KILLS = 5


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server whose commits take a third of a second."""
    with Stage.open(tmp_path_factory.mktemp("slow"), killable=True) as made:
        made.server.kill()
        made.server.environment[SLOW_DISK] = "0.3"
        made.server.start()
        yield made


@contextlib.contextmanager
def disk_full(stage: Stage, size: int) -> Iterator[None]:
    """No file of the server's may grow beyond `size` bytes while the block lasts."""
    resource.prlimit(stage.server.pid, resource.RLIMIT_FSIZE, (size, NO_LIMIT))
    try:
        yield
    finally:
        resource.prlimit(stage.server.pid, resource.RLIMIT_FSIZE, (NO_LIMIT, NO_LIMIT))


async def new_account(stage: Stage) -> Account:
    return (await new_accounts(stage, 1))[0]


async def new_accounts(stage: Stage, count: int) -> list[Account]:
    async with stage.connect() as connection:
        return await asyncio.gather(*(stage.new_account(connection) for _ in range(count)))


async def enrolled(stage: Stage, connection: Connection, account: Account) -> StubbornDevice:
    return StubbornDevice(await enrol_with_pass(connection, stage.server.tenant, account.username, account.access_pass))


async def signed_in(stage: Stage, connection: Connection, account: Account, device: StubbornDevice) -> Session:
    begun = await begin(connection, stage.server.tenant, account.username)
    prompt = await device.prompt_of(begun.begun.sign_in_id)
    await device.send(device.device.approve(prompt, begun.begun.number))
    assert (await device.outcome(prompt.prompt_id)).accepted
    return await begun.redeem()


def sign_ins_of(stage: Stage, account: Account) -> Counter[str]:
    query = "SELECT state FROM sign_in JOIN user ON user.id = user_id WHERE username = ?"
    return Counter(row[0] for row in stage.rows(query, account.username))


# Disk full


async def test_full_disk_refuses_every_act_and_recovers_without_restart(stage: Stage) -> None:
    account, pid = await new_account(stage), stage.server.pid
    async with stage.connect() as connection:
        device = await enrolled(stage, connection, account)
        async with device.online():
            await device.connected()
            session = await signed_in(stage, connection, account, device)
            begun = await begin(connection, stage.server.tenant, account.username)
            prompt = await device.prompt_of(begun.begun.sign_in_id)
            given = device.device.approve(prompt, begun.begun.number)
            before = stage.rows("SELECT count(*), max(sequence) FROM audit_record")
            with disk_full(stage, 4096):
                tenant, username = stage.server.tenant, account.username
                refused = await at_once(
                    [
                        lambda: begin(connection, tenant, username),
                        lambda: begin(connection, tenant, "nobody"),
                        lambda: stage.new_account(connection),
                        lambda: enrolled(stage, connection, account),
                    ]
                )
                assert [type(r) for r in refused] == [UnavailableError] * 4
                assert {r.reason for r in refused if isinstance(r, KeyvouchError)} == {Reason.STORE_UNAVAILABLE}
                await device.send(given)  # breaks the stream; the device goes on trying
                await asyncio.sleep(0.3)
                assert device.outcomes[prompt.prompt_id] == []
                assert (await connection.jwks()).issuer
            assert stage.rows("SELECT count(*), max(sequence) FROM audit_record") == before
            assert (await device.outcome(prompt.prompt_id)).accepted
            await begun.redeem()
            await session.refresh()
    assert stage.server.pid == pid
    assert sign_ins_of(stage, account) == {"consumed": 2}
    stage.check()


async def test_disk_that_fills_up_under_load_acknowledges_only_what_is_durable(stage: Stage) -> None:
    """Of many at once some are taken and some refused: the taken are there after kill -9, the refused are not."""
    accounts = await new_accounts(stage, 40)
    await asyncio.to_thread(stage.server.stop)  # folds the log away, so that what follows makes it grow
    await asyncio.to_thread(stage.server.start)
    async with stage.connect() as connection:
        with disk_full(stage, 120_000):
            results = []
            for start in range(0, 40, 8):
                part = accounts[start : start + 8]
                results += await at_once([lambda a=a: begin(connection, stage.server.tenant, a.username) for a in part])
            await stage.crash()
    taken = {r.begun.sign_in_id for r in results if isinstance(r, Begun)}
    refused = [r.reason for r in results if isinstance(r, KeyvouchError)]
    assert taken
    assert set(refused) == {Reason.STORE_UNAVAILABLE}
    names = ", ".join("?" * len(accounts))
    query = f"SELECT sign_in.id FROM sign_in JOIN user ON user.id = user_id WHERE username IN ({names})"
    assert {row[0] for row in stage.rows(query, *(a.username for a in accounts))} == taken
    stage.check()


# Kill under load


async def test_every_acknowledged_act_is_found_after_kills_under_load(stage: Stage) -> None:
    """Many clients begin sign-ins as fast as they can; whatever they were told has begun is in the store."""
    accounts = await new_accounts(stage, 8)
    acknowledged: list[str] = []
    draw = random.Random()

    async def load(account: Account, stop: asyncio.Event) -> None:
        async with stage.connect() as connection:
            while not stop.is_set():
                with contextlib.suppress(UnavailableError):
                    begun = await begin(connection, stage.server.tenant, account.username)
                    acknowledged.append(begun.begun.sign_in_id)

    for _ in range(KILLS):
        stop = asyncio.Event()
        clients = [asyncio.create_task(load(account, stop)) for account in accounts]
        await asyncio.sleep(draw.uniform(0.1, 0.4))
        await asyncio.to_thread(stage.server.kill)
        stop.set()
        await asyncio.gather(*clients)
        await asyncio.to_thread(stage.server.start)
    found = {row[0] for row in stage.rows("SELECT id FROM sign_in")}
    assert len(acknowledged) > 100
    assert set(acknowledged) <= found
    for account in accounts:
        assert sign_ins_of(stage, account)["pending"] == 1
    stage.check()


# Slow disk


async def test_slow_disk_makes_calls_wait_and_repeats_have_no_second_effect(slow: Stage) -> None:
    """A client that gives up too early and repeats gets the same session; a begin that was given up is superseded."""
    account = await new_account(slow)
    async with (
        slow.connect() as connection,
        Connection(slow.server.endpoint, ca_file=slow.server.ca, deadline=0.1) as hasty,
    ):
        device = await enrolled(slow, connection, account)
        async with device.online():
            with pytest.raises(UnavailableError) as too_early:
                async with SignIn(
                    hasty, tenant=slow.server.tenant, username=account.username, app_id="shop", app_name="Shop"
                ):
                    pass
            assert too_early.value.reason is Reason.DEADLINE
            begun = await begin(connection, slow.server.tenant, account.username)
            prompt = await device.prompt_of(begun.begun.sign_in_id)
            await device.send(device.device.approve(prompt, begun.begun.number))
            assert (await device.outcome(prompt.prompt_id)).accepted
            impatient = Begun(hasty, begun.begun, begun._proof_key)
            await asyncio.wait({asyncio.create_task(impatient.redeem())}, timeout=0.25)
            session = await begun.redeem()
        assert sign_ins_of(slow, account) == {"superseded": 1, "consumed": 1}
        query = "SELECT id FROM session WHERE kind = 'approval' AND user_id = ?"
        assert slow.rows(query, session.details.user_id) == [(session.session_id,)]
    slow.check()


async def test_stop_under_load_lets_running_calls_finish(slow: Stage) -> None:
    """SIGTERM while commits are under way: each call gets its reply, new calls are refused, the exit status is 0."""
    accounts = await new_accounts(slow, 12)
    async with slow.connect() as connection, slow.connect() as late:
        device = await enrolled(slow, connection, accounts[0])
        async with device.online():
            await device.connected()
            await late.identity()
            running = asyncio.create_task(
                at_once([lambda a=a: begin(connection, slow.server.tenant, a.username) for a in accounts])
            )
            await asyncio.sleep(0.15)
            began = time.monotonic()
            stopping = asyncio.create_task(asyncio.to_thread(slow.server.stop))
            results = await running
            with pytest.raises(UnavailableError):
                await begin(late, slow.server.tenant, accounts[0].username)
            assert await stopping == 0
            assert time.monotonic() - began < 8
            assert all(isinstance(r, Begun) for r in results), results
            await asyncio.to_thread(slow.server.start)
            connections = device.connections
            await device.connected(connections)
            assert await device.prompt_of(next(r.begun.sign_in_id for r in results if isinstance(r, Begun)))
    for account in accounts:
        assert sign_ins_of(slow, account) == {"pending": 1}
    slow.check()


# Process faults


async def test_second_server_on_the_same_data_is_refused(stage: Stage) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "keyvouch_server", "serve", "--json", "--data", str(stage.data)],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["reason"] == Reason.STORE_UNAVAILABLE
    assert "Another server uses the store" in error["message"]
    assert "Stop the other server first" in error["fix"]
    assert await new_account(stage)  # the control: the first one serves on


async def test_frozen_server_makes_clients_wait_and_nothing_happens_twice(stage: Stage) -> None:
    accounts = await new_accounts(stage, 10)
    async with stage.connect() as connection:
        device = await enrolled(stage, connection, accounts[0])
        async with device.online():
            await device.connected()
            begun = await begin(connection, stage.server.tenant, accounts[0].username)
            prompt = await device.prompt_of(begun.begun.sign_in_id)
            os.kill(stage.server.pid, signal.SIGSTOP)
            try:
                await device.send(device.device.approve(prompt, begun.begun.number))
                others = [lambda a=a: begin(connection, stage.server.tenant, a.username) for a in accounts[1:]]
                waiting = [asyncio.create_task(at_once(others)), asyncio.create_task(begun.wait())]
                done, _ = await asyncio.wait(waiting, timeout=2)
                assert not done
            finally:
                os.kill(stage.server.pid, signal.SIGCONT)
            results, _ = await asyncio.gather(*waiting)
            assert (await device.outcome(prompt.prompt_id)).accepted
            assert await begun.redeem()
    assert all(isinstance(r, Begun) for r in results)
    for account in accounts[1:]:
        assert sign_ins_of(stage, account) == {"pending": 1}
    assert sign_ins_of(stage, accounts[0]) == {"consumed": 1}
    stage.check()


# What a check says of a store that is sound


async def test_check_is_content_when_an_act_and_its_record_lie_on_both_sides_of_a_second(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = SqliteStore.open(path)

    async def work(tx: object) -> None:
        for record in EVERY_RECORD:
            await tx.insert(record)  # type: ignore[attr-defined]

    await store.write(work)
    await store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE audit_record SET at = at + 1")
        assert check(path).problems == ()
        connection.execute("UPDATE audit_record SET at = at + 1 WHERE at = 111")  # the control
        assert len(check(path).problems) == 1


async def test_check_is_content_after_old_sign_ins_were_forgotten(live: LiveServer) -> None:
    """A session outlives what the sweep forgets; where it came from is still known."""
    ada = await live.person("ada")
    await live.signed_in(ada)
    abandoned = await live.begin("ada")
    live.clock.advance(8 * 86400)
    await live.app.sign_ins.expire()
    with pytest.raises(KeyvouchError) as forgotten:
        await abandoned.state()
    assert forgotten.value.reason is Reason.SIGN_IN_UNKNOWN
    assert check(live.data / "keyvouch.db").problems == ()
