"""The program: run, live, wind down. Everything a compute does is reached from here."""

from __future__ import annotations

import datetime as dt
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Protocol

import trio

from trio_compute.errors import ComputeError, PostgresError, cause_chain
from trio_compute.host.reaper import reap_orphans
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.ending import Ending, Urgency, exit_code, linger_seconds, needs_final_sync
from trio_compute.lifecycle.status import TERMINATION_PENDING
from trio_compute.model.parsed import parse_spec
from trio_compute.model.spec import ComputeConfig
from trio_compute.plan.unapplied import unapplied
from trio_compute.ports import Host
from trio_compute.postgres.postmaster import Postmaster
from trio_compute.services.activity import ActivityMonitor
from trio_compute.services.apply_queue import Job, Rejected, Succeeded
from trio_compute.services.certificate import watch_certificate
from trio_compute.services.configure import Configurator
from trio_compute.services.extension_statistics import ExtensionStatistics
from trio_compute.services.life import Life
from trio_compute.services.prepare import prepare, sync_with_retries
from trio_compute.services.signals import relay_signals
from trio_compute.services.supervise import best_effort, critical, run_unless
from trio_compute.services.trace_export import TraceExport
from trio_compute.settings import Settings
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.redaction import learn_spec, redact
from trio_compute.telemetry.spans import Recorder, Span
from trio_compute.telemetry.trace_context import parse_trace_context

log = get_logger("run")


class Servers(Protocol):
    """Be the HTTP servers: serving from the moment that `start` returns until `drain`."""

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until drained, then flush what is in flight for a limited time."""
        ...

    def drain(self) -> None:
        """Accept nothing more and end once the answers in flight are out."""
        ...


class MakeServers(Protocol):
    """Make the servers of a compute; a test may make none that bind."""

    def __call__(self, life: Life, config: ComputeConfig) -> Servers:
        """Return servers that are not started yet."""
        ...


async def run(settings: Settings, host: Host, make_servers: MakeServers, *, spans: Recorder | None = None) -> int:
    """Run one compute from empty to terminated; return the exit code. Raise ComputeError if it cannot even begin."""
    life = Life(settings, host, spans or Recorder())
    compute = life.compute
    export = None if settings.otel_disabled else TraceExport(compute, host.send_traces)
    failure: ComputeError | None = None
    code = 1
    async with trio.open_nursery() as root:
        await root.start(relay_signals, compute)
        if os.getpid() == 1:
            root.start_soon(critical, compute, "reaper", reap_orphans)
        if export is not None:
            root.start_soon(best_effort, "trace export", export.serve)
        try:
            config = await run_unless(compute.wait_ending, host.obtain_config)
            # A signal that comes before the configuration leaves nothing to stop.
            code = 0 if config is None else await _run_configured(life, config, make_servers)
        except ComputeError as error:
            failure = error
        if export is not None and compute.urgency.value < Urgency.PRESSED:
            await run_unless(compute.wait_pressed, export.finish)
        root.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return code


async def _run_configured(life: Life, config: ComputeConfig, make_servers: MakeServers) -> int:
    compute = life.compute
    life.host.tls = config.compute_ctl_config.tls
    first = None
    if config.spec is not None:
        first = Job(parse_spec(config.spec))
        learn_spec(first.spec)
        if compute.ending.value is None:
            compute.apply(ev.SpecKnown(spec=first.spec, at=dt.datetime.now(dt.UTC)))
    elif not compute.settings.lakebase_mode:
        await run_unless(compute.wait_ending, partial(best_effort, "memory warm-up", life.host.warm_vm_memory))
    async with trio.open_nursery() as outer:
        servers = make_servers(life, config)
        await outer.start(_serve_critically, compute, servers)
        await critical(compute, "life", _live_in_scope, life, first)
        terminated = await wind_down(life)
        await _linger(compute, terminated)
        servers.drain()
    postgres = life.postmaster.exit if life.postmaster is not None else None
    return exit_code(compute.ending.value, postgres, terminated.error)


async def _serve_critically(
    compute: Compute, servers: Servers, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async def serve() -> None:
        await servers.serve(task_status=task_status)

    await critical(compute, "http servers", serve)


async def _live_in_scope(life: Life, first: Job | None) -> None:
    compute = life.compute
    with compute.life:
        async with trio.open_nursery() as companions:
            await companions.start(_run_errands, life)
            companions.start_soon(critical, compute, "lsn lease", life.lease.serve)
            if life.host.tls is not None:
                companions.start_soon(critical, compute, "certificate", _renew_certificates, life)
            await live(life, first)
            companions.cancel_scope.cancel()


async def _run_errands(life: Life, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    await critical(life.compute, "errands", partial(life.errands.serve, task_status=task_status))


async def _renew_certificates(life: Life) -> None:
    """Reinstall a certificate when it changes and let Postgres read it; no status changes meanwhile (D-35)."""
    compute, host = life.compute, life.host

    async def renew() -> None:
        spec, postmaster = compute.state.spec, life.postmaster
        if spec is not None and postmaster is not None and compute.postgres_running:
            await host.install_certificate(spec)
            postmaster.reload()

    await watch_certificate(lambda: host.tls_in_use(compute.state.spec), host.installed_certificate, renew)


async def live(life: Life, first: Job | None) -> None:
    """Take a compute from its spec to the end of its Postgres; cancelled by whatever ends it."""
    compute, host = life.compute, life.host
    job, began = (first, 0.0) if first is not None else await _first_job(life)
    for warning in (
        *job.spec.warnings,
        *(f"{name} is not applied yet" for name in unapplied(job.spec, compute.settings)),
    ):
        log.warning("spec", about=warning)
    async with AsyncExitStack() as postgres:
        async with _starting(compute, job):
            with _traced_start(compute, job):
                await prepare(life, job.spec)
                with compute.spans.measure("start_postgres"):
                    postmaster = await postgres.enter_async_context(host.open_postmaster(job.spec, compute.urgency))
                    life.postmaster = postmaster
                    postgres.callback(life.begin_end)
                    in_time = partial(_init_timeout, compute.settings, trio.current_time())
                    with in_time(), compute.spans.trace("wait_for_postgres", pgdata=str(compute.settings.pgdata)):
                        await host.wait_ready(postmaster)
                configurator = Configurator(compute, host, postmaster, life.queue, life.promotions)
                with in_time():
                    await configurator.configure_as_primary(job.spec)
        compute.spans.add("total_startup", start_seconds=began)
        compute.apply(ev.Started())
        job.settle(Succeeded())
        await _serve_until_exit(life, postmaster, configurator)


async def _first_job(life: Life) -> tuple[Job, float]:
    """Wait in the pool for a spec; return it and the moment from which its start-up counts."""
    compute = life.compute
    await life.host.warm_up()
    job = await life.queue.next()
    assert isinstance(job, Job), "an empty compute can neither refresh nor be promoted"
    compute.spans.add("wait_for_spec", start_seconds=0.0)
    compute.apply(ev.StartBegan(spec=job.spec, at=dt.datetime.now(dt.UTC)))
    return job, compute.spans.now()


@asynccontextmanager
async def _starting(compute: Compute, job: Job) -> AsyncIterator[None]:
    """Turn any error of the start into status failed and an end, which cancels the rest of `live`."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (any error of the start, foreseen or not, must be collectable)
        await trio.lowlevel.checkpoint_if_cancelled()
        text = redact(cause_chain(error))
        log.error("start failed", error=text)
        compute.apply(ev.StartFailed(error=text))
        job.settle(Rejected(text))
        compute.end(Ending.START_FAILED, Urgency.START_FAILED)
    await trio.lowlevel.checkpoint_if_cancelled()


@contextmanager
def _traced_start(compute: Compute, job: Job) -> Iterator[Span]:
    """Trace the start as part of the request that brought the spec, else of what the environment names (I-31)."""
    settings, above = compute.settings, job.place
    if above is None and settings.traceparent is not None:
        above = parse_trace_context([settings.traceparent], [settings.tracestate or ""])
    with compute.spans.trace("start_compute", above=above) as span:
        yield span


async def _traced_loop(compute: Compute, name: str, serve: Callable[[], Awaitable[object]]) -> None:
    """Trace how long a loop ran; what it does is no part of that, or one trace would grow for ever."""
    with compute.spans.trace(name, encloses=False):
        await serve()


@contextmanager
def _init_timeout(settings: Settings, launched_at: float) -> Iterator[None]:
    """Raise PostgresError if a lakebase compute does not run some time after Postgres was launched (T25, D-51)."""
    limit = settings.pg_init_timeout if settings.lakebase_mode else math.inf
    with trio.move_on_at(launched_at + limit) as scope:
        yield
    if scope.cancelled_caught:
        raise PostgresError(f"the compute does not run {limit:g} s after Postgres was launched (--pg-init-timeout)")


async def _serve_until_exit(life: Life, postmaster: Postmaster, configurator: Configurator) -> None:
    compute = life.compute
    compute.postgres_running = True
    try:
        async with trio.open_nursery() as services:
            configuring = partial(_traced_loop, compute, "configurator_main_loop", configurator.serve)
            services.start_soon(critical, compute, "configurator", configuring)
            monitor = ActivityMonitor(compute, life.host.open_watch)
            watching = partial(_traced_loop, compute, "compute_monitor", monitor.serve)
            services.start_soon(critical, compute, "activity", watching)
            statistics = ExtensionStatistics(compute, life.host.collect_installed_extensions)
            services.start_soon(best_effort, "extension statistics", statistics.serve)
            services.start_soon(best_effort, "local file cache", life.lfc.serve)
            code = await postmaster.wait()
            log.warning("Postgres exited by itself", code=code)
            compute.end(Ending.POSTGRES_EXITED)
    finally:
        compute.postgres_running = False


async def wind_down(life: Life) -> ev.Terminated:
    """Do what must follow the end of Postgres, whatever caused it, and record the outcome."""
    compute = life.compute
    life.begin_end()
    terminated = await _final_sync(life)
    compute.finish(terminated)
    if life.postmaster is not None:
        await run_unless(compute.wait_pressed, partial(best_effort, "core dumps", life.host.log_backtraces))
    return terminated


async def _final_sync(life: Life) -> ev.Terminated:
    """Sync the safekeepers once more and learn up to where the WAL is safe (D-16, D-17)."""
    compute, parsed = life.compute, life.compute.state.spec
    if parsed is None or not needs_final_sync(
        compute.ending.value,
        compute.urgency.value,
        postgres_ran=life.postmaster is not None,
        is_primary=life.is_primary,
    ):
        return ev.Terminated()
    limit = compute.settings.deadlines.final_sync
    error = "final safekeeper sync was interrupted by a signal"
    try:
        with trio.fail_after(limit):
            lsn = await run_unless(compute.wait_pressed, partial(sync_with_retries, compute, life.host, parsed))
        if lsn is not None:
            return ev.Terminated(flush_lsn=lsn)
    except trio.TooSlowError:
        error = f"final safekeeper sync took longer than {limit:.0f} s"
    except ComputeError as failure:
        error = redact(f"final safekeeper sync failed: {cause_chain(failure)}")
    log.error("no final LSN", error=error)
    return ev.Terminated(error=error)


async def _linger(compute: Compute, terminated: ev.Terminated) -> None:
    """Keep answering for a while; a late `/terminate` gets the verdict too, and with `immediate` cuts this short."""
    deadlines = compute.settings.deadlines
    seconds = linger_seconds(compute.ending.value, deadlines, had_spec=compute.state.spec is not None)
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:

            async def finish_late() -> None:
                await compute.reach(*TERMINATION_PENDING)
                compute.finish(terminated)

            nursery.start_soon(finish_late)
            await compute.linger_cut.wait()
            if compute.urgency.value < Urgency.PRESSED:
                await trio.sleep(deadlines.brief_linger)
            nursery.cancel_scope.cancel()
    compute.finish(terminated)
