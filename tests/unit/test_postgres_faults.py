"""The PostgreSQL store and what goes wrong around it: callers that leave, a database that hangs, erring works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_server.domain.model import SignIn, Tenant
from keyvouch_server.stores import postgres, postgres_connection
from keyvouch_server.stores.postgres import READERS, PostgresStore
from keyvouch_server.stores.postgres_connection import connected
from keyvouch_server.stores.sqlite_files import Migration
from support.postgres_door import Lost, PostgresDoor
from support.postgres_server import PostgresCluster
from support.sample_records import TENANT, open_sign_in, variant
from support.store_files import add, count

SERVER_ID = "ab" * 32


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(url, SERVER_ID)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def paused(cluster: PostgresCluster) -> AsyncIterator[None]:
    cluster.pause()
    try:
        yield
    finally:
        cluster.resume()


async def ask(url: str, text: str, *values: object) -> Any:
    async with connected(url) as connection:
        return await connection.fetchval(text, *values)


# Callers that leave


async def test_a_caller_that_leaves_while_it_is_connected_leaves_no_connection(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, connections, real = asyncio.Event(), list[Any](), asyncpg.Connection.execute

    async def execute(self: Any, *arguments: Any, **options: Any) -> Any:
        connections.append(self)
        reached.set()
        await real(self, *arguments, **options)
        await asyncio.Event().wait()  # however quick the database is, the caller leaves before it has its answer

    monkeypatch.setattr(asyncpg.Connection, "execute", execute)
    for steps in range(3):
        reached.clear()
        attempt = asyncio.create_task(postgres_connection.connect(postgres_url))
        await reached.wait()
        for _ in range(steps):
            await asyncio.sleep(0)
        attempt.cancel()
        await asyncio.wait([attempt])
        assert attempt.cancelled()
        assert connections.pop().is_closed()


@pytest.mark.parametrize("statements", [0, 3])
async def test_a_read_that_is_given_up_on_a_hung_database_holds_up_nobody(
    postgres_url: str, postgres_cluster: PostgresCluster, statements: int
) -> None:
    """Neither its caller, nor who gets the connection next. With 0 it hangs in BEGIN, else in a statement."""

    async def work(tx: Any) -> None:
        for n in range(statements):
            if n == 1:
                postgres_cluster.pause()
            await tx.count(Tenant, {})

    async with opened(postgres_url) as store:
        await count(store, SignIn)
        if not statements:
            postgres_cluster.pause()
        started = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await store.read(work)
        assert asyncio.get_running_loop().time() - started < 5
        assert store._readers == []
        postgres_cluster.resume()
        assert await count(store, SignIn) == 0


async def test_a_read_that_is_given_up_leaves_its_connection_for_the_next(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await count(store, SignIn)
        pid = store._readers[0].get_server_pid()
        for _ in range(20):
            reader = asyncio.create_task(count(store, SignIn))
            await asyncio.sleep(0)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        assert [one.get_server_pid() for one in store._readers] == [pid]
        assert not store._readers[0].is_in_transaction()
        assert await count(store, SignIn) == 0
        assert store._free_readers._value == READERS


async def test_who_is_cancelled_while_a_failed_read_is_undone_is_cancelled(
    postgres_url: str, postgres_cluster: PostgresCluster
) -> None:
    """A loop that catches its reads' errors, and goes on, could not be ended otherwise."""

    async def work(tx: Any) -> None:
        await tx.count(Tenant, {})
        postgres_cluster.pause()
        raise LookupError

    async with opened(postgres_url) as store:
        reader = asyncio.create_task(store.read(work))
        await asyncio.sleep(0.3)
        reader.cancel()
        await asyncio.wait([reader])
        postgres_cluster.resume()
        assert reader.cancelled()
        assert await count(store, SignIn) == 0


# A database that hangs


async def test_a_read_does_not_wait_for_its_turn_for_ever(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "LONGEST_WAIT", 0.1)
    async with opened(postgres_url) as store:
        for _ in range(READERS):
            await store._free_readers.acquire()
        with pytest.raises(UnavailableError):
            await count(store, SignIn)
        store._free_readers.release()
        assert await count(store, SignIn) == 0


async def test_no_work_waits_for_more_than_two_tries_to_connect(
    postgres_url: str, postgres_cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres_url) as store:
        monkeypatch.setattr(postgres_connection, "_CONNECT_SECONDS", 0.5)
        async with paused(postgres_cluster), asyncio.timeout(4):
            store._drop_writer()
            works = [add(store, open_sign_in(str(n))) for n in range(postgres.MOST_WORKS * 12)]
            results = await asyncio.gather(*works, return_exceptions=True)
            assert {type(result) for result in results} == {UnavailableError}
        await add(store, TENANT)
        assert await count(store, SignIn) == 0


async def test_callers_are_not_told_where_the_database_is(postgres_url: str, postgres_cluster: PostgresCluster) -> None:
    async with opened(postgres_url) as store:
        postgres_cluster.crash()
        store._drop_writer()
        for call in (count(store, SignIn), add(store, TENANT)):
            with pytest.raises(UnavailableError) as refused:
                await call
            told = str(refused.value)
            assert "postgres" not in told
            assert str(postgres_cluster.folder) not in told
            assert "Nothing was changed" in told


async def test_a_database_that_only_follows_is_not_asked_what_became_of_a_commit_G11(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be behind; and a commit that is seen may not be as durable yet as it has to be."""
    monkeypatch.setattr(postgres, "_FIND_OUT_SECONDS", 0.3)
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    async with PostgresDoor(postgres_url) as door, opened(door.url) as store:
        await ask(postgres_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        door.lose = Lost.ANSWER
        with pytest.raises(UnavailableError) as refused:
            await add(store, TENANT)
        assert postgres.UNKNOWN in refused.value.message


async def test_acknowledged_stays_durable_when_the_databases_default_is_changed_meanwhile(postgres_url: str) -> None:
    source = "SELECT source FROM pg_settings WHERE name = 'synchronous_commit'"
    assert await ask(postgres_url, source) == "session"


# Nodes that start


async def test_a_node_that_stands_still_while_it_starts_holds_up_nobody_G8(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres_connection._SETTINGS, "idle_in_transaction_session_timeout", "300ms")
    reached, real = asyncio.Event(), postgres_connection.schema_version

    async def stand_still(connection: Any) -> Any:
        reached.set()
        await asyncio.Event().wait()
        return await real(connection)

    async with opened(postgres_url) as store:
        monkeypatch.setattr(postgres_connection, "schema_version", stand_still)
        starting = asyncio.create_task(PostgresStore.open(postgres_url, SERVER_ID))
        await reached.wait()
        async with asyncio.timeout(5):
            await add(store, TENANT)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def test_a_migration_may_take_longer_than_a_statement(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres_connection._SETTINGS, "statement_timeout", "300ms")
    monkeypatch.setattr(postgres_connection, "_STATEMENT_SECONDS", 0.5)
    first = postgres_connection.packaged_migrations()
    slow = Migration(len(first) + 1, "slow", "SELECT pg_sleep(0.8)")
    store = await PostgresStore.open(postgres_url, SERVER_ID, migrations=[*first, slow])
    await store.close()
    assert await ask(postgres_url, "SELECT version FROM store_version") == slow.version
    assert await ask(postgres_url, "SHOW statement_timeout") == "300ms"


async def test_a_node_of_an_older_version_writes_nothing_into_a_newer_schema(postgres_url: str) -> None:
    first = postgres_connection.packaged_migrations()
    newer = Migration(len(first) + 1, "newer", "ALTER TABLE tenant ADD COLUMN extra text NOT NULL DEFAULT ''")
    async with opened(postgres_url) as old:
        await add(old, TENANT)
        new = await PostgresStore.open(postgres_url, SERVER_ID, migrations=[*first, newer])
        for n in range(2):
            with pytest.raises(UnavailableError) as refused:
                await add(old, open_sign_in(str(n)))
            assert refused.value.reason is Reason.STORE_SCHEMA
        await add(new, open_sign_in("new"))
        assert await count(old, SignIn) == 1
        await new.close()


# Works that misbehave


async def test_a_text_too_long_for_an_index_is_the_mistake_of_its_work_alone(postgres_url: str) -> None:
    long = "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(20000))
    async with opened(postgres_url) as store:
        works = [
            add(store, open_sign_in("before")),
            add(store, variant(TENANT, id="long", name_key=long)),
            add(store, open_sign_in("after")),
        ]
        results = await asyncio.gather(*works, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), UsageError, type(None)]
        assert await count(store, SignIn) == 2


async def test_a_work_that_asks_two_things_at_once_is_refused_alone(postgres_url: str) -> None:
    async def both(tx: Any) -> None:
        await asyncio.gather(tx.count(Tenant, {}), tx.count(Tenant, {}), return_exceptions=True)

    async with opened(postgres_url) as store:
        works = [add(store, open_sign_in("before")), store.write(both), add(store, open_sign_in("after"))]
        results = await asyncio.gather(*works, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), UsageError, type(None)]
        with pytest.raises(UsageError):
            await store.read(both)
        assert await count(store, SignIn) == 2
