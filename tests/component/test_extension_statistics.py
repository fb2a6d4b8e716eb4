"""When installed extensions are counted, and what is done with the counts (contract 06 §7, R-12)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from tests.component.http.logs import LogLines
from tests.component.http.world import bring_to
from tests.component.test_run import Stage
from tests.fakes.host import FakeHost
from tests.fakes.specs import config, parsed, settings
from trio_compute.errors import PostgresError
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.status import Status
from trio_compute.plan.extension_statistics import InstalledExtension, Statistics
from trio_compute.services.extension_statistics import ExtensionStatistics
from trio_compute.telemetry import logging as telemetry
from trio_compute.telemetry.metrics import INSTALLED_EXTENSIONS, metrics

HSTORE = InstalledExtension("hstore", "1.8", "0")
PLPGSQL = InstalledExtension("plpgsql", "1.0", "1")


@pytest.fixture(autouse=True)
def log_lines(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    lines = LogLines()
    monkeypatch.setattr(telemetry, "sink", lines)
    return lines


class Collecting:
    """A running compute with its statistics, and the moments of the collections."""

    def __init__(self, *found: Statistics | Exception, interval: int = 3600, **spec_changes: Any) -> None:
        self.compute = Compute(settings(installed_extensions_collection_interval=interval))
        bring_to(self.compute, Status.RUNNING, **spec_changes)
        self.host = FakeHost(self.compute.settings, config())
        self.host.pace = 0
        self.host.statistics = [*found]
        self.moments: list[float] = []
        self._began_at = trio.current_time()

    async def serve(self) -> None:
        async def collect() -> Statistics:
            self.moments.append(round(trio.current_time() - self._began_at, 3))
            return await self.host.collect_installed_extensions()

        await ExtensionStatistics(self.compute, collect).serve()

    def reconfigure(self, **spec_changes: Any) -> None:
        self.compute.apply(ev.ApplyQueued())
        self.compute.apply(ev.ApplyBegan())
        self.compute.apply(ev.Applied(spec=parsed(**spec_changes)))


async def for_seconds(it: Collecting, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await it.serve()


@pytest.mark.parametrize(
    ("spec", "interval", "expected"),
    [
        ({"suspend_timeout_seconds": 300}, 1000, 600),
        ({"suspend_timeout_seconds": 0}, 1000, 7200),
        ({"suspend_timeout_seconds": -1}, 1000, 7200),
        ({"suspend_timeout_seconds": -5}, 1000, 7200),
        ({"suspend_timeout_seconds": 300, "skip_pg_catalog_updates": True}, 1000, 2000),
        ({"suspend_timeout_seconds": 300, "mode": "Replica"}, 1000, 2000),
    ],
)
async def test_collections_come_at_once_and_then_at_twice_the_base(
    spec: dict[str, Any], interval: int, expected: int, autojump_clock: Any
) -> None:
    """R-12: in every mode, replicas included."""
    it = Collecting(interval=interval, **spec)
    await for_seconds(it, 2.5 * expected)
    assert it.moments == [0, expected, 2 * expected]


async def test_the_interval_follows_each_reconfiguration_in_both_directions(autojump_clock: Any) -> None:
    """R-12: it can shrink again, and a pause that has begun already follows too."""
    it = Collecting(suspend_timeout_seconds=1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.serve)
        await trio.sleep(100)
        it.reconfigure(suspend_timeout_seconds=100)
        await trio.sleep(310)
        assert it.moments == [0, 200, 400]
        it.reconfigure(suspend_timeout_seconds=500)
        await trio.sleep(1000)
        assert it.moments == [0, 200, 400, 1400]
        it.reconfigure(suspend_timeout_seconds=1)
        await trio.sleep(1)
        assert len(it.moments) == 5
        nursery.cancel_scope.cancel()


async def test_the_spec_counts_after_a_reconfiguration_also_where_the_catalog_is_skipped(autojump_clock: Any) -> None:
    """06 §7: replaced at every reconfigure."""
    it = Collecting(interval=1000, suspend_timeout_seconds=300, skip_pg_catalog_updates=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.serve)
        await trio.sleep(10)
        it.reconfigure(suspend_timeout_seconds=300, skip_pg_catalog_updates=True)
        await trio.sleep(700)
        assert it.moments == [0, 600]
        nursery.cancel_scope.cancel()


async def test_other_changes_of_the_state_do_not_disturb_a_pause(autojump_clock: Any, log_lines: LogLines) -> None:
    it = Collecting()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.serve)
        await trio.sleep(10)
        it.compute.apply(ev.Active(at=it.compute.state.start_time))
        it.compute.apply(ev.RefreshRequested())
        await trio.sleep(10)
        assert len(log_lines.with_text("[NEON_EXT_INT_SLEEP]")) == 1
        nursery.cancel_scope.cancel()


async def test_the_gauge_is_swapped_as_a_whole(autojump_clock: Any) -> None:
    """R-12: what is gone does not keep its last value."""
    it = Collecting(Statistics({HSTORE: 2, PLPGSQL: 3}), Statistics({PLPGSQL: 4}))
    await for_seconds(it, 1)
    assert metrics.series(INSTALLED_EXTENSIONS) == {("hstore", "1.8", "0"): 2, ("plpgsql", "1.0", "1"): 3}
    it = Collecting(Statistics({PLPGSQL: 4}))
    await for_seconds(it, 1)
    assert metrics.series(INSTALLED_EXTENSIONS) == {("plpgsql", "1.0", "1"): 4}


async def test_a_collection_that_fails_keeps_the_gauge_and_comes_less_often(
    autojump_clock: Any, log_lines: LogLines
) -> None:
    """R-12: one error line, nothing else; then back-off, which ends with the first success."""
    broken = PostgresError("no session for postgresql://cloud_admin:hunter2@localhost/postgres")
    found = Statistics({PLPGSQL: 1})
    it = Collecting(found, broken, broken, found, found, suspend_timeout_seconds=50)
    await for_seconds(it, 1000)
    assert it.moments[:6] == [0, 100, 300, 700, 800, 900]
    assert metrics.series(INSTALLED_EXTENSIONS) == {}  # the last of them found nothing
    errors = [line for line in log_lines if " ERROR " in line]
    assert len(errors) == 2
    assert not log_lines.with_text("hunter2")


async def test_the_markers_are_in_the_log_with_the_interval(autojump_clock: Any, log_lines: LogLines) -> None:
    """06 §7."""
    it = Collecting(Statistics({HSTORE: 2}), suspend_timeout_seconds=300)
    await for_seconds(it, 1)
    markers = [line for line in log_lines if "[NEON_EXT" in line]
    assert [line.split("[", 1)[1].split("]")[0] for line in markers] == [
        "NEON_EXT_SPAWN",
        "NEON_EXT_STAT",
        "NEON_EXT_INT_SLEEP",
    ]
    assert "600" in markers[0]
    assert "600" in markers[2]
    assert " INFO " in markers[1]
    assert json.loads(markers[1].split("[NEON_EXT_STAT] ")[1]) == {
        "extensions": [{"extname": "hstore", "version": "1.8", "n_databases": 2, "owned_by_superuser": "0"}]
    }


async def test_they_begin_when_the_start_is_over_and_end_with_postgres(autojump_clock: Any) -> None:
    stage = Stage(suspend_timeout_seconds=1)
    stage.host.slow["apply_catalog"] = 20

    async def script(stage: Stage) -> None:
        await trio.sleep(15)
        assert stage.host.collections == 0
        await stage.compute.reach(Status.RUNNING)
        await trio.sleep(1)
        assert stage.host.collections == 1
        await trio.sleep(4)
        counted = stage.host.collections
        assert counted in {2, 3}
        stage.compute.request_termination(immediate=False)
        await stage.compute.reach(Status.TERMINATED)
        await trio.sleep(10)
        assert stage.host.collections == counted

    await stage.play(script)
    assert stage.code == 0
