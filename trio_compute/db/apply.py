"""Carry out a plan: phases one after another, databases side by side, everything awaited (contract 05 §6 … §9)."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import trio

from trio_compute.db.catalog_snapshot import read_snapshot
from trio_compute.db.maintenance import (
    Connection,
    ConnectRefused,
    exclusive,
    failure_text,
    maintenance_target,
    open_maintenance,
)
from trio_compute.db.target import Target
from trio_compute.db.watch import LockWatch
from trio_compute.errors import PostgresError
from trio_compute.plan.catalog.failures import CatalogFailed, Failure
from trio_compute.plan.catalog.operations import DatabaseWork, Operation, Phase, Plan
from trio_compute.plan.catalog.planner import plan_catalog
from trio_compute.plan.catalog.wanted import Wanted
from trio_compute.settings import Deadlines
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import CONFIGURE_STATEMENT_TIMEOUTS, metrics
from trio_compute.telemetry.spans import Recorder

PURPOSE = "apply_config"
QUERY_CANCELED = "57014"
_TIMED_OUT = frozenset({QUERY_CANCELED, "55P03"})
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
# A user changes the same object at the same moment: a deadlock, or "tuple concurrently updated", which has no code of
# its own. Once more helps; if it does not, it was another error.
_CONFLICTS = frozenset({"40001", "40P01", "XX000"})
MOST_CONFLICTS = 3
# A database may go, or close, between the look and the work: then there is nothing to do in it.
_DATABASE_GONE = frozenset({"3D000", "55000"})

log = get_logger("catalog")


async def apply_catalog(connstr: str, wanted: Wanted, *, workers: int, deadlines: Deadlines, spans: Recorder) -> Plan:
    """Bring the catalog to the wanted state and return what was done; raise CatalogFailed or another PostgresError."""
    target = maintenance_target(connstr, PURPOSE, deadlines)
    try:
        with trio.fail_after(deadlines.catalog_total):
            async with open_maintenance(target, deadlines) as connection, exclusive(connection):
                plan, _ = plan_catalog(wanted, await read_snapshot(connection, wanted))
                for warning in plan.warnings:
                    log.warning("catalog", about=warning)
                await _Execution(connection, target, workers, deadlines, spans).carry_out(plan)
                return plan
    except trio.TooSlowError:
        raise PostgresError(f"the catalog was not as wanted after {deadlines.catalog_total:g} s") from None
    except psycopg.Error as error:
        raise PostgresError(f"the catalog could not be read: {failure_text(error)}") from None


class _Execution:
    """Carry out one plan over a maintenance session and, where needed, sessions in other databases."""

    def __init__(
        self, connection: Connection, target: Target, workers: int, deadlines: Deadlines, spans: Recorder
    ) -> None:
        self._connection = connection
        self._target = target
        self._limiter = trio.CapacityLimiter(workers)
        self._deadlines = deadlines
        self._spans = spans
        self._watch = LockWatch(target, deadlines)

    async def carry_out(self, plan: Plan) -> None:
        failure: PostgresError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch.serve)
            try:
                await self._in_databases(plan.clean_up)
                await self._in_turn(self._connection, self._target.dbname, plan.before)
                await self._in_databases(plan.databases)
                await self._in_turn(self._connection, self._target.dbname, plan.after)
            except PostgresError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _in_turn(self, connection: Connection, database: str, phases: Sequence[Phase]) -> None:
        """Run phases in order and stop at the first error (K-07)."""
        for phase in phases:
            with self._spans.measure(f"catalog.{phase.name}", database=database, operations=len(phase.operations)):
                for operation in phase.operations:
                    log.info("catalog change", phase=phase.name, database=database, operation=operation.what)
                    await self._execute(connection, database, phase, operation)

    async def _in_databases(self, works: Sequence[DatabaseWork]) -> None:
        """Work in several databases at the same time; one that fails does not stop the others (K-08)."""
        failures: list[Failure] = []
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(self._in_database, work, failures)
        if failures:
            raise CatalogFailed(failures)

    async def _in_database(self, work: DatabaseWork, failures: list[Failure]) -> None:
        try:
            async with self._limiter:
                if work.database == self._target.dbname:
                    await self._in_turn(self._connection, work.database, work.phases)
                    return
                target = self._target.replace(dbname=work.database)
                async with open_maintenance(target, self._deadlines) as connection:
                    await self._in_turn(connection, work.database, work.phases)
        except CatalogFailed as failed:
            failures += failed.failures
        except ConnectRefused as refused:
            if refused.sqlstate in _DATABASE_GONE:
                log.warning("catalog", about=f"nothing is done inside database {work.database!r}: {refused}")
            else:
                failures.append(_unreachable(work, refused, refused.sqlstate))
        except PostgresError as error:
            failures.append(_unreachable(work, error, None))

    async def _execute(self, connection: Connection, database: str, phase: Phase, operation: Operation) -> None:
        """Run one operation, again for a while where that can help; raise CatalogFailed, whose text is without SQL."""
        give_up_at, pause = trio.current_time() + self._deadlines.catalog_retry, FIRST_PAUSE_SECONDS
        conflicts = 0
        pid = connection.pgconn.backend_pid
        while True:
            self._watch.begin(pid, database)
            try:
                await _run(connection, operation)
                return
            except psycopg.Error as error:
                waited_for = self._watch.end(pid)
                failure = _failure(error, database, phase, operation, waited_for)
            finally:
                self._watch.end(pid)
            if failure.sqlstate == QUERY_CANCELED:
                metrics.increment(CONFIGURE_STATEMENT_TIMEOUTS)
            if failure.sqlstate in operation.tolerated:
                log.warning("catalog", about=str(failure))
                return
            is_conflict = failure.sqlstate in _CONFLICTS
            conflicts += is_conflict
            can_pass = failure.sqlstate in operation.retried or (is_conflict and conflicts <= MOST_CONFLICTS)
            if not can_pass or trio.current_time() + pause > give_up_at:
                raise CatalogFailed([failure])
            log.warning("catalog", about=str(failure), retry_in_seconds=pause)
            await trio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def _run(connection: Connection, operation: Operation) -> None:
    if operation.only_if is not None:
        found = await connection.execute(operation.only_if.encode())
        if await found.fetchone() is None:
            return
    if not operation.generates:
        await connection.execute(operation.statement.encode())
        return
    async with connection.transaction():
        if operation.lock is not None:
            await connection.execute(operation.lock.encode())
        generated = await connection.execute(operation.statement.encode())
        for (statement,) in await generated.fetchall():
            try:
                await connection.execute(str(statement).encode())
            except psycopg.Error as error:
                error.add_note(str(statement))
                raise


def _failure(
    error: psycopg.Error, database: str, phase: Phase, operation: Operation, waited_for: str | None
) -> Failure:
    detail = error.diag.message_detail
    generated = getattr(error, "__notes__", [])
    timed_out = error.sqlstate in _TIMED_OUT
    return Failure(
        phase=phase.name,
        database=database,
        object=str(operation.subject),
        operation=operation.what,
        statement=brief(generated[-1] if generated else operation.shown),
        sqlstate=error.sqlstate,
        message=failure_text(error),
        detail=f"it waited for {waited_for}" if waited_for and timed_out else None if detail is None else brief(detail),
    )


def _unreachable(work: DatabaseWork, error: PostgresError, sqlstate: str | None) -> Failure:
    return Failure(
        phase=work.phases[0].name,
        database=work.database,
        object=f"database {work.database}",
        operation=f"connect to database {work.database}",
        sqlstate=sqlstate,
        message=brief(error),
    )
