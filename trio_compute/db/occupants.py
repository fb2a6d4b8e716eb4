"""Who sits in a database that must be empty, and how it is emptied (contract 11 T-15)."""

from __future__ import annotations

import psycopg
import trio

from trio_compute.db.carried_text import escaped
from trio_compute.db.maintenance import Connection, failure_text, open_maintenance
from trio_compute.db.target import Target
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.plan.catalog import notes
from trio_compute.plan.catalog.leftovers import prepared_transactions
from trio_compute.plan.catalog.quoting import identifier
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger

_WHO = """\
SELECT pg_catalog.format('pid %%s (%%s %%s, application %%L, since %%s)', a.pid, a.backend_type, a.usename,
                         a.application_name, a.backend_start)
FROM pg_catalog.pg_stat_activity a
WHERE a.datname OPERATOR(pg_catalog.=) %s AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
UNION ALL
SELECT pg_catalog.format('prepared transaction %%L of %%s since %%s', p.gid, p.owner, p.prepared)
FROM pg_catalog.pg_prepared_xacts p WHERE p.database OPERATOR(pg_catalog.=) %s"""
_FORM = """\
SELECT d.oid::bigint, d.datconnlimit, d.datallowconn,
       EXISTS (SELECT FROM pg_catalog.pg_prepared_xacts p WHERE p.database OPERATOR(pg_catalog.=) d.datname)
FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) %s"""
_END_SESSIONS = """\
SELECT pg_catalog.pg_terminate_backend(a.pid, %s) FROM pg_catalog.pg_stat_activity a
WHERE a.datname OPERATOR(pg_catalog.=) %s AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()"""
_NAME = "SELECT d.datname::pg_catalog.text FROM pg_catalog.pg_database d WHERE d.oid OPERATOR(pg_catalog.=) %s"
PATIENCE_MS = 5000
RELEASE_SECONDS = 5.0

log = get_logger("catalog")


async def occupants(connection: Connection, database: str) -> str:
    """Return who is in a database, sessions and prepared transactions, as one text."""
    return brief(escaped("; ".join(who for (who,) in await connection.rows(_WHO, database, database))))


class Eviction:
    """Keep a database empty while something is done with it; what it was before is noted until it is so again."""

    def __init__(self, connection: Connection, target: Target, database: str, deadlines: Deadlines) -> None:
        self._connection = connection
        self._target = target
        self._database = database
        self._deadlines = deadlines
        self._before: tuple[int, int, bool] | None = None

    async def evict(self) -> None:
        """Let nobody but superusers in and send all others away, prepared transactions included; say whom.

        Raises psycopg's errors.
        """
        found = await self._connection.rows(_FORM, self._database)
        if not found:
            return
        ((oid, limit, is_open, has_transactions),) = found
        who = await occupants(self._connection, self._database)
        log.warning("database is emptied", database=escaped(self._database), occupants=who)
        if self._before is None:
            self._before = (oid, limit, is_open)
            was = f"{limit},{'open' if is_open else 'closed'}"
            await self._connection.rows(notes.note(notes.RESERVED, was, self._database))
        await self._alter("CONNECTION LIMIT 0")
        await self._connection.rows(_END_SESSIONS, PATIENCE_MS, self._database)
        if has_transactions:
            await self._alter("ALLOW_CONNECTIONS true")
            try:
                await self._end_transactions()
            except PostgresError as error:  # no session there now; the attempt that follows fails, and we come again
                log.warning("prepared transactions are not ended", database=escaped(self._database), error=error)

    async def release(self) -> None:
        """Make the database what it was, also if it has another name now or we are being cancelled.

        What that does not bring about the next apply does, by the note.
        """
        if self._before is None:
            return
        with trio.CancelScope(shield=True, relative_deadline=RELEASE_SECONDS):
            try:
                await self._restore(*self._before)
            except psycopg.Error as error:
                log.warning("database is still open for the compute alone", error=failure_text(error))

    async def _restore(self, oid: int, limit: int, is_open: bool) -> None:
        found = await self._connection.rows(_NAME, oid)
        if not found:
            return
        ((self._database,),) = found
        if not is_open:
            await self._alter("ALLOW_CONNECTIONS false")
        await self._alter(f"CONNECTION LIMIT {limit}")
        await self._connection.rows(notes.forget(notes.RESERVED, self._database))

    async def _alter(self, words: str) -> None:
        await self._connection.rows(f"ALTER DATABASE {identifier(self._database)} {words}")

    async def _end_transactions(self) -> None:
        target = self._target.replace(dbname=self._database)
        async with open_maintenance(target, self._deadlines) as inside:
            for (statement,) in await inside.rows(prepared_transactions(None)):
                try:
                    await inside.rows(statement)
                except psycopg.errors.UndefinedObject:  # its owner was faster
                    log.debug("prepared transaction is over already")
