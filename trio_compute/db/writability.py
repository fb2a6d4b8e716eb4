"""Try whether Postgres can write (contract 06 §3, R-09)."""

from __future__ import annotations

from trio_compute.db.request_session import DISK_FULL, UNDEFINED_TABLE, open_request_session
from trio_compute.errors import PostgresError, SqlFailed
from trio_compute.settings import Deadlines
from trio_compute.telemetry.logging import get_logger

_WRITE = """\
INSERT INTO public.health_check (id, updated_at) VALUES (1, now())
ON CONFLICT (id) DO UPDATE SET updated_at = excluded.updated_at"""

log = get_logger("availability")


async def check_writability(connstr: str, deadlines: Deadlines) -> bool:
    """Write the row of the health check; return whether there was room for it, and raise PostgresError if it failed.

    A full disk, or a quota that is used up, is no failure of the compute: nothing else can write either.
    """
    try:
        async with open_request_session(connstr, "availability_checker", deadlines) as connection:
            written = await connection.execute(_WRITE.encode())
            if written.rowcount != 1:
                raise PostgresError(f"the health check wrote {written.rowcount} rows instead of one")
    except SqlFailed as error:
        if error.sqlstate == DISK_FULL:
            log.warning("no room to write", error=error)
            return False
        if error.sqlstate == UNDEFINED_TABLE:
            text = "table public.health_check does not exist: the catalog of this branch was never applied"
            raise SqlFailed(text, error.sqlstate) from None
        raise
    return True
