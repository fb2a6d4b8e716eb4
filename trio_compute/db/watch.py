"""What a statement waits for, found out while it waits: afterwards Postgres does not tell (contract 05 K-12)."""

from __future__ import annotations

import psycopg
import trio

from trio_compute.db.connection import TrioConnection
from trio_compute.db.target import Target
from trio_compute.errors import PostgresError
from trio_compute.settings import Deadlines
from trio_compute.storage.texts import brief

LOOK_AFTER = 0.5  # of the time that a statement may wait for a lock
TICKS = 8

_BLOCKERS = """\
SELECT DISTINCT format('%%s on %%s held by pid %%s (user %%s, application %%L, %%s)',
       w.mode,
       coalesce(c.relname::text, w.locktype || coalesce(' ' || w.objid, '')),
       b.pid, b.usename, b.application_name, b.state)
FROM pg_catalog.pg_locks w
CROSS JOIN LATERAL unnest(pg_catalog.pg_blocking_pids(w.pid)) AS blocker(pid)
JOIN pg_catalog.pg_stat_activity b ON b.pid = blocker.pid
LEFT JOIN pg_catalog.pg_class c ON c.oid = w.relation
WHERE w.pid = %s AND NOT w.granted"""


class LockWatch:
    """Look at statements that run for long, and remember what each session waited for last."""

    def __init__(self, target: Target, deadlines: Deadlines) -> None:
        self._target = target
        self._after_seconds = deadlines.catalog_lock * LOOK_AFTER
        self._began: dict[int, tuple[str, float]] = {}
        self._seen: dict[int, str] = {}

    def begin(self, pid: int, database: str) -> None:
        """Take note that a session begins a statement."""
        self._began[pid] = (database, trio.current_time())
        self._seen.pop(pid, None)

    def end(self, pid: int) -> str | None:
        """Take note that the statement is over; return what it was seen waiting for, if anything."""
        self._began.pop(pid, None)
        return self._seen.get(pid)

    async def serve(self) -> None:
        """Look at what runs, now and then; runs until cancelled."""
        while True:
            await trio.sleep(self._after_seconds / TICKS)
            late = trio.current_time() - self._after_seconds
            for pid, (database, began) in list(self._began.items()):
                if began < late and pid not in self._seen:
                    self._seen[pid] = await self._look(pid, database)

    async def _look(self, pid: int, database: str) -> str:
        try:
            target = self._target.replace(dbname=database)
            async with await TrioConnection.connect(target) as connection:
                cursor = await connection.execute(_BLOCKERS.encode(), (pid,))
                return brief("; ".join(str(row[0]) for row in await cursor.fetchall()))
        except (PostgresError, psycopg.Error, OSError) as error:
            return f"an unknown lock ({brief(error)})"
