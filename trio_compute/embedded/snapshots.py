"""Basebackups on disk: made from a data directory at rest, served to whoever starts next."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from trio_compute.embedded.archive import (
    END,
    SIGNALS,
    basebackup,
    compressed,
    directory_entry,
    file_entry,
    signal_text,
)
from trio_compute.embedded.wal import PAGE_BYTES, SEGMENT_BYTES
from trio_compute.errors import HostError, StorageError
from trio_compute.model.ids import INVALID_LSN, Lsn

SKELETON = (
    *("global", "pg_wal/archive_status", "pg_commit_ts", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots"),
    *("pg_subtrans", "pg_twophase", "pg_multixact", "pg_multixact/members", "pg_multixact/offsets", "base", "base/1"),
    *("pg_replslot", "pg_tblspc", "pg_stat", "pg_stat_tmp", "pg_xact", "pg_logical", "pg_logical/snapshots"),
    "pg_logical/mappings",
)
SKELETON_SINCE_17 = ("pg_wal/summaries",)
EMPTY_FILE = "postgresql.auto.conf"
CONFIGURATION = ("pg_hba.conf", "pg_ident.conf", EMPTY_FILE)
PREV = struct.Struct("<Q")
PREV_OFFSET = 8
PAGE_HEADER_BYTES = 24
SKIPPED_FILES = frozenset(
    {"postgresql.conf", "postmaster.pid", "postmaster.opts", "standby.signal", "compute_ctl_temp_override.conf"}
    | {"neon_stand_in_prewarm"}
    | {"server.key", "server.crt", "logfile", "neon.signal", "zenith.signal", "neon-communicator.socket"}
    | {"recovery.signal"}
)
EMPTIED_DIRECTORIES = frozenset({"pg_wal", "pg_dynshmem", "pg_stat_tmp", "pg_replslot", "log"})


class Snapshots:
    """Keep the basebackups of one timeline, each named after its LSN."""

    def __init__(self, directory: Path, log_end: Callable[[], Lsn | None] = lambda: None) -> None:
        self._directory = directory
        self._log_end = log_end

    def last(self) -> Lsn:
        """Return up to where states can be had; raise StorageError if there is none."""
        return max(self.newest_at(None), self._log_end() or INVALID_LSN)

    def have(self, lsn: Lsn) -> bool:
        """Tell whether the log reaches an LSN; it may end in zeros, and with a page's header, that nobody can see."""
        return lsn <= self.last() + PAGE_BYTES

    def serve(self, lsn: Lsn | None, *, gzip: bool) -> Iterator[bytes]:
        """Yield the basebackup for an LSN, which is not at the end of the log unless it is the newest; blocking.

        What the first record that a compute writes must know of the one before is only known at the end of the log.
        """
        found = self.newest_at(lsn)
        is_the_end = lsn is None or lsn == found == self.last()
        return basebackup(self.path(found), gzip=gzip, signal=None if is_the_end else signal_text("invalid"))

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
            prev = _record_before(pgdata, lsn, wal_file) if self.lsns() else "none"
            with temporary.open("wb") as file:
                for piece in compressed(_pack(pgdata, wal_file, signal_text(prev))):
                    file.write(piece)
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


def _pack(pgdata: Path, wal_file: str, signal: bytes) -> Iterator[bytes]:
    """Yield the entries in a pageserver's order: what makes a directory startable comes last (contract 07 §4.6)."""
    skeleton = [*SKELETON, *(SKELETON_SINCE_17 if _major(pgdata) >= 17 else ())]
    for name in skeleton:
        yield directory_entry(name)
    for name in CONFIGURATION:
        yield file_entry(name, b"" if name == EMPTY_FILE else (pgdata / name).read_bytes())
    for path in sorted(_contents(pgdata)):
        name = str(path.relative_to(pgdata))
        if path.is_symlink() or path.is_dir():
            if name not in skeleton:
                yield directory_entry(name)
        elif name not in {"global/pg_control", *CONFIGURATION}:
            yield file_entry(name, path.read_bytes())
    # After a promotion Postgres does not take its own WAL for valid without them.
    for history in sorted((pgdata / "pg_wal").glob("*.history")):
        yield file_entry(f"pg_wal/{history.name}", history.read_bytes())
    for name in SIGNALS:
        yield file_entry(name, signal)
    for name in ("global/pg_control", f"pg_wal/{wal_file}"):
        yield file_entry(name, (pgdata / name).read_bytes())
    yield END


def _major(pgdata: Path) -> int:
    return int((pgdata / "PG_VERSION").read_text(encoding="ascii"))


def _record_before(pgdata: Path, lsn: Lsn, wal_file: str) -> Lsn | str:
    """Return where the record before the one at an LSN begins, which each record tells of, if this file has it all."""
    at = lsn % SEGMENT_BYTES + PREV_OFFSET
    if at % PAGE_BYTES == 0:
        at += PAGE_HEADER_BYTES
    with (pgdata / "pg_wal" / wal_file).open("rb") as file:
        file.seek(at)
        found = file.read(PREV.size)
    return Lsn(PREV.unpack(found)[0]) if len(found) == PREV.size else "invalid"


def _contents(pgdata: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(pgdata):
        here = Path(directory)
        is_top = here == pgdata
        yield from (here / name for name in names)
        if is_top:
            names[:] = [name for name in names if name not in EMPTIED_DIRECTORIES and not (here / name).is_symlink()]
        yield from (here / name for name in files if not (is_top and name in SKIPPED_FILES))


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
