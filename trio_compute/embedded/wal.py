"""The WAL that embedded safekeepers keep of one timeline: whole segment files, the tail of the last one zero.

While a primary streams, the store is *unsettled*: it holds commits that are in no snapshot yet. A small file says so,
from before the first byte is written until a newer snapshot is on disk; after a crash it is what recovery looks for.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from pathlib import Path

import msgspec
from msgspec import Struct

from trio_compute.errors import HostError
from trio_compute.host.files import write_atomically
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import Lsn

SEGMENT_BYTES = 16 * 1024 * 1024
PAGE_BYTES = 8192
LONG_PAGE_HEADER_BYTES = 40
SHUTDOWN_CHECKPOINT_BYTES = 256
"""No shutdown checkpoint is longer, page headers included: WAL that ends within it holds nothing after it."""

_SEGMENT_NAME = re.compile(r"\A[0-9A-F]{24}\Z")
_HISTORY_NAME = re.compile(r"\A[0-9A-F]{8}\.history\Z")


class Unsettled(Struct, frozen=True):
    """Say from which snapshot a primary streams, and on which line of Postgres' own history (1 until a promotion)."""

    base: str
    line: int = 1


class Segment(Struct, frozen=True, order=True):
    """Name one segment file by where it starts."""

    start: int
    line: int

    @property
    def name(self) -> str:
        """Return the file name."""
        return f"{self.line:08X}{self.start >> 32:08X}{(self.start & 0xFFFFFFFF) // SEGMENT_BYTES:08X}"

    @classmethod
    def of(cls, name: str) -> Segment:
        """Return the segment that a file name stands for."""
        high, low = int(name[8:16], 16), int(name[16:24], 16)
        return cls(high << 32 | low * SEGMENT_BYTES, int(name[:8], 16))

    @classmethod
    def holding(cls, lsn: int, line: int) -> Segment:
        """Return the segment that an LSN lies in."""
        return cls(lsn - lsn % SEGMENT_BYTES, line)


def is_segment_name(name: str) -> bool:
    """Tell whether a file name is a segment's."""
    return _SEGMENT_NAME.match(name) is not None


def segments_in(directory: Path) -> list[Segment]:
    """Return the segments of a directory in the order of the log."""
    if not directory.is_dir():
        return []
    return sorted(Segment.of(path.name) for path in directory.iterdir() if is_segment_name(path.name))


def histories_in(directory: Path) -> list[Path]:
    """Return the files of a directory that say where Postgres' history branched, which it does at promotions."""
    return [path for path in sorted(directory.glob("*.history")) if _HISTORY_NAME.match(path.name)]


class WalStore:
    """Keep the segments of one timeline. One task or thread at a time may change it; `flush` makes writes durable."""

    def __init__(self, directory: Path, run_as: RunAs) -> None:
        self.directory = directory
        self._run_as = run_as
        self._marker = directory / "unsettled.json"
        self._files: dict[Segment, int] = {}
        self._made_files = False

    @property
    def unsettled(self) -> Unsettled | None:
        """Return from where a primary streams or streamed without a snapshot since; None when all is in snapshots."""
        if not self._marker.exists():
            return None
        return msgspec.json.decode(self._marker.read_bytes(), type=Unsettled)

    def mark_unsettled(self, unsettled: Unsettled) -> None:
        """Take note that commits may come which no snapshot holds."""
        self._make_directory()
        for segment in segments_in(self.directory):
            # Whoever copied the world may have changed the owners.
            self._run_as.own(self.path(segment))
        write_atomically(self._marker, msgspec.json.encode(unsettled).decode(), RunAs(), mode=0o644)
        sync_directory(self.directory)

    def settle(self) -> None:
        """Take note that a snapshot holds everything."""
        self._marker.unlink(missing_ok=True)

    def path(self, segment: Segment) -> Path:
        """Return the file of a segment."""
        return self.directory / segment.name

    def segment_at(self, lsn: Lsn) -> Segment | None:
        """Return the stored segment that an LSN lies in, on the newest line; None when it is not here."""
        found = [segment for segment in segments_in(self.directory) if segment.start == lsn - lsn % SEGMENT_BYTES]
        return found[-1] if found else None

    def write(self, lsn: int, data: bytes, line: int) -> None:
        """Write streamed WAL where it belongs; blocking, but into the page cache only."""
        rest = memoryview(data)
        while rest:
            segment = Segment.holding(lsn, line)
            offset = lsn - segment.start
            written = os.pwrite(self._open(segment), rest[: SEGMENT_BYTES - offset], offset)
            lsn, rest = lsn + written, rest[written:]

    def flush(self) -> None:
        """Bring all that was written to the disk, and close all segments but the last; blocking."""
        for fd in self._files.values():
            os.fdatasync(fd)
        if self._made_files:
            sync_directory(self.directory)
            self._made_files = False
        for segment in sorted(self._files)[:-1]:
            os.close(self._files.pop(segment))

    def close(self) -> None:
        """Close the open segments."""
        while self._files:
            os.close(self._files.popitem()[1])

    def end(self) -> Lsn | None:
        """Return where the stored WAL ends: after its last byte that is not zero; None when nothing is stored."""
        for segment in reversed(segments_in(self.directory)):
            length = len(self.path(segment).read_bytes().rstrip(b"\0"))
            if length:
                return Lsn(segment.start + length)
        return None

    def holds(self, first: Lsn, last: Lsn) -> bool:
        """Tell whether every segment between two LSNs is here."""
        starts = range(first - first % SEGMENT_BYTES, max(last, first + 1), SEGMENT_BYTES)
        present = {segment.start for segment in segments_in(self.directory)}
        return present.issuperset(starts)

    def adopt(self, source: Path, checkpoint: Lsn, last: Segment) -> None:
        """Continue with the WAL of a data directory at rest, which ends with a shutdown checkpoint in segment `last`.

        What was stored after that is dropped: it was never part of what the data directory holds.
        """
        self._make_directory()
        end = self.end()
        first = last.start if end is None else Segment.holding(end, last.line).start
        for segment in segments_in(source):
            if min(first, last.start) <= segment.start <= last.start and segment.line == last.line:
                self._replace(segment, (source / segment.name).read_bytes(), checkpoint if segment == last else None)
        for history in histories_in(source):
            self._write_file(self.directory / history.name, history.read_bytes())
        self.drop_after(last.start)

    def put(self, segment: Segment, content: bytes, checkpoint: Lsn) -> None:
        """Store the segment of a snapshot, which ends with a shutdown checkpoint."""
        self._make_directory()
        self._replace(segment, content, checkpoint)

    def fork(self, lsn: Lsn, old_line: int, new_line: int, history: bytes) -> None:
        """Go on after a promotion: the new line's first segment begins with what the old line holds up to the LSN."""
        old, new = Segment.holding(lsn, old_line), Segment.holding(lsn, new_line)
        content = self.path(old).read_bytes()[: lsn - old.start]
        self._write_file(self.path(new), content.ljust(SEGMENT_BYTES, b"\0"))
        self._write_file(self.directory / f"{new_line:08X}.history", history)
        sync_directory(self.directory)

    def drop_before(self, lsn: Lsn) -> None:
        """Remove the segments that end at or before an LSN."""
        for segment in segments_in(self.directory):
            if segment.start + SEGMENT_BYTES <= lsn:
                self.path(segment).unlink()

    def drop_after(self, start: int) -> None:
        """Remove the segments that begin after an LSN."""
        for segment in segments_in(self.directory):
            if segment.start > start:
                self.path(segment).unlink()

    def _open(self, segment: Segment) -> int:
        fd = self._files.get(segment)
        if fd is None:
            path = self.path(segment)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._files[segment] = fd
            if os.fstat(fd).st_size < SEGMENT_BYTES:
                os.posix_fallocate(fd, 0, SEGMENT_BYTES)
                self._run_as.own(path)
                self._made_files = True
        return fd

    def _replace(self, segment: Segment, content: bytes, checkpoint: Lsn | None) -> None:
        if checkpoint is not None:
            # What a recycled file holds after its end must not count as WAL here.
            content = content[: _page_after(content, checkpoint - segment.start)].ljust(SEGMENT_BYTES, b"\0")
        self._write_file(self.path(segment), content)

    def _write_file(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._run_as.own(temporary)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise HostError(f"cannot write {path}: {error.strerror}") from error

    def _make_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        # Standbys read the segments as Postgres' user.
        for directory in (self.directory, self.directory.parent, self.directory.parent.parent):
            directory.chmod(0o755)


def copy_wal(store: WalStore, target: Path, first: Lsn, run_as: RunAs, *, until: Lsn | None) -> None:
    """Copy the stored WAL from the segment of an LSN on into a pg_wal; what lies behind `until` is left out."""
    for segment in segments_in(store.directory):
        if segment.start + SEGMENT_BYTES <= first or (until is not None and segment.start >= until):
            continue
        path = target / segment.name
        shutil.copyfile(store.path(segment), path)
        if until is not None and until < segment.start + SEGMENT_BYTES:
            os.truncate(path, until - segment.start)
            os.truncate(path, SEGMENT_BYTES)
        run_as.own(path)


def sync_directory(directory: Path) -> None:
    """Make renames and new files in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _page_after(content: bytes, offset: int) -> int:
    """Return where the page ends that the record at an offset ends in."""
    (length,) = struct.unpack_from("<I", content, offset)
    end = offset + int(length)
    if offset // PAGE_BYTES != (end - 1) // PAGE_BYTES:
        end += LONG_PAGE_HEADER_BYTES
    return -(-end // PAGE_BYTES) * PAGE_BYTES
