"""Run the migrations that are still due, each in a transaction of its own (contract 05 §14, K-30; 11 T-04)."""

from __future__ import annotations

import psycopg

from trio_compute.db.maintenance import Connection, failure_text, maintenance_target, open_maintenance
from trio_compute.db.own_objects import is_trustworthy, is_unclaimed, read_unless_locked
from trio_compute.db.turns import changing
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.plan.catalog import notes
from trio_compute.plan.migrations import ADVANCE, CURRENT, MIGRATIONS, TABLE, Migration, preparation
from trio_compute.telemetry.failpoints import failpoints
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import DB_MIGRATION_FAILED, DB_MIGRATION_ID, metrics

FAILPOINT = "compute-migration"
LAST = len(MIGRATIONS)
_NOTED = """\
SELECT s.setconfig FROM pg_catalog.pg_db_role_setting s
JOIN pg_catalog.pg_authid a ON a.oid OPERATOR(pg_catalog.=) s.setrole
WHERE a.rolname OPERATOR(pg_catalog.=) CURRENT_USER AND s.setdatabase OPERATOR(pg_catalog.=) 0"""

log = get_logger("migrations")


async def run_migrations(connstr: str, *, privileged_role: str, deadlines: Deadlines) -> int:
    """Run what is due, and again what is recorded but not to be seen; return the number of the last migration.

    Raises PostgresError at the first that fails, and when a newer version has run more than we know.
    """
    target = maintenance_target(connstr, "migrations", deadlines)
    async with changing(target), open_maintenance(target, deadlines) as connection:
        try:
            noted, shown = await _recorded(connection)
        except psycopg.Error as error:
            raise PostgresError(f"cannot read which migrations were run: {failure_text(error)}") from None
        done = noted if noted is not None else max(0, min(shown or 0, LAST))
        metrics.set(DB_MIGRATION_ID, done)
        _refuse_newer(noted, "is noted")
        run = _Run(connection, privileged_role, done)
        try:
            await run.all()
        finally:
            if shown is None or 0 <= shown <= LAST:
                await _show(connection, run.done)
        _refuse_newer(shown, f"is recorded in {TABLE}")
    return LAST


def _refuse_newer(number: int | None, where: str) -> None:
    if number is not None and not 0 <= number <= LAST:
        raise PostgresError(f"migration {number} {where}, but there are 0 to {LAST}; nothing is run for it")


async def _recorded(connection: Connection) -> tuple[int | None, int | None]:
    """Return the number that we noted and the one that the original's table shows, None for one that is not there."""
    rows = await connection.rows(_NOTED)
    text = notes.parsed(rows[0][0]).get(notes.MIGRATION) if rows else None
    return None if text is None else int(text), await _shown(connection)


async def _shown(connection: Connection) -> int | None:
    if not await is_trustworthy(connection, TABLE):
        return None
    rows = await read_unless_locked(connection, TABLE, CURRENT)
    return rows[0][0] if rows else None


class _Run:
    """Run migrations over one session; `done` is the number of the last one that is noted."""

    def __init__(self, connection: Connection, privileged_role: str, done: int) -> None:
        self.done = done
        self._connection = connection
        self._role = privileged_role
        self._major = connection.info.server_version // 10000

    async def all(self) -> None:
        for number, migration in enumerate(MIGRATIONS, 1):
            if number > self.done or await self._is_only_claimed(number, migration):
                await self._one(number, migration)

    async def _is_only_claimed(self, number: int, migration: Migration) -> bool:
        claim = migration.claimed(self._role, self._major)
        if claim is None or await self._connection.rows(claim):
            return False
        log.warning(f"migration id={number} is recorded, but what it did is not there", name=migration.name)
        return True

    async def _one(self, number: int, migration: Migration) -> None:
        log.info(f"{'Skipping' if migration.skipped else 'Running'} migration id={number}", name=migration.name)
        try:
            async with self._connection.changes():
                await self._carry_out(number, migration)
        except (psycopg.Error, PostgresError) as error:
            metrics.increment(DB_MIGRATION_FAILED, migration_id=str(number))
            log.error(f"Failed to run migration id={number}", name=migration.name)
            text = failure_text(error) if isinstance(error, psycopg.Error) else str(error)
            raise PostgresError(f"migration {number} ({migration.name}) failed: {text}") from None
        self.done = max(self.done, number)
        metrics.set(DB_MIGRATION_ID, self.done)
        if migration.skipped is None:
            log.info(f"Finished migration id={number}", name=migration.name)

    async def _carry_out(self, number: int, migration: Migration) -> None:
        statement = migration.statement(self._role, self._major)
        if statement is not None:
            await self._connection.rows(statement)
        if failpoints.returns(FAILPOINT) == str(number):
            raise PostgresError("failpoint")
        if number > self.done:
            await self._connection.rows(notes.note(notes.MIGRATION, str(number)))


async def _show(connection: Connection, number: int) -> None:
    """Write the number into the original's table, for its tools; best effort, since others can hold that table."""
    try:
        async with connection.changes():
            await connection.rows("SELECT pg_catalog.set_config('lock_timeout', '1s', true)")
            if await _can_show(connection):
                for statement in preparation():
                    await connection.rows(statement)
                await connection.rows(ADVANCE, number)
    except psycopg.Error as error:
        log.warning(f"{TABLE} is not up to date", error=failure_text(error))


async def _can_show(connection: Connection) -> bool:
    return await is_trustworthy(connection, TABLE) or await is_unclaimed(connection, TABLE)
