"""Backup and check of a SQLite store."""
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


SECOND_DEVICE = """
    INSERT INTO tenant SELECT 'ten_b', 'b', 'b', 0, 0, '' FROM tenant;
    INSERT INTO user SELECT 'usr_c', 'ten_b', 'c', 'c', 'c', role, x'00', 0, 0, 0, kind, '', '', 0 FROM user;
    INSERT INTO device SELECT 'dev_b', '{0}', '{1}', 'b', provider, x'00', x'00', registered_at, 0 FROM device;
    INSERT INTO credential SELECT x'00', '{0}', '{1}', 'dev_b', x'00', x'00', 0, 0, x'', x'', x'', assurance, 0,
        card_authority, card_certificates FROM credential;
    INSERT INTO device_tpm SELECT 'dev_b', '{0}', '{1}', endorsement_key_hash, x'00', proved_assurance, anchor,
        manufacturer, model, pin_limit, 0, health, 0, '[]', '', '', 0, 0, '{{}}', '{{}}' FROM device_tpm"""
"""A second device in the same TPM: `format` with its tenant and its user."""

BREAKAGES = {
    "UPDATE sign_in SET session_id = 'ses_none'": "a consumed sign-in without its session",
    "UPDATE sign_in SET state = 'approved'": "a session by approval without a consumed sign-in",
    "INSERT INTO sign_in SELECT 'sin_b', tenant_id, user_id, token_hash, state, number, proof_key, proof_thumbprint,"
    " app_id, app_name, audience, address, binding_message, policy_version, required_assurance, created_at, expires_at,"
    " device_id, assurance, decided_at, decision_hash, session_id, same_device, 0, 0, phishing_resistant, known_client,"
    " choices, rules, evidence"
    " FROM sign_in": "more than one sign-in",
    "UPDATE sign_in SET same_device = 1, security_key = 1": "a sign-in that could be decided in two ways",
    "DELETE FROM credential": "a device without a credential",
    "UPDATE registration SET state = 'pending'": "a device whose registration is not complete",
    "UPDATE credential SET user_id = 'usr_b'": "refers to a user that is not there",
    "INSERT INTO user SELECT 'usr_c', tenant_id, 'c', 'c', 'c', role, x'00', 0, 0, 0, kind, '', '', 0 FROM user;"
    " UPDATE device_tpm SET user_id = 'usr_c'": "a TPM that belongs to another user than its device",
    "INSERT INTO tenant SELECT 'ten_b', 'b', 'b', 0, 0, '' FROM tenant;"
    " UPDATE key_replacement SET tenant_id = 'ten_b'": "a key replacement in another tenant than its device",
    "INSERT INTO tenant SELECT 'ten_b', 'b', 'b', 0, 0, '' FROM tenant;"
    " UPDATE login_name SET tenant_id = 'ten_b' WHERE alias = 1": "a name of a user of another tenant",
    "DELETE FROM login_name WHERE alias = 0": "a user without the login name",
    "UPDATE login_name SET name_key = 'b' WHERE alias = 0": "a user without the login name",
    "UPDATE login_name SET alias = 0": "a user with more than one login name",
    "INSERT INTO tenant SELECT 'ten_b', 'b', 'b', 0, 0, '' FROM tenant;"
    " UPDATE group_member SET tenant_id = 'ten_b'": "a member of a group of another tenant",
    "INSERT INTO tenant SELECT 'ten_c', 'b', 'b', 0, 0, '' FROM tenant;"
    " UPDATE user_group SET tenant_id = 'ten_c'": "a member of a group of another tenant",
    **{
        f"INSERT INTO tenant SELECT 'ten_b', 'b', 'b', 0, 0, '' FROM tenant; UPDATE {table} SET tenant_id = 'ten_b'": (
            "a record in another tenant than its user"
        )
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
    "PRAGMA user_version = 7": "the schema has version 7",
    "PRAGMA ignore_check_constraints = ON; UPDATE tenant SET home = 5": "CHECK constraint failed in tenant",
    **{
        SECOND_DEVICE.format(*values): sentence
        for values, sentence in {
            ("ten_a", "usr_a"): "a user with more than one device in one TPM",
            ("ten_b", "usr_c"): "a TPM that is registered in more than one tenant",
        }.items()
    },
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
