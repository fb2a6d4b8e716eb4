"""What a statement waits for, found out while it waits: afterwards Postgres does not tell (contract 05 K-12)."""

from __future__ import annotations

import psycopg
import trio

from trio_compute.db.connection import TrioConnection
from trio_compute.db.target import Target
from trio_compute.errors import PostgresError
from trio_compute.settings import Deadlines
from trio_compute.storage.texts import brief

LOOK_AFTER = 0.5  # of the time that a statement may wait for a lock, or run
TICKS = 8

# Who wants to change a row waits for the transaction that changed it, but holds the lock of the row meanwhile. Objects
# keep their number: to read a name could mean to wait for the same lock.
_BLOCKERS = """\
SELECT DISTINCT format('%%s on %%s held by ', w.mode,
           coalesce(
               c.relname::text,
               CASE w.locktype
               WHEN 'object' THEN 'object ' || w.objid || ' of ' || w.classid::regclass
               WHEN 'transactionid' THEN
                   (SELECT 'a row of ' || t.relation::regclass FROM pg_catalog.pg_locks t
                    WHERE t.pid = w.pid AND t.locktype = 'tuple' LIMIT 1)
               END,
               w.locktype || coalesce(' ' || w.objid, '')))
       || CASE WHEN b.pid IS NULL THEN 'a prepared transaction'
          ELSE format('pid %%s (user %%s, application %%L, %%s)', b.pid, b.usename, b.application_name, b.state) END
FROM pg_catalog.pg_locks w
CROSS JOIN LATERAL unnest(pg_catalog.pg_blocking_pids(w.pid)) AS blocker(pid)
LEFT JOIN pg_catalog.pg_stat_activity b ON b.pid = blocker.pid
LEFT JOIN pg_catalog.pg_class c ON c.oid = w.relation
WHERE w.pid = %s AND NOT w.granted"""


class LockWatch:
    """Look at statements that run for long, and remember what each session waited for last."""

    def __init__(self, target: Target, deadlines: Deadlines) -> None:
        self._target = target
        self._after_seconds = min(deadlines.catalog_lock, deadlines.catalog_statement) * LOOK_AFTER
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
                if began < late:
                    found = await self._look(pid, database)
                    # A statement may wait for one lock after another: what it waited for last is what ended it. When
                    # nothing is found, its wait may just have ended, in one way or the other.
                    if found and self._began.get(pid) == (database, began):
                        self._seen[pid] = found

    async def _look(self, pid: int, database: str) -> str:
        try:
            target = self._target.replace(dbname=database)
            async with await TrioConnection.connect(target) as connection:
                cursor = await connection.execute(_BLOCKERS.encode(), (pid,))
                return brief("; ".join(str(row[0]) for row in await cursor.fetchall()))
        except (PostgresError, psycopg.Error, OSError) as error:
            return f"an unknown lock ({brief(error)})"
