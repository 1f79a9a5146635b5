"""Looking after a PostgreSQL store from outside: check what it holds, in one snapshot, while servers may be running.

No record is changed, and nobody is kept from writing. Copies are made by PostgreSQL's own tools, and the files below
its tables are theirs to check. Not here: the rules between records (`invariants`), tables and indexes
(`postgres_shape`).
"""

from __future__ import annotations

from typing import Final

from keyvouch_server.stores import postgres_shape
from keyvouch_server.stores.invariants import INVARIANTS, MOST, CheckReport, another_version, told
from keyvouch_server.stores.postgres_connection import Connection, connected, packaged_migrations, schema_version
from keyvouch_server.stores.postgres_reading import PrivateLoop, fetched, snapshot

NOT_COMPARED: Final = (
    "Tables, indexes and triggers were not compared with this program's: the role may not make a schema here."
)
_REFERENCES: Final = """
    SELECT child.relname::text, parent.relname::text,
        (SELECT array_agg(attname::text ORDER BY at) FROM unnest(o.conkey) WITH ORDINALITY AS k (number, at)
            JOIN pg_attribute ON attrelid = o.conrelid AND attnum = k.number),
        (SELECT array_agg(attname::text ORDER BY at) FROM unnest(o.confkey) WITH ORDINALITY AS k (number, at)
            JOIN pg_attribute ON attrelid = o.confrelid AND attnum = k.number)
    FROM pg_constraint AS o JOIN pg_class AS child ON child.oid = o.conrelid
    JOIN pg_class AS parent ON parent.oid = o.confrelid
    WHERE o.contype = 'f' AND child.relnamespace = current_schema()::regnamespace ORDER BY 1, 2, 3"""
_TABLES: Final = """
    SELECT relname::text FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
    AND relname <> 'store_version' ORDER BY relname"""

# The position is read after the records, and only ever rises.
_POSITION: Final = """
    SELECT newest, CASE WHEN has_sequence_privilege(given, 'SELECT') THEN pg_sequence_last_value(given) END
    FROM (SELECT max(sequence) AS newest, pg_get_serial_sequence('audit_record', 'sequence')::regclass AS given
        FROM audit_record) AS log"""


def check(url: str) -> CheckReport:
    """Check a store: its schema, its references, what must hold.

    Raises `UnavailableError` when it cannot be read.
    """
    with PrivateLoop() as loop:
        return loop.wait(_examined(url))


async def _examined(url: str) -> CheckReport:
    async with snapshot(url) as connection:
        version, _ = await schema_version(connection)
        if version != len(packaged_migrations()):
            return another_version(version, len(packaged_migrations()))
        async with connected(url) as other:
            new = await postgres_shape.wanted(other)
        problems = await postgres_shape.out_of_use(connection)
        if new is not None:
            problems += postgres_shape.differences(await postgres_shape.shape(connection), new)
        problems += await _broken_references(connection)
        if not problems:
            for sentence, query in INVARIANTS.items():
                rows = await fetched(connection, f"{query} LIMIT {MOST}")
                problems += [told(sentence, row[0]) for row in rows]
            problems += await _taken_positions(connection)
        counts = await _counts(connection)
    return CheckReport(version, counts, tuple(problems), () if new is not None else (NOT_COMPARED,))


async def _broken_references(connection: Connection) -> list[str]:
    """A sentence for each reference that leads nowhere: somebody put the triggers aside."""
    problems: list[str] = []
    for child, parent, columns, keys in await fetched(connection, _REFERENCES):
        pairs = list(zip(columns, keys, strict=True))
        same = " AND ".join(f'parent."{key}" = child."{column}"' for column, key in pairs)
        there = " AND ".join(f'child."{column}" IS NOT NULL' for column in columns)
        text = f'FROM "{child}" AS child LEFT JOIN "{parent}" AS parent ON {same} WHERE {there}'
        rows = await fetched(connection, f'SELECT 1 {text} AND parent."{keys[0]}" IS NULL LIMIT 1')
        problems += [f"a row of {child} refers to a {parent} that is not there" for _ in rows]
    return problems[:MOST]


async def _taken_positions(connection: Connection) -> list[str]:
    """A sentence where the next audit record would get the place of one that is there, and so nothing could be done."""
    ((newest, last),) = await fetched(connection, _POSITION)
    taken = newest is not None and last is not None and last < newest
    return [told("a position in the audit log that would be given again", newest)] if taken else []


async def _counts(connection: Connection) -> dict[str, int]:
    names = [row[0] for row in await fetched(connection, _TABLES)]
    return {name: int((await fetched(connection, f'SELECT count(*) FROM "{name}"'))[0][0]) for name in names}  # noqa: S608
