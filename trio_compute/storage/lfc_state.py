"""The state of the local file cache as it is stored: one zstd frame (contract 08 §3, §4).

The bytes inside are a dump that only Postgres understands. Both directions run in worker threads, piece by piece, so
that a cancellation is never far away and a frame that promises gigabytes cannot fill the memory.
"""

from __future__ import annotations

from typing import Any

import trio

from trio_compute.errors import StorageError

# What fits into one value of type bytea, with room for the message around it (08 L-10).
MAX_STATE_BYTES = 1024**3 - 1024
# Four bytes of a frame may stand for 128 KiB, so 1 KiB never becomes more than 32 MiB at once.
_INPUT_BYTES = 1024
_STEP_INPUT_BYTES = 1024 * 1024
_STEP_OUTPUT_BYTES = 32 * 1024 * 1024


async def decompress(frame: bytes, *, max_bytes: int = MAX_STATE_BYTES) -> bytes:
    """Return what one zstd frame holds; raise StorageError if it is none, is cut short, or holds too much."""
    decoder = await trio.to_thread.run_sync(_Decoder, frame, max_bytes)
    while not decoder.finished:
        await trio.to_thread.run_sync(decoder.step)
    return await trio.to_thread.run_sync(decoder.result)


async def compress(state: bytes) -> bytes:
    """Return a state as one zstd frame of the default level."""
    pieces: list[bytes] = []
    encoder = await trio.to_thread.run_sync(_new_encoder)
    for start in range(0, len(state), _STEP_OUTPUT_BYTES):
        piece = memoryview(state)[start : start + _STEP_OUTPUT_BYTES]
        pieces.append(await trio.to_thread.run_sync(encoder.compress, piece))
    pieces.append(await trio.to_thread.run_sync(encoder.flush))
    return b"".join(pieces)


class _Decoder:
    """Decode a frame step by step; each step is short."""

    def __init__(self, frame: bytes, max_bytes: int) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._decoder: Any = zstandard.ZstdDecompressor().decompressobj()
        self._frame = memoryview(frame)
        self._at = 0
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._produced = 0

    @property
    def finished(self) -> bool:
        return self._at >= len(self._frame) or bool(self._decoder.eof)

    def step(self) -> None:
        stop_at, stop_with = self._at + _STEP_INPUT_BYTES, self._produced + _STEP_OUTPUT_BYTES
        while not self.finished and self._at < stop_at and self._produced < stop_with:
            self._take(self._frame[self._at : self._at + _INPUT_BYTES])

    def _take(self, data: memoryview) -> None:
        try:
            piece = self._decoder.decompress(data)
        except self._error as error:
            raise StorageError(str(error)) from None
        self._at += len(data)
        self._pieces.append(piece)
        self._produced += len(piece)
        if self._produced > self._max_bytes:
            raise StorageError(f"it holds more than {self._max_bytes} bytes")

    def result(self) -> bytes:
        if not self._decoder.eof:
            raise StorageError("it is cut short")
        if self._decoder.unused_data or self._at < len(self._frame):
            raise StorageError("something follows the frame")
        return b"".join(self._pieces)


def _new_encoder() -> Any:
    import zstandard

    return zstandard.ZstdCompressor().compressobj()
