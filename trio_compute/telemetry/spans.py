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

MAX_SPANS = 1000

_parent: ContextVar[str | None] = ContextVar("span_parent", default=None)


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


class Recorder:
    """Measure spans from an origin: the start of the process, or the moment that a pooled compute got its spec."""

    def __init__(self, *, clock: Any = time.monotonic, origin: float | None = None) -> None:
        self._clock = clock
        self._origin = clock() if origin is None else origin
        self.spans: deque[Span] = deque(maxlen=MAX_SPANS)
        self._running: list[Span] = []
        self._listeners: list[Callable[[Span], None]] = []
        # Kept apart: the start must stay known when its spans have left the queue.
        self._newest: dict[tuple[str, bool], Span] = {}

    def listen(self, listener: Callable[[Span], None]) -> None:
        """Call a function with each span when it begins and when it is finished."""
        self._listeners.append(listener)

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
        span = Span(name=name, start_seconds=self.now(), parent=_parent.get(), attributes=attributes)
        self.spans.append(span)
        self._running.append(span)
        self._tell(span)
        token = _parent.set(name)
        try:
            yield span
        except BaseException:
            span.failed = True
            raise
        finally:
            _parent.reset(token)
            self._running = [other for other in self._running if other is not span]
            self._finish(span)

    def add(self, name: str, *, start_seconds: float, **attributes: Any) -> Span:
        """Record a span that ends now and began at a moment which was taken down earlier."""
        span = Span(name=name, start_seconds=start_seconds, parent=_parent.get(), attributes=attributes)
        self.spans.append(span)
        self._finish(span)
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

    def _finish(self, span: Span) -> None:
        span.duration_seconds = self.now() - span.start_seconds
        self._newest[span.name, False] = span
        if not span.failed:
            self._newest[span.name, True] = span
        self._tell(span)

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
