"""Basebackups on disk: made from a data directory at rest, served to whoever starts next."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from zlib_ng import gzip_ng

from trio_compute.errors import HostError, StorageError
from trio_compute.model.ids import Lsn

GZIP_LEVEL = 1
SKIPPED_FILES = frozenset(
    {"postgresql.conf", "postmaster.pid", "postmaster.opts", "standby.signal", "compute_ctl_temp_override.conf"}
    | {"neon_stand_in_prewarm"}
    | {"server.key", "server.crt", "logfile", "neon.signal", "zenith.signal", "neon-communicator.socket"}
    | {"recovery.signal"}
)
EMPTIED_DIRECTORIES = frozenset({"pg_wal", "pg_dynshmem", "pg_stat_tmp", "pg_replslot", "log"})


class Snapshots:
    """Keep the basebackups of one timeline, each named after its LSN."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def lsns(self) -> list[Lsn]:
        """Return the LSNs that can be served, oldest first."""
        names = (path.name.removesuffix(".tar.gz") for path in self._directory.glob("*.tar.gz"))
        return sorted(Lsn(int(name, 16)) for name in names if re.fullmatch(r"[0-9A-F]{16}", name))

    def path(self, lsn: Lsn) -> Path:
        """Return the file of a snapshot."""
        return self._directory / f"{int(lsn):016X}.tar.gz"

    def newest(self) -> Lsn | None:
        """Return the newest LSN, or None while there is no snapshot."""
        return max(self.lsns(), default=None)

    def newest_at(self, lsn: Lsn | None) -> Lsn:
        """Return the newest LSN that is not after one; raise StorageError if there is none."""
        known = [candidate for candidate in self.lsns() if lsn is None or candidate <= lsn]
        if not known:
            raise StorageError("not found" if lsn is None else f"no basebackup at or before {lsn}")
        return known[-1]

    def at(self, lsn: Lsn | None) -> Path:
        """Return the snapshot that serves an LSN: the newest one not after it; raise StorageError if there is none."""
        return self.path(self.newest_at(lsn))

    def capture(self, pgdata: Path, lsn: Lsn, wal_file: str, *, keep: int = 3) -> None:
        """Pack a data directory at rest into the snapshot of an LSN; blocking. Older ones beyond `keep` are removed."""
        self._directory.mkdir(parents=True, exist_ok=True)
        target = self.path(lsn)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.touch(mode=0o600)
            with gzip_ng.open(temporary, "wb", compresslevel=GZIP_LEVEL) as stream:  # type: ignore[no-untyped-call]
                _pack(pgdata, wal_file, stream)
            _sync(temporary)
            temporary.replace(target)
            _sync(self._directory)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise HostError(f"cannot capture {pgdata}: {error.strerror}") from error
        for old in self.lsns()[:-keep]:
            self.path(old).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file or a directory to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _pack(pgdata: Path, wal_file: str, stream: io.BufferedIOBase | gzip_ng.GzipNGFile) -> None:
    """Write the entries in a pageserver's order: what makes a directory startable comes last (contract 07 §4.6)."""
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(_contents(pgdata)):
            name = str(path.relative_to(pgdata))
            if path.is_symlink() or path.is_dir():
                _add_directory(archive, name)
            elif name != "global/pg_control":
                _add_bytes(archive, name, path.read_bytes())
        _add_directory(archive, "pg_wal/archive_status")
        # After a promotion Postgres does not take its own WAL for valid without them.
        for history in sorted((pgdata / "pg_wal").glob("*.history")):
            _add_bytes(archive, f"pg_wal/{history.name}", history.read_bytes())
        for name in ("neon.signal", "zenith.signal"):
            _add_bytes(archive, name, b"PREV LSN: none")
        for name in ("global/pg_control", f"pg_wal/{wal_file}"):
            _add_bytes(archive, name, (pgdata / name).read_bytes())


def _contents(pgdata: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(pgdata):
        here = Path(directory)
        is_top = here == pgdata
        yield from (here / name for name in names)
        if is_top:
            names[:] = [name for name in names if name not in EMPTIED_DIRECTORIES and not (here / name).is_symlink()]
        yield from (here / name for name in files if not (is_top and name in SKIPPED_FILES))


def _add_directory(archive: tarfile.TarFile, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, int(time.time())
    archive.addfile(entry)


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(data))


def read_control(bin_directory: Path, pgdata: Path) -> Mapping[str, str]:
    """Return what pg_controldata says about a data directory; raise HostError when it cannot be read."""
    result = subprocess.run(
        [str(bin_directory / "pg_controldata"), "-D", str(pgdata)],
        capture_output=True,
        text=True,
        check=False,
        env={"LC_ALL": "C", "PATH": os.environ.get("PATH", "")},
    )
    if result.returncode != 0:
        raise HostError(f"pg_controldata failed: {result.stderr.strip()}")
    pairs = (line.partition(":") for line in result.stdout.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def capture_if_at_rest(snapshots: Snapshots, bin_directory: Path, pgdata: Path) -> Lsn | None:
    """Capture a cleanly stopped data directory that is newer than the newest snapshot; return its LSN, else None."""
    if not (pgdata / "global" / "pg_control").is_file():
        return None
    control = read_control(bin_directory, pgdata)
    if control.get("Database cluster state") != "shut down":
        return None
    lsn = Lsn.parse(control["Latest checkpoint location"])
    newest = snapshots.newest()
    if newest is not None and lsn <= newest:
        return None
    snapshots.capture(pgdata, lsn, control["Latest checkpoint's REDO WAL file"])
    return lsn
