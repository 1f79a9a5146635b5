"""The check of a store: one body, run against every kind of store. What only one has is in `unit/test_*_upkeep.py`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import Reason, UnavailableError
from keyvouch_server.domain.model import Credential, Device, DeviceTpm, SignIn, Tenant, User
from keyvouch_server.stores.records import table_of
from support.kept_stores import KINDS, KeptStore
from support.sample_records import EVERY_RECORD


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> KeptStore:
    return KeptStore(tmp_path, request.getfixturevalue("postgres_url") if request.param == "postgres" else "")


async def fill(store: Any) -> None:
    async def work(tx: Any) -> None:
        for record in EVERY_RECORD:
            await tx.insert(record)

    await store.write(work)


def make(kept: KeptStore) -> None:
    async def body() -> None:
        store = await kept.open()
        await fill(store)
        await store.close()

    asyncio.run(body())


async def test_a_sound_store_passes_open_or_closed(kept: KeptStore) -> None:
    store = await kept.open()
    await fill(store)
    while_open = kept.check()
    await store.close()
    report = kept.check()
    assert report == while_open
    assert report.problems == report.notes == ()
    assert report.counts["sign_in"] == 1
    assert report.counts["audit_record"] == 3
    assert len(report.counts) >= len({type(record) for record in EVERY_RECORD})


def copied(record: type[Any], **changes: str) -> str:
    """The statement that adds a copy of a table's only row, with some columns changed."""
    columns = table_of(record).columns
    name = f'"{table_of(record).name}"'
    values = (changes.get(column, column) for column in columns)
    return f"INSERT INTO {name} ({', '.join(columns)}) SELECT {', '.join(values)} FROM {name};"


SECOND_TENANT = copied(Tenant, id="'ten_b'", name_key="'b'", home="false")


def second_user(tenant: str = "tenant_id") -> str:
    changes = {"id": "'usr_c'", "tenant_id": tenant, "username_key": "'c'", "user_handle": "x'00'"}
    return copied(User, **changes)


def second_device(tenant: str, user: str) -> str:
    """A second device in the same TPM, of a tenant and its user."""
    whose = {"tenant_id": f"'{tenant}'", "user_id": f"'{user}'"}
    return "".join((
        SECOND_TENANT,
        second_user("'ten_b'"),
        copied(Device, id="'dev_b'", channel_key="x'00'", **whose),
        copied(Credential, id="x'00'", device_id="'dev_b'", **whose),
        copied(DeviceTpm, device_id="'dev_b'", **whose),
    ))  # fmt: skip


BREAKAGES = {
    "UPDATE sign_in SET session_id = 'ses_none'": "a consumed sign-in without its session",
    "UPDATE sign_in SET state = 'approved'": "a session by approval without a consumed sign-in",
    copied(SignIn, id="'sin_b'", same_device="false", security_key="false"): "more than one sign-in",
    "UPDATE sign_in SET same_device = true, security_key = true": "a sign-in that could be decided in two ways",
    "DELETE FROM credential": "a device without a credential",
    "UPDATE registration SET state = 'pending'": "a device whose registration is not complete",
    "UPDATE credential SET user_id = 'usr_b'": "refers to a user that is not there",
    f"{second_user()} UPDATE device_tpm SET user_id = 'usr_c'": "a TPM that belongs to another user than its device",
    f"{SECOND_TENANT} UPDATE key_replacement SET tenant_id = 'ten_b'": "a key replacement in another tenant than its",
    f"{SECOND_TENANT} UPDATE login_name SET tenant_id = 'ten_b' WHERE alias": "a name of a user of another tenant",
    "DELETE FROM login_name WHERE alias = false": "a user without the login name",
    "UPDATE login_name SET name_key = 'b' WHERE alias = false": "a user without the login name",
    "UPDATE login_name SET alias = false": "a user with more than one login name",
    f"{SECOND_TENANT} UPDATE group_member SET tenant_id = 'ten_b'": "a member of a group of another tenant",
    f"{SECOND_TENANT} UPDATE user_group SET tenant_id = 'ten_b'": "a member of a group of another tenant",
    **{
        f"{SECOND_TENANT} UPDATE {table} SET tenant_id = 'ten_b'": "a record in another tenant than its user"
        for table in ("access_pass", "registration", "device", "session")
    },
    "UPDATE session SET sign_in_id = 'sin_b'": "a session that names another sign-in",
    "UPDATE device_tpm SET transcript = x'00'": "a TPM without the transcript of its registration",
    "UPDATE device_tpm SET health = 'failed'": "a key that counts for more than its TPM proved",
    "UPDATE credential SET assurance = 'x'": "a key that counts for more than its TPM proved",
    "UPDATE credential SET card_authority = ''": "a key with certificates and no authority",
    "DELETE FROM tenant": "refers to a tenant that is not there",
    "DELETE FROM audit_record WHERE chain_number = 2": "an audit chain with a gap",
    "UPDATE audit_record SET chain_number = chain_number + 5": "an audit chain with a gap",
    "UPDATE audit_record SET hash = x'00' WHERE chain_number = 2": "an audit record that does not continue",
    "UPDATE audit_record SET sequence = 9 WHERE chain_number = 1": "an audit record that does not continue",
    "DELETE FROM audit_record WHERE at = 131": "a session without an audit record",
    "DELETE FROM audit_record WHERE at = 110": "a device without an audit record",
    "DELETE FROM audit_record WHERE at = 130": "a decided sign-in without an audit record",
    "DROP INDEX device_by_user": "the index device_by_user is not as the schema wants it",
    "CREATE TABLE extra (id TEXT)": "the table extra is not as the schema wants it",
    "ALTER TABLE access_pass RENAME COLUMN attempts TO tries": "the table access_pass is not",
    second_device("ten_a", "usr_a"): "a user with more than one device in one TPM",
    second_device("ten_b", "usr_c"): "a TPM that is registered in more than one tenant",
}


@pytest.mark.parametrize(("statement", "sentence"), BREAKAGES.items())
def test_check_finds_what_is_broken(kept: KeptStore, statement: str, sentence: str) -> None:
    make(kept)
    assert kept.check().problems == ()
    kept.change(statement)
    problems = kept.check().problems
    assert any(sentence in problem for problem in problems), problems
    assert len(problems) <= 20


@pytest.mark.parametrize(
    "sentence", ["a device without a credential", "a TPM that is registered in more than one tenant"]
)
def test_rows_are_named_by_what_can_be_typed(kept: KeptStore, sentence: str) -> None:
    make(kept)
    kept.change(*(statement for statement, found in BREAKAGES.items() if found == sentence))
    (problem,) = [p for p in kept.check().problems if p.startswith(sentence)]
    assert problem == f"{sentence}: {'dev_a' if 'device' in sentence else '65' * 32}"


def test_what_is_no_store_is_refused_or_has_no_version(kept: KeptStore) -> None:
    if kept.url:
        (problem,) = kept.check().problems
        assert problem.startswith("the schema has version 0; this program's is ")
        return
    with pytest.raises(UnavailableError) as refused:
        kept.check()
    assert refused.value.reason is Reason.STORE_UNAVAILABLE
