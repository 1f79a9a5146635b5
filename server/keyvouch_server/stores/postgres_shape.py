"""What the tables of a PostgreSQL store look like, and what the migrations make: two sets of definitions to compare.

The definitions are the database's own texts, which are not the same in all its versions. So what is wanted is made each
time, with the packaged migrations, in a schema that nobody else sees and that is rolled back. Names in definitions are
written as the search path shows them, hence alike in both.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final, TypeAlias

from keyvouch_server.stores.postgres_connection import TROUBLE, VERSION_TABLE, Connection, packaged_migrations
from keyvouch_server.stores.postgres_reading import fetched

Shape: TypeAlias = Mapping[tuple[str, str, str], str]
"""Definitions by kind, table (empty where there is none) and name."""

_NOT_ALLOWED: Final = frozenset({"42501", "25006"})
"""insufficient_privilege, read_only_sql_transaction"""
# Comments, rights and settings for speed are the owner's affair.
_SHAPE: Final = """
    WITH c AS (
        SELECT * FROM pg_class WHERE relnamespace = current_schema()::regnamespace
    )
    SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
        WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' WHEN 'p' THEN 'partitioned table' ELSE 'type' END, '',
        c.relname::text, concat_ws(' ', c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, (
            SELECT string_agg(concat_ws(' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), l.collname,
                a.attnotnull, a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid)), ', ' ORDER BY a.attnum)
            FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        ), (SELECT string_agg(inhrelid::regclass || ' ' || inhparent::regclass, ', ' ORDER BY inhrelid)
            FROM pg_inherits WHERE inhrelid = c.oid OR inhparent = c.oid))
    FROM c WHERE c.relkind NOT IN ('i', 'I')
    UNION ALL SELECT 'index', '', c.relname::text, pg_get_indexdef(c.oid, 0, true) FROM c WHERE c.relkind IN ('i', 'I')
    UNION ALL SELECT 'constraint', c.relname::text, o.conname::text, pg_get_constraintdef(o.oid, true)
        FROM pg_constraint AS o JOIN c ON c.oid = o.conrelid WHERE o.contype IN ('c', 'f', 'p', 'u', 'x')
    UNION ALL SELECT 'trigger', c.relname::text, t.tgname::text, pg_get_triggerdef(t.oid, true)
        FROM pg_trigger AS t JOIN c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal
    UNION ALL SELECT 'rule', c.relname::text, r.rulename::text, pg_get_ruledef(r.oid, true)
        FROM pg_rewrite AS r JOIN c ON c.oid = r.ev_class WHERE r.rulename <> '_RETURN'
    UNION ALL SELECT 'policy', c.relname::text, p.polname::text, p.polcmd::text
        FROM pg_policy AS p JOIN c ON c.oid = p.polrelid
    UNION ALL SELECT 'function', '', f.proname || '(' || pg_get_function_identity_arguments(f.oid) || ')',
        concat_ws(' ', f.prokind, format_type(f.prorettype, NULL), l.lanname, f.provolatile, f.prosecdef,
            f.proisstrict, f.proconfig, f.prosrc)
        FROM pg_proc AS f JOIN pg_language AS l ON l.oid = f.prolang
        WHERE f.pronamespace = current_schema()::regnamespace"""
_OUT_OF_USE: Final = """
    WITH c AS (SELECT * FROM pg_class WHERE relnamespace = current_schema()::regnamespace)
    SELECT DISTINCT CASE WHEN t.tgisinternal THEN 'the references of the table ' || c.relname || ' are not enforced'
        ELSE 'the trigger ' || t.tgname || ' is disabled' END
    FROM pg_trigger AS t JOIN c ON c.oid = t.tgrelid WHERE t.tgenabled <> 'O'
    UNION ALL SELECT 'the index ' || c.relname || ' is not valid' FROM pg_index AS i JOIN c ON c.oid = i.indexrelid
    WHERE NOT (i.indisvalid AND i.indisready AND i.indislive)
    ORDER BY 1"""


async def shape(connection: Connection) -> Shape:
    """The definitions of everything in the schema that the connection looks into."""
    rows = await fetched(connection, _SHAPE)
    return {(kind, table, name): text for kind, table, name, text in rows}


async def wanted(connection: Connection) -> Shape | None:
    """The same of a new store. None where the role may not make a schema, or the database is a copy that only follows.

    Nothing is left of it. The connection is in no transaction.
    """
    scratch = f"keyvouch_check_{secrets.token_hex(8)}"
    await connection.execute("BEGIN")
    try:
        await connection.execute(f"CREATE SCHEMA {scratch}; SET LOCAL search_path = {scratch}")
        await connection.execute(VERSION_TABLE)
        for migration in packaged_migrations():
            await connection.execute(migration.script)
        return await shape(connection)
    except TROUBLE as error:
        if getattr(error, "sqlstate", "") in _NOT_ALLOWED:
            return None
        raise
    finally:
        if not connection.is_closed():
            await connection.execute("ROLLBACK")


async def out_of_use(connection: Connection) -> list[str]:
    """What is there and does not work: sentences on disabled triggers and invalid indexes."""
    return [row[0] for row in await fetched(connection, _OUT_OF_USE)]


def differences(found: Shape, new: Shape) -> list[str]:
    """A sentence on each thing that is not as in a new store."""
    return [
        f"the {kind} {name}{f' of the table {table}' if table else ''} is not as the schema wants it"
        for kind, table, name in sorted(found.keys() | new.keys())
        if found.get((kind, table, name)) != new.get((kind, table, name))
    ]
