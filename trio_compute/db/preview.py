"""Find out what an apply would do to a running Postgres, and change nothing."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
from msgspec import Struct

from trio_compute.db.catalog_snapshot import read_snapshot
from trio_compute.db.maintenance import failure_text, maintenance_target, open_maintenance
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.plan.catalog.operations import Plan
from trio_compute.plan.catalog.planner import plan_catalog
from trio_compute.plan.catalog.wanted import Wanted

_START_ONLY = """\
SELECT name FROM pg_catalog.pg_settings
WHERE context OPERATOR(pg_catalog.=) 'postmaster' AND name OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[])
ORDER BY name"""


class Outlook(Struct, frozen=True):
    """Hold what a server says about a wanted state."""

    plan: Plan
    system_database: str
    start_only: tuple[str, ...]


async def look_ahead(
    connstr: str, wanted: Wanted | None, changed_settings: Iterable[str], *, deadlines: Deadlines
) -> Outlook:
    """Return the plan for a wanted catalog (None: it is not touched) and which settings only a start takes over.

    The session is read-only. Raises PostgresError.
    """
    target = maintenance_target(connstr, "plan", deadlines)
    target = target.replace(options=f"{target.options} -c default_transaction_read_only=on")
    try:
        async with open_maintenance(target, deadlines) as connection:
            plan = Plan() if wanted is None else plan_catalog(wanted, await read_snapshot(connection, wanted))[0]
            found = await connection.rows(_START_ONLY, list(changed_settings))
            start_only = tuple(str(name) for (name,) in found)
            return Outlook(plan, target.dbname, start_only)
    except psycopg.Error as error:
        raise PostgresError(f"the catalog could not be read: {failure_text(error)}") from None
