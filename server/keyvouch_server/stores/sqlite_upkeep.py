"""Looking after a SQLite store from outside: copy it while it serves, and check what it holds.

Both change no record, may run in another process than the server's, and keep nobody from writing.
Not here: serving (`sqlite`), the rules between records (`invariants`), and what a restored copy must forget before it
may serve.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path

from keyvouch.errors import Reason, UnavailableError
from keyvouch_server.stores import sqlite_files
from keyvouch_server.stores.invariants import INVARIANTS, MOST, CheckReport, another_version, told
from keyvouch_server.stores.sqlite_transaction import unavailable

_BUSY_SECONDS = 5.0


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
        return another_version(version, len(migrations))
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
    broken = connection.execute("PRAGMA foreign_key_check").fetchmany(MOST)
    problems += [f"a row of {row[0]} refers to a {row[2]} that is not there" for row in broken]
    problems += _schema_problems(connection, migrations)
    if not problems:
        for sentence, query in INVARIANTS.items():
            problems += [told(sentence, row[0]) for row in connection.execute(query).fetchmany(MOST)]
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
