"""Postgres' stderr as one record per message (contract 04 §10, F-15, F-16)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MemoryReceiveStream, MemorySendStream, MockClock, memory_stream_one_way_pair

from trio_compute.postgres import logs
from trio_compute.postgres.logs import RecordJoiner, collect_logs

ZWSP = "\u200b".encode()
FIRST = b"2026-01-15 12:00:00.000 UTC [1] LOG:  one"
SECOND = b"2026-01-15 12:00:01.000 UTC [1] ERROR:  two"
MEBIBYTE = 1024 * 1024


def join(*chunks: bytes) -> list[bytes]:
    """Return the records of a stream that comes in these chunks."""
    joiner = RecordJoiner()
    return [*(record for chunk in chunks for record in joiner.feed(chunk)), *joiner.finish()]


@pytest.mark.parametrize(
    ("stream", "records"),
    [
        (b"", []),
        (b"\n\n\n", []),
        (b" \n\t\n", []),
        (FIRST + b"\n", [FIRST]),
        (FIRST, [FIRST]),
        (FIRST + b"\n" + SECOND + b"\n", [FIRST, SECOND]),
        (FIRST + b"\nSTATEMENT: a\n\tb\n" + SECOND, [FIRST + ZWSP + b"STATEMENT: a" + ZWSP + b"\tb", SECOND]),
        (FIRST + b"\na\n\nb\n", [ZWSP.join([FIRST, b"a", b"", b"b"])]),
        (b"\n\n" + FIRST + b"\n", [FIRST]),
        (b"no time\nat all\n" + FIRST, [b"no time" + ZWSP + b"at all", FIRST]),
        (b"99999-01-15 12:00:00 x\n1-01-15 12:00:00 y\n", [b"99999-01-15 12:00:00 x", b"1-01-15 12:00:00 y"]),
        (FIRST + b"\n 2026-01-15 12:00:00 indented", [FIRST + ZWSP + b" 2026-01-15 12:00:00 indented"]),
        (FIRST + b"\n2026-1-15 12:00:00 short month", [FIRST + ZWSP + b"2026-1-15 12:00:00 short month"]),
        (FIRST + b"\n2026-01-15T12:00:00 other", [FIRST + ZWSP + b"2026-01-15T12:00:00 other"]),
        (FIRST + b" caf\xe9 \xff\n", [FIRST + b" caf\xe9 \xff"]),
    ],
)
def test_lines_are_joined_to_records(stream: bytes, records: list[bytes]) -> None:
    assert join(stream) == records
    assert join(*(stream[n : n + 1] for n in range(len(stream)))) == records


PIECES = st.sampled_from([FIRST, SECOND, b"text", b"\n", b"\n", b"", b" ", b"\xff", "ü".encode()])


@given(st.lists(PIECES, max_size=20), st.lists(st.integers(0, 300), max_size=5))
def test_records_do_not_depend_on_where_the_stream_is_cut(pieces: Sequence[bytes], cuts: Sequence[int]) -> None:
    stream = b"".join(pieces)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(edges)]
    records = join(stream)
    assert join(*chunks) == records
    assert all(record.replace(ZWSP, b"").strip() for record in records)
    assert b"".join(records).replace(ZWSP, b"").split() == stream.replace(b"\n", b"").split() or b" " in stream


def test_an_unfinished_line_waits_for_its_end() -> None:
    joiner = RecordJoiner()
    assert list(joiner.feed(FIRST[:20])) == []
    assert not joiner.pending
    assert list(joiner.flush()) == []
    assert list(joiner.feed(FIRST[20:] + b"\nhalf")) == []
    assert joiner.pending
    assert list(joiner.flush()) == [FIRST]
    assert not joiner.pending
    assert list(joiner.feed(b" a line\n")) == []
    assert list(joiner.finish()) == [b"half a line"]


def test_a_line_of_more_than_a_mebibyte_comes_in_pieces_and_loses_nothing() -> None:
    """F-16: memory is bounded, the collection goes on."""
    joiner, chunk = RecordJoiner(), b"x" * 65536
    records = list(joiner.feed(FIRST))
    for _ in range(40):
        records += joiner.feed(chunk)
    records += joiner.feed(b"\n" + SECOND + b"\n")
    records += joiner.finish()
    assert max(map(len, records)) <= MEBIBYTE + len(chunk)
    assert b"".join(records) == FIRST + chunk * 40 + SECOND
    assert records[-1] == SECOND


@pytest.mark.parametrize("line", [b"continuation line\n", b"\n", b" \n"])
def test_a_record_of_endless_short_lines_is_bounded_too(line: bytes) -> None:
    """F-16."""
    joiner = RecordJoiner(max_record_bytes=1000)
    records = list(joiner.feed(FIRST + b"\n"))
    for _ in range(50):
        records += joiner.feed(line * 100)
    records += joiner.finish()
    assert len(records) > 1 or not line.strip()
    assert max(map(len, records)) <= 1000 + len(line)


class Records:
    """A sink that keeps what it is given, and when."""

    def __init__(self) -> None:
        self.written: list[tuple[float, bytes]] = []

    def write(self, record: bytes) -> None:
        self.written.append((trio.current_time(), record))

    @property
    def lines(self) -> list[bytes]:
        return [record for _, record in self.written]


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Records:
    records = Records()
    monkeypatch.setattr(logs, "sink", records)
    return records


@pytest.fixture
def pipe() -> tuple[MemorySendStream, MemoryReceiveStream]:
    return memory_stream_one_way_pair()


Pipe = tuple[MemorySendStream, MemoryReceiveStream]


async def test_each_record_is_written_in_one_piece_with_its_prefix(pipe: Pipe, records: Records) -> None:
    send, receive = pipe
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_logs, receive)
        await send.send_all(FIRST + b"\nDETAIL: more\n" + SECOND + b"\n")
        await send.aclose()
    assert records.lines == [b"PG:" + FIRST + ZWSP + b"DETAIL: more\n", b"PG:" + SECOND + b"\n"]


async def test_a_byte_that_is_no_utf8_is_replaced_and_the_collection_goes_on(pipe: Pipe, records: Records) -> None:
    """F-15."""
    send, receive = pipe
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_logs, receive)
        await send.send_all(FIRST + b" caf\xe9\n" + SECOND + b"\n")
        await send.aclose()
    assert records.lines == [b"PG:" + FIRST + " caf\ufffd\n".encode(), b"PG:" + SECOND + b"\n"]


async def test_a_record_is_written_after_100_ms_of_silence(
    pipe: Pipe, records: Records, autojump_clock: MockClock
) -> None:
    send, receive = pipe
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_logs, receive)
        began = trio.current_time()
        await send.send_all(FIRST + b"\n")
        await trio.sleep(0.09)
        assert records.lines == []
        await send.send_all(b"DETAIL: still the same record\n")
        await trio.sleep(0.099)
        assert records.lines == []
        await trio.sleep(1)
        await send.send_all(b"HINT: too late\n")
        await send.aclose()
    assert records.lines == [b"PG:" + FIRST + ZWSP + b"DETAIL: still the same record\n", b"PG:HINT: too late\n"]
    assert records.written[0][0] - began == pytest.approx(0.19)


async def test_half_a_line_does_not_put_off_the_lines_before_it(
    pipe: Pipe, records: Records, autojump_clock: MockClock
) -> None:
    """The limit is 100 ms without a new line, not without a new byte."""
    send, receive = pipe
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_logs, receive)
        began = trio.current_time()
        await send.send_all(FIRST + b"\n")
        for _ in range(10):
            await trio.sleep(0.05)
            await send.send_all(b"x")
        await send.aclose()
    assert records.lines == [b"PG:" + FIRST + b"\n", b"PG:xxxxxxxxxx\n"]
    assert records.written[0][0] - began == pytest.approx(0.1, abs=0.051)


async def test_half_a_line_waits_as_long_as_it_takes(pipe: Pipe, records: Records, autojump_clock: MockClock) -> None:
    send, receive = pipe
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_logs, receive)
        await send.send_all(FIRST[:30])
        await trio.sleep(3600)
        assert records.lines == []
        await send.send_all(FIRST[30:] + b"\n")
        await send.aclose()
    assert records.lines == [b"PG:" + FIRST + b"\n"]


async def test_secrets_in_postgres_own_log_are_redacted(pipe: Pipe, records: Records) -> None:
    """01 B-12."""
    send, receive = pipe
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_logs, receive)
        await send.send_all(FIRST + b": CREATE ROLE a LOGIN PASSWORD 'hunter2hunter2'\n")
        await send.aclose()
    assert b"hunter2" not in records.lines[0]


async def test_an_empty_stream_writes_nothing(pipe: Pipe, records: Records) -> None:
    send, receive = pipe
    await send.aclose()
    await collect_logs(receive)
    assert records.lines == []
