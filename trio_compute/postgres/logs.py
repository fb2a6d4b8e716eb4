"""Postgres' stderr, one record per message (contract 04 §10, F-15, F-16)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import trio

from trio_compute.telemetry.logging import ZERO_WIDTH_SPACE, sink
from trio_compute.telemetry.redaction import redact

SILENCE_SECONDS = 0.1
MAX_RECORD_BYTES = 1024 * 1024
CHUNK_BYTES = 64 * 1024

_SEPARATOR = ZERO_WIDTH_SPACE.encode()
_SEPARATOR_BYTES = len(_SEPARATOR)
_RECORD_START = re.compile(rb"\d+-\d{2}-\d{2} \d{2}:\d{2}:\d{2}")


class RecordJoiner:
    """Join lines to records: a line that begins with a timestamp starts a new one. Pure; at most 1 MiB is held."""

    def __init__(self, *, max_record_bytes: int = MAX_RECORD_BYTES) -> None:
        self._max = max_record_bytes
        self._lines: list[bytes] = []
        self._size = 0
        self._rest = b""

    @property
    def pending(self) -> bool:
        """Tell whether complete lines wait for the end of their record."""
        return bool(self._lines)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and yield the records that are complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield from self._add(line)
        if len(self._rest) > self._max:
            line, self._rest = self._rest, b""
            yield from self._add(line)
            yield from self.flush()

    def flush(self) -> Iterator[bytes]:
        """Yield the record that the complete lines so far make."""
        if self._lines:
            record = _SEPARATOR.join(self._lines)
            self._lines, self._size = [], 0
            yield record

    def finish(self) -> Iterator[bytes]:
        """Yield what is left at the end of the stream, an unfinished line included."""
        line, self._rest = self._rest, b""
        if line:
            yield from self._add(line)
        yield from self.flush()

    def _add(self, line: bytes) -> Iterator[bytes]:
        if _RECORD_START.match(line) or self._size + len(line) > self._max:
            yield from self.flush()
        # A blank line belongs to the message that it is in; it never begins one.
        if self._lines or line.strip():
            self._lines.append(line)
            self._size += len(line) + _SEPARATOR_BYTES


async def collect_logs(stream: trio.abc.ReceiveStream) -> None:
    """Read a stream to its end and write its records to our stderr; never stops early and never waits for the sink."""
    joiner = RecordJoiner()
    last_line = trio.current_time()
    while True:
        data: bytes | None = None
        with trio.move_on_at(last_line + SILENCE_SECONDS if joiner.pending else float("inf")):
            data = bytes(await stream.receive_some(CHUNK_BYTES))
        if data is None:
            _write(joiner.flush())
        elif data:
            _write(joiner.feed(data))
            if b"\n" in data:
                last_line = trio.current_time()
        else:
            _write(joiner.finish())
            return


def _write(records: Iterator[bytes]) -> None:
    for record in records:
        sink.write(f"PG:{redact(record.decode('utf-8', 'replace'))}\n".encode())
