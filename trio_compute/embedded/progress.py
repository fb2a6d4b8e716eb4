"""What `trio-compute dev` shows of a start-up: one line per finished phase, and on a terminal the running one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from msgspec import Struct

CLEAR_LINE = "\r\x1b[K"

PHASES = {
    "check_safekeepers_synced": "ask the safekeepers",
    "sync_safekeepers": "sync the safekeepers",
    "basebackup.connect": "connect to the pageserver",
    "basebackup.unpack": "receive and unpack the basebackup",
    "start_postgres": "start Postgres",
    "configure_as_primary": "configure roles and databases",
    "total_startup": "whole start",
}


class SpanView(Struct, frozen=True):
    """Hold a span as `/spans` shows it."""

    name: str
    start_seconds: float
    duration_seconds: float | None = None
    parent: str | None = None
    failed: bool = False


class Progress:
    """Write progress for people: plain lines, or on a terminal one line that changes while a phase runs."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._told = 0

    def again(self) -> Progress:
        """Return progress for one more start on the same stream."""
        return Progress(self._stream)

    def say(self, text: str) -> None:
        """Write a line of its own."""
        self._stream.write(f"{CLEAR_LINE if self._is_terminal else ''}{text}\n")
        self._stream.flush()

    def show(self, spans: Sequence[SpanView]) -> None:
        """Tell what finished since the last time, and on a terminal what is running."""
        known = [span for span in spans if span.name in PHASES]
        finished = [span for span in known if span.duration_seconds is not None]
        for span in finished[self._told :]:
            mark = "failed" if span.failed else "ok"
            self.say(f"  {mark:>6}  {PHASES[span.name]:<36}{(span.duration_seconds or 0) * 1000:8.0f} ms")
        self._told = max(self._told, len(finished))
        running = [span for span in known if span.duration_seconds is None]
        if running and self._is_terminal:
            self._stream.write(f"{CLEAR_LINE}     ...  {PHASES[running[-1].name]}")
            self._stream.flush()
