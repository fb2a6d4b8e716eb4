"""Traces of a whole compute, up to a collector on loopback (contract 10 §8, I-30, I-31, 02 §4.1, 03 §2)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.component.http.test_staged_start import run_python
from tests.component.http.tokens import COMPUTE_ID, ED25519_JWK, bearer
from tests.component.http.world import JSON, bring_to, configure_body, http_client
from tests.component.test_lfc import OWN_URL, STORAGE, end_of_prewarm
from tests.component.test_promotion import promote
from tests.component.test_run import Stage, terminate
from tests.fakes import specs
from tests.fakes.collector import Collector, TracedHost, open_collector, spans_in
from tests.unit.test_trace_context import PARENT, SPAN, TRACE
from trio_compute.deadlines import Deadlines
from trio_compute.errors import ComputeError, HostError, RemoteError
from trio_compute.http.servers import HttpServers
from trio_compute.http.sockets import bind_sockets
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.status import Status
from trio_compute.model.lfc import PrewarmSkipped
from trio_compute.run import run
from trio_compute.services import trace_export
from trio_compute.services.life import Life
from trio_compute.services.trace_export import BATCH_SPANS, CAPACITY_SPANS, TraceExport
from trio_compute.storage.trace_collector import CollectorAway, send_traces
from trio_compute.telemetry import logging as telemetry
from trio_compute.telemetry.spans import placed
from trio_compute.telemetry.trace_context import parse_trace_context
from trio_compute.trace_settings import TraceSettings

CALLER = parse_trace_context([PARENT])
NOBODY = TraceSettings(url="http://127.0.0.1:1/v1/traces")


class LogLines:
    """Hold what was logged."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def write(self, record: bytes) -> None:
        self.texts.append(record.decode())


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    lines = LogLines()
    monkeypatch.setattr(telemetry, "sink", lines)
    monkeypatch.setattr(telemetry, "_threshold", [0])
    return lines


@pytest.fixture
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_export, "PAUSE_SECONDS", 0.02)


class Traced(Stage):
    """A run of the program whose traces go to a collector."""

    def __init__(self, traces: TraceSettings, *, with_spec: bool = True, **spec_changes: Any) -> None:
        super().__init__(with_spec=with_spec, **spec_changes)
        self.change(traces=traces)

    def change(self, **settings_changes: Any) -> None:
        self.settings = specs.settings(**{"traces": self.settings.traces, **settings_changes})
        self.host = TracedHost(self.settings, self.host.config, pace=0.001)


async def until_running(stage: Stage) -> None:
    await stage.compute.reach(Status.RUNNING)
    await terminate(stage.compute, immediate=True)


def parents(spans: dict[str, Any]) -> dict[str, str]:
    """Return which span each one is part of, by name."""
    names = {span.span_id: name for name, span in spans.items()}
    return {name: names.get(span.parent_span_id, span.parent_span_id.hex()) for name, span in spans.items()}


START = {
    "prepare_pgdata": "start_compute",
    "check_safekeepers_synced": "prepare_pgdata",
    "get_basebackup": "prepare_pgdata",
    "try_get_basebackup": "get_basebackup",
    "start_postgres": "start_compute",
    "wait_for_postgres": "start_postgres",
    "configure_as_primary": "start_compute",
    "apply_config": "configure_as_primary",
    "apply_spec_sql": "apply_config",
    "configurator_main_loop": "",
    "compute_monitor": "",
    "post_apply_config": "",
    "handle_migrations": "post_apply_config",
    "handle_neon_extension_upgrade": "post_apply_config",
}


async def test_a_start_arrives_as_one_trace_with_the_contracts_names() -> None:
    """I-31: its parent is what the environment names; only its own."""
    async with open_collector() as collector:
        stage = Traced(collector.settings)
        stage.change(traceparent=PARENT, tracestate="vendor=1")
        began = time.time_ns()

        async def script(stage: Stage) -> None:
            await stage.compute.reach(Status.RUNNING)
            await trio.sleep(0.1)
            await terminate(stage.compute, immediate=True)

        await stage.play(script)
    spans = collector.by_name()
    found = parents(spans)
    assert {name: found.get(name) for name in START} == START
    start = spans["start_compute"]
    assert (start.trace_id.hex(), start.parent_span_id.hex(), start.trace_state) == (TRACE, SPAN, "vendor=1")
    assert spans["apply_spec_sql"].trace_id == start.trace_id
    assert spans["post_apply_config"].trace_id != start.trace_id
    assert {span.status.code for span in spans.values()} == {0}, "what ends with the compute has not failed"
    assert "total_startup" not in spans
    for span in spans.values():
        assert began <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
    assert all("content-type: application/x-protobuf" in head for head in collector.heads)


async def test_a_start_without_a_parent_begins_a_trace_and_a_failed_one_is_an_error() -> None:
    async with open_collector() as collector:
        stage = Traced(collector.settings)
        stage.settings = specs.settings(
            traces=collector.settings, traceparent="00-bad", deadlines=Deadlines(linger=0.1)
        )
        stage.host = TracedHost(stage.settings, stage.host.config)
        stage.host.failures["recreate_pgdata"] = [HostError("disk on fire, password=hunter2")]

        async def script(stage: Stage) -> None:
            await stage.compute.reach(Status.FAILED)

        await stage.play(script)
    start = collector.by_name()["start_compute"]
    assert (start.parent_span_id, start.status.code) == (b"", 2)
    assert "hunter2" not in str(collector.spans)


class Served:
    """A pooled compute with its real servers."""

    def __init__(self, collector: Collector, life: Life, port: int, internal_port: int) -> None:
        self.collector, self.life, self._port, self._internal_port = collector, life, port, internal_port

    def client(self) -> httpx.AsyncClient:
        return http_client(self._port, bearer())

    def internal_client(self) -> httpx.AsyncClient:
        return http_client(self._internal_port)


@asynccontextmanager
async def open_served(collector: Collector, **settings_changes: Any) -> AsyncIterator[Served]:
    changes = {"compute_id": COMPUTE_ID, "external_http_port": 0, "internal_http_port": 0, **settings_changes}
    settings = specs.settings(traces=collector.settings, traceparent=PARENT.replace(TRACE, "a" * 32), **changes)
    host = TracedHost(settings, specs.config(compute_ctl_config={"jwks": {"keys": [ED25519_JWK]}}), pace=0.001)
    sockets = bind_sockets(settings)
    served = trio.Event()
    lives: list[Life] = []

    class Servers(HttpServers):
        async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            served.set()
            await super().serve(task_status=task_status)

    def make(life: Life, config: Any) -> HttpServers:
        lives.append(life)
        return Servers(sockets, life, config)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, settings, host, make)
        await served.wait()
        yield Served(collector, lives[0], sockets.external_port, sockets.internal_port)
        await terminate(lives[0].compute, immediate=True)
    sockets.close()


@pytest.mark.usefixtures("_quickly")
async def test_the_configure_that_brings_the_first_spec_is_the_parent_of_the_start(log_lines: LogLines) -> None:
    """03 §2, 10 §8; the environment's parent counts only where no request brought the spec."""
    async with open_collector() as collector, open_served(collector) as served, served.client() as client:
        headers = {**JSON, "traceparent": PARENT, "tracestate": "vendor=1"}
        answer = await client.post("/configure", content=configure_body(), headers=headers)
        assert answer.status_code == 200, answer.text
        await collector.until("POST /configure", "start_compute")
        spans = collector.by_name()
        request, start = spans["POST /configure"], spans["start_compute"]
        assert (request.trace_id.hex(), request.parent_span_id.hex(), request.kind) == (TRACE, SPAN, 2)
        assert (start.trace_id, start.parent_span_id) == (request.trace_id, request.span_id)
        attributes = {a.key: a.value.string_value or a.value.int_value for a in request.attributes}
        assert attributes == {
            "http.request.method": "POST",
            "http.route": "/configure",
            "http.response.status_code": 200,
        }
        (line,) = [line for line in log_lines.texts if "uri=/configure" in line]
        assert f"trace_id={TRACE}" in line
        again = configure_body(operation_uuid="another")
        assert (await client.post("/configure", content=again, headers=JSON)).status_code == 200
        await collector.until("reconfigure", "pg_reload_conf")
    spans = collector.by_name()
    assert parents(spans)["reconfigure"] == "POST /configure"
    assert spans["POST /configure"].trace_id.hex() not in {TRACE, "a" * 32}
    assert [span.name for span in collector.spans if span.trace_id.hex() == "a" * 32] == []
    line = [line for line in log_lines.texts if "uri=/configure" in line][-1]
    assert "trace_id" not in line, "only who brings a trace sees it in the log"


async def test_the_internal_server_goes_on_with_a_trace_too() -> None:
    async with open_collector() as collector, open_served(collector) as served, served.internal_client() as client:
        # An empty compute has nothing to refresh.
        assert (await client.post("/refresh_configuration", headers={"traceparent": PARENT})).status_code == 500
    span = collector.by_name()["POST /refresh_configuration"]
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.status.code) == (TRACE, SPAN, 2)


async def test_requests_are_named_by_our_routes_and_bad_parents_ignored() -> None:
    async with open_collector() as collector, open_served(collector) as served, served.client() as client:
        for headers in ({"traceparent": "00-zz"}, {}):
            assert (await client.get("/status", headers=headers)).status_code == 200
        assert (await client.get("/nowhere/s3cr3t")).status_code == 404
        assert (await client.request("BREW", "/status")).status_code == 405
        assert (await client.get("/status", headers={"traceparent": PARENT[:-1] + "0"})).status_code == 200
        two = [("traceparent", PARENT), ("traceparent", PARENT)]
        assert (await client.get("/livez", headers=[*two, *bearer().items()])).status_code == 200
    assert sorted(span.name for span in collector.spans) == ["GET /livez", "GET /status", "GET /status", "HTTP", "HTTP"]
    assert len({span.trace_id for span in collector.spans}) == 5
    assert {span.parent_span_id for span in collector.spans} == {b""}
    assert "s3cr3t" not in str(collector.spans)
    assert "BREW" not in str(collector.spans)


async def test_prewarm_and_promotion_go_on_in_the_trace_of_who_asked_for_them() -> None:
    async def prewarm(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        with placed(CALLER):
            stage.servers.life.lfc.begin_prewarm()
        await end_of_prewarm(stage)
        await terminate(stage.compute, immediate=True)

    async def promotion(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.servers.life.lfc.prewarm_state = PrewarmSkipped()
        with placed(CALLER):
            await promote(stage)
        await terminate(stage.compute, immediate=True)

    async with open_collector() as collector:
        stage = Traced(collector.settings, **STORAGE)
        stage.host.endpoint_storage.frames[OWN_URL] = b"packed state of ep-own"
        await stage.play(prewarm)
        await Traced(collector.settings, mode="Replica", endpoint_id="ep-replica").play(promotion)
    spans = collector.by_name()
    for name in ("lfc.prewarm", "promotion"):
        assert (spans[name].trace_id.hex(), spans[name].parent_span_id.hex()) == (TRACE, SPAN)
    found = parents(spans)
    assert (found["lfc.prewarm.load"], found["promotion.connect"]) == ("lfc.prewarm.prewarm", "promotion")


async def test_headers_and_compression_are_the_settings() -> None:
    async with open_collector() as collector:
        settings = TraceSettings(url=collector.url, headers=(("x-scope-orgid", "prod"),), gzip=True)
        await Traced(settings).play(until_running)
    assert "start_compute" in collector.by_name()
    assert all("x-scope-orgid: prod" in head for head in collector.heads)


class TestEnd:
    async def test_a_collector_that_hangs_delays_the_end_by_two_seconds(self, autojump_clock: Any) -> None:
        """02 §4.1."""
        stage = Stage()
        stage.host.send_traces = _hang  # type: ignore[method-assign]
        await stage.play(until_running)
        assert stage.ended_at is not None
        assert stage.servers.drained_at is not None
        assert stage.ended_at - stage.servers.drained_at == pytest.approx(2.0)

    async def test_a_real_one_that_hangs_is_left_without_a_socket(self) -> None:
        async with open_collector(None) as collector:
            stage = Traced(collector.settings)
            stage.change(deadlines=Deadlines(trace_flush=0.2))
            before = _descriptors()
            await stage.play(until_running)
            assert stage.ended_at is not None
            assert stage.servers.drained_at is not None
            assert 0.1 < stage.ended_at - stage.servers.drained_at < 1.5
            assert len(collector.heads) == 1
            await _until(lambda: collector.connections == 0)
            assert _descriptors() == before

    async def test_nobody_listens_and_the_end_is_quick(self) -> None:
        """I-30."""
        stage = Traced(NOBODY)
        await stage.play(until_running)
        assert stage.code == 0
        assert stage.ended_at is not None
        assert stage.servers.drained_at is not None
        assert stage.ended_at - stage.servers.drained_at < 1

    async def test_a_signal_flushes_nothing(self, autojump_clock: Any) -> None:
        """10 §8, 02 §10.2."""
        stage = Stage()

        async def script(stage: Stage) -> None:
            await stage.compute.reach(Status.RUNNING)
            stage.compute.request_stop()

        await stage.play(script)
        assert stage.host.traces == []

    async def test_a_signal_cuts_the_flush_short(self, autojump_clock: Any) -> None:
        stage = Stage()
        stage.host.send_traces = _hang  # type: ignore[method-assign]

        async def script(stage: Stage) -> None:
            await stage.compute.reach(Status.RUNNING)
            await terminate(stage.compute, immediate=True)
            await stage.servers.drained.wait()
            await trio.sleep(0.5)
            stage.compute.request_stop()

        await stage.play(script)
        assert stage.ended_at is not None
        assert stage.servers.drained_at is not None
        assert stage.ended_at - stage.servers.drained_at == pytest.approx(0.5)

    async def test_disabled_means_that_nothing_is_taken_down_or_sent(self, autojump_clock: Any) -> None:
        stage = Stage()
        stage.settings = specs.settings(otel_disabled=True)
        await stage.play(until_running)
        assert stage.host.traces == []
        assert not stage.compute.spans.is_traced

    @pytest.mark.usefixtures("_quickly")
    async def test_cancelling_the_whole_leaves_no_socket(self) -> None:
        async with open_collector(None) as collector:
            before = _descriptors()
            async with trio.open_nursery() as nursery:
                stage = Traced(collector.settings)
                nursery.start_soon(partial(run, stage.settings, stage.host, stage.servers))
                await collector.arrived.wait()
                nursery.cancel_scope.cancel()
            await _until(lambda: collector.connections == 0)
            assert _descriptors() == before


async def _hang(_payload: bytes) -> None:
    await trio.sleep_forever()


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestBuffer:
    @asynccontextmanager
    async def exporting(self, send: Callable[[bytes], Awaitable[None]]) -> AsyncIterator[tuple[Compute, TraceExport]]:
        """Export the spans of a compute that runs already."""
        compute = Compute(specs.settings())
        export = TraceExport(compute, send)
        bring_to(compute, Status.RUNNING)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export.serve)
            yield compute, export
            nursery.cancel_scope.cancel()

    async def test_batches_go_after_five_seconds_or_when_they_are_full(self, autojump_clock: Any) -> None:
        sent: list[tuple[float, int]] = []

        async def send(payload: bytes) -> None:
            sent.append((trio.current_time(), len(spans_in(payload))))

        async with self.exporting(send) as (compute, _):
            began = trio.current_time()
            await trio.sleep(100)
            assert sent == [], "nothing wakes a compute that does nothing"
            compute.spans.add("one", start_seconds=0)
            await trio.sleep(6)
            for _ in range(BATCH_SPANS):
                compute.spans.add("many", start_seconds=0)
            await trio.sleep(1)
        assert [(round(at - began, 3), count) for at, count in sent] == [(105, 1), (106, BATCH_SPANS)]

    async def test_a_full_buffer_drops_the_oldest_and_counts(self, autojump_clock: Any, log_lines: LogLines) -> None:
        sent: list[Any] = []

        async def send(payload: bytes) -> None:
            sent.extend(spans_in(payload))

        async with self.exporting(send) as (compute, export):
            for number in range(CAPACITY_SPANS + 7):
                compute.spans.add(f"span {number}", start_seconds=0)
            await trio.sleep(6)
            assert export.dropped == 7
        assert [span.name for span in sent] == [f"span {number}" for number in range(7, CAPACITY_SPANS + 7)]
        (line,) = [line for line in log_lines.texts if "spans not exported" in line]
        assert "dropped=7" in line

    async def test_a_collector_that_is_away_gets_all_later_and_one_line_a_minute(
        self, autojump_clock: Any, log_lines: LogLines
    ) -> None:
        """I-30: at debug level, at most once a minute."""
        attempts: list[float] = []
        away = True
        sent: list[Any] = []

        async def send(payload: bytes) -> None:
            attempts.append(trio.current_time())
            if away:
                raise CollectorAway("connection refused")
            sent.extend(spans_in(payload))

        async with self.exporting(send) as (compute, export):
            began = trio.current_time()
            for _ in range(BATCH_SPANS + 1):
                compute.spans.add("kept", start_seconds=0)
            await trio.sleep(300)
            pauses = [round(after - before) for before, after in zip([began, *attempts], attempts, strict=False)]
            assert pauses == [0, 10, 20, 40, 60, 60, 60]
            lines = [line for line in log_lines.texts if "spans not exported" in line]
            assert 4 <= len(lines) <= 5
            assert all(" DEBUG " in line for line in lines)
            away = False
            await trio.sleep(61)
            assert export.dropped == 0
        assert len(sent) == BATCH_SPANS + 1

    async def test_what_a_collector_refuses_for_good_is_dropped(self, autojump_clock: Any) -> None:
        async def send(_payload: bytes) -> None:
            raise RemoteError("status 400")

        async with self.exporting(send) as (compute, export):
            compute.spans.add("refused", start_seconds=0)
            await trio.sleep(6)
            assert export.dropped == 1


@pytest.mark.parametrize(
    ("status", "kind"), [(400, RemoteError), (302, RemoteError), (429, CollectorAway), (503, CollectorAway)]
)
async def test_a_refusal_is_an_error_that_says_whether_to_come_back(status: int, kind: type[ComputeError]) -> None:
    async with open_collector(status) as collector:
        with pytest.raises(RemoteError) as caught:
            await send_traces(b"", collector.settings)
    assert type(caught.value) is kind
    assert str(caught.value) == f"status {status}"


async def test_a_collector_that_is_silent_or_absent_may_be_back_later() -> None:
    async with open_collector(None) as collector:
        with pytest.raises(CollectorAway, match=r"no answer within 0\.1 s"):
            await send_traces(b"", TraceSettings(url=collector.url, timeout_seconds=0.1))
    with pytest.raises(CollectorAway):
        await send_traces(b"", NOBODY)


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".example", "1.2.3.4.5.6%zz"])
async def test_an_address_that_cannot_be_used_is_an_error_like_any_other(host: str) -> None:
    with pytest.raises(RemoteError):
        await send_traces(b"", TraceSettings(url=f"http://{host}:1/v1/traces", timeout_seconds=2))


async def test_a_static_compute_traces_its_lease(autojump_clock: Any) -> None:
    stage = Stage(mode={"Static": "0/169AD58"})
    await stage.play(until_running)
    spans = {span.name: span for payload in stage.host.traces for span in spans_in(payload)}
    attributes = {a.key: a.value.string_value for a in spans["lsn_lease_bg_task"].attributes}
    assert attributes == {"tenant_id": specs.TENANT, "timeline_id": specs.TIMELINE, "lsn": "0/169AD58"}


@pytest.mark.parametrize("disabled", [False, True])
def test_nothing_is_loaded_before_the_start_is_over_and_nothing_ever_if_disabled(disabled: bool) -> None:
    run_python(f"""
        import sys, trio
        from tests.fakes import specs
        from tests.fakes.host import FakeHost, FakeServers
        from trio_compute.lifecycle.status import Status
        from trio_compute.run import run
        from trio_compute.services import trace_export
        from trio_compute.storage.trace_collector import CollectorAway, send_traces
        from trio_compute.trace_settings import TraceSettings

        def heavy():
            return sorted({{"httpx", "google.protobuf", "opentelemetry", "quart"}} & set(sys.modules))

        trace_export.PAUSE_SECONDS = 0.05
        tried = trio.Event()

        class Host(FakeHost):
            async def send_traces(self, payload):
                assert heavy() == [], heavy()
                try:
                    await send_traces(payload, self.settings.traces)
                finally:
                    tried.set()

        async def main():
            settings = specs.settings(
                traces=TraceSettings(url="http://127.0.0.1:1/"), otel_disabled={disabled}
            )
            servers = FakeServers()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, settings, Host(settings, specs.config(specs.spec_dict())), servers)
                await servers.ready.wait()
                await servers.compute.reach(Status.RUNNING)
                assert heavy() == [], heavy()
                with trio.move_on_after(0.3 if {disabled} else 30):
                    await tried.wait()
                assert heavy() == ([] if {disabled} else ["httpx"]), heavy()
                servers.compute.request_stop()

        trio.run(main)
    """)
