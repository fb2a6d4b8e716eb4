"""Which dumps wait for a lock (T-13)."""

from __future__ import annotations

from collections.abc import Collection

from trio_compute.db.request_session import open_request_session
from trio_compute.deadlines import Deadlines

# Anybody can call himself what he likes; a superuser's sessions are ours.
_WAITING = """\
SELECT a.application_name FROM pg_catalog.pg_stat_activity a
JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) a.usesysid AND r.rolsuper
WHERE a.wait_event_type OPERATOR(pg_catalog.=) 'Lock'
  AND a.application_name OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[])"""


async def dumps_that_wait(connstr: str, names: Collection[str], deadlines: Deadlines) -> set[str]:
    """Return those of some dumps that wait for a lock now; raise PostgresError if Postgres cannot be asked in time."""
    async with open_request_session(connstr, "database_schema", deadlines) as connection:
        return {name for (name,) in await connection.rows(_WAITING, list(names))}
