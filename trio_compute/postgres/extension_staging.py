"""Private directories beside those of Postgres, out of which complete extensions are moved in (contract 06 R-19, R-20).

Everything here blocks and belongs into a worker thread, but `open_staging`. A directory is locked for as long as its
owner lives, so that whatever a killed process left can be told from what another compute is at.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from msgspec import Struct

from trio_compute.errors import HostError
from trio_compute.telemetry.logging import get_logger

PREFIX = ".trio-compute-ext-"

_BACKUP = "replaced"
_NEW = "new"
_ATTEMPTS = 3
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

log = get_logger("extensions")


class Places(Struct, frozen=True):
    """Name the directories of one installation: of control files and scripts, and of libraries."""

    extension: Path
    library: Path


class Staging:
    """Hold what is to be installed in directories of one's own, on the file systems of the targets."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._libraries: _Stage | None = None
        self._extensions: _Stage | None = None

    @property
    def library(self) -> Path:
        """Return where libraries are staged; made when it is asked for. Raises HostError."""
        if self._libraries is None:
            self._libraries = _open_stage(self._places.library, 0o755)
        return self._libraries.new

    @property
    def extension(self) -> Path:
        """Return where control files and scripts are staged; made when it is asked for. Raises HostError."""
        return self._open_extensions().new

    def _open_extensions(self) -> _Stage:
        if self._extensions is None:
            self._extensions = _open_stage(self._places.extension, 0o644)
        return self._extensions

    @property
    def _stages(self) -> list[_Stage]:
        # Libraries go first and control files last: whoever sees an extension finds all of it.
        return [stage for stage in (self._libraries, self._extensions) if stage is not None]

    def install(self) -> int:
        """Move all files to their places, each in one step, or none of them; return their number. Raises HostError."""
        moves = _Moves()
        try:
            for stage in self._stages:
                stage.move_in(moves)
        except OSError as error:
            moves.undo()
            raise HostError(f"cannot install {moves.current}: {error.strerror}") from error
        return moves.files

    def add_new(self, files: Iterable[tuple[str, str]]) -> list[str]:
        """Write control files that are not there yet; return the names of those that are. Raises HostError."""
        extension, present = self._open_extensions(), []
        for name, text in files:
            try:
                extension.link_in(name, text)
            except FileExistsError:
                present.append(name)
            except OSError as error:
                raise HostError(f"cannot write {extension.target / name}: {error.strerror}") from error
        return present

    def remove(self) -> None:
        """Remove the directories and whatever is still in them."""
        for stage in self._stages:
            stage.remove()


@asynccontextmanager
async def open_staging(places: Places) -> AsyncIterator[Staging]:
    """Stage in a block, whose every way of leaving removes what was not installed; raise HostError."""
    staging = await trio.to_thread.run_sync(Staging, places)
    try:
        yield staging
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(staging.remove)


def sweep(places: Places) -> int:
    """Remove what killed processes left in the directories of an installation; return how many there were."""
    return sum(_sweep(directory) for directory in {places.extension, places.library})


def _sweep(target: Path) -> int:
    swept = 0
    for path in _leftovers(target):
        descriptor = _lock(path)
        if descriptor is None:
            continue
        _remove_tree(path)
        os.close(descriptor)
        swept += 1
    return swept


def _leftovers(target: Path) -> list[Path]:
    try:
        return [path for path in target.iterdir() if path.name.startswith(PREFIX)]
    except OSError as error:
        log.warning("cannot look for leftovers", directory=target, error=error.strerror)
        return []


def _lock(path: Path) -> int | None:
    """Return the descriptor of a directory that is locked by it now, or None if it is someone else's or gone."""
    try:
        descriptor = os.open(path, _DIRECTORY_FLAGS)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = path.stat(follow_symlinks=False).st_ino == os.fstat(descriptor).st_ino
    except OSError:
        is_ours = False
    if is_ours:
        return descriptor
    os.close(descriptor)
    return None


def _remove_tree(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        log.warning("cannot remove a temporary directory", path=path, error=error.strerror)


def _open_stage(target: Path, mode: int) -> _Stage:
    try:
        return _Stage(target, mode)
    except OSError as error:
        raise HostError(f"cannot write into {target}: {error.strerror}") from error


class _Stage:
    """Be one private directory inside of a target, and thus on its file system."""

    def __init__(self, target: Path, mode: int) -> None:
        self.target = target
        self._mode = mode
        self._lock: int | None
        self._root, self._lock = _make_locked(target)
        self.new, self._backup = self._root / _NEW, self._root / _BACKUP
        try:
            self.new.mkdir(mode=0o700)
            self._backup.mkdir(mode=0o700)
        except OSError:
            self.remove()
            raise

    def move_in(self, moves: _Moves) -> None:
        for staged in _files_below(self.new):
            staged.chmod(self._mode)
            moves.move(staged, self.target, staged.relative_to(self.new), self._backup / str(moves.files))

    def link_in(self, name: str, text: str) -> None:
        staged = self.new / name
        staged.write_text(text, encoding="utf-8", errors="replace")
        staged.chmod(self._mode)
        # Unlike a move, a link never replaces a file that someone else made meanwhile.
        os.link(staged, self.target / name)

    def remove(self) -> None:
        if self._lock is not None:
            _remove_tree(self._root)
            os.close(self._lock)
            self._lock = None


def _make_locked(target: Path) -> tuple[Path, int]:
    for _ in range(_ATTEMPTS):
        root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=target))
        lock = _lock(root)
        if lock is not None:
            return root, lock
        # Another compute's sweep may have been faster.
        with contextlib.suppress(FileNotFoundError):
            root.rmdir()
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(target))


def _files_below(root: Path) -> Iterator[Path]:
    paths = sorted(path for path in root.rglob("*") if not path.is_dir())
    yield from sorted(paths, key=lambda path: path.suffix == ".control")


def _keep(path: Path, backup: Path) -> bool:
    """Give a file a second name, or copy it where the kernel forbids that; return False if there is no such file."""
    try:
        os.link(path, backup, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        shutil.copy2(path, backup)
    return True


class _Moves:
    """Remember moves so that they can be taken back."""

    def __init__(self) -> None:
        self.files = 0
        self.current: Path | None = None
        self._undo: list[tuple[Path, Path | None]] = []

    def move(self, staged: Path, target: Path, place: Path, backup: Path) -> None:
        self.current = path = target / place
        for parent in reversed(list(place.parents)[:-1]):
            self._make_directory(target / parent)
        replaced = _keep(path, backup)
        staged.replace(path)
        self.files += 1
        self._undo.append((path, backup if replaced else None))

    def undo(self) -> None:
        for path, backup in reversed(self._undo):
            try:
                _take_back(path, backup)
            except OSError as error:
                log.warning("cannot take back what was installed", path=path, error=error.strerror)

    def _make_directory(self, path: Path) -> None:
        if not path.is_dir():
            path.mkdir()
            path.chmod(0o755)
            self._undo.append((path, None))


def _take_back(path: Path, backup: Path | None) -> None:
    if backup is not None:
        backup.replace(path)
    elif path.is_dir():
        path.rmdir()
    else:
        path.unlink()
