"""Who works on this server now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
import trio
from msgspec import structs

from trio_compute.db.maintenance import failure_text, maintenance_target, open_maintenance
from trio_compute.errors import PostgresError
from trio_compute.model.catalog_rules import SUPERUSER
from trio_compute.settings import Deadlines

COUNT_SECONDS = 5.0
# The sessions that keep a compute from being suspended (06 §2.2), connected but idle ones apart.
_ACTIVE = """
SELECT (SELECT count(*) FROM pg_catalog.pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()
          AND usename IS DISTINCT FROM %(ours)s AND state IS DISTINCT FROM 'idle')
     + (SELECT count(*) FROM pg_catalog.pg_stat_replication WHERE application_name <> 'walproposer')
     + (SELECT count(*) FROM pg_catalog.pg_stat_subscription WHERE pid IS NOT NULL)
"""


@asynccontextmanager
async def open_session_count(connstr: str, deadlines: Deadlines) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Open a session and yield what counts the active ones, replication included; raise PostgresError."""
    target = maintenance_target(connstr, "idle_check", deadlines)
    async with open_maintenance(target, structs.replace(deadlines, catalog_retry=0)) as connection:

        async def count() -> int:
            try:
                with trio.fail_after(COUNT_SECONDS):
                    row = await (await connection.execute(_ACTIVE, {"ours": SUPERUSER})).fetchone()
            except trio.TooSlowError:
                raise PostgresError(f"Postgres did not answer within {COUNT_SECONDS:g} s") from None
            except psycopg.Error as error:
                raise PostgresError(failure_text(error)) from None
            assert row is not None
            return int(row[0])

        yield count
