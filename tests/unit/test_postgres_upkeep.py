"""The check of a PostgreSQL store: what only a database can have wrong, who may check it, and what is left of it.

What all stores have in common is in `contract/test_check.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from keyvouch.errors import Reason, UnavailableError
from keyvouch_server.stores.postgres import PostgresStore
from keyvouch_server.stores.postgres_upkeep import NOT_COMPARED, check
from support.kept_stores import SERVER_ID, changed
from support.postgres_server import PostgresCluster
from support.sample_records import EVERY_RECORD, open_sign_in


@dataclass
class Database:
    url: str

    def run(self, *statements: str) -> None:
        asyncio.run(changed(self.url, *statements))

    def as_role(self, name: str) -> str:
        return self.url.replace("//postgres@", f"//{name}@")


@pytest.fixture
def database(postgres_url: str) -> Database:
    """With every record in it."""

    async def body() -> None:
        store = await PostgresStore.open(postgres_url, SERVER_ID)
        await store.write(fill)
        await store.close()

    asyncio.run(body())
    return Database(postgres_url)


async def fill(tx: Any) -> None:
    for record in EVERY_RECORD:
        await tx.insert(record)


BREAKAGES = {
    "UPDATE store_version SET version = 7": ["the schema has version 7; this program's is "],
    "DROP INDEX audit_by_chain": ["the index audit_by_chain is not as"],
    "DROP INDEX device_by_user; CREATE INDEX device_by_user ON device (user_id)": [
        "the index device_by_user is not as"
    ],
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'device_by_user'::regclass": [
        "the index device_by_user is not valid"
    ],
    "ALTER TABLE access_pass DROP CONSTRAINT access_pass_user_id_key": [
        "the constraint access_pass_user_id_key of the table access_pass is not as",
        "the index access_pass_user_id_key is not as",
    ],
    "ALTER TABLE device DROP CONSTRAINT device_user_id_fkey;"
    'ALTER TABLE device ADD CONSTRAINT device_user_id_fkey FOREIGN KEY (user_id) REFERENCES "user" NOT VALID': [
        "the constraint device_user_id_fkey of the table device is not as"
    ],
    "ALTER TABLE device_tpm DROP CONSTRAINT device_tpm_health_check": ["the constraint device_tpm_health_check of the"],
    "ALTER TABLE prompt DISABLE TRIGGER prompt_arrived": ["the trigger prompt_arrived is disabled"],
    "ALTER TABLE credential DISABLE TRIGGER ALL": ["the references of the table credential are not enforced"],
    "DROP TRIGGER sign_in_changed ON sign_in": ["the trigger sign_in_changed of the table sign_in is not as"],
    "CREATE OR REPLACE FUNCTION tell_of_prompt() RETURNS trigger LANGUAGE plpgsql SET search_path = keyvouch"
    " AS $$ BEGIN RETURN NULL; END $$": ["the function tell_of_prompt() is not as"],
    "ALTER FUNCTION tell_of_device() SET search_path = public": ["the function tell_of_device() is not as"],
    "CREATE RULE quiet AS ON DELETE TO session DO INSTEAD NOTHING": ["the rule quiet of the table session is not as"],
    "ALTER TABLE audit_record ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON audit_record": [
        "the policy few of the table audit_record is not as",
        "the table audit_record is not as",
    ],
    "ALTER TABLE session SET UNLOGGED": ["the table session is not as"],
    "ALTER TABLE device ALTER display_name DROP NOT NULL": ["the table device is not as"],
    "ALTER TABLE device ALTER display_name SET DEFAULT 'x'": ["the table device is not as"],
    'ALTER TABLE device ALTER display_name TYPE text COLLATE "C.utf8"': ["the table device is not as"],
    "CREATE TABLE beside () INHERITS (audit_record)": [
        "the table audit_record is not as",
        "the table beside is not as",
    ],
    "SELECT setval('audit_record_sequence_seq', 2)": ["a position in the audit log that would be given again: 3"],
    "CREATE VIEW seen AS SELECT id FROM device": ["the view seen is not as"],
}


@pytest.mark.parametrize(("statement", "sentences"), BREAKAGES.items())
def test_check_finds_what_is_not_as_the_migrations_made_it(
    database: Database, statement: str, sentences: list[str]
) -> None:
    assert check(database.url).problems == ()
    database.run(statement)
    problems = check(database.url).problems
    for sentence in sentences:
        assert any(problem.startswith(sentence) for problem in problems), problems
    assert all(any(problem.startswith(sentence) for sentence in sentences) for problem in problems), problems


def test_what_makes_it_faster_is_the_owners_affair(database: Database) -> None:
    database.run(
        "ALTER TABLE audit_record SET (fillfactor = 90)",
        "COMMENT ON TABLE device IS 'what people carry'",
        "ANALYZE",
        "REINDEX TABLE session",
        "CREATE ROLE reader_of_stores; GRANT SELECT ON ALL TABLES IN SCHEMA keyvouch TO reader_of_stores",
    )
    assert check(database.url).problems == ()
    database.run("DROP OWNED BY reader_of_stores; DROP ROLE reader_of_stores")


def test_nothing_is_left_of_it_and_nobody_is_kept_from_writing(database: Database) -> None:
    async def body() -> None:
        store = await PostgresStore.open(database.url, SERVER_ID)
        connection = await asyncpg.connect(database.url)
        look = "SELECT array_agg(nspname::text ORDER BY nspname) FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'"
        before = await connection.fetchval(look)
        stop = asyncio.Event()
        written = 0

        async def load() -> None:
            nonlocal written
            while not stop.is_set():
                record = open_sign_in(str(written))
                await store.write(lambda tx, record=record: tx.insert(record))
                written += 1

        client = asyncio.create_task(load())
        for _ in range(3):
            began = written
            report = await asyncio.to_thread(check, database.url)
            assert report.problems == ()
            assert written > began
            assert report.counts["sign_in"] <= written + 1
        stop.set()
        await client
        assert await connection.fetchval(look) == before
        await connection.close()
        await store.close()

    asyncio.run(body())


def test_a_role_that_may_only_look_checks_the_rest_and_says_so(database: Database) -> None:
    database.run("CREATE ROLE onlooker LOGIN; GRANT pg_read_all_data TO onlooker")
    try:
        report = check(database.as_role("onlooker"))
        assert (report.problems, report.notes) == ((), (NOT_COMPARED,))
        database.run("DELETE FROM credential", "ALTER TABLE prompt DISABLE TRIGGER prompt_arrived")
        assert check(database.as_role("onlooker")).problems == ("the trigger prompt_arrived is disabled",)
        database.run("ALTER TABLE prompt ENABLE TRIGGER prompt_arrived")
        assert check(database.as_role("onlooker")).problems == ("a device without a credential: dev_a",)
    finally:
        database.run("DROP OWNED BY onlooker; DROP ROLE onlooker")


def test_a_database_that_takes_no_writes_is_checked_without_the_comparison(database: Database) -> None:
    """As a copy that follows another one."""
    name = urlsplit(database.url).path.removeprefix("/")
    database.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    report = check(database.url)
    assert (report.problems, report.notes) == ((), (NOT_COMPARED,))


def test_a_role_that_may_not_look_is_refused(database: Database) -> None:
    database.run("CREATE ROLE stranger LOGIN")
    try:
        with pytest.raises(UnavailableError) as refused:
            check(database.as_role("stranger"))
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
    finally:
        database.run("DROP ROLE stranger")


def test_a_database_that_is_not_there_is_refused(postgres_cluster: PostgresCluster, database: Database) -> None:
    nowhere = database.url.replace(urlsplit(database.url).path, "/nowhere")
    with pytest.raises(UnavailableError, match="nowhere"):
        check(nowhere)
    postgres_cluster.stop()
    with pytest.raises(UnavailableError) as refused:
        check(database.url)
    postgres_cluster.start()
    assert refused.value.reason is Reason.STORE_UNAVAILABLE
    assert check(database.url).problems == ()


def test_it_may_be_asked_from_inside_another_loop(database: Database) -> None:
    async def body() -> tuple[str, ...]:
        return check(database.url).problems

    assert asyncio.run(body()) == ()
