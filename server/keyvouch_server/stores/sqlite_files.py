"""The files of a SQLite store: who may read them, who may serve them, which schema they hold.

Migrations are the plain SQL files `schema/NNNN_name.sql`, applied in order, each in one transaction that also
sets `PRAGMA user_version` to its number; so an interrupted one has left no trace, and the next start goes on.
Not here: records and transactions (`sqlite`), backup and checks (`sqlite_upkeep`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from keyvouch.errors import Reason, UnavailableError
from keyvouch_server.stores.works import newer_schema

_CACHE_KIB = 16 * 1024
_WAL_LIMIT_BYTES = 64 * 1024 * 1024
_CACHED_STATEMENTS = 512

_COMMON_PRAGMAS = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA temp_store = MEMORY",
    f"PRAGMA cache_size = -{_CACHE_KIB}",
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: its number, from 1 without gaps, and its SQL."""

    version: int
    name: str
    script: str


def packaged_migrations() -> tuple[Migration, ...]:
    """The migrations that came with this program, in order."""
    return read_migrations(resources.files("keyvouch_server.stores") / "schema")


def read_migrations(folder: Traversable) -> tuple[Migration, ...]:
    """The migrations in a folder of the package, in order."""
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return tuple(
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8")) for file in files
    )


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Bring the schema to the newest of `migrations`.

    Raises `UnavailableError` (`STORE_SCHEMA`) for a schema newer than that, for a database of another program
    and for a migration that does not apply; the database is then as it was before that migration.
    """
    version = schema_version(connection)
    if version > len(migrations):
        raise newer_schema(version, len(migrations))
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
        raise UnavailableError(
            Reason.STORE_SCHEMA,
            "The file is a database, but not one of this server's.",
            fix="Name another file for the store.",
        )
    # Off, as SQLite asks for when tables are rebuilt; each migration is checked as a whole instead.
    connection.execute("PRAGMA foreign_keys = OFF")
    for migration in migrations[version:]:
        _apply(connection, migration)


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{migration.script}\n;PRAGMA user_version = {migration.version:d};")
        broken = connection.execute("PRAGMA foreign_key_check").fetchone()
        if broken is None:
            connection.execute("COMMIT")
            return
        reason = f"rows of {broken[0]} refer to nothing"
    except sqlite3.Error as error:
        reason = str(error)
    with contextlib.suppress(sqlite3.Error):
        connection.execute("ROLLBACK")
    raise UnavailableError(
        Reason.STORE_SCHEMA,
        f"The store could not be brought to schema version {migration.version} ({migration.name}): {reason}.",
        fix="Nothing was changed. See that the disk has room, and start the server again.",
        metadata={"migration": migration.name},
    )


def schema_version(connection: sqlite3.Connection) -> int:
    """The version of the schema: 0 in an empty database."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def prepare_file(path: Path) -> None:
    """Make the folder (0700) and the file (0600) where they are missing; a wider file mode is narrowed."""
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700, parents=True)
    # Kept open by nobody: closing a second descriptor of an open database would drop SQLite's locks.
    if path.exists():
        path.chmod(0o600)
        return
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path) -> int:
    """Claim the store for this server; returns the descriptor that holds the claim until it is closed.

    The claim is a lock on a file beside the database, so it ends with the process, however that ends.
    Raises `UnavailableError` when another server holds it.
    """
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise UnavailableError(
            Reason.STORE_UNAVAILABLE,
            f"Another server uses the store {path.name}.",
            fix="Stop the other server first, or name another file for the store.",
        ) from error
    return descriptor


def connect(path: Path, migrations: Sequence[Migration]) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Open for a server: a writer, brought up to date and never waiting for a lock, and a reader."""
    with contextlib.ExitStack() as undo:
        writer = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=_CACHED_STATEMENTS
        )
        undo.callback(writer.close)
        _configure(writer, "PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")
        _configure(writer, f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        migrate(writer, migrations)
        _configure(writer, *_COMMON_PRAGMAS, "PRAGMA busy_timeout = 0")
        reader = connect_reader(path)
        undo.pop_all()
    return writer, reader


def connect_reader(path: Path, *, timeout: float = 0.25, mode: str = "ro") -> sqlite3.Connection:
    """Open for reading only. `timeout` is in seconds: how long a statement waits for a lock.

    With the mode `rw` statements still cannot write, but SQLite may fold a log that was left behind into the file.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=timeout,
        cached_statements=_CACHED_STATEMENTS,
    )
    try:
        _configure(connection, "PRAGMA query_only = ON", *_COMMON_PRAGMAS)
    except BaseException:
        connection.close()
        raise
    return connection


def _configure(connection: sqlite3.Connection, *pragmas: str) -> None:
    for pragma in pragmas:
        connection.execute(pragma).fetchall()
