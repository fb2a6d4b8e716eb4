"""Unpack a basebackup, a gzip'd tar, into the data directory as it arrives (contract 07 §4.5, S-07, S-08).

Everything here blocks and belongs into a worker thread. Memory stays below a few MiB whatever the archive holds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from zlib_ng import zlib_ng

from trio_compute.errors import HostError, StorageError
from trio_compute.postgres.tar_stream import RefusedEntryError, TarStream, printable

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

_GZIP_WINDOW_BITS = 31
_GZIP_MAGIC = b"\x1f\x8b"
_INPUT_STEP_BYTES = 64 * 1024
_OUTPUT_STEP_BYTES = 256 * 1024
_OPEN_DIRECTORIES = 16
_CLOSED = -1

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a fifo that took the file's place must fail, not wait for a reader.
_OLD_FILE_FLAGS = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

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
            self._tree = _Tree(root, owner, keep)
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


class _Tree:
    """Write files and directories below a root without ever following a symbolic link."""

    def __init__(self, root: Path, owner: tuple[int, int] | None, keep: frozenset[str]) -> None:
        self.files = 0
        self.directories = 0
        self.path = b""
        self._owner = owner
        self._keep = frozenset(os.fsencode(name) for name in keep)
        self._file: int | None = None
        # The most recently used comes last; the root is held apart and never evicted.
        self._open: dict[bytes, int] = {}
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def make_directory(self, path: bytes) -> None:
        self.path = path
        self._directory(path)

    def begin_file(self, path: bytes) -> None:
        self.path = path
        parent, _, name = path.rpartition(b"/")
        if not name:
            raise RefusedEntryError("a file stands for the root directory")
        directory = self._directory(parent)
        try:
            self._file = os.open(name, _NEW_FILE_FLAGS, 0o600, dir_fd=directory)
        except FileExistsError:
            if path not in self._keep:
                self._file = _reopen(name, directory)
        if self._file is not None:
            self.files += 1
            self._own(self._file)

    def write(self, data: memoryview) -> None:
        if self._file is None:
            return
        written = os.write(self._file, data)
        while written < len(data):
            written += os.write(self._file, data[written:])

    def end_file(self) -> None:
        if self._file is not None:
            descriptor, self._file = self._file, None
            os.close(descriptor)

    def close(self) -> None:
        if self._root == _CLOSED:
            return
        descriptors = [self._root, *self._open.values()]
        if self._file is not None:
            descriptors.append(self._file)
        self._file, self._root = None, _CLOSED
        self._open.clear()
        for descriptor in descriptors:
            _close_quietly(descriptor)

    def _directory(self, path: bytes) -> int:
        """Return an open directory, creating it and its parents; the cache may close it at the next call."""
        if not path:
            return self._root
        descriptor = self._recall(path)
        if descriptor is None:
            descriptor = self._root
            for prefix in _prefixes(path):
                below = self._recall(prefix)
                descriptor = self._enter(prefix, descriptor) if below is None else below
        return descriptor

    def _recall(self, path: bytes) -> int | None:
        descriptor = self._open.pop(path, None)
        if descriptor is not None:
            self._open[path] = descriptor
        return descriptor

    def _enter(self, path: bytes, parent: int) -> int:
        name = path.rpartition(b"/")[2]
        created = _make_directory(name, parent)
        try:
            descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise RefusedEntryError(f"{printable(path)} exists and is not a directory") from error
            raise
        self._open[path] = descriptor
        if created:
            self.directories += 1
            self._own(descriptor)
        if len(self._open) > _OPEN_DIRECTORIES:
            os.close(self._open.pop(next(iter(self._open))))
        return descriptor

    def _own(self, descriptor: int) -> None:
        if self._owner is not None:
            os.fchown(descriptor, *self._owner)


def _prefixes(path: bytes) -> list[bytes]:
    """Return every directory on the way to a path, outermost first, and the path itself."""
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _make_directory(name: bytes, parent: int) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def _reopen(name: bytes, directory: int) -> int:
    """Empty an existing file and return its descriptor; raise RefusedEntryError if it is no file of this tree only."""
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise RefusedEntryError("what exists under the name is not a regular file")
    if status.st_nlink > 1:
        raise RefusedEntryError("the existing file has a second name, perhaps outside the data directory")
    descriptor = os.open(name, _OLD_FILE_FLAGS, dir_fd=directory)
    try:
        os.fchmod(descriptor, 0o600)
    except OSError:
        _close_quietly(descriptor)
        raise
    return descriptor


def _close_quietly(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


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
