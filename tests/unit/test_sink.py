"""The way to stderr: a stalled reader stalls nobody (contract 04 F-16)."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import pytest

from trio_compute.telemetry.sink import Sink

PIPE_BYTES = 4096
RECORD = b"x" * 999 + b"\n"


class Pipe:
    """A pipe that holds one page, and its reader."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def read_to_end(self) -> bytes:
        parts = []
        while part := os.read(self.reading, 65536):
            parts.append(part)
        return b"".join(parts)

    def close_writing(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_writing()
    os.close(pipe.reading)


@contextmanager
def reading(pipe: Pipe) -> Iterator[list[bytes]]:
    """Read everything in a thread; the list holds it after the block, which must close the writing end."""
    result: list[bytes] = []
    thread = threading.Thread(target=lambda: result.append(pipe.read_to_end()))
    thread.start()
    yield result
    pipe.close_writing()
    thread.join(5)
    assert not thread.is_alive()


def test_records_come_out_whole_and_in_order(pipe: Pipe) -> None:
    sink = Sink(pipe.writing)
    with reading(pipe) as result:
        for number in range(2000):
            sink.write(b"%06d\n" % number)
        assert sink.close(5)
    assert result[0] == b"".join(b"%06d\n" % number for number in range(2000))
    assert sink.dropped == 0


def test_a_stalled_reader_never_blocks_the_writer(pipe: Pipe) -> None:
    """F-16: what does not fit is dropped and counted."""
    sink = Sink(pipe.writing, capacity_bytes=20 * len(RECORD))
    began = monotonic()
    for _ in range(5000):
        sink.write(RECORD)
    assert monotonic() - began < 2
    assert 0 < sink.dropped < 5000
    with reading(pipe) as result:
        assert sink.close(5)
    kept = result[0].count(RECORD)
    assert kept + sink.dropped == 5000
    assert kept <= 20 + PIPE_BYTES // len(RECORD) + 20


def test_the_number_of_dropped_records_is_said_once_there_is_room(pipe: Pipe) -> None:
    sink = Sink(pipe.writing, capacity_bytes=10 * len(RECORD))
    for _ in range(100):
        sink.write(RECORD)
    dropped = sink.dropped
    assert dropped > 0
    with reading(pipe) as result:
        assert sink.close(5)
    text = result[0].replace(RECORD, b"").decode()
    assert sum(int(line.split()[0]) for line in text.splitlines()) == dropped
    assert all("dropped" in line for line in text.splitlines())


def test_dropped_records_are_reported_without_waiting_for_another_one(pipe: Pipe) -> None:
    """All that did not fit came while one large batch was on its way; nothing follows."""
    sink = Sink(pipe.writing, capacity_bytes=PIPE_BYTES * 4)
    sink.write(b"a" * PIPE_BYTES * 4)
    sink.write(RECORD)
    assert sink.dropped == 1
    with reading(pipe) as result:
        assert sink.close(5)
    assert result[0].startswith(b"a" * PIPE_BYTES * 4)
    assert b"1 log records dropped" in result[0]


def test_bytes_on_their_way_count_until_they_are_written(pipe: Pipe) -> None:
    """The queue must not fill a second time while the first batch is stuck in the pipe."""
    sink = Sink(pipe.writing, capacity_bytes=50 * len(RECORD))
    for _ in range(200):
        sink.write(RECORD)
    threading.Event().wait(0.02)
    for _ in range(200):
        sink.write(RECORD)
    with reading(pipe) as result:
        assert sink.close(5)
    assert result[0].count(RECORD) <= 100
    assert result[0].count(RECORD) + sink.dropped == 400


def test_closing_gives_up_at_its_deadline(pipe: Pipe) -> None:
    sink = Sink(pipe.writing)
    sink.write(b"y" * PIPE_BYTES * 4)
    began = monotonic()
    assert sink.close(0.05) is False
    assert 0.04 < monotonic() - began < 1
    with reading(pipe) as result:
        assert sink.close(5)
    assert result[0] == b"y" * PIPE_BYTES * 4


def test_a_sink_that_was_never_used_starts_no_thread(pipe: Pipe) -> None:
    before = threading.active_count()
    assert Sink(pipe.writing).close() is True
    assert threading.active_count() == before


def test_what_comes_after_closing_is_dropped(pipe: Pipe) -> None:
    sink = Sink(pipe.writing)
    sink.write(b"first\n")
    assert sink.close(5)
    sink.write(b"second\n")
    assert sink.dropped == 1
    pipe.close_writing()
    assert pipe.read_to_end() == b"first\n"


def test_a_reader_that_went_away_is_no_error() -> None:
    reading_fd, writing_fd = os.pipe()
    os.close(reading_fd)
    sink = Sink(writing_fd)
    for _ in range(10):
        sink.write(RECORD)
    sink.close(5)
    sink.write(RECORD)
    os.close(writing_fd)


def test_a_descriptor_that_does_not_block_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    sink = Sink(pipe.writing)
    sink.write(b"z" * PIPE_BYTES * 8)
    with reading(pipe) as result:
        assert sink.close(5)
    assert result[0] == b"z" * PIPE_BYTES * 8
