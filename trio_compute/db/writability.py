"""Try whether Postgres can write (contract 06 §3, R-09; 11 T-04)."""

from __future__ import annotations

from trio_compute.db.request_session import DISK_FULL, READ_ONLY, open_request_session
from trio_compute.deadlines import Deadlines
from trio_compute.errors import SqlFailed
from trio_compute.telemetry.logging import get_logger

# A message in the WAL: it takes a transaction, WAL and a commit that is acknowledged as every other, but no table, in
# whose place, on which or around which a tenant could have put anything, and which he could lock.
_WRITE = "SELECT pg_catalog.pg_logical_emit_message(true, 'trio_compute', 'writability')"
_READ_ONLY = "SELECT pg_catalog.pg_is_in_recovery()"

log = get_logger("availability")


async def check_writability(connstr: str, deadlines: Deadlines) -> bool:
    """Write to the WAL and wait for the commit; return whether there was room, and raise PostgresError if it failed.

    A full disk, or a quota that is used up, is no failure of the compute: nothing else can write either.
    """
    try:
        async with open_request_session(connstr, "availability_checker", deadlines) as connection:
            if await connection.rows(_READ_ONLY) == [(True,)]:
                raise SqlFailed("cannot write in recovery: this server is a replica", READ_ONLY)
            await connection.rows(_WRITE)
    except SqlFailed as error:
        if error.sqlstate == DISK_FULL:
            log.warning("no room to write", error=error)
            return False
        raise
    return True
