"""Connections to a PostgreSQL store: how they are made, what schema they find, whose store it is.

Migrations are the plain SQL files `postgres_schema/NNNN_name.sql`, applied in order by the first server that comes,
each in one transaction that also notes its number. The note bears the identity of the server whose store it is: records
are worth nothing to a server with other keys, so it is turned away before it has touched one.
Not here: records and transactions (`postgres`), notifications (`postgres_watch`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import Final, TypeAlias

from keyvouch.errors import KeyvouchError, Reason, UnavailableError
from keyvouch_server.store_address import without_password
from keyvouch_server.stores.sqlite_files import Migration, read_migrations
from keyvouch_server.stores.works import newer_schema

try:
    import asyncpg
except ImportError as missing:
    raise KeyvouchError(
        Reason.CONFIGURATION,
        "A store in PostgreSQL needs the package asyncpg, and it is not here.",
        fix="Install keyvouch[server,postgres].",
    ) from missing

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
SCHEMA: Final = "keyvouch"
"""The schema of the database that holds the tables, and the channel of its notifications."""
LOCK: Final = 0x6B6579766F756368
"""The advisory lock of whoever writes: `keyvouch` in ASCII."""
TROUBLE: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises when the database does not do its work, or not in time."""

_CONNECT_SECONDS: Final = 5.0
_STATEMENT_SECONDS: Final = 20.0
"""After these the connection is given up. The server's own limits, below, come first where it still answers."""
_LIMITS: Final = {
    "statement_timeout": "15s",
    # A node that stands still in the middle of a transaction is cut off before the others have waited too long for it.
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "10s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
_SETTINGS: Final = {
    "application_name": "keyvouch-server",
    "search_path": SCHEMA,
    "default_transaction_isolation": "read committed",
    "jit": "off",
    **_LIMITS,
}
# Acknowledged means durable, whatever the database's default is, and is made meanwhile.
_DURABLE: Final = """
    SELECT set_config(name, CASE setting WHEN 'off' THEN 'on' ELSE setting END, false) FROM pg_settings
    WHERE name = 'synchronous_commit'"""
_MIGRATION_SECONDS: Final = 24 * 3600
VERSION_TABLE: Final = "CREATE TABLE store_version (version bigint NOT NULL, server_id text NOT NULL)"
_MINE: Final = "SELECT version, server_id FROM store_version"


async def connect(url: str) -> Connection:
    """A connection that waits for nothing without end. Raises `UnavailableError`."""
    try:
        connection: Connection = await asyncpg.connect(
            url,
            timeout=_CONNECT_SECONDS,
            command_timeout=_STATEMENT_SECONDS,
            server_settings=_SETTINGS,
            statement_cache_size=1024,
            max_cached_statement_lifetime=0,
        )
    except (*TROUBLE, ValueError) as error:
        raise UnavailableError(
            Reason.STORE_UNAVAILABLE,
            f"The database {without_password(url)} cannot be reached: {_told(error)}. Nothing was changed.",
            fix="See that it runs, that the address is right and that it lets this server in, then try again.",
        ) from error
    try:
        await connection.execute(_DURABLE)
    except BaseException as error:
        connection.terminate()
        if isinstance(error, TROUBLE):
            raise unavailable(error) from error
        raise
    return connection


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """The same for a while."""
    connection = await connect(url)
    try:
        yield connection
    finally:
        await close(connection)


async def close(connection: Connection) -> None:
    """End a connection, also one that is broken."""
    try:
        await connection.close(timeout=2)
    except TROUBLE:
        connection.terminate()
    await asyncio.sleep(0)  # the transport is closed in the loop's next step


def packaged_migrations() -> tuple[Migration, ...]:
    """The migrations that came with this program, in order."""
    return read_migrations(resources.files("keyvouch_server.stores") / "postgres_schema")


async def prepare(connection: Connection, server_id: str, migrations: Sequence[Migration]) -> None:
    """Bring the schema to the newest of `migrations`, and see that the store is this server's.

    `server_id` is the identity in hexadecimal digits. Nodes that start at the same time wait for one another.
    Raises `UnavailableError`: `STORE_SCHEMA` for a schema newer than this program or that does not apply; and
    `KeyvouchError(CONFIGURATION)` for another server's store.
    """
    try:
        missing = True
        while missing:
            # The lock ends with the transaction, and a node that stands still in one is cut off (`_LIMITS`).
            async with connection.transaction():
                await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
                missing = await _migrate(connection, server_id, migrations)
    except TROUBLE as error:
        raise unavailable(error) from error


async def _migrate(connection: Connection, server_id: str, migrations: Sequence[Migration]) -> bool:
    """Apply the first migration that is missing, in the transaction that is open. Returns whether there was one."""
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise UnavailableError(
            Reason.STORE_SCHEMA,
            f"The database has the encoding {encoding}, which cannot hold every name.",
            fix="Make one with the encoding UTF8: createdb --encoding=UTF8 --template=template0 NAME",
        )
    version, owner = await schema_version(connection)
    if owner not in ("", server_id):
        raise KeyvouchError(
            Reason.CONFIGURATION,
            f"The server cannot start: the store belongs to the server {owner}, and the keys here are another's.",
            fix="Copy that server's data directory to this machine, or name another database. If nothing is left of "
            "that server, drop the schema keyvouch in this one.",
            metadata={"found": owner, "here": server_id},
        )
    if version > len(migrations):
        raise newer_schema(version, len(migrations))
    for migration in migrations[version : version + 1]:
        await _apply(connection, migration, server_id)
    return version < len(migrations)


async def forget(url: str, server_id: str) -> None:
    """Take everything of this server's out of its database, as if it had never been. Raises `UnavailableError`."""
    async with connected(url) as connection:
        try:
            version, owner = await schema_version(connection)
            if version and owner == server_id:
                await connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
        except TROUBLE as error:
            raise unavailable(error) from error


async def schema_version(connection: Connection) -> tuple[int, str]:
    """The version of the schema, 0 where there is none, and the identity of the server whose store it is."""
    if await connection.fetchval("SELECT to_regclass($1)", f"{SCHEMA}.store_version") is None:
        return 0, ""
    row = await connection.fetchrow(_MINE)
    return (int(row[0]), str(row[1])) if row else (0, "")


async def _apply(connection: Connection, migration: Migration, server_id: str) -> None:
    try:
        if migration.version == 1:
            # Made by the owner of the database, perhaps, for a role that may not make one.
            if await connection.fetchval("SELECT to_regnamespace($1)", SCHEMA) is None:
                await connection.execute(f"CREATE SCHEMA {SCHEMA}")
            await connection.execute(VERSION_TABLE)
            await connection.execute("INSERT INTO store_version (version, server_id) VALUES (0, $1)", server_id)
        # What it takes depends on how much the store holds.
        await connection.execute(f"SET LOCAL statement_timeout = '{_MIGRATION_SECONDS}s'")
        await connection.execute(migration.script, timeout=_MIGRATION_SECONDS)
        await connection.execute("UPDATE store_version SET version = $1", migration.version)
    except TROUBLE as error:
        raise UnavailableError(
            Reason.STORE_SCHEMA,
            f"The store could not be brought to schema version {migration.version} ({migration.name}): {error}.",
            fix="Nothing was changed. See that the role may create a schema in the database and that the database is "
            "empty, then start the server again.",
            metadata={"migration": migration.name},
        ) from error


def changed_schema() -> UnavailableError:
    """The error for a store whose schema another node has changed since this one was started."""
    return UnavailableError(
        Reason.STORE_SCHEMA,
        "The store has another schema version than when this node was started. Nothing was changed.",
        fix="Run the same version of the program on every node.",
    )


def unavailable(cause: BaseException, outcome: str = "Nothing was changed.") -> UnavailableError:
    """The error for a store that does not do its work. `outcome` says what became of the act."""
    return UnavailableError(
        Reason.STORE_UNAVAILABLE,
        f"The store does not answer: {_told(cause)}. {outcome}",
        fix="See that the database runs and can be reached, then try again.",
    )


def _told(cause: BaseException) -> str:
    """What a failure says, on one line and without its full stop."""
    return " ".join((str(cause) or type(cause).__name__).split()).rstrip(".")
