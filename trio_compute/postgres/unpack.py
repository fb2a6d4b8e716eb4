"""Unpack a basebackup, a gzip'd tar, into the data directory as it arrives (contract 07 §4.5, S-07, S-08).

Everything here blocks and belongs into a worker thread. Memory stays below a few MiB whatever the archive holds.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from zlib_ng import zlib_ng

from trio_compute.errors import HostError, StorageError
from trio_compute.postgres.file_tree import FileTree
from trio_compute.postgres.tar_stream import TarStream, printable

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

_GZIP_WINDOW_BITS = 31
_GZIP_MAGIC = b"\x1f\x8b"
_INPUT_STEP_BYTES = 64 * 1024
_OUTPUT_STEP_BYTES = 256 * 1024

_SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")
_SEGMENT_SIZES_BYTES = frozenset(1 << power for power in range(20, 31))

_zlib_error: type[Exception] = zlib_ng.error  # type: ignore[assignment]  # its stub declares an instance


class Summary(NamedTuple):
    """What was unpacked: files written, directories created, bytes of gzip and of tar."""

    files: int
    directories: int
    bytes_in: int
    bytes_out: int


class Unpacker:
    """Unpack one gzip'd tar into the existing directory `root`.

    Files become 0600 and directories 0700, owned by `owner` (uid, gid) if given. Existing files are overwritten,
    except those whose archive name is in `keep`. The first error closes the unpacker and leaves the tree half
    written. Raises StorageError for an archive that is broken or refused, HostError for what this machine refuses.
    """

    def __init__(self, root: Path, *, owner: tuple[int, int] | None = None, keep: frozenset[str] = frozenset()) -> None:
        try:
            self._tree = FileTree(root, owner, keep)
        except OSError as error:
            raise HostError(f"cannot open {root}: {error.strerror}") from error
        self._root = root
        self._tar = TarStream(self._tree)
        self._gzip = zlib_ng.decompressobj(wbits=_GZIP_WINDOW_BITS)
        self._bytes_in = 0
        self._bytes_out = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def feed(self, data: bytes | memoryview) -> None:
        """Unpack the next bytes of the archive."""
        self._require_open()
        try:
            view = memoryview(data).cast("B")
            for start in range(0, len(view), _INPUT_STEP_BYTES):
                self._inflate(view[start : start + _INPUT_STEP_BYTES])
        except OSError as error:
            self.close()
            path = os.fsencode(self._root / os.fsdecode(self._tree.path))
            raise HostError(f"cannot unpack {printable(path)}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def finish(self) -> Summary:
        """Demand that both gzip and tar are complete, close everything and return the summary."""
        self._require_open()
        self.close()
        if not self._gzip.eof:
            what = f"the gzip stream ends early, after {self._bytes_in} bytes"
            raise StorageError(f"basebackup: {what}, in {self._tar.place}")
        self._tar.finish()
        return Summary(self._tree.files, self._tree.directories, self._bytes_in, self._bytes_out)

    def close(self) -> None:
        """Close every open file and directory; calling it again is harmless."""
        self._closed = True
        self._tree.close()

    def _require_open(self) -> None:
        if self._closed:
            raise StorageError("basebackup: the unpacker is closed already")

    def _inflate(self, piece: memoryview) -> None:
        start = self._bytes_in
        if self._gzip.eof:
            raise self._trailing_data(bytes(piece[:2]))
        self._bytes_in += len(piece)
        rest: bytes | memoryview = piece
        output_is_full = False
        # At the end of the stream `unconsumed_tail` may stay what it was, for ever.
        while (rest or output_is_full) and not self._gzip.eof:
            try:
                output = self._gzip.decompress(rest, _OUTPUT_STEP_BYTES)
            except _zlib_error as error:
                what = f"the gzip stream is corrupt, at or after its byte {start}"
                raise StorageError(f"basebackup: {what}, in {self._tar.place}: {error}") from error
            self._bytes_out += len(output)
            self._tar.feed(output)
            rest = self._gzip.unconsumed_tail
            output_is_full = len(output) == _OUTPUT_STEP_BYTES
        if self._gzip.unused_data:
            self._bytes_in -= len(self._gzip.unused_data)
            raise self._trailing_data(self._gzip.unused_data)

    def _trailing_data(self, data: bytes) -> StorageError:
        what = "a second gzip member" if data.startswith(_GZIP_MAGIC) else "data"
        return StorageError(f"basebackup: {what} follows the gzip stream, which ended at byte {self._bytes_in}")


def check_complete(root: Path) -> None:
    """Raise StorageError unless PG_VERSION, global/pg_control and one whole WAL segment are there."""
    try:
        missing = [name for name in ("PG_VERSION", "global/pg_control") if not (root / name).is_file()]
        if not _has_wal_segment(root / "pg_wal"):
            missing.append("a whole segment in pg_wal")
    except OSError as error:
        raise HostError(f"cannot look into {error.filename or root}: {error.strerror}") from error
    if missing:
        raise StorageError(f"basebackup: the unpacked data directory lacks {', '.join(missing)}")


def _has_wal_segment(directory: Path) -> bool:
    try:
        with os.scandir(directory) as entries:
            return any(_is_wal_segment(entry) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_wal_segment(entry: os.DirEntry[str]) -> bool:
    if _SEGMENT_NAME.fullmatch(entry.name) is None or not entry.is_file(follow_symlinks=False):
        return False
    return entry.stat(follow_symlinks=False).st_size in _SEGMENT_SIZES_BYTES
