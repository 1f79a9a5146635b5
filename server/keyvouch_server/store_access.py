"""What commands do with a store from outside the serving process, wherever the configuration says that it is.

Each function takes the server's data directory, and raises `KeyvouchError(CONFIGURATION)` where there is no server in
it, and `UnavailableError` when the store cannot be read. What PostgreSQL needs is loaded for a store there only.
"""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager
from pathlib import Path

from keyvouch.errors import KeyvouchError, Reason
from keyvouch_server.bootstrap import DATABASE
from keyvouch_server.config import FILE, load_config
from keyvouch_server.store_address import without_password
from keyvouch_server.stores import sqlite_audit, sqlite_upkeep
from keyvouch_server.stores.audit_source import AuditSource
from keyvouch_server.stores.invariants import CheckReport


def opened_log(data: Path) -> AbstractContextManager[AuditSource]:
    """The audit log as it is at this moment, until the block ends."""
    store = _store(data)
    if isinstance(store, Path):
        return sqlite_audit.opened(store)
    from keyvouch_server.stores import postgres_audit  # noqa: PLC0415 - its driver comes with an extra

    return postgres_audit.opened(store)


def checked(data: Path) -> CheckReport:
    """Check the store from end to end."""
    store = _store(data)
    if isinstance(store, Path):
        return sqlite_upkeep.check(store)
    from keyvouch_server.stores import postgres_upkeep  # noqa: PLC0415 - its driver comes with an extra

    return postgres_upkeep.check(store)


def backed_up(data: Path, destination: Path) -> None:
    """Copy the store into the new file `destination`. A database is copied by its own tools: that is refused."""
    store = _store(data)
    if isinstance(store, Path):
        sqlite_upkeep.backup(store, destination)
        return
    raise KeyvouchError(
        Reason.CONFIGURATION,
        f"The store is in PostgreSQL, {without_password(store)}, whose own tools copy it, also while servers run.",
        fix=f"Keep the keys in {data} with the copy: one is useless without the other. Type: "
        + dump_command(store, destination),
    )


def dump_command(address: str, destination: Path) -> str:
    """The line for a shell that copies a database's part of a server into a file that only its owner can read."""
    dump = ["pg_dump", "--format=custom", "--schema=keyvouch", f"--file={destination}", without_password(address)]
    return f"(umask 077; {shlex.join(dump)})"


def _store(data: Path) -> Path | str:
    """The store's file, or the address of its database."""
    # A file is read even where there is nothing beside it but the keys.
    address = load_config(data).store if (data / FILE).exists() else ""
    if address:
        return address
    if (data / DATABASE).is_file():
        return data / DATABASE
    raise KeyvouchError(
        Reason.CONFIGURATION, f"There is no server in {data}.", fix="Name its data directory with --data."
    )
