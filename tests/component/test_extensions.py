"""What a start does about remote extensions, over a fake world and clock (contract 06 §10.6, §11, 02 §3.2 P2)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.component.sweep import play_disturbed, steps_of
from tests.component.test_run import Stage, terminate
from tests.component.test_sweep import DISTURBANCES, Act
from tests.fakes.extensions import remote_extensions
from tests.fakes.specs import settings
from trio_compute.errors import HostError, RemoteError, StorageError
from trio_compute.lifecycle.status import Status
from trio_compute.postgres.installation import Installation

BASE = "http://gateway.test/"
ONLY_CONTROL_FILES = ["inspect_installation", "sweep_extensions", "write_control_files"]


def a_stage(libraries: str = "neon,demo,other", *, base_url: str | None = BASE, **changes: Any) -> Stage:
    option = {"name": "shared_preload_libraries", "value": libraries, "vartype": "string"}
    stage = Stage(
        cluster={"roles": [], "databases": [], "settings": [option]},
        remote_extensions=remote_extensions("demo", "other", **changes),
    )
    stage.settings = settings(remote_ext_base_url=base_url)
    stage.host.settings = stage.settings
    return stage


async def until_running(stage: Stage) -> None:
    await stage.compute.reach(Status.RUNNING, Status.FAILED)
    await terminate(stage.compute, immediate=True) if stage.compute.state.status is Status.RUNNING else None


def about_extensions(stage: Stage) -> list[str]:
    words = ("inspect_installation", "sweep_extensions", "write_control_files", "fetch demo", "fetch other")
    return sorted(call for call in stage.host.calls if call in words)


async def test_preloaded_libraries_come_before_postgres_and_beside_pgdata(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = a_stage()
    stage.host.slow |= {"fetch demo": 3.0, "fetch other": 2.0, "fetch_basebackup": 4.0}
    stage.host.archive_sizes = {"demo": 500, "other": 200}
    await stage.play(until_running)
    assert about_extensions(stage) == sorted([*ONLY_CONTROL_FILES, "fetch demo", "fetch other"])
    assert stage.host.calls.index("fetch demo") < stage.host.calls.index("open_postmaster")
    assert stage.host.control_files == ["demo.control", "other.control"]
    assert stage.ended_at is not None
    assert stage.ended_at < 6.0
    metrics = stage.compute.spans.metrics()
    assert (metrics.num_ext_downloaded, metrics.largest_ext_size, metrics.total_ext_download_size) == (2, 500, 700)


async def test_postgres_waits_for_a_download_that_is_slower_than_the_basebackup(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = a_stage("demo")
    stage.host.slow["fetch demo"] = 20.0
    started_at: list[float] = []

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        started_at.append(trio.current_time())
        await terminate(stage.compute, immediate=True)

    began = trio.current_time()
    await stage.play(script)
    assert 20.0 < started_at[0] - began < 21.0


async def test_a_failed_download_is_only_logged(autojump_clock: trio.testing.MockClock) -> None:
    stage = a_stage()
    stage.host.failures["fetch demo"] = [RemoteError("gone")]
    await stage.play(until_running)
    assert "open_postmaster" in stage.host.calls
    assert stage.compute.spans.metrics().num_ext_downloaded == 1
    told = sorted((notice.data for notice in stage.compute.feed.behind(0) if notice.kind == "extension"), key=str)
    assert told == [{"file": "demo.tar.zst", "error": "gone"}, {"file": "other.tar.zst", "bytes": 1000}]


@pytest.mark.parametrize("changes", [{"public_extensions": ["demo"]}, {"public_extensions": None}])
async def test_an_indexed_library_that_is_not_allowed_does_not_stop_the_start(
    autojump_clock: trio.testing.MockClock, changes: dict[str, Any]
) -> None:
    """R-24."""
    stage = a_stage("other", **changes)
    await stage.play(until_running)
    assert "fetch other" not in stage.host.calls
    assert "open_postmaster" in stage.host.calls


async def test_without_a_gateway_there_are_control_files_and_no_downloads(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = a_stage(base_url=None)
    await stage.play(until_running)
    assert about_extensions(stage) == sorted(ONLY_CONTROL_FILES)
    metrics = stage.compute.spans.metrics()
    assert (metrics.load_ext_ms, metrics.num_ext_downloaded) == (0, 0)


async def test_without_remote_extensions_nothing_is_asked(autojump_clock: trio.testing.MockClock) -> None:
    stage = Stage()
    await stage.play(until_running)
    assert about_extensions(stage) == []


async def test_an_unknown_major_only_disables_downloads(autojump_clock: trio.testing.MockClock) -> None:
    """R-22."""
    stage = a_stage()
    stage.host.installation = Installation("PostgreSQL 13.1", None, stage.host.installation.places)
    await stage.play(until_running)
    assert about_extensions(stage) == sorted(ONLY_CONTROL_FILES)
    assert "open_postmaster" in stage.host.calls


async def test_a_missing_pg_config_only_disables_remote_extensions(autojump_clock: trio.testing.MockClock) -> None:
    """R-22."""
    stage = a_stage()
    stage.host.failures["inspect_installation"] = [HostError("pg_config is not there")]
    await stage.play(until_running)
    assert about_extensions(stage) == ["inspect_installation"]
    assert "open_postmaster" in stage.host.calls


async def test_a_control_file_that_cannot_be_written_fails_the_start(autojump_clock: trio.testing.MockClock) -> None:
    """02 §3.2 P2, R-20: a text, not a crash."""
    stage = a_stage()
    stage.host.failures["write_control_files"] = [HostError("cannot write /x/demo.control: Permission denied")]
    await stage.play(until_running)
    assert stage.compute.state.error == "cannot write /x/demo.control: Permission denied"
    assert "open_postmaster" not in stage.host.calls
    assert stage.code == 1


async def test_a_failed_basebackup_ends_the_downloads(autojump_clock: trio.testing.MockClock) -> None:
    """D-13."""
    stage = a_stage("demo")
    stage.host.slow["fetch demo"] = 1e9
    stage.host.failures["fetch_basebackup"] = [StorageError("no")] * 11
    await stage.play(until_running)
    assert stage.compute.state.error == "failed to get basebackup@0/16B5A50: no"


async def test_a_stop_during_a_download_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    stage = a_stage("demo")
    stage.host.slow["fetch demo"] = 1e9

    async def script(stage: Stage) -> None:
        await trio.sleep(5)
        stage.compute.request_stop()

    await stage.play(script)
    assert "open_postmaster" not in stage.host.calls
    assert stage.ended_at is not None
    assert stage.ended_at < 40


async def test_one_archive_for_two_libraries_is_fetched_once(autojump_clock: trio.testing.MockClock) -> None:
    """R-16."""
    stage = a_stage("demo,more", library_index={"demo": "demo", "more": "demo"})
    await stage.play(until_running)
    assert stage.host.calls.count("fetch demo") == 1
    assert stage.compute.spans.metrics().num_ext_downloaded == 1


async def test_only_real_downloads_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    """R-25: what the endpoint had fetched before the preparation came to it is no download of the preparation."""
    stage = a_stage("demo")
    stage.host.slow["sweep_extensions"] = 5.0

    async def script(stage: Stage) -> None:
        spec = stage.compute.state.spec
        assert spec is not None
        assert spec.spec.remote_extensions is not None
        await stage.servers.life.extensions.obtain(spec.spec.remote_extensions, "demo", is_library=False)
        await until_running(stage)

    await stage.play(script)
    assert stage.host.calls.count("fetch demo") == 1
    assert stage.compute.spans.metrics().num_ext_downloaded == 0


class Preloading(Act):
    """A life whose start fetches extensions."""

    def __init__(self) -> None:
        super().__init__(pooled=False, safekeepers_synced=True)
        stage = a_stage()
        self.settings, self.host = stage.settings, stage.host

    def check(self) -> None:
        super().check()
        if hasattr(self.servers, "life"):
            flights = self.servers.life.extensions._flights.values()
            assert all(flight.landed.is_set() for flight in flights), "somebody waits for a download for ever"


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_every_step_of_a_start_with_extensions_can_be_disturbed(disturbance: str) -> None:
    total = steps_of(lambda: Preloading().play())
    for at in range(1, total + 1):
        act = Preloading()
        play_disturbed(act.play, at, lambda act=act: DISTURBANCES[disturbance](act))
        try:
            act.check()
        except AssertionError as error:
            raise AssertionError(f"disturbed at step {at} of {total}: {error}") from error
