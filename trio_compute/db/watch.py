"""What a statement waits for, found out while it waits: afterwards Postgres does not tell (contract 05 K-12)."""

from __future__ import annotations

import psycopg
import trio

from trio_compute.db.carried_text import escaped
from trio_compute.db.maintenance import open_maintenance
from trio_compute.db.target import Target
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.storage.texts import brief

LOOK_AFTER = 0.5  # of the time that a statement may wait for a lock, or run
TICKS = 8

# Who wants to change a row waits for the transaction that changed it, but holds the lock of the row meanwhile. Objects
# keep their number: to read a name could mean to wait for the same lock.
_BLOCKERS = """\
SELECT DISTINCT pg_catalog.format('%%s on %%s held by %%s', w.mode,
           coalesce(
               c.relname::pg_catalog.text,
               CASE WHEN w.locktype OPERATOR(pg_catalog.=) 'object'
                    THEN pg_catalog.format('object %%s of %%s', w.objid, w.classid::pg_catalog.regclass)
                    WHEN w.locktype OPERATOR(pg_catalog.=) 'transactionid' THEN
                   (SELECT pg_catalog.format('a row of %%s', t.relation::pg_catalog.regclass)
                    FROM pg_catalog.pg_locks t
                    WHERE t.pid OPERATOR(pg_catalog.=) w.pid AND t.locktype OPERATOR(pg_catalog.=) 'tuple' LIMIT 1)
               END,
               pg_catalog.format('%%s %%s', w.locktype, w.objid)),
           CASE WHEN b.pid IS NULL THEN
               coalesce('prepared transaction '
                        OPERATOR(pg_catalog.||) (SELECT pg_catalog.string_agg(pg_catalog.quote_literal(p.gid), ' or ')
                         FROM pg_catalog.pg_locks held
                         JOIN pg_catalog.pg_locks own
                              ON own.virtualtransaction OPERATOR(pg_catalog.=) held.virtualtransaction
                         JOIN pg_catalog.pg_prepared_xacts p
                              ON p.transaction OPERATOR(pg_catalog.=) own.transactionid
                         WHERE own.pid IS NULL AND held.granted AND held.pid IS NULL
                           AND held.locktype OPERATOR(pg_catalog.=) w.locktype
                           AND (held.relation OPERATOR(pg_catalog.=) w.relation
                                OR held.transactionid OPERATOR(pg_catalog.=) w.transactionid
                                OR held.objid OPERATOR(pg_catalog.=) w.objid)),
                        'a prepared transaction')
           ELSE pg_catalog.format('pid %%s (user %%s, application %%L, %%s, since %%s)',
                                  b.pid, b.usename, b.application_name, b.state, b.state_change) END)
FROM pg_catalog.pg_locks w
CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) AS blocker(pid)
LEFT JOIN pg_catalog.pg_stat_activity b ON b.pid OPERATOR(pg_catalog.=) blocker.pid
LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) w.relation
WHERE w.pid OPERATOR(pg_catalog.=) %s AND NOT w.granted"""


class LockWatch:
    """Look at statements that run for long, and remember what each session waited for last."""

    def __init__(self, target: Target, deadlines: Deadlines) -> None:
        self._target = target
        self._deadlines = deadlines
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
            async with open_maintenance(target, self._deadlines, retry_seconds=0) as connection:
                found = await connection.rows(_BLOCKERS, pid)
                return brief(escaped("; ".join(str(text) for (text,) in found)))
        except (PostgresError, psycopg.Error, OSError) as error:
            return f"an unknown lock ({brief(error)})"
