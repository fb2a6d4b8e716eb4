"""Prewarm and offload over a fake cache, a fake storage and a fake clock (contract 08 §2 … §5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from msgspec import to_builtins

from tests.component.test_run import Stage, terminate
from tests.fakes.specs import TENANT, TIMELINE, parsed
from trio_compute.errors import PostgresError, RemoteError, StorageError
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status
from trio_compute.model.lfc import (
    NotOffloaded,
    NotPrewarmed,
    OffloadFailed,
    Offloading,
    OffloadSkipped,
    PrewarmCancelled,
    PrewarmCompleted,
    PrewarmFailed,
    Prewarming,
    PrewarmSkipped,
)
from trio_compute.services.errands import Ended
from trio_compute.telemetry.failpoints import failpoints
from trio_compute.telemetry.metrics import metrics

STORAGE = {"endpoint_id": "ep-own", "endpoint_storage_addr": "storage:1", "endpoint_storage_token": "a-token"}
OWN_URL = f"http://storage:1/{TENANT}/{TIMELINE}/ep-own/lfc_state"
COUNTERS = ("prewarms", "prewarm_errors", "offloads", "offload_errors")


def counts() -> list[float]:
    return [metrics.value(f"compute_ctl_lfc_{name}_total") for name in COUNTERS]


@pytest.fixture(autouse=True)
def began() -> list[float]:
    """Return what the counters say before the test."""
    return counts()


@pytest.fixture(autouse=True)
def _no_failpoints() -> Any:
    yield
    failpoints.configure({"compute-prewarm": "off"})


def grown(began: list[float]) -> list[float]:
    return [now - then for now, then in zip(counts(), began, strict=True)]


async def play(script: Callable[[Stage], Awaitable[None]], **spec_changes: Any) -> Stage:
    """Run a compute whose storage holds a state, and end it when the script is over."""
    stage = Stage(**{**STORAGE, **spec_changes})
    stage.host.endpoint_storage.frames[OWN_URL] = b"packed state of ep-own"

    async def whole(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        await trio.testing.wait_all_tasks_blocked()
        await script(stage)
        if stage.compute.ending.value is None:
            await terminate(stage.compute, immediate=True)

    await stage.play(whole)
    return stage


async def end_of_prewarm(stage: Stage) -> Any:
    lfc = stage.servers.life.lfc
    while lfc.prewarming:
        await trio.sleep(0.01)
    return lfc.prewarm_state


async def end_of_offload(stage: Stage) -> Any:
    lfc = stage.servers.life.lfc
    while lfc.offloading:
        await trio.sleep(0.01)
    return lfc.offload_state


async def test_a_prewarm_loads_the_own_state_and_counts_its_pages(autojump_clock: Any, began: list[float]) -> None:
    async def script(stage: Stage) -> None:
        lfc = stage.servers.life.lfc
        assert lfc.prewarm_state == NotPrewarmed()
        assert lfc.begin_prewarm()
        assert lfc.prewarm_state == Prewarming()
        state = await end_of_prewarm(stage)
        assert isinstance(state, PrewarmCompleted)
        assert (state.total, state.prewarmed, state.skipped) == (100, 80, 20)
        assert [location.url for location in stage.host.endpoint_storage.asked] == [OWN_URL]
        assert stage.host.endpoint_storage.asked[0].token == "a-token"
        assert stage.host.cache.loaded == [b"state of ep-own"]
        assert stage.host.cache.sessions == 0
        assert grown(began) == [1, 0, 0, 0]

    await play(script)


async def test_a_prewarm_from_another_endpoint_uses_its_state_and_our_token(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        url = f"http://storage:1/{TENANT}/{TIMELINE}/ep%2F..%2Fother%20one/lfc_state"
        stage.host.endpoint_storage.frames[url] = b"packed state of the other"
        stage.servers.life.lfc.begin_prewarm("ep/../other one")
        assert isinstance(await end_of_prewarm(stage), PrewarmCompleted)
        assert stage.host.cache.loaded == [b"state of the other"]
        assert stage.host.endpoint_storage.asked[0].token == "a-token"

    await play(script)


async def test_a_second_prewarm_is_refused_while_one_runs_and_possible_after_it(
    autojump_clock: Any, began: list[float]
) -> None:
    async def script(stage: Stage) -> None:
        lfc = stage.servers.life.lfc
        assert lfc.begin_prewarm()
        assert not lfc.begin_prewarm()
        assert isinstance(await end_of_prewarm(stage), PrewarmCompleted)
        assert lfc.begin_prewarm()
        assert isinstance(await end_of_prewarm(stage), PrewarmCompleted)
        assert grown(began) == [2, 0, 0, 0]

    await play(script)


async def test_without_a_stored_state_the_prewarm_is_skipped(autojump_clock: Any, began: list[float]) -> None:
    async def script(stage: Stage) -> None:
        stage.host.endpoint_storage.frames.clear()
        stage.servers.life.lfc.begin_prewarm()
        assert await end_of_prewarm(stage) == PrewarmSkipped()
        assert stage.host.cache.purposes == []
        assert grown(began) == [1, 0, 0, 0]

    await play(script)


def down(text: str) -> RemoteError:
    return RemoteError(text)


def caused(what: str, cause: str) -> RemoteError:
    error = RemoteError(what)
    error.__cause__ = RemoteError(cause)
    return error


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        ("headers", caused("querying endpoint storage", "refused"), "querying endpoint storage: refused"),
        (
            "headers",
            down("401 Unauthorized querying endpoint storage"),
            "401 Unauthorized querying endpoint storage",
        ),
        (
            "body",
            caused("getting request body from endpoint storage", "nothing happened for 30 s"),
            "getting request body from endpoint storage: nothing happened for 30 s",
        ),
        ("unpack", StorageError("it is cut short"), "decoding LFC state: it is cut short"),
        ("connect", PostgresError("no free connection"), "connecting to postgres: no free connection"),
        ("load", PostgresError("wrong magic"), "loading LFC state into postgres: wrong magic"),
        ("info", PostgresError("gone"), "querying prewarm info: gone"),
    ],
)
async def test_each_failing_step_of_a_prewarm_is_named_and_the_next_prewarm_works(
    step: str, error: Exception, text: str, autojump_clock: Any, began: list[float]
) -> None:
    async def script(stage: Stage) -> None:
        places = (stage.host.endpoint_storage.failures, stage.host.cache.failures)
        failures = places[step not in {"headers", "body", "unpack"}]
        failures[step] = error
        stage.servers.life.lfc.begin_prewarm()
        assert await end_of_prewarm(stage) == PrewarmFailed(text)
        assert grown(began) == [1, 1, 0, 0]
        assert stage.compute.state.status is Status.RUNNING
        failures.clear()
        stage.servers.life.lfc.begin_prewarm()
        assert isinstance(await end_of_prewarm(stage), PrewarmCompleted)

    await play(script)


@pytest.mark.parametrize(
    ("missing", "prewarm_text", "offload_text"),
    [
        (
            "endpoint_id",
            "pspec.endpoint_id missing, other endpoint_id not provided",
            "pspec.endpoint_id missing",
        ),
        ("endpoint_storage_addr", "pspec.endpoint_storage_addr missing", "pspec.endpoint_storage_addr missing"),
        ("endpoint_storage_token", "pspec.endpoint_storage_token missing", "pspec.endpoint_storage_token missing"),
    ],
)
async def test_what_the_spec_lacks_is_named(
    missing: str, prewarm_text: str, offload_text: str, autojump_clock: Any
) -> None:
    async def script(stage: Stage) -> None:
        stage.servers.life.lfc.begin_prewarm()
        assert await end_of_prewarm(stage) == PrewarmFailed(prewarm_text)
        stage.servers.life.lfc.begin_offload()
        state = await end_of_offload(stage)
        assert isinstance(state, OffloadFailed)
        assert state.error.startswith(offload_text)

    await play(script, **{missing: None})


async def test_storage_address_and_token_may_be_settings(autojump_clock: Any) -> None:
    settings = [
        {"name": "neon.endpoint_storage_addr", "value": "storage:1", "vartype": "string"},
        {"name": "neon.endpoint_storage_token", "value": "of-settings", "vartype": "string"},
    ]

    async def script(stage: Stage) -> None:
        stage.servers.life.lfc.begin_prewarm()
        assert isinstance(await end_of_prewarm(stage), PrewarmCompleted)
        assert stage.host.endpoint_storage.asked[0].token == "of-settings"

    cluster = {"roles": [], "databases": [], "settings": settings}
    await play(script, endpoint_storage_addr=None, endpoint_storage_token=None, cluster=cluster)


async def test_an_endpoint_id_that_cannot_be_a_segment_fails_the_prewarm(autojump_clock: Any) -> None:
    """07 S-18."""

    async def script(stage: Stage) -> None:
        stage.servers.life.lfc.begin_prewarm()
        assert await end_of_prewarm(stage) == PrewarmFailed("endpoint_id '..' cannot be part of a URL")
        assert stage.host.endpoint_storage.asked == []

    await play(script, endpoint_id="..")


async def test_the_failpoint_fails_the_prewarm_before_the_storage_is_asked(
    autojump_clock: Any, began: list[float]
) -> None:
    async def script(stage: Stage) -> None:
        failpoints.configure({"compute-prewarm": "return(0)"})
        stage.servers.life.lfc.begin_prewarm()
        assert await end_of_prewarm(stage) == PrewarmFailed("compute-prewarm failpoint")
        assert stage.host.endpoint_storage.asked == []
        assert grown(began) == [1, 1, 0, 0]

    await play(script)


# Cancellation


@pytest.mark.parametrize("step", ["headers", "body", "unpack"])
async def test_a_prewarm_is_cancelled_while_its_state_is_fetched(step: str, autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        lfc, storage = stage.servers.life.lfc, stage.host.endpoint_storage
        storage.slow[step] = 100
        lfc.begin_prewarm()
        await storage.wait_reached(step)
        asked_at = trio.current_time()
        lfc.cancel_prewarm()
        lfc.cancel_prewarm()
        assert await end_of_prewarm(stage) == PrewarmCancelled()
        assert trio.current_time() - asked_at < 0.1
        assert stage.host.cache.purposes == []
        storage.slow.clear()
        assert lfc.begin_prewarm()
        assert isinstance(await end_of_prewarm(stage), PrewarmCompleted)

    await play(script)


async def test_a_cancellation_while_connecting_waits_for_the_session_and_loads_nothing(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        lfc, cache = stage.servers.life.lfc, stage.host.cache
        cache.slow["connect"] = 3
        lfc.begin_prewarm()
        await trio.sleep(1)
        lfc.cancel_prewarm()
        assert await end_of_prewarm(stage) == PrewarmCancelled()
        assert not cache.loading.is_set()

    await play(script)


async def test_cancelling_the_load_asks_the_server_and_waits_until_it_has_stopped(autojump_clock: Any) -> None:
    """L-04."""

    async def script(stage: Stage) -> None:
        lfc, cache = stage.servers.life.lfc, stage.host.cache
        cache.load_seconds, cache.cancel_seconds = 1000, 1.5
        lfc.begin_prewarm()
        await cache.loading.wait()
        asked_at = trio.current_time()
        lfc.cancel_prewarm()
        assert lfc.prewarming
        assert await end_of_prewarm(stage) == PrewarmCancelled()
        assert trio.current_time() - asked_at == pytest.approx(1.5, abs=0.05)
        assert cache.cancels == 1
        assert cache.sessions == 0
        cache.load_seconds = 0.1
        lfc.begin_prewarm()
        assert isinstance(await end_of_prewarm(stage), PrewarmCompleted)

    await play(script)


async def test_a_load_that_does_not_stop_is_left_after_ten_seconds(autojump_clock: Any) -> None:
    """L-04."""

    async def script(stage: Stage) -> None:
        lfc, cache = stage.servers.life.lfc, stage.host.cache
        cache.load_seconds, cache.cancel_seconds = 1000, 1000
        lfc.begin_prewarm()
        await cache.loading.wait()
        asked_at = trio.current_time()
        lfc.cancel_prewarm()
        assert await end_of_prewarm(stage) == PrewarmCancelled()
        assert trio.current_time() - asked_at == pytest.approx(10, abs=0.05)
        assert cache.sessions == 0

    await play(script)


async def test_a_cancellation_that_cannot_be_sent_fails_the_prewarm(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        lfc, cache = stage.servers.life.lfc, stage.host.cache
        cache.load_seconds = 1000
        cache.failures["cancel"] = PostgresError("refused")
        lfc.begin_prewarm()
        await cache.loading.wait()
        lfc.cancel_prewarm()
        assert await end_of_prewarm(stage) == PrewarmFailed("cancelling neon.prewarm_local_cache(): refused")

    await play(script)


async def test_a_load_that_somebody_else_cancels_has_failed(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        lfc, cache = stage.servers.life.lfc, stage.host.cache
        cache.load_seconds = 1000
        lfc.begin_prewarm()
        await cache.loading.wait()
        cache.cancelled.set()
        assert await end_of_prewarm(stage) == PrewarmFailed(
            "loading LFC state into postgres: somebody else cancelled it"
        )

    await play(script)


@pytest.mark.parametrize("before", ["never", "completed"])
async def test_a_cancellation_of_nothing_does_not_touch_the_next_prewarm(before: str, autojump_clock: Any) -> None:
    """L-03, D-31, A-22."""

    async def script(stage: Stage) -> None:
        lfc = stage.servers.life.lfc
        if before == "completed":
            lfc.begin_prewarm()
            await end_of_prewarm(stage)
        state = lfc.prewarm_state
        lfc.cancel_prewarm()
        assert lfc.prewarm_state == state
        lfc.begin_prewarm()
        assert isinstance(await end_of_prewarm(stage), PrewarmCompleted)

    await play(script)


async def test_postgres_dying_in_the_middle_of_a_load_leaves_a_failed_prewarm(
    autojump_clock: Any, began: list[float]
) -> None:
    """L-02."""

    async def script(stage: Stage) -> None:
        lfc, cache = stage.servers.life.lfc, stage.host.cache
        cache.load_seconds = 1000
        lfc.begin_prewarm()
        await cache.loading.wait()
        cache.gone.set()
        stage.host.child.end(2)
        await stage.compute.wait_ending()

    stage = await play(script)
    assert isinstance(stage.servers.life.lfc.prewarm_state, PrewarmFailed)
    assert grown(began) == [1, 1, 0, 0]


async def test_the_end_of_the_compute_cuts_work_short_and_leaves_final_states(
    autojump_clock: Any, began: list[float]
) -> None:
    """L-02, L-05, L-08."""

    async def script(stage: Stage) -> None:
        lfc = stage.servers.life.lfc
        stage.host.endpoint_storage.slow.update(upload=1000, headers=1000)
        assert lfc.begin_offload()
        assert lfc.begin_prewarm()
        await trio.sleep(0.1)
        stopped_at = trio.current_time()
        await terminate(stage.compute, immediate=True)
        assert trio.current_time() - stopped_at < 1
        with pytest.raises(Ended):
            lfc.begin_offload()
        with pytest.raises(Ended):
            lfc.begin_prewarm()

    stage = await play(script)
    assert stage.servers.life.lfc.prewarm_state == PrewarmFailed("cancelled")
    assert stage.servers.life.lfc.offload_state == OffloadFailed("cancelled")
    assert grown(began) == [1, 1, 1, 1]


# Progress and spans


async def test_progress_is_shown_while_pages_are_loaded(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        lfc, cache = stage.servers.life.lfc, stage.host.cache
        cache.pages, cache.load_seconds = 1000, 10
        newest = stage.compute.feed.newest
        lfc.begin_prewarm()
        assert to_builtins(lfc.prewarm_state) == {"status": "prewarming"}
        await trio.sleep(5)
        state = lfc.prewarm_state
        assert isinstance(state, Prewarming)
        assert state.pages_total == 1000
        assert state.pages_done == pytest.approx(490, abs=30)
        assert state.pages_per_second == pytest.approx(100, abs=2)
        assert state.estimate_seconds == pytest.approx(5.1, abs=0.4)
        assert cache.purposes == ["apply_config", "prewarm_progress"]
        assert isinstance(await end_of_prewarm(stage), PrewarmCompleted)
        seen = [notice.data for notice in stage.compute.feed.behind(newest) if notice.kind == "prewarm"]
        assert seen[0] == {"status": "prewarming"}
        done = [data["pages_done"] for data in seen[1:-1]]
        assert len(done) > 30
        assert done == sorted(done)

    await play(script)


async def test_a_progress_that_cannot_be_seen_disturbs_nothing(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        cache = stage.host.cache
        cache.load_seconds = 5
        cache.failures["connect_watch"] = PostgresError("too many connections")
        stage.servers.life.lfc.begin_prewarm()
        await trio.sleep(4)
        assert stage.servers.life.lfc.prewarm_state == Prewarming()
        assert isinstance(await end_of_prewarm(stage), PrewarmCompleted)

    await play(script)


async def test_the_time_fields_cover_what_they_always_did_and_finer_spans_add_up(autojump_clock: Any) -> None:
    """L-09: the body belongs to `uncompress`, connecting to `prewarm`."""

    async def script(stage: Stage) -> None:
        storage, cache = stage.host.endpoint_storage, stage.host.cache
        storage.slow.update(headers=1, body=2, unpack=4, pack=5, upload=6)
        cache.slow.update(connect=8, info=16, state=7)
        cache.load_seconds = 32
        stage.compute.spans._clock = trio.current_time
        stage.servers.life.lfc.begin_prewarm()
        state = await end_of_prewarm(stage)
        assert (state.state_download_time_ms, state.uncompress_time_ms, state.prewarm_time_ms) == (1000, 6000, 40000)
        names = ("state_download", "download_body", "decompress", "connect", "load", "info")
        found = [stage.compute.spans.last(f"lfc.prewarm.{name}").milliseconds for name in names]
        assert found == [1000, 2000, 4000, 8000, 32000, 16000]
        whole = stage.compute.spans.last("lfc.prewarm").milliseconds
        assert sum(found) == whole
        stage.servers.life.lfc.begin_offload()
        saved = await end_of_offload(stage)
        assert (saved.state_query_time_ms, saved.compress_time_ms, saved.state_upload_time_ms) == (15000, 5000, 6000)
        assert stage.compute.spans.last("lfc.offload").milliseconds == 26000

    await play(script)


# Offload


async def test_an_offload_stores_the_own_state_under_the_own_id(autojump_clock: Any, began: list[float]) -> None:
    async def script(stage: Stage) -> None:
        lfc = stage.servers.life.lfc
        assert lfc.offload_state == NotOffloaded()
        assert lfc.begin_offload()
        assert lfc.offload_state == Offloading()
        assert not lfc.begin_offload()
        state = to_builtins(await end_of_offload(stage))
        assert list(state) == ["status", "state_query_time_ms", "compress_time_ms", "state_upload_time_ms"]
        assert stage.host.endpoint_storage.frames[OWN_URL] == b"packed the state"
        assert grown(began) == [0, 0, 1, 0]

    await play(script)


async def test_an_offload_without_a_cache_is_skipped(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.host.cache.saved = None
        stage.servers.life.lfc.begin_offload()
        assert await end_of_offload(stage) == OffloadSkipped()
        assert stage.host.endpoint_storage.asked == []

    await play(script)


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        ("connect", PostgresError("no"), "connecting to postgres: no"),
        ("state", caused("querying LFC state", "no such function"), "querying LFC state: no such function"),
        ("pack", StorageError("out of memory"), "compressing LFC state: out of memory"),
        ("upload", caused("writing to endpoint storage", "refused"), "writing to endpoint storage: refused"),
        (
            "upload",
            down("request to endpoint storage failed: 413 Payload Too Large"),
            "request to endpoint storage failed: 413 Payload Too Large",
        ),
    ],
)
async def test_each_failing_step_of_an_offload_is_named_and_the_next_offload_works(
    step: str, error: Exception, text: str, autojump_clock: Any, began: list[float]
) -> None:
    async def script(stage: Stage) -> None:
        failures = (stage.host.endpoint_storage.failures, stage.host.cache.failures)[step in {"connect", "state"}]
        failures[step] = error
        stage.servers.life.lfc.begin_offload()
        assert await end_of_offload(stage) == OffloadFailed(text)
        assert grown(began) == [0, 0, 1, 1]
        failures.clear()
        assert stage.servers.life.lfc.begin_offload()
        assert to_builtins(await end_of_offload(stage))["status"] == "completed"

    await play(script)


async def test_an_offload_during_a_prewarm_is_refused(autojump_clock: Any, began: list[float]) -> None:
    """L-06."""

    async def script(stage: Stage) -> None:
        lfc = stage.servers.life.lfc
        lfc.begin_prewarm()
        assert not lfc.begin_offload()
        assert lfc.offload_state == NotOffloaded()
        await end_of_prewarm(stage)
        assert lfc.begin_offload()
        await end_of_offload(stage)
        assert grown(began) == [1, 0, 1, 0]

    await play(script)


# Autoprewarm and the periodic offload


async def test_autoprewarm_runs_exactly_once_and_its_failure_harms_nothing(
    autojump_clock: Any, began: list[float]
) -> None:
    async def script(stage: Stage) -> None:
        stage.host.cache.failures["load"] = PostgresError("no")
        assert stage.servers.life.lfc.prewarming
        assert isinstance(await end_of_prewarm(stage), PrewarmFailed)
        await trio.sleep(1000)
        assert stage.compute.state.status is Status.RUNNING
        assert grown(began) == [1, 1, 0, 0]

    await play(script, autoprewarm=True)


async def upload_times(stage: Stage, seconds: float) -> list[float]:
    """Return when, in seconds from now, states are stored within some time."""
    began = trio.current_time()
    await trio.sleep(seconds)
    return [round(at - began, 1) for at in stage.host.endpoint_storage.stored_at if at > began]


async def test_the_state_is_stored_at_the_interval_of_the_spec(autojump_clock: Any, began: list[float]) -> None:
    """The first time is one whole interval after the start."""

    async def script(stage: Stage) -> None:
        assert await upload_times(stage, 35) == [10, 20, 30]
        assert grown(began) == [0, 0, 3, 0]

    await play(script, offload_lfc_interval_seconds=10)


async def test_late_offloads_are_made_up_for(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.host.endpoint_storage.slow["upload"] = 25
        began = trio.current_time()
        await trio.sleep(11)
        stage.host.endpoint_storage.slow.clear()
        await trio.sleep(40)
        times = [round(at - began) for at in stage.host.endpoint_storage.stored_at]
        assert times == [35, 35, 35, 40, 50]

    await play(script, offload_lfc_interval_seconds=10)


@pytest.mark.parametrize(
    ("prewarm", "stored"),
    [("not_prewarmed", 3), ("prewarming", 0), ("failed", 0), ("skipped", 3), ("cancelled", 3), ("completed", 3)],
)
async def test_the_periodic_offload_spares_a_good_state(
    prewarm: str, stored: int, autojump_clock: Any, began: list[float]
) -> None:
    """L-13, D-32: off while prewarming and after a failure, on after a cancellation."""

    async def script(stage: Stage) -> None:
        lfc, storage, cache = stage.servers.life.lfc, stage.host.endpoint_storage, stage.host.cache
        if prewarm == "prewarming":
            storage.slow["headers"] = 1000
        if prewarm == "failed":
            cache.failures["load"] = PostgresError("no")
        if prewarm == "skipped":
            storage.frames.clear()
        if prewarm != "not_prewarmed":
            lfc.begin_prewarm()
            await trio.sleep(0.0005)
        if prewarm == "cancelled":
            lfc.cancel_prewarm()
        await trio.sleep(34)
        assert to_builtins(lfc.prewarm_state)["status"] == prewarm
        assert grown(began)[2] == stored
        if prewarm == "failed":
            cache.failures.clear()
            lfc.begin_prewarm()
            await trio.sleep(30)
            assert grown(began)[2] == 3

    await play(script, offload_lfc_interval_seconds=10)


async def configure(stage: Stage, **changes: Any) -> None:
    stage.compute.apply(ev.ApplyQueued())
    await stage.servers.queue.submit(parsed(**{**STORAGE, **changes})).outcome()
    assert stage.compute.state.status is Status.RUNNING


async def test_another_interval_counts_from_the_reconfiguration_on(autojump_clock: Any, began: list[float]) -> None:
    """L-07: started, changed and stopped without a restart."""

    async def script(stage: Stage) -> None:
        await trio.sleep(100)
        assert grown(began)[2] == 0
        await configure(stage, offload_lfc_interval_seconds=20)
        assert await upload_times(stage, 45) == [20, 40]
        await configure(stage, offload_lfc_interval_seconds=5)
        assert len(await upload_times(stage, 11)) == 2
        await configure(stage, offload_lfc_interval_seconds=None)
        assert await upload_times(stage, 100) == []
        assert stage.compute.state.restart_required == ()

    await play(script)


async def test_an_unrelated_change_does_not_postpone_the_next_offload(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        await trio.sleep(6)
        await configure(stage, offload_lfc_interval_seconds=10, operation_uuid="another")
        assert await upload_times(stage, 5) == [pytest.approx(4, abs=0.15)]

    await play(script, offload_lfc_interval_seconds=10)


async def test_a_failed_offload_does_not_end_the_periodic_ones(autojump_clock: Any, began: list[float]) -> None:
    async def script(stage: Stage) -> None:
        stage.host.endpoint_storage.failures["upload"] = RemoteError("down")
        await trio.sleep(15)
        stage.host.endpoint_storage.failures.clear()
        await trio.sleep(10)
        assert grown(began) == [0, 0, 2, 1]
        assert to_builtins(stage.servers.life.lfc.offload_state)["status"] == "completed"

    await play(script, offload_lfc_interval_seconds=10)


async def test_a_defect_in_the_work_leaves_a_final_state(autojump_clock: Any, began: list[float]) -> None:
    """L-02: what nobody foresaw."""

    async def script(stage: Stage) -> None:
        stage.host.endpoint_storage.failures.update(headers=ZeroDivisionError("oh"), upload=KeyError("ah"))
        stage.servers.life.lfc.begin_prewarm()
        assert await end_of_prewarm(stage) == PrewarmFailed("oh")
        stage.servers.life.lfc.begin_offload()
        assert isinstance(await end_of_offload(stage), OffloadFailed)
        assert grown(began) == [1, 1, 1, 1]
        assert stage.compute.state.status is Status.RUNNING

    await play(script)
