"""Read which statements take longest (contract 06 §4, R-06)."""

from __future__ import annotations

from typing import Any

import msgspec

from trio_compute.db.request_session import UNDEFINED_TABLE, open_request_session, rows
from trio_compute.errors import SqlFailed
from trio_compute.model.catalog_rules import SUPERUSER
from trio_compute.settings import Deadlines
from trio_compute.telemetry.redaction import redact

MAX_STATEMENTS = 100

_SLOWEST = """\
SELECT row_to_json(s)::text FROM (
    SELECT * FROM public.pg_stat_statements
    WHERE userid NOT IN (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s)
    ORDER BY mean_exec_time + mean_plan_time DESC LIMIT %s) s"""


async def collect_insights(connstr: str, deadlines: Deadlines) -> list[dict[str, Any]]:
    """Return the slowest statements, each with all columns of `pg_stat_statements`; none without the extension.

    Raises PostgresError.
    """
    try:
        async with open_request_session(connstr, "collect_insights", deadlines) as connection:
            found = await rows(connection, _SLOWEST, SUPERUSER, MAX_STATEMENTS)
    except SqlFailed as error:
        if error.sqlstate == UNDEFINED_TABLE:
            return []
        raise
    return [_presentable(msgspec.json.decode(row)) for (row,) in found]


def _presentable(row: dict[str, Any]) -> dict[str, Any]:
    """Hide passwords in utility statements, the only ones whose literals are not replaced by numbers."""
    query = row.get("query")
    return {**row, "query": redact(query)} if isinstance(query, str) and "'" in query else row
