"""What one look at a real Postgres sees (contract 06 §2.2, §15)."""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import trio
from msgspec import structs

from tests.integration.bare_postgres import QUICK, BarePostgres, fresh
from tests.integration.conftest import ordinary_run_as
from trio_compute.db.activity import Watch, open_watch
from trio_compute.embedded import binaries
from trio_compute.errors import PostgresError
from trio_compute.plan.activity import Exclusions, Observation, last_activity

pytestmark = pytest.mark.postgres

PATIENCE_SECONDS = 10.0
SOON = dt.timedelta(seconds=5)
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
IMPATIENT = structs.replace(QUICK, monitor_connect=0.4, monitor_statement=0.4)


@pytest.fixture(scope="module")
def quiet(major: int) -> Iterator[BarePostgres]:
    """Run a server on which nobody works but these tests."""
    server = BarePostgres(binaries.ensure(major), ordinary_run_as())
    with (server.data / "postgresql.conf").open("a") as file:
        file.write("autovacuum_naptime = 1\nautovacuum_vacuum_cost_delay = 100\nautovacuum_vacuum_cost_limit = 1\n")
        file.write("max_replication_slots = 10\nmax_wal_senders = 10\n")
    try:
        server.start()
        server.sql("CREATE ROLE alice LOGIN SUPERUSER")
        server.sql("CREATE ROLE exporter LOGIN")
        server.sql("CREATE DATABASE work")
        yield server
    finally:
        server.remove()


@asynccontextmanager
async def watching(
    server: BarePostgres, exclusions: Exclusions | None = None, *, database: str = "postgres"
) -> AsyncIterator[Watch]:
    async with open_watch(server.url(database), exclusions or Exclusions(), QUICK) as watch:
        yield watch


async def look(server: BarePostgres, exclusions: Exclusions | None = None, **options: Any) -> Observation:
    async with watching(server, exclusions, **options) as watch:
        return await watch.look(statistics=False)


async def look_until(watch: Watch, holds: Any, *, statistics: bool = False) -> Observation:
    """Look until something is seen that Postgres tells to nobody."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not holds(seen := await watch.look(statistics=statistics)):
            await trio.sleep(0.02)
    return seen


def judged(seen: Observation) -> dt.datetime | None:
    return last_activity(seen, LONG_AGO, None)


def idle_since(session: psycopg.Connection[Any]) -> dt.datetime:
    """Return the moment when a session became idle, read by another one."""
    pid = session.info.backend_pid
    with psycopg.connect(session.info.dsn, autocommit=True, user="cloud_admin") as other:
        query = "SELECT state_change FROM pg_stat_activity WHERE pid = %s AND state = 'idle'"
        deadline = time.monotonic() + 5
        while (row := other.execute(query, (pid,)).fetchone()) is None:
            assert time.monotonic() < deadline
        found: dt.datetime = row[0]
    return found


def is_recent(moment: dt.datetime | None) -> bool:
    now = dt.datetime.now(dt.UTC)
    return moment is not None and now - SOON < moment <= now


async def test_sessions_of_the_superuser_are_no_activity(quiet: BarePostgres) -> None:
    with quiet.connect() as idle, quiet.connect() as busy:
        idle.execute("SELECT 1")
        busy.execute("BEGIN")
        async with watching(quiet) as watch:
            seen = await look_until(watch, lambda seen: not seen.busy_sessions)
    assert (seen.busy_sessions, seen.idle_since, seen.wal_senders) == (0, None, 0)
    assert judged(seen) == LONG_AGO


@pytest.mark.parametrize(
    "zone", ["Pacific/Kiritimati", "America/Los_Angeles", "Asia/Kathmandu", "posix/EST5EDT", "XYZ-7"]
)
async def test_an_idle_session_counts_from_its_change_in_every_time_zone(quiet: BarePostgres, zone: str) -> None:
    """R-02, D-39: neither the time zone nor the style of dates of our session matters."""
    quiet.sql(f"ALTER DATABASE postgres SET TimeZone = '{zone}'")
    quiet.sql("ALTER DATABASE postgres SET DateStyle = 'German, DMY'")
    try:
        with quiet.connect("work", "alice") as session:
            session.execute("SELECT 1")
            expected = idle_since(session)
            seen = await look(quiet)
        assert judged(seen) == seen.idle_since == expected
        assert is_recent(seen.now)
        assert expected <= seen.now
    finally:
        quiet.sql("ALTER DATABASE postgres RESET ALL")


async def test_an_idle_session_does_not_move_activity_while_it_stays_idle(quiet: BarePostgres) -> None:
    with quiet.connect("work", "alice") as session:
        session.execute("SELECT 1")
        idle_since(session)
        async with watching(quiet) as watch:
            first = await watch.look(statistics=False)
            second = await watch.look(statistics=False)
    assert first.idle_since == second.idle_since
    assert last_activity(second, judged(first), None) == judged(first)


async def test_a_session_that_is_idle_in_a_transaction_is_activity_now(quiet: BarePostgres) -> None:
    with quiet.connect("work", "alice") as session:
        session.execute("BEGIN")
        async with watching(quiet) as watch:
            seen = await look_until(watch, lambda seen: seen.busy_sessions == 1)
        session.execute("ROLLBACK")
    assert judged(seen) == seen.now


async def test_a_logical_wal_sender_is_activity_now(quiet: BarePostgres) -> None:
    slot = fresh("slot")
    quiet.sql("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", slot, database="work")
    with contextlib.closing(quiet.connect("work", replication="database")) as receiver:
        receiver.pgconn.exec_(f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0'.encode())
        seen = await look(quiet)
        assert seen.wal_senders == 1
        assert judged(seen) == seen.now
    async with watching(quiet) as watch:
        await look_until(watch, lambda seen: seen.wal_senders == 0)
    quiet.sql("SELECT pg_drop_replication_slot(%s)", slot)


@pytest.mark.parametrize(
    ("name", "extra", "counted"),
    [("walproposer", (), 0), ("pg_receivewal", (), 1), ("pg_receivewal", ("pg_receivewal",), 0)],
)
async def test_wal_receivers_count_unless_their_application_is_excluded(
    quiet: BarePostgres, name: str, extra: tuple[str, ...], counted: int
) -> None:
    """R-07."""
    with contextlib.closing(quiet.connect(replication="database", application_name=name)):
        async with watching(quiet, Exclusions.of((), extra)) as watch:
            await look_until(watch, lambda seen: seen.wal_senders == counted)
    async with watching(quiet) as watch:
        await look_until(watch, lambda seen: seen.wal_senders == 0)


@pytest.mark.parametrize(
    "extra", [{"users": ("exporter",), "applications": ()}, {"users": (), "applications": ("metrics",)}]
)
async def test_sessions_that_the_operator_excludes_are_no_activity(quiet: BarePostgres, extra: Any) -> None:
    """R-07: by user or by application name; without the flag the same session counts."""
    with quiet.connect("work", "exporter", application_name="metrics") as session:
        session.execute("SELECT 1")
        idle_since(session)
        assert (await look(quiet, Exclusions.of(**extra))).idle_since is None
        assert (await look(quiet)).idle_since is not None


async def test_an_active_subscription_is_activity_now(quiet: BarePostgres) -> None:
    slot, name = fresh("slot"), fresh("subscription")
    quiet.sql("CREATE PUBLICATION everything FOR ALL TABLES", database="work")
    quiet.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot, database="work")
    quiet.sql(
        f"CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port={quiet.port} dbname=work user=cloud_admin'"
        f" PUBLICATION everything WITH (create_slot = false, slot_name = '{slot}')"
    )
    try:
        async with watching(quiet, Exclusions.of((), (name, slot))) as watch:
            seen = await look_until(watch, lambda seen: seen.subscriptions == 1)
        assert judged(seen) == seen.now
    finally:
        quiet.sql(f"ALTER SUBSCRIPTION {name} DISABLE")
        quiet.sql(f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")
        quiet.sql(f"DROP SUBSCRIPTION {name}")
        quiet.sql("DROP PUBLICATION everything", database="work")
    async with watching(quiet) as watch:
        await look_until(watch, lambda seen: seen.subscriptions == 0 and seen.wal_senders == 0)
    quiet.sql("SELECT pg_drop_replication_slot(%s)", slot)


async def test_an_autovacuum_worker_is_activity_now(quiet: BarePostgres) -> None:
    quiet.sql("CREATE TABLE dust (n int) WITH (autovacuum_vacuum_threshold = 0)", database="work")
    quiet.sql("INSERT INTO dust SELECT generate_series(1, 20000)", database="work")
    quiet.sql("DELETE FROM dust", database="work")
    quiet.sql("ALTER SYSTEM SET autovacuum = on")
    quiet.sql("SELECT pg_reload_conf()")
    try:
        async with watching(quiet) as watch:
            seen = await look_until(watch, lambda seen: seen.autovacuum_workers > 0)
        assert judged(seen) == seen.now
    finally:
        quiet.sql("ALTER SYSTEM RESET autovacuum")
        quiet.sql("SELECT pg_reload_conf()")
        quiet.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'")
        quiet.sql("DROP TABLE dust", database="work")
    async with watching(quiet) as watch:
        await look_until(watch, lambda seen: seen.autovacuum_workers == 0)


async def test_a_short_query_changes_the_statistics_although_nobody_is_there_any_more(quiet: BarePostgres) -> None:
    """R-01, D-38: with the feature flag, the statistics of databases are read and compared."""
    async with watching(quiet) as watch:
        before = (await watch.look(statistics=True)).statistics
        assert before is not None
        quiet.sql("SELECT 1", database="work", user="alice")

        def is_seen_in_statistics_alone(seen: Observation) -> bool:
            return seen.statistics != before and (seen.busy_sessions, seen.idle_since) == (0, None)

        seen = await look_until(watch, is_seen_in_statistics_alone, statistics=True)
        assert last_activity(seen, LONG_AGO, before) == seen.now
        # Our own looks change nothing.
        again = await watch.look(statistics=True)
        assert again.statistics == seen.statistics


async def test_statistics_that_cannot_be_read_do_not_spoil_the_check(quiet: BarePostgres) -> None:
    """R-01: if step 1 fails, steps 2 to 5 still run."""
    quiet.sql("CREATE DATABASE odd")
    quiet.sql(
        "SET allow_system_table_mods = on; ALTER VIEW pg_catalog.pg_stat_database RENAME COLUMN active_time TO gone",
        database="odd",
    )
    with quiet.connect("work", "alice") as session:
        session.execute("SELECT 1")
        async with watching(quiet, database="odd") as watch:
            for _ in range(2):
                seen = await watch.look(statistics=True)
                assert seen.statistics is None
                assert judged(seen) == idle_since(session)
    quiet.sql("DROP DATABASE odd")


async def test_one_session_is_used_for_every_look_and_names_itself(quiet: BarePostgres) -> None:
    """R-08: one session, and one query for each look."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'compute_ctl:compute_monitor'"
    async with watching(quiet) as watch:
        await watch.look(statistics=True)
        first = quiet.sql(query)
        await watch.look(statistics=True)
        assert quiet.sql(query) == first
        assert len(first) == 1
    with trio.fail_after(PATIENCE_SECONDS):
        while quiet.sql(query):
            await trio.sleep(0.01)


async def test_a_look_fails_when_its_backend_is_killed(quiet: BarePostgres) -> None:
    async with watching(quiet) as watch:
        await watch.look(statistics=False)
        quiet.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'compute_ctl:compute_monitor'"
        )
        with pytest.raises(PostgresError):
            await watch.look(statistics=True)


@pytest.mark.parametrize("statistics", [False, True])
async def test_a_look_at_a_frozen_backend_is_given_up_in_time(quiet: BarePostgres, statistics: bool) -> None:
    """R-03."""
    async with open_watch(quiet.url(), Exclusions(), IMPATIENT) as watch:
        await watch.look(statistics=False)
        [(pid,)] = quiet.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'compute_ctl:compute_monitor'")
        quiet.kill(pid, signal.SIGSTOP)
        try:
            with trio.fail_after(PATIENCE_SECONDS), pytest.raises(PostgresError, match=r"within 0\.4 seconds"):
                await watch.look(statistics=statistics)
        finally:
            quiet.kill(pid, signal.SIGCONT)


async def test_connecting_to_a_frozen_server_is_given_up_in_time(quiet: BarePostgres) -> None:
    """R-03."""
    postmaster = int((quiet.data / "postmaster.pid").read_text().splitlines()[0])
    quiet.kill(postmaster, signal.SIGSTOP)
    try:
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(PostgresError):
            async with open_watch(quiet.url(), Exclusions(), IMPATIENT):
                pass
    finally:
        quiet.kill(postmaster, signal.SIGCONT)
