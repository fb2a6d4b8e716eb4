"""Time spans and what becomes of them (contract 02 §4.2, D-37)."""

from __future__ import annotations

import time
from contextlib import suppress

import msgspec
import pytest
import trio

from trio_compute.telemetry.spans import MAX_SPANS, Recorder, process_start


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(clock: Clock) -> Recorder:
    return Recorder(clock=clock)


def fail(recorder: Recorder, clock: Clock, name: str, seconds: float, error: BaseException | None = None) -> None:
    """Raise inside a span after some seconds."""
    with recorder.measure(name):
        clock.now += seconds
        raise error or ValueError("no")


def test_a_span_has_start_duration_and_attributes(recorder: Recorder, clock: Clock) -> None:
    clock.now += 1
    with recorder.measure("work", lsn="0/1") as span:
        assert span.duration_seconds is None
        assert (span.milliseconds, span.microseconds) == (0, 0)
        clock.now += 2.5
    assert (span.name, span.start_seconds, span.duration_seconds, span.failed) == ("work", 1, 2.5, False)
    assert span.attributes == {"lsn": "0/1"}
    assert (span.milliseconds, span.microseconds) == (2500, 2_500_000)


def test_spans_know_what_they_are_part_of(recorder: Recorder) -> None:
    with recorder.measure("outer"):
        with recorder.measure("inner"):
            with recorder.measure("innermost"):
                pass
        with recorder.measure("second"):
            pass
    with recorder.measure("later"):
        pass
    parents = {span.name: span.parent for span in recorder.spans}
    assert parents == {"outer": None, "inner": "outer", "innermost": "inner", "second": "outer", "later": None}


async def test_tasks_inherit_the_span_they_were_started_in_and_do_not_disturb_each_other(recorder: Recorder) -> None:
    async def work(name: str) -> None:
        with recorder.measure(name):
            await trio.lowlevel.checkpoint()
            with recorder.measure(f"{name}.part"):
                await trio.lowlevel.checkpoint()

    with recorder.measure("together"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, "a")
            nursery.start_soon(work, "b")
    parents = {span.name: span.parent for span in recorder.spans}
    assert parents == {"together": None, "a": "together", "b": "together", "a.part": "a", "b.part": "b"}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_body_that_raises_is_a_failed_span_of_its_length(
    recorder: Recorder, clock: Clock, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        fail(recorder, clock, "work", 3, error)
    span = recorder.spans[-1]
    assert (span.failed, span.duration_seconds) == (True, 3)
    with recorder.measure("next"):
        pass
    assert recorder.spans[-1].parent is None


def test_the_newest_successful_span_of_a_name_is_found(recorder: Recorder, clock: Clock) -> None:
    for duration in (1, 2):
        with recorder.measure("sync"):
            clock.now += duration
    with suppress(ValueError):
        fail(recorder, clock, "sync", 3)
    with recorder.measure("sync"):
        last, any_last = recorder.last("sync"), recorder.last("sync", succeeded=False)
    assert last is not None
    assert any_last is not None
    assert (last.duration_seconds, any_last.duration_seconds) == (2, 3)
    assert recorder.last("other") is None


def test_a_span_can_be_added_afterwards(recorder: Recorder, clock: Clock) -> None:
    clock.now += 4
    span = recorder.add("total", start_seconds=1.0, bytes=5)
    assert (span.duration_seconds, span.attributes) == (3, {"bytes": 5})
    assert recorder.last("total") is span


def test_the_origin_may_lie_in_the_past(clock: Clock) -> None:
    recorder = Recorder(clock=clock, origin=990.0)
    assert recorder.now() == 10
    with recorder.measure("work"):
        pass
    assert recorder.spans[0].start_seconds == 10


def test_nothing_measured_means_13_zeroes(recorder: Recorder) -> None:
    metrics = msgspec.to_builtins(recorder.metrics())
    assert metrics == dict.fromkeys(
        [
            *("wait_for_spec_ms", "sync_sk_check_ms", "sync_safekeepers_ms", "pageserver_connect_micros"),
            *("basebackup_bytes", "basebackup_ms", "start_postgres_ms", "config_ms", "total_startup_ms"),
            *("load_ext_ms", "num_ext_downloaded", "largest_ext_size", "total_ext_download_size"),
        ],
        0,
    )


SPAN_OF_KEY = {
    "wait_for_spec_ms": "wait_for_spec",
    "sync_sk_check_ms": "check_safekeepers_synced",
    "sync_safekeepers_ms": "sync_safekeepers",
    "basebackup_ms": "try_get_basebackup",
    "start_postgres_ms": "start_postgres",
    "config_ms": "configure_as_primary",
    "total_startup_ms": "total_startup",
}


@pytest.mark.parametrize(("key", "name"), SPAN_OF_KEY.items())
def test_each_duration_comes_from_its_span_in_milliseconds(
    recorder: Recorder, clock: Clock, key: str, name: str
) -> None:
    with recorder.measure(name):
        clock.now += 1.2341
    metrics = msgspec.to_builtins(recorder.metrics())
    assert metrics.pop(key) == 1234
    assert set(metrics.values()) == {0}


def test_the_basebackup_counts_the_successful_attempt_only(recorder: Recorder, clock: Clock) -> None:
    """07 §4.8."""
    with suppress(ValueError), recorder.measure("try_get_basebackup") as failed:
        recorder.add("basebackup.connect", start_seconds=recorder.now() - 9)
        failed.attributes["bytes"] = 99
        clock.now += 10
        raise ValueError
    with recorder.measure("try_get_basebackup") as span:
        began = recorder.now()
        clock.now += 0.000_125
        recorder.add("basebackup.connect", start_seconds=began)
        clock.now += 2
        span.attributes["bytes"] = 4_000_000
    metrics = recorder.metrics()
    assert (metrics.pageserver_connect_micros, metrics.basebackup_bytes, metrics.basebackup_ms) == (
        125,
        4_000_000,
        2000,
    )


def test_a_check_of_the_safekeepers_counts_whether_it_succeeds_or_not(recorder: Recorder, clock: Clock) -> None:
    with suppress(ValueError):
        fail(recorder, clock, "check_safekeepers_synced", 0.1)
    assert recorder.metrics().sync_sk_check_ms == 100


def test_a_failed_sync_does_not_count(recorder: Recorder, clock: Clock) -> None:
    with recorder.measure("sync_safekeepers"):
        clock.now += 1
    with suppress(ValueError):
        fail(recorder, clock, "sync_safekeepers", 5)
    assert recorder.metrics().sync_safekeepers_ms == 1000


def test_the_start_is_not_forgotten_by_a_compute_that_lives_long(recorder: Recorder, clock: Clock) -> None:
    """02 §4.2: nothing here is updated, or lost, by reconfiguration; the memory stays bounded all the same."""
    with recorder.measure("total_startup"):
        clock.now += 1
    for _ in range(3 * MAX_SPANS):
        with recorder.measure("reconfigure"):
            pass
    assert recorder.metrics().total_startup_ms == 1000
    assert len(recorder.spans) <= MAX_SPANS


def test_the_process_began_before_now_and_not_before_the_machine() -> None:
    began = process_start()
    assert time.monotonic() - 3600 * 24 < began < time.monotonic()
    assert process_start() == pytest.approx(began, abs=0.05)
