"""The activity monitor on a real Postgres that is killed, frozen and robbed of its database (contract 06 §15)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from msgspec import structs

from tests.component.http.world import bring_to
from tests.fakes.specs import settings
from tests.integration.bare_postgres import QUICK, BarePostgres
from tests.integration.conftest import ordinary_run_as
from trio_compute.db.activity import open_watch
from trio_compute.embedded import binaries
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.status import Status
from trio_compute.plan.activity import Exclusions
from trio_compute.services.activity import ActivityMonitor
from trio_compute.telemetry.metrics import CURRENT_DOWNTIME, TOTAL_DOWNTIME, metrics

pytestmark = pytest.mark.postgres

PATIENCE_SECONDS = 20.0
IMPATIENT = structs.replace(QUICK, monitor_connect=0.3, monitor_statement=0.3)
MONITOR = "SELECT pid FROM pg_stat_activity WHERE application_name = 'compute_ctl:compute_monitor'"


@pytest.fixture(scope="module")
def suffering(major: int) -> Iterator[BarePostgres]:
    """Run a server to do bad things to."""
    server = BarePostgres(binaries.ensure(major), ordinary_run_as())
    try:
        server.start()
        yield server
    finally:
        server.remove()


@asynccontextmanager
async def monitored(server: BarePostgres) -> AsyncIterator[Compute]:
    compute = Compute(settings())
    bring_to(compute, Status.RUNNING)
    async with trio.open_nursery() as nursery:
        monitor = ActivityMonitor(compute, partial(open_watch, server.url(), Exclusions(), IMPATIENT))
        nursery.start_soon(monitor.serve)
        await until(lambda: bool(server.sql(MONITOR, database="template1")))
        yield compute
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():
            await trio.sleep(0.02)


def is_down() -> bool:
    return metrics.value(CURRENT_DOWNTIME) > 0


async def test_dropping_the_database_by_force_is_downtime_until_it_is_there_again(suffering: BarePostgres) -> None:
    """06 §2.3: both values rise; afterwards the present one is 0 and the total stays."""
    before = metrics.value(TOTAL_DOWNTIME)
    async with monitored(suffering) as compute:
        suffering.sql("DROP DATABASE postgres WITH (FORCE)", database="template1")
        try:
            await until(is_down)
            assert metrics.value(TOTAL_DOWNTIME) > before
            assert compute.notices.activity_error is not None
        finally:
            suffering.sql("CREATE DATABASE postgres", database="template1")
        await until(lambda: not is_down())
        assert metrics.value(TOTAL_DOWNTIME) > before
        assert compute.notices.activity_error is None


async def test_a_killed_monitor_session_is_downtime_of_one_round(suffering: BarePostgres) -> None:
    before = metrics.value(TOTAL_DOWNTIME)
    async with monitored(suffering):
        [(pid,)] = suffering.sql(MONITOR)
        suffering.kill(pid, signal.SIGTERM)
        await until(lambda: metrics.value(TOTAL_DOWNTIME) > before)
        await until(lambda: not is_down())
        [(another,)] = suffering.sql(MONITOR)
        assert another != pid
        total = metrics.value(TOTAL_DOWNTIME)
        await trio.sleep(0.6)  # more than one round
        assert metrics.value(TOTAL_DOWNTIME) == total


async def test_a_frozen_postgres_is_downtime_while_it_is_frozen(suffering: BarePostgres) -> None:
    """R-03: neither a hung query nor a hung connection freezes the monitor; with shorter limits than in production."""
    async with monitored(suffering) as compute:
        frozen = processes_of(suffering)
        signal_all(frozen, signal.SIGSTOP)
        try:
            await until(lambda: metrics.value(CURRENT_DOWNTIME) > 1500)
        finally:
            signal_all(frozen, signal.SIGCONT)
        await until(lambda: not is_down())
        assert compute.notices.activity_error is None
        await until(lambda: len(suffering.sql(MONITOR)) == 1)


async def test_the_monitor_ends_at_once_although_the_server_is_frozen(suffering: BarePostgres) -> None:
    """R-05."""
    postmaster = processes_of(suffering)[0]
    async with monitored(suffering):
        [(pid,)] = suffering.sql(MONITOR)
        suffering.kill(pid, signal.SIGSTOP)
        suffering.kill(postmaster, signal.SIGSTOP)
        await trio.sleep(0.7)
        ended = trio.current_time()
    try:
        assert trio.current_time() - ended < 3
    finally:
        for stopped in (postmaster, pid):
            suffering.kill(stopped, signal.SIGCONT)


async def test_work_of_a_client_is_seen_within_a_second(suffering: BarePostgres) -> None:
    suffering.sql("CREATE ROLE worker LOGIN")
    async with monitored(suffering) as compute:
        assert compute.state.last_active is None
        with suffering.connect(user="worker") as session:
            session.execute("SELECT 1")
            await until(lambda: compute.state.last_active is not None)
            await trio.sleep(1.1)  # the first look may have seen the session before it was idle
            seen = compute.state.last_active
            await trio.sleep(1.1)
            assert compute.state.last_active == seen
            session.execute("SELECT 1")
            await until(lambda: compute.state.last_active != seen)
    suffering.sql("DROP ROLE worker")


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        # The backend of a session that was just closed may be gone by now.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def processes_of(server: BarePostgres) -> list[int]:
    """Return the postmaster and all its children."""
    postmaster = int((server.data / "postmaster.pid").read_text().splitlines()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return [postmaster, *map(int, children)]
