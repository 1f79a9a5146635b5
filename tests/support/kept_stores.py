"""A server's store as somebody finds it who reads or changes it from outside: a SQLite file or a database."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg

from keyvouch_server.bootstrap import DATABASE
from keyvouch_server.config import ServerConfig
from keyvouch_server.ports import Store
from keyvouch_server.stores import postgres_upkeep, sqlite_upkeep
from keyvouch_server.stores.invariants import CheckReport
from keyvouch_server.stores.postgres import PostgresStore
from keyvouch_server.stores.postgres_connection import SCHEMA
from keyvouch_server.stores.sqlite import SqliteStore

KINDS = ("sqlite", "postgres")
SERVER_ID = "ab" * 32


@dataclass(frozen=True, slots=True)
class KeptStore:
    """The store of a server whose data directory is `data`; `url` is empty where it is the file in there."""

    data: Path
    url: str = ""

    @property
    def path(self) -> Path:
        """The file."""
        return self.data / DATABASE

    def configured(self, config: ServerConfig) -> ServerConfig:
        """The configuration of a server with this store."""
        return replace(config, store=self.url)

    async def open(self) -> Store:
        """As a server opens it."""
        return await PostgresStore.open(self.url, SERVER_ID) if self.url else SqliteStore.open(self.path)

    def check(self) -> CheckReport:
        """As `keyvouch-server check` does it."""
        return postgres_upkeep.check(self.url) if self.url else sqlite_upkeep.check(self.path)

    def change(self, *statements: str) -> None:
        """Change it as whoever can write to it, whom no reference keeps from anything.

        Bytes are written `x'00'`, tables named as they are: `"user"`.
        """
        if self.url:
            asyncio.run(changed(self.url, *(re.sub(r"\bx'([0-9a-f]*)'", r"'\\x\1'::bytea", s) for s in statements)))
            return
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None, timeout=5)) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            for statement in statements:
                connection.executescript(statement)

    def value(self, query: str) -> Any:
        """The first column of the first row of a query."""
        if self.url:
            return asyncio.run(_value(self.url, query))
        with contextlib.closing(sqlite3.connect(self.path, timeout=5)) as connection:
            return connection.execute(query).fetchone()[0]


async def changed(url: str, *statements: str) -> None:
    """Run statements as the superuser, without triggers, in the schema of the tables."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"SET session_replication_role = replica; SET search_path = {SCHEMA}")
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def _value(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url, server_settings={"search_path": SCHEMA})
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()
