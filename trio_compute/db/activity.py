"""Look at what goes on in Postgres, in one round trip over a session that is kept (contract 06 §2.2, R-08)."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import psycopg
import trio
from msgspec import structs

from trio_compute.db.maintenance import Connection, failure_text, maintenance_target, open_maintenance
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.plan.activity import Exclusions, Observation, Statistics
from trio_compute.telemetry.logging import get_logger

PURPOSE = "compute_monitor"
CANCEL_SECONDS = 1.0  # a server that does not answer will not cancel either
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

# Moments are microseconds since 1970: those mean the same in every time zone and date style of a session.
_LOOK = """\
SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::int8,
       s.busy, (extract(epoch FROM s.idle_since) OPERATOR(pg_catalog.*) 1000000)::int8, s.autovacuum,
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication
        WHERE application_name OPERATOR(pg_catalog.<>) ALL (%(senders)s::pg_catalog.text[])),
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_subscription WHERE pid IS NOT NULL),
       {statistics}
FROM (SELECT pg_catalog.count(*) FILTER (WHERE a.counts AND a.state OPERATOR(pg_catalog.<>) 'idle') AS busy,
             pg_catalog.max(a.state_change)
                 FILTER (WHERE a.counts AND a.state OPERATOR(pg_catalog.=) 'idle') AS idle_since,
             pg_catalog.count(*) FILTER (WHERE a.backend_type OPERATOR(pg_catalog.=) 'autovacuum worker') AS autovacuum
      FROM (SELECT backend_type, state, state_change,
                   backend_type OPERATOR(pg_catalog.=) 'client backend'
                   AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
                   AND usename::pg_catalog.text OPERATOR(pg_catalog.<>) ALL (%(users)s::pg_catalog.text[])
                   AND coalesce(application_name, '')
                       OPERATOR(pg_catalog.<>) ALL (%(applications)s::pg_catalog.text[]) AS counts
            FROM pg_catalog.pg_stat_activity) a) s"""
_STATISTICS = """\
(SELECT ARRAY[coalesce(pg_catalog.sum(active_time), 0)::float8::pg_catalog.text,
                     coalesce(pg_catalog.sum(sessions), 0)::int8::pg_catalog.text]
        FROM pg_catalog.pg_stat_database
        WHERE datname OPERATOR(pg_catalog.<>) ALL ('{{postgres,template0,template1}}'::pg_catalog.name[]))"""
_WITH_STATISTICS = _LOOK.format(statistics=_STATISTICS.format())
_WITHOUT_STATISTICS = _LOOK.format(statistics="NULL")

log = get_logger("activity")


class Watch(Protocol):
    """Be a session that can look at Postgres again and again."""

    async def look(self, *, statistics: bool) -> Observation:
        """Return what goes on now; raise PostgresError, after which the session is of no use any more."""
        ...


@asynccontextmanager
async def open_watch(connstr: str, exclusions: Exclusions, deadlines: Deadlines) -> AsyncIterator[Watch]:
    """Open a session to look with; raise PostgresError if there is none in time (R-03)."""
    limits = structs.replace(
        deadlines,
        catalog_connect=deadlines.monitor_connect,
        catalog_statement=deadlines.monitor_statement,
        catalog_lock=deadlines.monitor_statement,
    )
    target = maintenance_target(connstr, PURPOSE, limits)
    async with open_maintenance(target, limits, retry_seconds=0) as connection:
        connection.cancel_seconds = CANCEL_SECONDS
        yield _Session(connection, exclusions, deadlines.monitor_statement)


class _Session:
    def __init__(self, connection: Connection, exclusions: Exclusions, limit_seconds: float) -> None:
        self._connection = connection
        self._parameters = {
            "users": list(exclusions.users),
            "applications": list(exclusions.applications),
            "senders": list(exclusions.sender_applications),
        }
        self._limit_seconds = limit_seconds
        self._statistics_fail = False

    async def look(self, *, statistics: bool) -> Observation:
        try:
            with trio.fail_after(self._limit_seconds):
                return await self._look(statistics=statistics)
        except trio.TooSlowError:
            raise PostgresError(f"Postgres did not answer within {self._limit_seconds:g} seconds") from None
        except psycopg.Error as error:
            raise PostgresError(failure_text(error)) from None

    async def _look(self, *, statistics: bool) -> Observation:
        if statistics:
            try:
                return await self._observe(_WITH_STATISTICS)
            except psycopg.Error as error:
                # Statistics are one rule of five; without them the other four still tell.
                if self._connection.broken or error.sqlstate is None:
                    raise
                self._report(error)
        return await self._observe(_WITHOUT_STATISTICS)

    def _report(self, error: psycopg.Error) -> None:
        if not self._statistics_fail:
            log.warning("no statistics of databases", error=failure_text(error))
        self._statistics_fail = True

    async def _observe(self, query: str) -> Observation:
        # Planning these views anew twice a second would cost four times as much as reading them.
        row = await (await self._connection.execute(query.encode(), self._parameters, prepare=True)).fetchone()
        if row is None:
            raise psycopg.DataError("a query that always has one row had none")
        return _observation(row)


def _observation(row: tuple[Any, ...]) -> Observation:
    now, busy, idle_since, autovacuum, senders, subscriptions, statistics = row
    return Observation(
        now=_moment(now),
        busy_sessions=busy,
        idle_since=None if idle_since is None else _moment(idle_since),
        wal_senders=senders,
        subscriptions=subscriptions,
        autovacuum_workers=autovacuum,
        statistics=None if statistics is None else Statistics(float(statistics[0]), int(statistics[1])),
    )


def _moment(microseconds: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=microseconds)
