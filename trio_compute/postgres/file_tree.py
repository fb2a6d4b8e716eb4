"""Files of an archive, written below a directory that nothing in the archive can leave (contract 07 S-08, 06 R-19)."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from trio_compute.postgres.tar_stream import RefusedEntryError, printable

if TYPE_CHECKING:
    from pathlib import Path

_OPEN_DIRECTORIES = 16
_CLOSED = -1

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a fifo that took the file's place must fail, not wait for a reader.
_OLD_FILE_FLAGS = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileTree:
    """Write files and directories below a root without ever following a symbolic link: the sink of a `TarStream`.

    Methods raise OSError for what the machine refuses and RefusedEntryError for what an archive must not do.
    """

    def __init__(self, root: Path, owner: tuple[int, int] | None, keep: frozenset[str] = frozenset()) -> None:
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
        """Take a directory."""
        self.path = path
        self._directory(path)

    def begin_file(self, path: bytes) -> None:
        """Take the name of a file whose content follows."""
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
        """Take the next part of the content."""
        if self._file is None:
            return
        written = os.write(self._file, data)
        while written < len(data):
            written += os.write(self._file, data[written:])

    def end_file(self) -> None:
        """Close the file whose content is complete."""
        if self._file is not None:
            descriptor, self._file = self._file, None
            os.close(descriptor)

    def close(self) -> None:
        """Close every open file and directory; calling it again is harmless."""
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
