"""The export of finished spans: one task, a bounded buffer, batches, and no word about a missing collector (I-30)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from trio_compute import __version__
from trio_compute.errors import ComputeError, cause_chain
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.status import Status
from trio_compute.services.supervise import run_unless
from trio_compute.storage.trace_collector import CollectorAway
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.otlp import Finished, encode, is_exported
from trio_compute.telemetry.redaction import redact
from trio_compute.telemetry.spans import Span
from trio_compute.telemetry.trace_context import Place

CAPACITY_SPANS = 2048
BATCH_SPANS = 512
PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
QUIET_SECONDS = 60.0

log = get_logger("traces")


class TraceExport:
    """Take every finished span of a compute and hand them to a collector once the start is over."""

    def __init__(self, compute: Compute, send: Callable[[bytes], Awaitable[None]]) -> None:
        self.dropped = 0
        self._compute = compute
        self._send = send
        self._buffer: deque[Finished] = deque()
        self._arrival = trio.Event()
        self._batch_full = trio.Event()
        self._closing = trio.Event()
        self._done = trio.Event()
        self._quiet_until = float("-inf")
        self._told_dropped = 0
        # Once: durations and distances stay those of the monotonic clock (design §6).
        self._origin_ns = time.time_ns() - round(compute.spans.now() * 1_000_000_000)
        settings = compute.settings
        self._resource = {
            "service.name": settings.traces.service_name,
            "service.version": __version__,
            "service.instance.id": settings.compute_id,
        }
        compute.spans.hand_to(self._take)

    async def serve(self) -> None:
        """Export until `finish` or cancelled; with a collector that is away the pauses grow."""
        pause = PAUSE_SECONDS
        try:
            # Nothing is loaded before: until then every millisecond of the interpreter belongs to the start.
            await run_unless(self._closing.wait, lambda: self._compute.reach(Status.RUNNING, Status.FAILED))
            while not self._closing.is_set():
                await self._wait(pause, for_batch=pause == PAUSE_SECONDS)
                pause = PAUSE_SECONDS if await self._export() else min(pause * 2, LONGEST_PAUSE_SECONDS)
            await self._export()
        finally:
            self._done.set()

    async def finish(self) -> None:
        """Export what is left, for a limited time (contract 02 §4.1)."""
        for event in (self._closing, self._arrival, self._batch_full):
            event.set()
        with trio.move_on_after(self._compute.settings.deadlines.trace_flush):
            await self._done.wait()

    def _take(self, span: Span, place: Place) -> None:
        finished = Finished(span, place)
        if not is_exported(finished):
            return
        self._buffer.append(finished)
        self._drop_oldest()
        self._arrival.set()
        if len(self._buffer) >= BATCH_SPANS:
            self._batch_full.set()

    def _drop_oldest(self) -> None:
        """Keep the bound; while a compute waits in the pool, requests must not displace the start that follows."""
        while len(self._buffer) > CAPACITY_SPANS:
            self._buffer.popleft()
            self.dropped += 1

    async def _wait(self, seconds: float, *, for_batch: bool) -> None:
        """Wait for the first span, then so long, unless a batch is full or the end has come."""
        await self._arrival.wait()
        with trio.move_on_after(seconds):
            await (self._batch_full if for_batch else self._closing).wait()

    async def _export(self) -> bool:
        """Send all there is; tell whether the collector took it."""
        failure: ComputeError | None = None
        while self._buffer and failure is None:
            failure = await self._export_batch()
        if not self._closing.is_set():
            self._batch_full = trio.Event()
            if not self._buffer:
                self._arrival = trio.Event()
        self._tell(failure)
        return failure is None

    async def _export_batch(self) -> ComputeError | None:
        batch = [self._buffer.popleft() for _ in range(min(BATCH_SPANS, len(self._buffer)))]
        try:
            await self._send(encode(batch, resource=self._resource, origin_ns=self._origin_ns))
        except CollectorAway as error:
            self._buffer.extendleft(reversed(batch))
            self._drop_oldest()
            return error
        except ComputeError as error:
            self.dropped += len(batch)
            return error
        return None

    def _tell(self, failure: ComputeError | None) -> None:
        now = trio.current_time()
        if now < self._quiet_until or (failure is None and self.dropped == self._told_dropped):
            return
        self._quiet_until, self._told_dropped = now + QUIET_SECONDS, self.dropped
        error = "none" if failure is None else redact(cause_chain(failure))
        log.debug("spans not exported", error=error, waiting=len(self._buffer), dropped=self.dropped)
