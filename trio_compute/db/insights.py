"""Read which statements take longest (contract 06 §4, R-06; T-02, T-06)."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg

from trio_compute.db.carried_text import escaped
from trio_compute.db.maintenance import Connection
from trio_compute.db.request_session import decoded, open_request_session
from trio_compute.deadlines import Deadlines
from trio_compute.model import catalog_rules
from trio_compute.plan.catalog.quoting import identifier
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.redaction import redact

MAX_STATEMENTS = 100
# A statement of one database that the encoding of ours has no characters for.
_UNCONVERTIBLE = (psycopg.errors.CharacterNotInRepertoire, psycopg.errors.UntranslatableCharacter)

# The function of the extension itself, and whether nobody but a superuser can put another in its place: a view or a
# function of that name may be anybody's, and what is safe must be so until the next statement has run.
_PLACE = """\
SELECT n.nspname, host.rolsuper OR (host.rolname OPERATOR(pg_catalog.=) 'pg_database_owner' AND lord.rolsuper)
FROM pg_catalog.pg_extension e
JOIN pg_catalog.pg_depend d
  ON d.refobjid OPERATOR(pg_catalog.=) e.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'
 AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid
 AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid
JOIN pg_catalog.pg_proc p
  ON p.oid OPERATOR(pg_catalog.=) d.objid AND p.proname OPERATOR(pg_catalog.=) 'pg_stat_statements'
 AND p.pronargs OPERATOR(pg_catalog.=) 1
JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang AND l.lanname OPERATOR(pg_catalog.=) 'c'
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
JOIN pg_catalog.pg_authid host ON host.oid OPERATOR(pg_catalog.=) n.nspowner
JOIN pg_catalog.pg_database here ON here.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
JOIN pg_catalog.pg_authid lord ON lord.oid OPERATOR(pg_catalog.=) here.datdba
WHERE e.extname OPERATOR(pg_catalog.=) 'pg_stat_statements'"""
_SLOWEST = """\
SELECT pg_catalog.row_to_json(s)::pg_catalog.text FROM (
    SELECT t.* FROM {schema}.pg_stat_statements(%s::boolean) AS t
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_authid a
                      WHERE a.oid OPERATOR(pg_catalog.=) t.userid AND a.rolname OPERATOR(pg_catalog.=) %s)
    ORDER BY t.mean_exec_time OPERATOR(pg_catalog.+) t.mean_plan_time DESC LIMIT %s) s"""

log = get_logger("insights")


async def collect_insights(connstr: str, deadlines: Deadlines) -> list[dict[str, Any]]:
    """Return the slowest statements, each with all columns of `pg_stat_statements`; none without the extension.

    Raises PostgresError.
    """
    async with open_request_session(connstr, "collect_insights", deadlines) as connection:
        schema = await _schema(connection)
        found = [] if schema is None else await _slowest(connection, schema)
        return [_presentable(msgspec.json.decode(decoded(connection, row))) for (row,) in found]


async def _schema(connection: Connection) -> str | None:
    for schema, is_ours in await connection.rows(_PLACE):
        if is_ours:
            return str(schema)
        log.warning("no insights: who owns the schema of pg_stat_statements is no superuser", schema=escaped(schema))
    return None


async def _slowest(connection: Connection, schema: str) -> list[tuple[Any, ...]]:
    query = _SLOWEST.format(schema=identifier(schema))
    try:
        return await connection.rows(query, True, catalog_rules.SUPERUSER, MAX_STATEMENTS)
    except _UNCONVERTIBLE as error:
        log.warning("insights without the texts: one cannot be converted", sqlstate=error.sqlstate)
    return await connection.rows(query, False, catalog_rules.SUPERUSER, MAX_STATEMENTS)


def _presentable(row: dict[str, Any]) -> dict[str, Any]:
    """Hide passwords in utility statements, the only ones whose literals are not replaced by numbers."""
    query = row.get("query")
    return {**row, "query": redact(query)} if isinstance(query, str) and "'" in query else row
