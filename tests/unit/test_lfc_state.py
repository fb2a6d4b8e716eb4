"""The stored state of the file cache: one zstd frame, decoded within bounds (contract 08 §3 step 7, L-10)."""

from __future__ import annotations

import os
import tracemalloc

import pytest
import trio
import zstandard

from trio_compute.errors import StorageError
from trio_compute.storage import lfc_state
from trio_compute.storage.lfc_state import MAX_STATE_BYTES, compress, decompress

MIB = 1024 * 1024


def test_the_limit_is_that_of_a_bytea() -> None:
    """L-10."""
    assert MAX_STATE_BYTES == 2**30 - 2**10


@pytest.mark.parametrize("state", [b"", b"x", b"abc" * 100_000, os.urandom(3 * MIB)], ids=len)
async def test_what_is_packed_can_be_unpacked(state: bytes) -> None:
    frame = await compress(state)
    assert await decompress(frame) == state
    assert zstandard.ZstdDecompressor().decompressobj().decompress(frame) == state


async def test_a_frame_of_any_writer_is_understood() -> None:
    """With and without the size in its header, with a checksum, of another level."""
    state = os.urandom(1000) * 1000
    for options in ({"level": 19}, {"write_checksum": True}, {"write_content_size": False}):
        assert await decompress(zstandard.ZstdCompressor(**options).compress(state)) == state  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [1, 2, 100, 5000])
async def test_a_frame_that_is_cut_short_is_refused(cut: int) -> None:
    frame = await compress(os.urandom(10_000))
    with pytest.raises(StorageError, match="it is cut short"):
        await decompress(frame[:-cut])


async def test_nothing_is_a_frame_that_is_cut_short() -> None:
    with pytest.raises(StorageError, match="it is cut short"):
        await decompress(b"")


@pytest.mark.parametrize("frame", [b"no frame at all", b"\0" * 100])
async def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(StorageError, match="zstd decompress"):
        await decompress(frame)


async def test_a_damaged_frame_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(os.urandom(100_000)))
    frame[50_000] ^= 0xFF
    with pytest.raises(StorageError, match="zstd decompress"):
        await decompress(bytes(frame))


@pytest.mark.parametrize("follows", [b"x", b"y" * 5000])
async def test_what_follows_the_frame_is_refused(follows: bytes) -> None:
    for tail in (follows, await compress(follows)):
        with pytest.raises(StorageError, match="something follows the frame"):
            await decompress(await compress(b"state") + tail)


async def test_a_state_of_exactly_the_limit_is_accepted_and_one_more_byte_is_not() -> None:
    state = b"a" * 100_000
    frame = await compress(state)
    assert await decompress(frame, max_bytes=len(state)) == state
    with pytest.raises(StorageError, match="it holds more than 99999 bytes"):
        await decompress(frame, max_bytes=len(state) - 1)


async def test_a_frame_that_promises_gigabytes_does_not_fill_the_memory() -> None:
    encoder = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(16 * MIB)
    bomb = b"".join(encoder.compress(zeros) for _ in range(32)) + encoder.flush()
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(StorageError, match="it holds more than"):
            await decompress(bomb, max_bytes=8 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 80 * MIB
    finally:
        tracemalloc.stop()


async def test_decoding_can_be_cancelled_between_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = await compress(os.urandom(MIB))
    monkeypatch.setattr(lfc_state, "_STEP_OUTPUT_BYTES", 1)
    steps = []
    original = lfc_state._Decoder.step

    def step(decoder: lfc_state._Decoder) -> None:
        steps.append(1)
        if len(steps) == 3:
            trio.from_thread.run_sync(scope.cancel)
        original(decoder)

    monkeypatch.setattr(lfc_state._Decoder, "step", step)
    with trio.CancelScope() as scope:
        await decompress(frame)
    assert scope.cancelled_caught
    assert len(steps) == 3
