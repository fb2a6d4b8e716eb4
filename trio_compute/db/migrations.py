"""Run the migrations that are still due, each in a transaction of its own (contract 05 §14, K-30)."""

from __future__ import annotations

import psycopg

from trio_compute.db.maintenance import Connection, exclusive, failure_text, maintenance_target, open_maintenance
from trio_compute.errors import PostgresError
from trio_compute.plan.migrations import ADVANCE, CURRENT, MIGRATIONS, Migration, preparation
from trio_compute.settings import Deadlines
from trio_compute.telemetry.failpoints import failpoints
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import DB_MIGRATION_FAILED, DB_MIGRATION_ID, metrics

FAILPOINT = "compute-migration"

log = get_logger("migrations")


async def run_migrations(connstr: str, *, privileged_role: str, deadlines: Deadlines) -> int:
    """Run what is due and return the number of the last migration; raise PostgresError at the first that fails."""
    target = maintenance_target(connstr, "migrations", deadlines)
    async with open_maintenance(target, deadlines) as connection, exclusive(connection):
        done = await _prepared(connection)
        metrics.set(DB_MIGRATION_ID, done)
        if not 0 <= done <= len(MIGRATIONS):
            raise PostgresError(f"migration {done} is recorded, but there are 0 to {len(MIGRATIONS)}; nothing is run")
        for number, migration in enumerate(MIGRATIONS[done:], done + 1):
            await _run(connection, number, migration, privileged_role)
            metrics.set(DB_MIGRATION_ID, number)
    return len(MIGRATIONS)


async def _prepared(connection: Connection) -> int:
    """Make sure that there is a record of what was run, and return it."""
    try:
        async with connection.transaction():
            for statement in preparation():
                await connection.execute(statement.encode())
            rows = await (await connection.execute(CURRENT.encode())).fetchall()
            return int(rows[0][0])
    except psycopg.Error as error:
        raise PostgresError(f"cannot prepare the migrations: {failure_text(error)}") from None


async def _run(connection: Connection, number: int, migration: Migration, privileged_role: str) -> None:
    log.info(f"{'Skipping' if migration.skipped else 'Running'} migration id={number}", name=migration.name)
    statement = migration.statement(privileged_role, connection.info.server_version // 10000)
    try:
        async with connection.transaction():
            if statement is not None:
                await connection.execute(statement.encode())
            if failpoints.returns(FAILPOINT) == str(number):
                raise PostgresError("failpoint")
            await connection.execute(ADVANCE.encode(), (number,))
    except (psycopg.Error, PostgresError) as error:
        metrics.increment(DB_MIGRATION_FAILED, migration_id=str(number))
        log.error(f"Failed to run migration id={number}", name=migration.name)
        text = failure_text(error) if isinstance(error, psycopg.Error) else str(error)
        raise PostgresError(f"migration {number} ({migration.name}) failed: {text}") from None
    if migration.skipped is None:
        log.info(f"Finished migration id={number}", name=migration.name)
