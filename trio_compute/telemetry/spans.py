"""One recorder of time spans: metrics.json, logs and the start-up waterfall all come from it (design §6)."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from msgspec import Struct

from trio_compute.model.responses import MetricsResponse
from trio_compute.telemetry.trace_context import Place, TraceContext

MAX_SPANS = 1000

_place: ContextVar[Place | TraceContext | None] = ContextVar("place_in_trace", default=None)


class Span(Struct, kw_only=True):
    """Hold one measured stretch: seconds on the monotonic clock since the recorder's origin."""

    name: str
    start_seconds: float
    duration_seconds: float | None = None
    parent: str | None = None
    failed: bool = False
    attributes: dict[str, Any] = {}

    @property
    def milliseconds(self) -> int:
        """Return the duration in whole milliseconds; 0 while it runs."""
        return round((self.duration_seconds or 0.0) * 1000)

    @property
    def microseconds(self) -> int:
        """Return the duration in whole microseconds; 0 while it runs."""
        return round((self.duration_seconds or 0.0) * 1_000_000)


def present_place() -> Place | TraceContext | None:
    """Return where in a trace the present task works, for work that goes on elsewhere."""
    return _place.get()


@contextmanager
def placed(place: Place | TraceContext | None) -> Iterator[None]:
    """Let the spans of the body be part of what asked for it."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def _shown(place: Place | TraceContext | None) -> str | None:
    return place.shown if isinstance(place, Place) else None


class Recorder:
    """Measure spans from an origin: the start of the process, or the moment that a pooled compute got its spec."""

    def __init__(self, *, clock: Any = time.monotonic, origin: float | None = None) -> None:
        self._clock = clock
        self._origin = clock() if origin is None else origin
        self.spans: deque[Span] = deque(maxlen=MAX_SPANS)
        self._running: list[Span] = []
        self._listeners: list[Callable[[Span], None]] = []
        self._tracer: Callable[[Span, Place], None] | None = None
        # Kept apart: the start must stay known when its spans have left the queue.
        self._newest: dict[tuple[str, bool], Span] = {}

    def listen(self, listener: Callable[[Span], None]) -> None:
        """Call a function with each span when it begins and when it is finished."""
        self._listeners.append(listener)

    def hand_to(self, tracer: Callable[[Span, Place], None]) -> None:
        """Call a function with each span when it is finished, and with those that only traces show."""
        self._tracer = tracer

    @property
    def is_traced(self) -> bool:
        """Tell whether spans are exported."""
        return self._tracer is not None

    @property
    def running(self) -> Span | None:
        """Return the newest span that is not finished: what the program is doing now."""
        return self._running[-1] if self._running else None

    def now(self) -> float:
        """Return seconds since the origin."""
        return float(self._clock() - self._origin)

    @contextmanager
    def measure(self, name: str, **attributes: Any) -> Iterator[Span]:
        """Record how long the body takes; a body that raises is recorded as failed."""
        above = _place.get()
        span = Span(name=name, start_seconds=self.now(), parent=_shown(above), attributes=attributes)
        place = Place(above, name)
        self.spans.append(span)
        self._running.append(span)
        self._tell(span)
        token = _place.set(place)
        try:
            yield span
        except BaseException:
            span.failed = True
            raise
        finally:
            _place.reset(token)
            self._running = [other for other in self._running if other is not span]
            self._finish(span, place)

    @contextmanager
    def trace(
        self, name: str, *, above: Place | TraceContext | None = None, encloses: bool = True, **attributes: Any
    ) -> Iterator[Span]:
        """Measure the body for traces alone; its parent is `above`, else whatever the task is in.

        With `encloses=False` the spans of the body are no part of it. A body that is cancelled has not failed.
        """
        span = Span(name=name, start_seconds=self.now(), attributes=attributes)
        if self._tracer is None:
            yield span
            return
        present = _place.get()
        place = Place(above or present, None)
        try:
            with placed(place if encloses else present):
                yield span
        except Exception:
            span.failed = True
            raise
        finally:
            span.duration_seconds = self.now() - span.start_seconds
            self._tracer(span, place)

    def add(self, name: str, *, start_seconds: float, **attributes: Any) -> Span:
        """Record a span that ends now and began at a moment which was taken down earlier."""
        above = _place.get()
        span = Span(name=name, start_seconds=start_seconds, parent=_shown(above), attributes=attributes)
        self.spans.append(span)
        self._finish(span, Place(above, name))
        return span

    def last(self, name: str, *, succeeded: bool = True) -> Span | None:
        """Return the newest finished span of this name, a successful one unless told otherwise."""
        return self._newest.get((name, succeeded))

    def metrics(self) -> MetricsResponse:
        """Return what `/metrics.json` says (contract 02 §4.2)."""
        basebackup = self.last("try_get_basebackup")
        connect = self.last("basebackup.connect")
        extensions = self.last("load_ext")
        return MetricsResponse(
            wait_for_spec_ms=self._milliseconds("wait_for_spec"),
            sync_sk_check_ms=self._milliseconds("check_safekeepers_synced", succeeded=False),
            sync_safekeepers_ms=self._milliseconds("sync_safekeepers"),
            pageserver_connect_micros=connect.microseconds if connect else 0,
            basebackup_bytes=int(basebackup.attributes.get("bytes", 0)) if basebackup else 0,
            basebackup_ms=basebackup.milliseconds if basebackup else 0,
            start_postgres_ms=self._milliseconds("start_postgres"),
            config_ms=self._milliseconds("configure_as_primary"),
            total_startup_ms=self._milliseconds("total_startup"),
            load_ext_ms=extensions.milliseconds if extensions else 0,
            num_ext_downloaded=int(extensions.attributes.get("downloaded", 0)) if extensions else 0,
            largest_ext_size=int(extensions.attributes.get("largest", 0)) if extensions else 0,
            total_ext_download_size=int(extensions.attributes.get("total", 0)) if extensions else 0,
        )

    def _finish(self, span: Span, place: Place) -> None:
        span.duration_seconds = self.now() - span.start_seconds
        self._newest[span.name, False] = span
        if not span.failed:
            self._newest[span.name, True] = span
        self._tell(span)
        if self._tracer is not None:
            self._tracer(span, place)

    def _tell(self, span: Span) -> None:
        for listener in self._listeners:
            listener(span)

    def _milliseconds(self, name: str, *, succeeded: bool = True) -> int:
        span = self.last(name, succeeded=succeeded)
        return span.milliseconds if span else 0


def process_start() -> float:
    """Return the monotonic time at which this process was started, to the kernel's tick of usually 10 ms."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started)
