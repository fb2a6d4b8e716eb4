"""The WAL that the Postgres of a compute wrote itself, beside the data directory where the next start finds it.

Postgres believes any standby of the right name that says "flushed", and everybody can read which name that is. No
setting lets it ask who the standby is: pg_hba.conf cannot tell names apart, nor receivers with a database from other
sessions. But a commit is in Postgres' own WAL files before it waits for anybody. So these files are not thrown away
with the data directory: the wrapper moves pg_wal here, and recovery goes on with it where the safekeepers' WAL ends.
What an impostor acknowledged is then lost no more than what our receiver did.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from trio_compute.embedded.wal import SEGMENT_BYTES, Segment, WalStore, histories_in, segments_in
from trio_compute.errors import HostError
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import Lsn

PAGE_ADDRESS = struct.Struct("<8xQ")


class OwnWal:
    """Name the place of one compute's WAL; it is *open* from a start of Postgres until a snapshot holds it."""

    def __init__(self, pgdata: Path) -> None:
        self._pgdata = pgdata
        self._place = pgdata.with_name(f"{pgdata.name}.wal")
        self._taken = self._place / "taken"
        self.directory = self._place / "pg_wal"

    def prepare(self, run_as: RunAs) -> None:
        """Make the place, which is what makes the wrapper use it."""
        try:
            self._place.mkdir(mode=0o700, exist_ok=True)
            run_as.own(self._place)
        except OSError as error:
            raise HostError(f"cannot use {self._place}: {error.strerror}") from error

    @property
    def is_open(self) -> bool:
        """Tell whether there may be WAL of a primary that no snapshot holds; a standby's is none of its own."""
        return self.directory.is_dir() and not (self._taken.exists() or (self._pgdata / "standby.signal").exists())

    def close(self) -> None:
        """Take note that a snapshot holds everything."""
        if self.directory.is_dir():
            self._taken.touch()

    @property
    def line(self) -> int:
        """Return the newest line of Postgres' history in it."""
        return max((segment.line for segment in segments_in(self.directory)), default=0)

    def path(self, segment: Segment) -> Path:
        """Return the file of a segment."""
        return self.directory / segment.name

    def histories(self) -> list[Path]:
        """Return the files that say where Postgres' history branched."""
        return histories_in(self.directory)

    def after(self, wal: WalStore, base: Lsn) -> list[Segment]:
        """Return the segments that go on where a store ends, that of its end included; none if they do not fit."""
        line, end = self.line, max(wal.end() or base, base)
        present = {segment.start: segment for segment in segments_in(self.directory) if segment.line == line}
        first = Segment.holding(end, line)
        found: list[Segment] = []
        at = first.start
        while at in present and self._is_of_its_place(present[at]):
            found.append(present[at])
            at += SEGMENT_BYTES
        return found if self._agrees(wal.path(first), first, end) else []

    def _is_of_its_place(self, segment: Segment) -> bool:
        """Tell whether a segment was begun; one that is kept for later still holds what it held elsewhere."""
        with self.path(segment).open("rb") as file:
            head = file.read(PAGE_ADDRESS.size)
        return len(head) == PAGE_ADDRESS.size and PAGE_ADDRESS.unpack(head) == (segment.start,)

    def _agrees(self, stored: Path, segment: Segment, end: Lsn) -> bool:
        """Tell whether a segment begins with what is stored of it, if anything is."""
        if not (stored.exists() and self.path(segment).exists()):
            return True
        length = end - segment.start
        with stored.open("rb") as ours, self.path(segment).open("rb") as theirs:
            return ours.read(length) == theirs.read(length)


def newest_open(places: Iterable[OwnWal]) -> OwnWal | None:
    """Return the open WAL of whoever was the primary last; of two on the same line the first."""
    return max((place for place in places if place.is_open), key=lambda place: place.line, default=None)
