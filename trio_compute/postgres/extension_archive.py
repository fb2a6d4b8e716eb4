"""Decode an extension's archive, a zstd'd tar, as it arrives, and refuse what is hostile (contract 06 §10.5, R-18).

Everything here blocks and belongs into a worker thread. Memory stays bounded whatever the archive holds.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from msgspec import Struct

from trio_compute.errors import HostError, StorageError
from trio_compute.postgres.extension_staging import Staging
from trio_compute.postgres.file_tree import FileTree
from trio_compute.postgres.tar_stream import RefusedEntryError, TarStream

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

# A thousand bytes of zstd may stand for 32 MiB, all of which the decoder returns at once.
_INPUT_STEP_BYTES = 1024
_OUTPUT_STEP_BYTES = 256 * 1024
_LARGEST_WINDOW_BYTES = 128 * 1024 * 1024  # what the zstd program accepts without being told

_MIB = 1024 * 1024

_SCRIPTS = b"share/extension"
_LIBRARIES = b"lib"


class Limits(Struct, frozen=True):
    """Say how large an archive may be (R-18)."""

    compressed_bytes: int = 1024 * _MIB
    unpacked_bytes: int = 4096 * _MIB
    entries: int = 50_000


class ArchiveUnpacker:
    """Unpack one archive into a staging: `share/extension` and `lib` of it, the rest is only looked at.

    Raises StorageError for an archive that is broken, refused or not the one whose SHA-256 (hex) is given, and
    HostError for what this machine refuses.
    """

    def __init__(
        self, staging: Staging, filename: str, *, sha256: str | None = None, limits: Limits | None = None
    ) -> None:
        import zstandard

        self._limits = limits or Limits()
        self._sink = _Sink(staging, self._limits.entries)
        self._tar = TarStream(self._sink, what=filename)
        self._what = filename
        self._zstd = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW_BYTES)
        self._zstd_error: type[Exception] = zstandard.ZstdError
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._expected = sha256
        self._digest = hashlib.sha256()
        self._bytes_out = 0
        self._aborted = False
        self.bytes_in = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink.close()

    def abort(self) -> None:
        """Let a `feed` that runs in another thread fail soon."""
        self._aborted = True

    def feed(self, data: bytes) -> None:
        """Unpack the next bytes."""
        self.bytes_in += len(data)
        if self.bytes_in > self._limits.compressed_bytes:
            raise StorageError(f"{self._what}: the archive is larger than {self._limits.compressed_bytes} bytes")
        if self._expected is not None:
            self._digest.update(data)
        for start in range(0, len(data), _INPUT_STEP_BYTES):
            self._decode(data[start : start + _INPUT_STEP_BYTES])

    def finish(self) -> None:
        """Demand that zstd and tar are complete and that the digest is the expected one."""
        if self._frame is not None or not self.bytes_in:
            raise StorageError(f"{self._what}: the zstd stream ends early, after {self.bytes_in} bytes")
        self._tar.finish()
        if self._expected is not None and self._digest.hexdigest() != self._expected.lower():
            raise StorageError(f"{self._what}: the SHA-256 of the archive is not the one in the spec")

    def _decode(self, piece: bytes) -> None:
        while piece:
            if self._frame is None:
                self._frame = self._zstd.decompressobj()
            try:
                output = self._frame.decompress(piece)
            except self._zstd_error as error:
                raise StorageError(f"{self._what}: the zstd stream is corrupt: {error}") from error
            # Several frames may follow one another, as parallel compressors make them.
            piece = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
            self._take(output)

    def _take(self, output: bytes) -> None:
        self._bytes_out += len(output)
        if self._bytes_out > self._limits.unpacked_bytes:
            raise StorageError(f"{self._what}: the archive unpacks to more than {self._limits.unpacked_bytes} bytes")
        for start in range(0, len(output), _OUTPUT_STEP_BYTES):
            if self._aborted:
                raise StorageError(f"{self._what}: unpacking was interrupted")
            try:
                self._tar.feed(output[start : start + _OUTPUT_STEP_BYTES])
            except OSError as error:
                raise HostError(f"cannot unpack {self._what}: {error.strerror}") from error


class _Sink:
    """Send what an archive holds to the two directories of a staging."""

    def __init__(self, staging: Staging, most_entries: int) -> None:
        self._staging = staging
        self._trees: dict[bytes, FileTree] = {}
        self._current: FileTree | None = None
        self._entries_left = most_entries

    def make_directory(self, path: bytes) -> None:
        tree, rest = self._locate(path)
        if tree is not None:
            tree.make_directory(rest)

    def begin_file(self, path: bytes) -> None:
        self._current, rest = self._locate(path)
        if self._current is not None:
            self._current.begin_file(rest)

    def write(self, data: memoryview) -> None:
        if self._current is not None:
            self._current.write(data)

    def end_file(self) -> None:
        if self._current is not None:
            self._current.end_file()

    def close(self) -> None:
        for tree in self._trees.values():
            tree.close()

    def _locate(self, path: bytes) -> tuple[FileTree | None, bytes]:
        self._entries_left -= 1
        if self._entries_left < 0:
            raise RefusedEntryError("there are too many entries")
        for prefix in (_SCRIPTS, _LIBRARIES):
            if path == prefix or path.startswith(prefix + b"/"):
                return self._tree(prefix), path[len(prefix) + 1 :]
        return None, path

    def _tree(self, prefix: bytes) -> FileTree:
        """Return where entries of this directory go; an installation may lack the one that no archive needs."""
        if prefix not in self._trees:
            root = self._staging.extension if prefix == _SCRIPTS else self._staging.library
            self._trees[prefix] = FileTree(root, None)
        return self._trees[prefix]
