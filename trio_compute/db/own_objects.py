"""Which schemas and tables are a superuser's, so that nobody can have put his own in their place (contract 11 T-04)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from msgspec import Struct

from trio_compute.db.maintenance import Connection
from trio_compute.errors import PostgresError

# pg_database_owner stands for whoever owns the database; what it owns is a superuser's if that one is.
REAL_OWNER = """\
CASE WHEN o.rolname OPERATOR(pg_catalog.=) 'pg_database_owner'
     THEN (SELECT r.rolsuper FROM pg_catalog.pg_database d
           JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) d.datdba
           WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
     ELSE o.rolsuper END"""
SCHEMAS = f"""\
SELECT n.nspname::pg_catalog.text, o.rolname::pg_catalog.text,
       {REAL_OWNER}
       AND (n.nspname OPERATOR(pg_catalog.=) 'public' OR NOT EXISTS (
            SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) p.proowner
            WHERE p.pronamespace OPERATOR(pg_catalog.=) n.oid AND NOT r.rolsuper
            UNION ALL
            SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) c.relowner
            WHERE c.relnamespace OPERATOR(pg_catalog.=) n.oid AND NOT r.rolsuper)),
       ARRAY(SELECT coalesce(g.rolname::pg_catalog.text, 'public')
             FROM pg_catalog.aclexplode(n.nspacl) AS entry
             LEFT JOIN pg_catalog.pg_authid g ON g.oid OPERATOR(pg_catalog.=) entry.grantee
             WHERE entry.privilege_type OPERATOR(pg_catalog.=) 'CREATE'
               AND entry.grantee OPERATOR(pg_catalog.<>) n.nspowner AND NOT coalesce(g.rolsuper, false))
FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_authid o ON o.oid OPERATOR(pg_catalog.=) n.nspowner
WHERE (n.nspname OPERATOR(pg_catalog.=) 'public' OR pg_catalog.starts_with(n.nspname::pg_catalog.text, 'neon'))"""
_TABLES = f"""\
SELECT pg_catalog.format('%%s.%%s', n.nspname, c.relname), c.oid::int8,
       r.rolsuper AND c.relkind OPERATOR(pg_catalog.=) 'r',
       {REAL_OWNER}
       AND NOT (c.relhastriggers OR c.relhasrules OR c.relrowsecurity OR c.relhassubclass OR c.relispartition)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) c.relowner
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
JOIN pg_catalog.pg_authid o ON o.oid OPERATOR(pg_catalog.=) n.nspowner
WHERE pg_catalog.format('%%s.%%s', n.nspname, c.relname) OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[])"""
_SCHEMA = f"""\
SELECT {REAL_OWNER} FROM pg_catalog.pg_namespace n
JOIN pg_catalog.pg_authid o ON o.oid OPERATOR(pg_catalog.=) n.nspowner
WHERE n.nspname OPERATOR(pg_catalog.=) %s"""


class FormerTable(Struct, frozen=True):
    """Hold one such table: whether a superuser made it, and whether nobody else can have changed what it is."""

    name: str
    oid: int
    is_ours: bool
    is_safe: bool

    @property
    def is_trustworthy(self) -> bool:
        """Tell whether it may be read and written; what stands in it others may still have written."""
        return self.is_ours and self.is_safe


async def former_tables(connection: Connection, names: Sequence[str]) -> list[FormerTable]:
    """Return those of the tables that are there; psycopg's errors are passed on."""
    return [FormerTable(*row) for row in await connection.rows(_TABLES, list(names))]


async def is_trustworthy(connection: Connection, name: str) -> bool:
    """Tell whether a table is there and may be used."""
    return any(table.is_trustworthy for table in await former_tables(connection, [name]))


async def is_unclaimed(connection: Connection, name: str) -> bool:
    """Tell whether a table is not there, and its schema is a superuser's or not there either."""
    schema = await connection.rows(_SCHEMA, name.partition(".")[0])
    return schema in ([], [(True,)]) and not await former_tables(connection, [name])


async def require_own_schema(connection: Connection, name: str) -> None:
    """Raise PostgresError unless a schema is a superuser's with all that is in it, so that nobody can replace that."""
    found = await connection.rows(f"{SCHEMAS} AND n.nspname OPERATOR(pg_catalog.=) %s", name)
    if not any(is_ours and not open_to for _, _, is_ours, open_to in found):
        raise PostgresError(f"schema {name} is not there, or not the compute's: nothing in it is called")


async def read_unless_locked(connection: Connection, name: str, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query on a table, none if somebody holds it: whoever may write all data may lock it too."""
    try:
        async with connection.transaction():
            await connection.rows(f"LOCK TABLE {name} IN ACCESS SHARE MODE NOWAIT")
            return await connection.rows(query)
    except psycopg.errors.LockNotAvailable:
        return []
