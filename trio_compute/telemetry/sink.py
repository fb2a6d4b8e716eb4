"""The way to stderr: a bounded queue and one writer thread, a stalled reader stalls nobody (contract 04 F-16)."""

from __future__ import annotations

import os
import threading
from collections import deque
from time import monotonic, sleep

CAPACITY_BYTES = 8 * 1024 * 1024
GATHER_SECONDS = 0.005


class Sink:
    """Write whole records to a file descriptor from a thread of its own; drop and count what does not fit."""

    def __init__(self, fd: int, *, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._fd = fd
        self._capacity = capacity_bytes
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._unreported = 0
        self._dropped = 0
        self._closing = False
        self._is_waiting = False
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Return how many records were dropped since the start."""
        return self._dropped

    def write(self, record: bytes) -> None:
        """Queue one record; never blocks."""
        with self._condition:
            if self._closing or self._queued_bytes + len(record) > self._capacity:
                self._dropped += 1
                self._unreported += 1
                return
            self._queue.append(record)
            self._queued_bytes += len(record)
            if self._thread is None:
                self._thread = threading.Thread(target=self._drain, name="log-sink", daemon=True)
                self._thread.start()
            if self._is_waiting:
                self._is_waiting = False
                self._condition.notify()

    def close(self, timeout_seconds: float = 1.0) -> bool:
        """Write out what is queued, for a limited time; return whether all of it went out."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread is not None:
            deadline = monotonic() + timeout_seconds
            self._thread.join(max(0.0, deadline - monotonic()))
            return not self._thread.is_alive()
        return True

    def _drain(self) -> None:
        while True:
            with self._condition:
                while not (self._queue or self._unreported or self._closing):
                    self._is_waiting = True
                    self._condition.wait()
                if not (self._queue or self._unreported):
                    return
                closing = self._closing
            if not closing:
                # Whoever writes much is not interrupted for each record.
                sleep(GATHER_SECONDS)
            with self._condition:
                batch = b"".join(self._queue)
                self._queue.clear()
                unreported, self._unreported = self._unreported, 0
            if unreported:
                batch += f"{unreported} log records dropped: the reader of stderr is too slow\n".encode()
            written = self._write_all(batch)
            with self._condition:
                # The bytes count as queued until they are written: a stalled reader must not let the queue refill.
                self._queued_bytes = sum(map(len, self._queue))
            if not written:
                return

    def _write_all(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                threading.Event().wait(0.01)
            except OSError:
                # Nobody reads stderr any more, and there is nowhere left to say so.
                return False
        return True
