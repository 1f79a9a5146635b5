"""Looking after a SQLite store from outside: copy it while it serves, and check what it holds.

Both change no record, may run in another process than the server's, and keep nobody from writing.
Not here: serving (`sqlite`), and what a restored copy must forget before it may serve.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyvouch.errors import Reason, UnavailableError
from keyvouch_server.stores import sqlite_files
from keyvouch_server.stores.sqlite_transaction import unavailable

_BUSY_SECONDS = 5.0

_INVARIANTS: Final = {
    "a consumed sign-in without its session": """
        SELECT id FROM sign_in WHERE state = 'consumed' AND session_id NOT IN (SELECT id FROM session)""",
    "a session opened by more than one sign-in": """
        SELECT session_id FROM sign_in WHERE session_id <> '' GROUP BY session_id HAVING count(*) > 1""",
    "a session by approval without a consumed sign-in": """
        SELECT id FROM session WHERE kind = 'approval'
        AND id NOT IN (SELECT session_id FROM sign_in WHERE state = 'consumed')""",
    "a session that names another sign-in than the one it came from": """
        SELECT session.id FROM session JOIN sign_in ON sign_in.session_id = session.id
        WHERE session.sign_in_id NOT IN ('', sign_in.id)""",
    "a name of a user of another tenant": """
        SELECT name FROM login_name JOIN user ON user.id = user_id WHERE login_name.tenant_id <> user.tenant_id""",
    "a user without the login name they are shown with": """
        SELECT id FROM user WHERE (tenant_id, username_key, id) NOT IN
        (SELECT tenant_id, name_key, user_id FROM login_name WHERE alias = 0)""",
    "a user with more than one login name": """
        SELECT user_id FROM login_name WHERE alias = 0 GROUP BY user_id HAVING count(*) > 1""",
    "a member of a group of another tenant": """
        SELECT group_id || ' ' || user_id FROM group_member JOIN user_group ON user_group.id = group_id
        JOIN user ON user.id = user_id
        WHERE group_member.tenant_id <> user.tenant_id OR group_member.tenant_id <> user_group.tenant_id""",
    "a record in another tenant than its user": """
        SELECT kept.id FROM (SELECT id, tenant_id, user_id FROM access_pass
        UNION ALL SELECT id, tenant_id, user_id FROM registration
        UNION ALL SELECT id, tenant_id, user_id FROM device
        UNION ALL SELECT id, tenant_id, user_id FROM session) AS kept
        JOIN user ON user.id = kept.user_id WHERE user.tenant_id <> kept.tenant_id""",
    "a sign-in that could be decided in two ways": """
        SELECT id FROM sign_in WHERE same_device = 1 AND security_key = 1""",
    "a device without a credential": """
        SELECT id FROM device WHERE id NOT IN (SELECT device_id FROM credential)""",
    "a device whose registration is not complete": """
        SELECT id FROM device WHERE id IN (SELECT device_id FROM registration WHERE state <> 'complete')""",
    "a credential that belongs to another user than its device": """
        SELECT hex(credential.id) FROM credential JOIN device ON device.id = credential.device_id
        WHERE credential.user_id <> device.user_id OR credential.tenant_id <> device.tenant_id""",
    "a TPM that belongs to another user than its device": """
        SELECT device_id FROM device_tpm JOIN device ON device.id = device_id
        WHERE device_tpm.user_id <> device.user_id OR device_tpm.tenant_id <> device.tenant_id""",
    "a TPM that is registered in more than one tenant": """
        SELECT hex(endorsement_key_hash) FROM device_tpm
        GROUP BY endorsement_key_hash HAVING count(DISTINCT tenant_id) > 1""",
    "a user with more than one device in one TPM": """
        SELECT user_id FROM device_tpm GROUP BY user_id, endorsement_key_hash HAVING count(*) > 1""",
    "a TPM without the transcript of its registration": """
        SELECT device_id FROM device_tpm JOIN registration USING (device_id) WHERE transcript <> registration.tpm""",
    "a key that counts for more than its TPM proved": """
        SELECT hex(credential.id) FROM credential JOIN device_tpm USING (device_id)
        WHERE (health = 'failed') = (assurance = proved_assurance)""",
    "a key with certificates and no authority, or the other way round": """
        SELECT hex(id) FROM credential WHERE (card_authority = '') <> (card_certificates = x'')""",
    "a key replacement in another tenant than its device": """
        SELECT key_replacement.id FROM key_replacement JOIN device ON device.id = device_id
        WHERE key_replacement.tenant_id <> device.tenant_id""",
    "a user with more than one access pass": """
        SELECT user_id FROM access_pass GROUP BY user_id HAVING count(*) > 1""",
    "a session without an audit record of its opening": """
        SELECT id FROM session WHERE (user_id, created_at) NOT IN
        (SELECT user_id, at FROM audit_record UNION SELECT user_id, at - 1 FROM audit_record)""",
    "a device without an audit record of its registration": """
        SELECT id FROM device WHERE (user_id, registered_at) NOT IN
        (SELECT user_id, at FROM audit_record UNION SELECT user_id, at - 1 FROM audit_record)""",
    "a decided sign-in without an audit record of the decision": """
        SELECT id FROM sign_in WHERE decided_at > 0 AND id NOT IN (SELECT subject FROM audit_record
        WHERE action IN ('sign_in.approve', 'sign_in.deny', 'sign_in.report', 'sign_in.mismatch'))""",
    "an audit chain with a gap": """
        SELECT tenant_id FROM audit_record WHERE chain_number > 0 GROUP BY tenant_id
        HAVING count(*) <> max(chain_number) OR min(chain_number) <> 1""",
    "an audit record that does not continue the one before it": """
        SELECT record.sequence FROM audit_record AS record JOIN audit_record AS before
        ON before.tenant_id = record.tenant_id AND before.chain_number = record.chain_number - 1
        AND before.chain_number > 0 WHERE record.chain_number > 1
        AND (record.previous_hash <> before.hash OR record.sequence <= before.sequence)""",
}
"""What must never be found, in words and in SQL. An audit record bears the instant of its act or the second after."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found: the schema's version, records by table, and a sentence for each thing that is wrong."""

    schema_version: int
    counts: dict[str, int]
    problems: tuple[str, ...]


def backup(source: Path, destination: Path) -> None:
    """Copy the store at `source`, as it is at this moment, into the new file `destination` (mode 0600).

    The copy is one file, whole or not there at all; an older file of that name is replaced. It waits for the
    disk, so call it in a thread. Raises `UnavailableError` when there is no room or no such store.
    """
    if not destination.parent.is_dir():
        raise UnavailableError(
            Reason.STORE_UNAVAILABLE, f"There is no folder {destination.parent}.", fix="Make it, or name another one."
        )
    copy: Path | None = None
    try:
        with contextlib.closing(_open(source)) as original:
            descriptor, name = tempfile.mkstemp(prefix=f".{destination.name}.", dir=destination.parent)
            os.close(descriptor)
            copy = Path(name)
            _copy(original, copy)
        copy.replace(destination)
        sqlite_files.sync_folder(destination.parent)
    except (OSError, sqlite3.Error) as error:
        raise unavailable(error) from error
    finally:
        if copy is not None:
            copy.unlink(missing_ok=True)


def check(path: Path) -> CheckReport:
    """Check a store or a backup of one: the file's structure, its schema, its references, what must hold.

    Raises `UnavailableError` when it cannot be opened or is no database at all.
    """
    try:
        # SQLite skips the CHECK constraints of an integrity check on files opened with mode=ro.
        with contextlib.closing(_open(path, mode="rw")) as connection:
            connection.execute("BEGIN")
            return _examine(connection)
    except (OSError, sqlite3.Error) as error:
        raise unavailable(error) from error


def _open(path: Path, mode: str = "ro") -> sqlite3.Connection:
    if not path.is_file():
        raise UnavailableError(
            Reason.STORE_UNAVAILABLE, f"There is no store at {path.name}.", fix="Name the file of the store."
        )
    return sqlite_files.connect_reader(path, timeout=_BUSY_SECONDS, mode=mode)


def _copy(original: sqlite3.Connection, copy: Path) -> None:
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as target:
        original.backup(target)
        # A single file: the copy must not depend on a log beside it. This also syncs it.
        target.execute("PRAGMA synchronous = FULL")
        target.execute("PRAGMA journal_mode = DELETE").fetchall()
    descriptor = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _examine(connection: sqlite3.Connection) -> CheckReport:
    migrations = sqlite_files.packaged_migrations()
    version = sqlite_files.schema_version(connection)
    if version != len(migrations):
        problem = f"the schema has version {version}; this program's is {len(migrations)}"
        return CheckReport(version, {}, (problem,))
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
    broken = connection.execute("PRAGMA foreign_key_check").fetchmany(20)
    problems += [f"a row of {row[0]} refers to a {row[2]} that is not there" for row in broken]
    problems += _schema_problems(connection, migrations)
    if not problems:
        for sentence, query in _INVARIANTS.items():
            problems += [f"{sentence}: {row[0]}" for row in connection.execute(query).fetchmany(20)]
    return CheckReport(version, _counts(connection), tuple(problems))


def _schema_problems(connection: sqlite3.Connection, migrations: tuple[sqlite_files.Migration, ...]) -> list[str]:
    """Compare tables and indexes with those of a new store."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        sqlite_files.migrate(fresh, migrations)
        wanted, found = _schema(fresh), _schema(connection)
    return [
        f"the {kind} {name} is not as the schema wants it"
        for kind, name in sorted(wanted.keys() | found.keys())
        if wanted.get((kind, name)) != found.get((kind, name))
    ]


def _schema(connection: sqlite3.Connection) -> dict[tuple[str, str], str | None]:
    # sqlite_stat tables are SQLite's own, made by ANALYZE.
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%'")
    return {(kind, name): text for kind, name, text in rows}


def _counts(connection: sqlite3.Connection) -> dict[str, int]:
    names = [
        row[0]
        for row in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        )
    ]
    return {name: int(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]) for name in names}  # noqa: S608
