"""The PostgreSQL store: groups, several nodes on one database, migrations, whose store it is, its failures."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from keyvouch.errors import KeyvouchError, Reason, UnavailableError, UsageError
from keyvouch_server.domain.model import SignIn, Tenant
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.ports import OneOf, Plus
from keyvouch_server.stores import postgres, postgres_connection
from keyvouch_server.stores.postgres import MOST_WORKS, PostgresStore
from keyvouch_server.stores.postgres_connection import LOCK, connected
from keyvouch_server.stores.sqlite_files import Migration
from support.postgres_door import Lost, PostgresDoor
from support.postgres_server import PostgresCluster
from support.sample_records import TENANT, audit, open_sign_in, variant
from support.store_files import add, count

SERVER_ID = "ab" * 32


@asynccontextmanager
async def opened(*urls: str) -> AsyncIterator[Any]:
    stores = [await PostgresStore.open(url, SERVER_ID) for url in urls]
    try:
        yield stores if len(stores) > 1 else stores[0]
    finally:
        for store in stores:
            await store.close()


async def ask(url: str, text: str, *values: object) -> Any:
    async with connected(url) as connection:
        return await connection.fetchval(text, *values)


# Whose store it is, and its schema


async def test_nodes_that_start_together_make_one_schema(postgres_url: str) -> None:
    async with opened(*[postgres_url] * 4) as stores:
        await add(stores[0], TENANT)
        assert [await count(store, Tenant) for store in stores] == [1] * 4
    assert await ask(postgres_url, "SELECT version FROM store_version") == len(
        postgres_connection.packaged_migrations()
    )


async def test_another_servers_store_is_refused_and_left_alone(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await add(store, TENANT)
        with pytest.raises(KeyvouchError) as refused:
            await PostgresStore.open(postgres_url, "cd" * 32)
        assert refused.value.reason is Reason.CONFIGURATION
        assert refused.value.metadata == {"found": SERVER_ID, "here": "cd" * 32}
        await postgres_connection.forget(postgres_url, "cd" * 32)
        assert await count(store, Tenant) == 1
    await postgres_connection.forget(postgres_url, SERVER_ID)
    assert await ask(postgres_url, "SELECT to_regclass('keyvouch.tenant')") is None


async def test_a_newer_store_is_refused(postgres_url: str) -> None:
    async with opened(postgres_url):
        pass
    await ask(postgres_url, "UPDATE store_version SET version = 99")
    with pytest.raises(UnavailableError) as refused:
        await PostgresStore.open(postgres_url, SERVER_ID)
    assert refused.value.reason is Reason.STORE_SCHEMA
    assert refused.value.metadata["found"] == "99"


async def test_a_migration_that_fails_leaves_no_trace_and_may_come_again(postgres_url: str) -> None:
    first = postgres_connection.packaged_migrations()
    broken = Migration(len(first) + 1, "broken", "CREATE TABLE half (id bigint); SELECT * FROM nothing_at_all")
    with pytest.raises(UnavailableError) as refused:
        await PostgresStore.open(postgres_url, SERVER_ID, migrations=[*first, broken])
    assert refused.value.reason is Reason.STORE_SCHEMA
    assert await ask(postgres_url, "SELECT to_regclass('keyvouch.half')") is None
    assert await ask(postgres_url, "SELECT version FROM store_version") == len(first)
    whole = Migration(broken.version, "whole", "CREATE TABLE half (id bigint)")
    await (await PostgresStore.open(postgres_url, SERVER_ID, migrations=[*first, whole])).close()
    assert await ask(postgres_url, "SELECT version FROM store_version") == whole.version


async def test_a_database_that_is_not_there_is_told(postgres_url: str) -> None:
    for wrong in (postgres_url.replace("/kv_", "/none_"), "postgresql://nobody@/x?host=/nowhere", "postgresql://:x:/"):
        with pytest.raises(UnavailableError) as refused:
            await PostgresStore.open(wrong, SERVER_ID)
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
        assert refused.value.fix


async def test_acknowledged_is_durable_whatever_the_database_has_for_a_default(postgres_url: str) -> None:
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    await ask(postgres_url, f"ALTER DATABASE {name} SET synchronous_commit = off")
    assert await ask(postgres_url, "SHOW synchronous_commit") == "on"


async def test_a_role_that_may_make_no_schema_uses_the_one_it_was_given(postgres_url: str) -> None:
    await ask(postgres_url, "DROP ROLE IF EXISTS keeper")
    await ask(postgres_url, "CREATE ROLE keeper LOGIN")
    theirs = postgres_url.replace("postgres@", "keeper@")
    with pytest.raises(UnavailableError) as refused:
        await PostgresStore.open(theirs, SERVER_ID)
    assert refused.value.reason is Reason.STORE_SCHEMA
    await ask(postgres_url, "CREATE SCHEMA keyvouch AUTHORIZATION keeper")
    async with opened(theirs) as store:
        await add(store, TENANT)
        assert await count(store, Tenant) == 1


async def test_a_database_that_cannot_hold_every_name_is_refused(
    postgres_url: str, postgres_cluster: PostgresCluster
) -> None:
    await ask(postgres_url, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    latin = postgres_url.replace(f"/{name}", "/latin")
    with pytest.raises(UnavailableError) as refused:
        await PostgresStore.open(latin, SERVER_ID)
    assert refused.value.reason is Reason.STORE_SCHEMA
    assert "LATIN1" in refused.value.message
    postgres_cluster.discard(latin)


# Groups


async def test_many_works_share_one_commit(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await add(store, TENANT)  # the writer waits for work now
        before = await ask(postgres_url, "SELECT sum(last_group) FROM writer")
        await asyncio.gather(*(add(store, open_sign_in(str(n))) for n in range(MOST_WORKS * 2)))
        groups = await ask(postgres_url, "SELECT sum(last_group) FROM writer") - before
        assert 2 <= groups < MOST_WORKS
        assert await count(store, SignIn) == MOST_WORKS * 2


async def test_the_first_work_of_a_group_may_fail_and_so_may_all(postgres_url: str) -> None:
    async def fail(tx: Any) -> None:
        await tx.insert(open_sign_in("bad"))
        raise LookupError

    async with opened(postgres_url) as store:
        works = [store.write(fail), add(store, open_sign_in("good")), store.write(fail)]
        results = await asyncio.gather(*works, return_exceptions=True)
        assert [type(result) for result in results] == [LookupError, type(None), LookupError]
        results = await asyncio.gather(*(store.write(fail) for _ in range(3)), return_exceptions=True)
        assert {type(result) for result in results} == {LookupError}
        assert await count(store, SignIn) == 1


async def test_callers_that_go_away_do_not_disturb_the_others(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        tasks = [asyncio.create_task(add(store, open_sign_in(str(n)))) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(r) for r in results[1::2]] == [type(None)] * 10
        ids = {row.id for row in await store.read(lambda tx: tx.find(SignIn, {}))}
        assert {f"sin_{n}" for n in range(1, 20, 2)} <= ids
        reader = asyncio.create_task(store.read(lambda tx: tx.find(SignIn, {})))
        await asyncio.sleep(0)
        reader.cancel()
        assert await count(store, SignIn) == len(ids)


async def test_a_work_keeps_the_context_of_its_caller(postgres_url: str) -> None:
    who: contextvars.ContextVar[int] = contextvars.ContextVar("who")

    async def caller(store: PostgresStore, number: int) -> int:
        who.set(number)

        async def work(tx: Any) -> int:
            await tx.count(Tenant, {})
            return who.get()

        return await store.write(work)

    async with opened(postgres_url) as store:
        assert await asyncio.gather(*(caller(store, n) for n in range(8))) == list(range(8))


async def test_a_store_call_inside_a_work_is_a_mistake(postgres_url: str) -> None:
    async with opened(postgres_url) as store:

        async def inner(tx: Any) -> None:
            await tx.insert(TENANT)
            await count(store, SignIn)

        for call in (store.write(inner), store.read(lambda tx: store.write(inner))):
            with pytest.raises(UsageError):
                await call
        assert await count(store, Tenant) == 0


async def test_a_work_that_swallows_the_end_of_its_transaction_is_undone(postgres_url: str) -> None:
    async def work(tx: Any) -> str:
        await tx.insert(TENANT)
        with pytest.raises(UsageError):
            await tx.update(Tenant, {"id": TENANT.id}, {"created_at": 1 << 70})
        return "went on"

    async with opened(postgres_url) as store:
        with pytest.raises(UsageError):
            await store.write(work)
        await add(store, open_sign_in("after"))
        assert (await count(store, Tenant), await count(store, SignIn)) == (0, 1)


async def test_a_text_with_nul_is_in_no_record_and_cannot_be_put_there(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await add(store, TENANT)

        async def look(tx: Any) -> list[Any]:
            return [
                await tx.get(Tenant, id="a\0b"),
                await tx.find(Tenant, {"id": TENANT.id, "name": "\0"}),
                await tx.count(Tenant, {"name": "\0"}),
                await tx.find(Tenant, {"id": OneOf(("\0", TENANT.id, "a\0"))}),
                await tx.count(Tenant, {"id": OneOf(("\0", "a\0"))}),
            ]

        assert await store.read(look) == [None, [], 0, [TENANT], 0]
        for wrong in (
            lambda tx: tx.insert(variant(TENANT, id="b", name_key="\0")),
            lambda tx: tx.update(Tenant, {"id": TENANT.id}, {"name": "\0"}),
        ):
            with pytest.raises(UsageError):
                await store.write(wrong)
        assert await store.read(lambda tx: tx.find(Tenant, {})) == [TENANT]


# Several nodes


async def test_what_one_node_reads_and_then_writes_no_other_changes_meanwhile_P7(postgres_url: str) -> None:
    """Lost updates, chains with two ends, write skew: none of it, though every work reads before it writes."""

    async def work(tx: Any) -> None:
        tenant = await tx.get(Tenant, id=TENANT.id)
        records = await tx.count(AuditRecord, {})
        assert tenant.created_at == TENANT.created_at + records
        await tx.update(Tenant, {"id": TENANT.id}, {"created_at": tenant.created_at + 1})
        await tx.insert(audit(str(records)))

    async with opened(*[postgres_url] * 3) as stores:
        await add(stores[0], TENANT)
        await asyncio.gather(*(store.write(work) for _ in range(40) for store in stores))
        rows = await stores[1].read(lambda tx: tx.find(AuditRecord, {}, order="sequence"))
        assert [row.action for row in rows] == [str(n) for n in range(120)]


async def test_a_node_that_stands_still_in_a_transaction_is_cut_off_G8(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres_connection._SETTINGS, "idle_in_transaction_session_timeout", "400ms")
    async with opened(postgres_url) as store, connected(postgres_url) as still:
        await still.execute(f"BEGIN; SELECT pg_advisory_xact_lock({LOCK}); CREATE TABLE left_over (id bigint)")
        await add(store, TENANT)
        assert await count(store, Tenant) == 1
        assert await ask(postgres_url, "SELECT to_regclass('keyvouch.left_over')") is None


async def test_who_waits_too_long_for_another_node_is_refused_and_changes_nothing_G8(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres_connection._SETTINGS, "lock_timeout", "200ms")
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        await other.execute(f"BEGIN; SELECT pg_advisory_xact_lock({LOCK})")
        with pytest.raises(UnavailableError) as refused:
            await add(store, TENANT)
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
        assert await count(store, Tenant) == 0
        await other.execute("COMMIT")
        await add(store, TENANT)


# Failures


@pytest.mark.parametrize("lost", [Lost.ANSWER, Lost.COMMAND])
async def test_a_commit_whose_answer_is_lost_is_found_out_G11(postgres_url: str, lost: Lost) -> None:
    async with PostgresDoor(postgres_url) as door, opened(door.url) as store:
        door.lose = lost
        works = [add(store, open_sign_in(str(n))) for n in range(5)]
        results = await asyncio.gather(*works, return_exceptions=True)
        assert door.shut == 1
        if lost is Lost.ANSWER:
            assert results == [None] * 5
            assert await count(store, SignIn) == 5
        else:
            for result in results:
                assert isinstance(result, UnavailableError)
                assert "Nothing was changed" in result.message
            assert await count(store, SignIn) == 0
        await add(store, open_sign_in("after"))


async def test_a_commit_that_nobody_can_ask_about_is_said_to_be_unknown_G11(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_FIND_OUT_SECONDS", 0.3)
    monkeypatch.setattr(postgres_connection, "_CONNECT_SECONDS", 0.2)
    async with PostgresDoor(postgres_url) as door, opened(door.url) as store:
        door.lose = Lost.ANSWER
        door.close_for(1.5)
        with pytest.raises(UnavailableError) as refused:
            await add(store, TENANT)
        assert postgres.UNKNOWN in refused.value.message
        assert "Nothing was changed" not in refused.value.message


async def test_the_database_may_be_restarted_G11(postgres_url: str, postgres_cluster: PostgresCluster) -> None:
    async with opened(postgres_url) as store:
        acknowledged: asyncio.Queue[str] = asyncio.Queue()
        ended = asyncio.Event()

        async def client(number: int) -> None:
            turn = 0
            while not ended.is_set():
                name, turn = f"{number}_{turn}", turn + 1
                try:
                    await add(store, open_sign_in(name))
                except UnavailableError:
                    await asyncio.sleep(0.01)
                else:
                    acknowledged.put_nowait(f"sin_{name}")

        clients = [asyncio.create_task(client(n)) for n in range(8)]
        known = [await acknowledged.get() for _ in range(20)]
        for _ in range(3):
            await asyncio.to_thread(postgres_cluster.crash)
            with pytest.raises(UnavailableError):
                await count(store, SignIn)
            await asyncio.to_thread(postgres_cluster.start)
            known += [acknowledged.get_nowait() for _ in range(acknowledged.qsize())]
            known += [await acknowledged.get() for _ in range(20)]
        ended.set()
        await asyncio.gather(*clients)
        rows = {row.id for row in await store.read(lambda tx: tx.find(SignIn, {}, limit=1 << 20))}
        assert set(known) <= rows


async def test_connections_that_are_ended_from_outside_are_made_anew(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await add(store, TENANT)
        assert await count(store, Tenant) == 1
        others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
        await ask(postgres_url, f"SELECT count(pg_terminate_backend(pid)) {others}")
        await asyncio.sleep(0.2)
        assert await count(store, Tenant) == 1
        await store.write(lambda tx: tx.update(Tenant, {"id": TENANT.id}, {"created_at": Plus(1)}))
