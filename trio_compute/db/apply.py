"""Carry out a plan: phases one after another, databases side by side, everything awaited (contract 05 §6 … §9)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import psycopg
import trio
from msgspec import structs
from psycopg.pq import DiagnosticField

from trio_compute.db.carried_text import escaped, is_text
from trio_compute.db.catalog_snapshot import read_snapshot
from trio_compute.db.maintenance import (
    Connection,
    ConnectRefused,
    error_field,
    failure_text,
    maintenance_target,
    open_maintenance,
)
from trio_compute.db.occupants import Eviction, occupants
from trio_compute.db.target import Target
from trio_compute.db.turns import changing
from trio_compute.db.watch import LockWatch
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.plan.catalog.failures import CatalogFailed, Failure
from trio_compute.plan.catalog.operations import DatabaseWork, Operation, Phase, Plan, Subject
from trio_compute.plan.catalog.planner import plan_catalog
from trio_compute.plan.catalog.wanted import Wanted
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import CONFIGURE_STATEMENT_TIMEOUTS, metrics
from trio_compute.telemetry.spans import Recorder

PURPOSE = "apply_config"
QUERY_CANCELED = "57014"
IN_USE = "55006"
_TIMED_OUT = frozenset({QUERY_CANCELED, "55P03"})
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
# A user changes the same object at the same moment: a deadlock, or "tuple concurrently updated", which has no code of
# its own. Once more helps, or some more times against one who changes it all the time; else it was another error.
_CONFLICTS = frozenset({"40001", "40P01", "XX000"})
MOST_CONFLICTS = 25
CONFLICT_PAUSE_SECONDS = 0.02
# A database may go, or close, between the look and the work: then there is nothing to do in it.
_DATABASE_GONE = frozenset({"3D000", "55000"})
# What the plan rests on changed under it: somebody made, dropped, renamed or gave away an object in the meantime.
_OUTDATED = frozenset({"2BP01", "3D000", "3F000", "42704", "42P04", "42710", "42809", "42P01", "42883"})
MOST_PLANS = 5
_INNER_STATEMENT = re.compile(r'\ASQL statement "(?P<statement>.*)" PL/pgSQL function inline_code_block', re.DOTALL)
_OUTSIDE_TRANSACTIONS = ("CREATE DATABASE ", "DROP DATABASE ")

log = get_logger("catalog")


async def apply_catalog(connstr: str, wanted: Wanted, *, workers: int, deadlines: Deadlines, spans: Recorder) -> Plan:
    """Bring the catalog to the wanted state and return what was done first; a plan that is out of date is made again.

    Raises CatalogFailed, which tells what could not be done, or another PostgresError.
    """
    target = maintenance_target(connstr, PURPOSE, deadlines)
    try:
        with trio.fail_after(deadlines.catalog_total):
            async with changing(target), open_maintenance(target, deadlines) as connection:
                first = plan = await _plan(connection, wanted)
                for number in range(1, MOST_PLANS + 1):
                    failures = await _Execution(connection, target, workers, deadlines, spans).carry_out(plan)
                    if not failures:
                        return first
                    if number == MOST_PLANS or not any(failure.sqlstate in _OUTDATED for failure in failures):
                        raise CatalogFailed(failures)
                    log.info("the plan is out of date", failures=len(failures))
                    plan = await _plan(connection, wanted)
                raise AssertionError("the last plan returns or raises")
    except trio.TooSlowError:
        raise PostgresError(f"the catalog was not as wanted after {deadlines.catalog_total:g} s") from None
    except psycopg.Error as error:
        raise PostgresError(f"the catalog could not be read: {failure_text(error)}") from None


async def _plan(connection: Connection, wanted: Wanted) -> Plan:
    snapshot = await read_snapshot(connection, wanted)
    odd = [escaped(name) for name in (*snapshot.roles, *snapshot.databases) if not is_text(name)]
    if odd:
        log.warning("catalog", about=f"no spec can name these roles and databases, whose names are no text: {odd}")
    plan, _ = plan_catalog(wanted, snapshot)
    for warning in plan.warnings:
        log.warning("catalog", about=escaped(warning))
    return plan


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
        self._failures: list[Failure] = []
        self._failed: set[Subject] = set()

    async def carry_out(self, plan: Plan) -> list[Failure]:
        """Do all that can be done and return what could not (T-08); what concerns the cluster ends it at once."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch.serve)
            await self._carry_out(plan)
            nursery.cancel_scope.cancel()
        return self._failures

    async def _carry_out(self, plan: Plan) -> None:
        steps = (plan.first, plan.clean_up, plan.before, plan.databases, plan.after)
        for step in steps:
            phases = [phase for phase in step if isinstance(phase, Phase)]
            works = [work for work in step if isinstance(work, DatabaseWork)]
            await self._in_databases(works)
            await self._in_turn(self._connection, self._target.dbname, phases)
            if any(failure.concerns_cluster for failure in self._failures):
                return

    async def _in_turn(self, connection: Connection, database: str, phases: Sequence[Phase]) -> None:
        """Run phases in order; what fails ends all that is about the same object (K-07)."""
        for phase in phases:
            with self._spans.measure(f"catalog.{phase.name}", database=database, operations=len(phase.operations)):
                for operation in phase.operations:
                    if operation.subject in self._failed:
                        continue
                    log.info("catalog change", phase=phase.name, database=database, operation=escaped(operation.what))
                    failure = await self._execute(connection, database, phase, operation)
                    if failure is not None:
                        self._failures.append(failure)
                        self._failed.add(operation.subject)
                        if failure.concerns_cluster:
                            return

    async def _in_databases(self, works: Sequence[DatabaseWork]) -> None:
        """Work in several databases at the same time; one that fails does not stop the others (K-08)."""
        async with trio.open_nursery() as nursery:
            for work in works:
                if Subject("database", work.database) not in self._failed:
                    nursery.start_soon(self._in_database, work)

    async def _in_database(self, work: DatabaseWork) -> None:
        try:
            async with self._limiter:
                if work.database == self._target.dbname:
                    await self._in_turn(self._connection, work.database, work.phases)
                    return
                target = self._target.replace(dbname=work.database)
                async with open_maintenance(target, self._deadlines) as connection:
                    await self._in_turn(connection, work.database, work.phases)
        except ConnectRefused as refused:
            if refused.sqlstate in _DATABASE_GONE:
                log.warning(
                    "catalog",
                    about=f"nothing is done inside database {escaped(work.database)!r}: {escaped(str(refused))}",
                )
            else:
                self._unreachable(work, refused, refused.sqlstate)
        except PostgresError as error:
            self._unreachable(work, error, None)

    def _unreachable(self, work: DatabaseWork, error: PostgresError, sqlstate: str | None) -> None:
        self._failed.add(Subject("database", work.database))
        self._failures.append(
            Failure(
                phase=work.phases[0].name,
                database=escaped(work.database),
                object=f"database {escaped(work.database)}",
                operation=f"connect to database {escaped(work.database)}",
                sqlstate=sqlstate,
                message=brief(error),
            )
        )

    async def _execute(
        self, connection: Connection, database: str, phase: Phase, operation: Operation
    ) -> Failure | None:
        """Run one operation, again for a while where that can help; return what failed, in words without SQL."""
        began, pause, conflicts = trio.current_time(), FIRST_PAUSE_SECONDS, 0
        patience = 0 if operation.at_once else self._deadlines.catalog_patience
        eviction = None
        try:
            while True:
                failure = await self._attempt(connection, database, phase, operation)
                if failure is None:
                    return None
                is_conflict = failure.sqlstate in _CONFLICTS
                conflicts += is_conflict
                is_occupied = failure.sqlstate == IN_USE and operation.occupied is not None
                can_pass = failure.sqlstate in operation.retried or is_occupied or is_conflict
                waited = trio.current_time() - began
                if not can_pass or conflicts > MOST_CONFLICTS or waited + pause > self._deadlines.catalog_retry:
                    return await self._explained(failure, operation)
                if is_occupied and operation.occupied and waited >= patience:
                    eviction = eviction or Eviction(connection, self._target, operation.occupied, self._deadlines)
                    await eviction.evict()
                else:
                    wait = CONFLICT_PAUSE_SECONDS if is_conflict else pause
                    log.warning("catalog", about=str(failure), retry_in_seconds=wait)
                    await trio.sleep(wait)
                    pause = pause if is_conflict else min(pause * 2, LONGEST_PAUSE_SECONDS)
        except psycopg.Error as error:  # of the eviction
            return _failure(error, database, phase, operation, None)
        finally:
            if eviction is not None:
                await eviction.release()

    async def _attempt(
        self, connection: Connection, database: str, phase: Phase, operation: Operation
    ) -> Failure | None:
        """Run one operation once; an error that it tolerates is only logged."""
        pid = connection.pgconn.backend_pid
        self._watch.begin(pid, database)
        try:
            await _run(connection, operation)
        except psycopg.Error as error:
            failure = _failure(error, database, phase, operation, self._watch.end(pid))
        else:
            return None
        finally:
            self._watch.end(pid)
        if failure.sqlstate == QUERY_CANCELED:
            metrics.increment(CONFIGURE_STATEMENT_TIMEOUTS)
        if failure.sqlstate in operation.tolerated:
            log.warning("catalog", about=str(failure))
            return None
        return failure

    async def _explained(self, failure: Failure, operation: Operation) -> Failure:
        """Add who is in the way, where that is what failed (T-15)."""
        if failure.sqlstate != IN_USE or operation.occupied is None:
            return failure
        who = await occupants(self._connection, operation.occupied)
        return structs.replace(failure, detail=f"in use by {who}" if who else failure.detail)


async def _run(connection: Connection, operation: Operation) -> None:
    if operation.each:
        for (statement,) in await connection.rows(operation.statement):
            await connection.rows(statement)
        return
    while operation.only_if is None or await connection.rows(operation.only_if):
        async with _undisturbed(connection, operation):
            await connection.rows(operation.statement)
        if not operation.repeated:
            return


def _undisturbed(connection: Connection, operation: Operation) -> AbstractAsyncContextManager[None]:
    """Keep event triggers quiet; there are none for whole databases, which no transaction may create or drop."""
    if not connection.wakes_event_triggers or operation.statement.startswith(_OUTSIDE_TRANSACTIONS):
        return nullcontext()
    return connection.changes()


def _generated(error: psycopg.Error) -> str | None:
    """Return the statement that failed inside of one of our blocks, which was made on the server."""
    match = _INNER_STATEMENT.search(error_field(error, DiagnosticField.CONTEXT) or "")
    return match["statement"] if match else None


def _failure(
    error: psycopg.Error, database: str, phase: Phase, operation: Operation, waited_for: str | None
) -> Failure:
    timed_out = error.sqlstate in _TIMED_OUT
    said = (error_field(error, field) for field in (DiagnosticField.MESSAGE_DETAIL, DiagnosticField.MESSAGE_HINT))
    detail = f"it waited for {waited_for}" if waited_for and timed_out else "; ".join(filter(None, said))
    place = operation.subject.name if operation.subject.kind == "database" else database
    return Failure(
        phase=phase.name,
        database=escaped(place),
        object=escaped(str(operation.subject)),
        operation=escaped(operation.what),
        statement=_generated(error) or brief(escaped(operation.shown)),
        sqlstate=error.sqlstate,
        message=failure_text(error),
        detail=detail or None,
    )
