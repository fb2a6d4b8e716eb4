"""The activity monitor over a fake Postgres and a fake clock: rounds, downtime, what is told, when it stops (06 §2)."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from msgspec import UNSET

from tests.component.http.logs import LogLines
from tests.component.http.world import bring_to
from tests.component.test_run import Stage
from tests.fakes.host import FakeHost, FakeWatch
from tests.fakes.specs import config, parsed, settings
from trio_compute.errors import PostgresError
from trio_compute.http.routes.status import status_response
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.ending import Ending
from trio_compute.lifecycle.status import Status
from trio_compute.plan.activity import Statistics
from trio_compute.services.activity import ActivityMonitor
from trio_compute.telemetry import logging as telemetry
from trio_compute.telemetry.metrics import (
    ACTIVITY_CHECK_AGE,
    ACTIVITY_CHECK_DURATION,
    CURRENT_DOWNTIME,
    TOTAL_DOWNTIME,
    metrics,
)

EXPERIMENTAL = {"features": ["activity_monitor_experimental"]}
DOWN = PostgresError("gone with postgresql://cloud_admin:hunter2@localhost/postgres")


class Watched:
    """One compute whose Postgres is a fake, with its monitor."""

    def __init__(self, **spec_changes: Any) -> None:
        self.compute = Compute(settings())
        bring_to(self.compute, Status.RUNNING, **spec_changes)
        self.host = FakeHost(self.compute.settings, config())
        self.began_at = trio.current_time()
        self.total_before = metrics.value(TOTAL_DOWNTIME)
        self.told_before = self.compute.feed.newest

    @property
    def watch(self) -> FakeWatch:
        return self.host.watch

    @property
    def last_active(self) -> dt.datetime | None:
        return self.compute.state.last_active

    @property
    def downtime(self) -> tuple[float, float]:
        """Return what the two metrics say, in seconds: the present downtime, and what was added to the total."""
        total = metrics.value(TOTAL_DOWNTIME) - self.total_before
        return round(metrics.value(CURRENT_DOWNTIME) / 1000, 3), round(total / 1000, 3)

    def told(self) -> list[dict[str, Any]]:
        return [notice.data for notice in self.compute.feed.behind(self.told_before) if notice.kind == "activity"]

    def now(self) -> dt.datetime:
        """Return what the clock of the fake Postgres says."""
        return self.watch.now + dt.timedelta(seconds=trio.current_time())

    def until(self, seconds: float) -> Awaitable[None]:
        """Sleep until some seconds after the beginning."""
        return trio.sleep_until(self.began_at + seconds)


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    lines = LogLines()
    monkeypatch.setattr(telemetry, "sink", lines)
    return lines


@asynccontextmanager
async def monitored(**spec_changes: Any) -> AsyncIterator[Watched]:
    watched = Watched(**spec_changes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ActivityMonitor(watched.compute, watched.host.open_watch).serve)
        yield watched
        nursery.cancel_scope.cancel()


async def test_it_looks_twice_a_second_over_one_session(autojump_clock: Any) -> None:
    async with monitored() as it:
        await it.until(2.1)
        assert [round(at - it.began_at, 3) for at, _ in it.watch.looks] == [0, 0.5, 1, 1.5, 2]
        assert len(it.watch.connections) == 1


async def test_the_pause_is_the_same_whatever_a_look_takes(autojump_clock: Any) -> None:
    async with monitored() as it:
        it.watch.look_seconds = 0.2
        await it.until(2.2)
        assert [round(at - it.began_at, 3) for at, _ in it.watch.looks] == [0.2, 0.9, 1.6]


async def test_activity_is_seen_and_stays_put_while_the_compute_is_idle(autojump_clock: Any) -> None:
    """06 §15."""
    async with monitored() as it:
        await it.until(1.1)
        assert it.last_active is None
        it.watch.seen = {"busy_sessions": 1}
        await it.until(1.6)
        it.watch.seen = {}
        seen = it.last_active
        assert seen == it.watch.now + dt.timedelta(seconds=it.began_at + 1.5)
        await it.until(10)
        assert it.last_active == seen


async def test_activity_only_moves_forward(autojump_clock: Any) -> None:
    async with monitored() as it:
        later = it.now() + dt.timedelta(hours=1)
        it.compute.apply(ev.Active(at=later))
        it.watch.seen = {"busy_sessions": 1}
        await it.until(2)
        assert it.last_active == later


async def test_the_feature_flag_is_read_again_in_each_round(autojump_clock: Any) -> None:
    """R-05."""
    async with monitored() as it:
        await it.until(0.7)
        it.compute.apply(ev.ApplyQueued())
        it.compute.apply(ev.ApplyBegan())
        it.compute.apply(ev.Applied(spec=parsed(**EXPERIMENTAL)))
        await it.until(1.7)
        assert [statistics for _, statistics in it.watch.looks] == [False, False, True, True]


async def test_with_the_flag_a_query_that_nobody_saw_is_activity(autojump_clock: Any) -> None:
    """R-01, D-38."""
    async with monitored(**EXPERIMENTAL) as it:
        await it.until(0.7)
        assert it.last_active is None
        it.watch.statistics = Statistics(0.5, 1)
        await it.until(1.2)
        assert it.last_active == it.watch.now + dt.timedelta(seconds=it.began_at + 1)
        seen = it.last_active
        await it.until(5)
        assert it.last_active == seen


@pytest.mark.parametrize("status", [Status.CONFIGURATION, Status.FAILED, Status.REFRESH_CONFIGURATION])
async def test_it_goes_on_in_every_status_in_which_postgres_runs(status: Status, autojump_clock: Any) -> None:
    """D-24: also in failed and during a reconfiguration."""
    events: dict[Status, list[ev.Event]] = {
        Status.CONFIGURATION: [ev.ApplyQueued(), ev.ApplyBegan()],
        Status.FAILED: [ev.ApplyQueued(), ev.ApplyBegan(), ev.ApplyFailed(error="no")],
        Status.REFRESH_CONFIGURATION: [ev.RefreshRequested(), ev.RefreshBegan()],
    }
    async with monitored() as it:
        await it.until(0.7)
        for event in events[status]:
            it.compute.apply(event)
        it.watch.seen = {"busy_sessions": 1}
        await it.until(1.2)
        assert it.compute.state.status is status
        assert it.last_active is not None


async def test_a_compute_that_terminates_is_not_told_of_activity_any_more(autojump_clock: Any) -> None:
    async with monitored() as it:
        it.compute.request_termination(immediate=False)
        it.watch.seen = {"busy_sessions": 1}
        await it.until(1.2)
        assert it.last_active is None
        assert len(it.watch.looks) == 3


async def test_both_downtimes_are_there_with_zero_from_the_beginning(autojump_clock: Any) -> None:
    async with monitored() as it:
        await it.until(0.1)
        assert it.downtime == (0, 0)
        assert metrics.series(CURRENT_DOWNTIME)
        assert metrics.series(TOTAL_DOWNTIME)


async def test_a_look_that_fails_is_downtime_and_the_next_round_connects_again(autojump_clock: Any) -> None:
    async with monitored() as it:
        await it.until(1.2)
        it.watch.failure = DOWN
        await it.until(1.6)
        assert it.downtime == (0.5, 0.5)
        await it.until(3.6)
        assert it.downtime == (2.5, 2.5)
        assert [round(at - it.began_at, 3) for at in it.watch.connections] == [0, 2, 2.5, 3, 3.5]
        it.watch.failure = None
        await it.until(4.1)
        assert it.downtime == (0, 2.5)
        assert len(it.watch.connections) == 6
        await it.until(6)
        assert len(it.watch.connections) == 6
        assert it.downtime == (0, 2.5)


async def test_a_server_that_refuses_from_the_beginning_is_down_since_monitoring_began(autojump_clock: Any) -> None:
    """R-04: not since the process began, and not from the first success only."""
    async with trio.open_nursery() as nursery:
        await trio.sleep(1000)
        it = Watched()
        it.watch.refusal = DOWN
        nursery.start_soon(ActivityMonitor(it.compute, it.host.open_watch).serve)
        await it.until(1.1)
        assert it.downtime == (1, 1)
        nursery.cancel_scope.cancel()


async def test_time_in_which_the_server_hangs_counts_as_downtime(autojump_clock: Any) -> None:
    """R-03: the adapter gives up after 5 s, and then all that time is known to be lost."""
    async with monitored() as it:
        await it.until(0.7)
        it.watch.failure, it.watch.look_seconds = DOWN, 5
        await it.until(6.1)
        assert it.downtime == (5.5, 5.5)
        await it.until(16.7)  # a connection that takes five seconds, a look that takes five
        assert it.downtime == (16, 16)


async def test_no_kind_of_error_ends_the_watch(autojump_clock: Any, log_lines: LogLines) -> None:
    async with monitored() as it:
        it.watch.failure = ValueError("not foreseen")
        await it.until(2.1)
        it.watch.failure = None
        it.watch.seen = {"busy_sessions": 1}
        await it.until(3.1)
        assert it.last_active is not None


async def test_failures_are_logged_with_the_downtime_but_not_twice_a_second(
    autojump_clock: Any, log_lines: LogLines
) -> None:
    """§2.3: the field `downtime_info`; A-07: no password."""
    async with monitored() as it:
        it.watch.failure = DOWN
        await it.until(30.2)
        it.watch.failure = None
        await it.until(31)
    errors = log_lines.with_text("does not answer")
    assert len(errors) == 4
    assert all("downtime_info=" in line and "ERROR" in line for line in errors)
    assert "total_ms: 10000, current_ms: 10000, last_up: " in errors[1]
    assert len(log_lines.with_text("answers again")) == 1
    assert not log_lines.with_text("hunter2")


async def test_the_status_tells_the_last_error_while_postgres_does_not_answer(autojump_clock: Any) -> None:
    """R-28."""
    async with monitored() as it:
        await it.until(0.2)
        assert status_response(it.compute).activity_error is UNSET
        it.watch.failure = DOWN
        await it.until(0.7)
        text = status_response(it.compute).activity_error
        assert isinstance(text, str)
        assert text.startswith("gone with")
        assert "hunter2" not in text
        it.watch.failure = None
        await it.until(2)
        assert status_response(it.compute).activity_error is UNSET


async def test_the_age_and_the_duration_of_checks_are_measured(autojump_clock: Any) -> None:
    """R-28."""
    before = metrics.distributions(ACTIVITY_CHECK_DURATION).get(())
    count, total = (sum(before.counts), before.total) if before is not None else (0, 0.0)
    async with monitored() as it:
        it.watch.look_seconds = 0.25
        await it.until(1.9)
        measured = metrics.distributions(ACTIVITY_CHECK_DURATION)[()]
        assert sum(measured.counts) - count == 2
        assert measured.total - total == pytest.approx(0.5)
        assert metrics.value(ACTIVITY_CHECK_AGE) == 0
        it.watch.failure = DOWN
        await it.until(2.1)
        assert metrics.value(ACTIVITY_CHECK_AGE) == pytest.approx(0.75)


async def test_followers_are_told_once_a_second_at_most_and_only_of_changes(autojump_clock: Any) -> None:
    async with monitored() as it:
        await it.until(3)
        assert it.told() == []
        it.watch.seen = {"busy_sessions": 1}
        await it.until(5.2)
        it.watch.seen = {}
        moments = [notice["last_active"] for notice in it.told()]
        assert len(moments) == 3
        await it.until(20)
        assert len(it.told()) == 3
        assert all(notice["up"] for notice in it.told())


async def test_followers_are_told_when_postgres_goes_and_when_it_is_back(autojump_clock: Any) -> None:
    async with monitored() as it:
        await it.until(0.7)
        it.watch.failure = DOWN
        await it.until(5)
        it.watch.failure = None
        await it.until(10)
        assert it.told() == [{"last_active": None, "up": False}, {"last_active": None, "up": True}]


class Lakebase(Stage):
    """A run of the program in lakebase mode."""

    def __init__(self, **settings_changes: Any) -> None:
        super().__init__()
        self.settings = settings(lakebase_mode=True, **settings_changes)
        self.host.settings = self.settings


async def test_nobody_looks_before_the_compute_runs_nor_after_its_postgres_is_gone(autojump_clock: Any) -> None:
    """§2.1: what the start does is no activity; R-05: the end stops it at once."""
    stage = Stage()
    stage.host.slow["apply_catalog"] = 20
    moments: list[float] = []

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        moments.append(trio.current_time())
        await trio.sleep(3)
        stage.compute.request_termination(immediate=False)
        moments.append(trio.current_time())

    await stage.play(script)
    looks = [at for at, _ in stage.host.watch.looks]
    assert moments[0] <= looks[0] <= moments[0] + 0.1
    assert looks[-1] <= moments[1]
    assert stage.ended_at is not None
    assert stage.ended_at > moments[1] + 29


async def test_a_lakebase_compute_that_does_not_run_in_time_fails_and_lingers(autojump_clock: Any) -> None:
    """T25, D-51: measured from the launch of Postgres, ends in failed, in an orderly way, with the usual linger."""
    stage = Lakebase(pg_init_timeout=15)
    stage.host.slow |= {"fetch_basebackup": 100, "apply_catalog": 1000}
    failed: list[float] = []

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.FAILED)
        failed.append(trio.current_time())

    began = trio.current_time()
    await stage.play(script)
    assert stage.code == 1
    assert stage.compute.state.error == "the compute does not run 15 s after Postgres was launched (--pg-init-timeout)"
    assert stage.compute.ending.value is Ending.START_FAILED
    assert failed[0] - began == pytest.approx(115, abs=1)
    assert stage.servers.drained_at is not None
    assert stage.servers.drained_at - failed[0] >= 30
    assert stage.host.calls.count("lift_quota") == stage.host.calls.count("restore_quota") == 1


async def test_the_watchdog_covers_the_wait_for_readiness_too(autojump_clock: Any) -> None:
    stage = Lakebase(pg_init_timeout=15)
    stage.host.slow["wait_ready"] = 1000

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.FAILED)

    await stage.play(script)
    assert stage.code == 1
    assert "--pg-init-timeout" in (stage.compute.state.error or "")


@pytest.mark.parametrize("make", [lambda: Lakebase(pg_init_timeout=60), Stage])
async def test_a_start_in_time_and_one_outside_of_lakebase_mode_are_left_alone(
    make: Callable[[], Stage], autojump_clock: Any
) -> None:
    """The watchdog is gone once the compute runs, and is none elsewhere (here the start takes longer than 60 s)."""
    stage = make()
    stage.host.slow["apply_catalog"] = 50 if isinstance(stage, Lakebase) else 100

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        await trio.sleep(200)
        stage.compute.request_termination(immediate=True)

    await stage.play(script)
    assert stage.code == 0


async def test_a_start_that_failed_before_is_not_ended_by_the_watchdog(autojump_clock: Any) -> None:
    """D-51: its own error can be collected for the whole linger."""
    stage = Lakebase(pg_init_timeout=15)
    stage.host.failures["apply_catalog"] = [PostgresError("the catalog is broken")]
    drained: list[float] = []

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.FAILED)
        drained.append(trio.current_time())

    await stage.play(script)
    assert stage.compute.state.error == "the catalog is broken"
    assert stage.servers.drained_at is not None
    assert stage.servers.drained_at >= drained[0] + 30
