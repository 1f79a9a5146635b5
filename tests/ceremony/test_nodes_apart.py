"""Several servers on one database, and what goes wrong between them and it: connections end, the database dies.

`here` is where clients and administrators are, `there` where devices are connected.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from keyvouch.errors import Reason, UnavailableError
from keyvouch.statement import Decision
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, prompts_pb2
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import SignIn, SignInState
from support.live_server import LIMIT, LiveServer, OpenSignIn, Person, refused
from support.node_clients import BOTH_WAYS, SESSION, Begin, Multiplexed, Watching, multiplexed, watching
from support.nodes import person, removed
from support.postgres_server import PostgresCluster


async def listening(url: str) -> list[int]:
    """The connections on which nodes hear of each other."""
    connection = await asyncpg.connect(url)
    try:
        asked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'listen %'"
        return [row[0] for row in await connection.fetch(asked)]
    finally:
        await connection.close()


async def end_connections(url: str, pids: list[int]) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", pids)
    finally:
        await connection.close()


@asynccontextmanager
async def deaf(url: str) -> AsyncIterator[None]:
    """While the block lasts, nothing is told by the database. At its end the nodes have to connect anew."""
    tables = ("prompt", "sign_in", "device")
    connection = await asyncpg.connect(url)
    try:
        for table in tables:
            await connection.execute(f"ALTER TABLE keyvouch.{table} DISABLE TRIGGER USER")
        yield
        for table in tables:
            await connection.execute(f"ALTER TABLE keyvouch.{table} ENABLE TRIGGER USER")
    finally:
        await connection.close()
    await end_connections(url, await listening(url))


@BOTH_WAYS
async def test_a_ceremony_completes_though_nodes_stop_hearing_of_each_other_PS21(
    pair: tuple[LiveServer, ...], postgres_url: str, begin: Begin
):
    here, there = pair
    ada = await person(here, "ada", at=there)
    await end_connections(postgres_url, await listening(postgres_url))
    client = await begin(here, "ada")
    prompt = await ada.stream.prompt()
    await end_connections(postgres_url, await listening(postgres_url))
    await ada.stream.send(ada.device.approve(prompt, client.number))
    assert await client.end() == SESSION


@BOTH_WAYS
async def test_what_was_missed_is_looked_up_afterwards_PS18_PS21(
    pair: tuple[LiveServer, ...], postgres_url: str, begin: Begin
):
    here, there = pair
    names = ("asked", "approved", "denied", "withdrawn", "removed")
    people = {name: await person(here, name, at=there) for name in names}
    clients = {name: await begin(here, name) for name in names[1:]}
    prompts = {name: await people[name].stream.prompt() for name in names[1:]}
    await here.admin()
    async with deaf(postgres_url):
        clients["asked"] = await begin(here, "asked")
        ada = people["approved"]
        outcome = await ada.stream.send(ada.device.approve(prompts["approved"], clients["approved"].number))
        assert outcome.accepted
        await people["denied"].stream.send(people["denied"].device.refuse(prompts["denied"], Decision.DENY))
        await clients["withdrawn"].cancel()
        gone = admin_pb.AdminRemoveDeviceRequest(device_id=people["removed"].device.device_id)
        await here.administer("AdminRemoveDevice", gone)
    prompt = await people["asked"].stream.prompt()
    await people["asked"].stream.send(people["asked"].device.approve(prompt, clients["asked"].number))
    assert await clients["asked"].end() == SESSION
    assert await clients["approved"].end() == SESSION
    assert await clients["denied"].end() == common_pb2.SIGN_IN_STATE_DENIED
    assert (await people["withdrawn"].stream.withdrawn()).prompt_id == prompts["withdrawn"].prompt_id
    await removed(people["removed"].stream)


async def test_a_stream_that_hears_of_an_approval_only_once_it_is_used_up_gets_its_session_P7(
    pair: tuple[LiveServer, ...], postgres_url: str
):
    here, there = pair
    ada = await person(here, "ada", at=there)
    client = await multiplexed(here, "ada")
    assert isinstance(client, Multiplexed)
    prompt = await ada.stream.prompt()
    async with deaf(postgres_url):
        await ada.stream.send(ada.device.approve(prompt, client.number))
        session = await OpenSignIn(there, client.begun, client.proof_key).redeem()
    last = await answer(client.call.read())
    assert last.session.session.session_id == session.session.session_id


@BOTH_WAYS
async def test_streams_that_wait_outlive_the_database_PS21(
    pair: tuple[LiveServer, ...], postgres_cluster: PostgresCluster, begin: Begin
):
    here, there = pair
    ada = await person(here, "ada", at=there)
    client = await begin(here, "ada")
    prompt = await ada.stream.prompt()
    postgres_cluster.crash()
    with refused(Reason.STORE_UNAVAILABLE):
        await there.begin("ada")
    postgres_cluster.start()
    sent = await accepted(there, ada, prompt, client.number)
    assert sent.accepted
    assert await client.end() == SESSION
    other = await begin(there, "ada")
    await ada.stream.send(ada.device.approve(await ada.stream.prompt(), other.number))
    assert await other.end() == SESSION


async def accepted(live: LiveServer, ada: Person, prompt: prompts_pb2.Prompt, number: str) -> prompts_pb2.Outcome:
    """Answer as agents do: once more on a new stream, where the one before has ended."""
    given = ada.device.approve(prompt, number)
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                return await ada.stream.send(given)
            except (UnavailableError, EOFError):
                ada.stream = (await live.connect(ada.username, ada.device)).stream


async def test_a_database_that_stands_still_for_a_moment_breaks_nothing_PS21(
    pair: tuple[LiveServer, ...], postgres_cluster: PostgresCluster
):
    here, there = pair
    ada = await person(here, "ada", at=there)
    client = await watching(here, "ada")
    prompt = await ada.stream.prompt()
    postgres_cluster.pause()
    await asyncio.sleep(0.5)
    postgres_cluster.resume()
    await ada.stream.send(ada.device.approve(prompt, client.number))
    assert await client.end() == SESSION


async def test_notifications_of_strangers_change_nothing_PS18(
    pair: tuple[LiveServer, ...], postgres_url: str, caplog: pytest.LogCaptureFixture
):
    here, there = pair
    ada = await person(here, "ada", at=there)
    client = await watching(here, "ada")
    assert isinstance(client, Watching)
    prompt = await ada.stream.prompt()
    sign_in, device = client.opened.begun.sign_in_id, ada.device.device_id
    connection = await asyncpg.connect(postgres_url)
    for payload in (f"sign_in {sign_in}", f"device {device}", f"prompt {device} {prompt.prompt_id}", "x", "", "x"):
        await connection.execute("SELECT pg_notify('keyvouch', $1)", payload)
    await connection.close()
    await asyncio.sleep(0.2)
    assert sum("unknown form" in line for line in caplog.messages) == len(pair)
    outcome = await ada.stream.send(ada.device.approve(prompt, client.number))
    assert outcome.accepted
    assert await client.end() == SESSION


async def test_a_user_of_very_many_devices_is_told_of_all_of_them_KI5(pair: tuple[LiveServer, ...], postgres_url: str):
    """A notification holds 8000 bytes; what is withdrawn does not fit into one."""
    here, there = pair
    ada = await person(here, "ada", at=there)
    opened = await here.begin("ada")
    prompt = await ada.stream.prompt()
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(
        "INSERT INTO keyvouch.prompt SELECT 'prm_' || lpad(translate(n::text, '0189', 'abcd'), 26, 'a'), sign_in_id,"
        " 'dev_' || lpad(translate(n::text, '0189', 'abcd'), 26, 'a'), credential_id, offer, created_at, expires_at"
        " FROM keyvouch.prompt CROSS JOIN generate_series(1, 1000) AS n WHERE id = $1",
        prompt.prompt_id,
    )
    await connection.close()
    assert await opened.cancel() == common_pb2.SIGN_IN_STATE_CANCELLED
    assert (await ada.stream.withdrawn()).prompt_id == prompt.prompt_id
    row = await there.app.store.read(lambda tx: tx.get(SignIn, id=opened.begun.sign_in_id))
    assert row is not None
    assert row.state is SignInState.CANCELLED
