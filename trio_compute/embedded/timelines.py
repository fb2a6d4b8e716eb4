"""One timeline of an embedded world: its snapshots, the WAL after them, and how the one becomes the other."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import trio
from msgspec import Struct
from zlib_ng import gzip_ng

from trio_compute.embedded.archive import basebackup, signal_text
from trio_compute.embedded.own_wal import OwnWal, newest_open
from trio_compute.embedded.replay import replayed
from trio_compute.embedded.snapshots import Snapshots, read_control
from trio_compute.embedded.wal import (
    PAGE_BYTES,
    SHUTDOWN_CHECKPOINT_BYTES,
    Segment,
    Unsettled,
    WalStore,
    is_segment_name,
)
from trio_compute.errors import HostError, StorageError
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import INVALID_LSN, Lsn


class AtRest(Struct, frozen=True):
    """Describe a data directory that was stopped cleanly: the LSN of its last checkpoint, and that one's segment."""

    pgdata: Path
    lsn: Lsn
    segment: Segment


class Timeline:
    """Own the directory of a timeline.

    Who streams into the WAL store holds `wal_lock`; `session` cancels it. The blocking methods below may be called
    from any thread, one at a time, while nobody streams. `own_wals` tells where its computes keep their WAL.
    """

    def __init__(
        self,
        timeline_id: str,
        directory: Path,
        bin_directory: Path,
        run_as: RunAs,
        own_wals: Callable[[], Sequence[OwnWal]] = lambda: (),
    ) -> None:
        self.timeline_id = timeline_id
        self.directory = directory
        self.snapshots = Snapshots(directory, self._log_end)
        self.wal = WalStore(directory / "wal", run_as)
        self.pgdatas: list[Path] = []
        self.wal_lock = trio.Lock()
        self.session: trio.CancelScope | None = None
        self.received: Lsn | None = None
        self._bin = bin_directory
        self._run_as = run_as
        self._own_wals = own_wals
        self._one_at_a_time = threading.Lock()

    def positions(self) -> tuple[Lsn, Lsn] | None:
        """Return how far WAL is safe here and how far it is settled, or None when everything is settled.

        As long as they differ, a compute that asks cannot take the timeline for synced, and syncs first.
        """
        unsettled, own = self.wal.unsettled, newest_open(self._own_wals())
        if unsettled is None and own is None:
            return None
        base = (self.snapshots.newest() or INVALID_LSN) if unsettled is None else Lsn.parse(unsettled.base)
        if self.received is None and unsettled is not None:
            self.received = self.wal.end() or INVALID_LSN
        # Whoever wrote WAL of his own wrote at least that it began.
        least = base if own is None else Lsn(base + 1)
        return max(least, self.received or INVALID_LSN), base

    def _log_end(self) -> Lsn | None:
        """Return where the log ends of which there is no snapshot yet, None if there is one of everything."""
        positions = self.positions()
        return None if positions is None else positions[0]

    def readable(self) -> tuple[Lsn, Lsn]:
        """Return the first and the last LSN whose state can be had; blocking. Raises StorageError if there is none."""
        newest, first = self.snapshots.newest_at(None), self.snapshots.lsns()[0]
        return first, max(newest, self.wal.end() or INVALID_LSN)

    def require_readable(self, lsn: Lsn) -> None:
        """Raise StorageError unless the state at an LSN can be had; blocking."""
        first, last = self.readable()
        # A record may end in zero bytes, which count as no WAL here, and the next one begins after a page's header.
        if not first <= lsn <= last + PAGE_BYTES:
            raise StorageError(f"the state at {lsn} is not kept; what is kept reaches from {first} to {last}")

    def recover(self) -> Lsn | None:
        """Make a snapshot of what is newer than the newest one; return its LSN, or None when there is nothing.

        A data directory at rest is taken as it is; what a crash left is replayed from the stored WAL.
        """
        with self._one_at_a_time:
            rest = self._newest_at_rest()
            if rest is not None and self._is_complete(rest):
                return self._take(rest)
            if self.positions() is None or self.session is not None:
                return None
            return self._replay()

    async def settle(self) -> Lsn | None:
        """End the stream of whoever is still connected, then recover."""
        if self.session is not None:
            self.session.cancel()
        async with self.wal_lock:
            return await trio.to_thread.run_sync(self.recover)

    def begin_stream(self) -> tuple[Lsn, int]:
        """Get ready to store what a primary streams; return from which LSN, on which line of history. Blocking.

        Going on where the last stream ended is right as long as no snapshot was made since.
        """
        unsettled = self.wal.unsettled
        if unsettled is not None and self.received is not None:
            return self.received, unsettled.line
        base = self.snapshots.newest()
        if unsettled is not None or base is None:
            raise HostError("the timeline must be recovered before a primary can stream into it")
        segment = self.wal.segment_at(base)
        if segment is None:
            segment, content = wal_of(self.snapshots.path(base))
            self.wal.put(segment, content, base)
        self.wal.mark_unsettled(Unsettled(str(base), segment.line))
        self.received = base
        return base, segment.line

    def fork(self, line: int, history: bytes) -> Lsn:
        """Follow a promotion to a new line, from where its history says; return that LSN. Blocking."""
        unsettled = self.wal.unsettled
        assert unsettled is not None
        assert self.received is not None
        *_, (_, switched_at, *_) = [row.split("\t") for row in history.decode(errors="replace").splitlines() if row]
        self.received = min(self.received, Lsn.parse(switched_at))
        self.wal.fork(self.received, unsettled.line, line, history)
        self.wal.mark_unsettled(Unsettled(unsettled.base, line))
        return self.received

    def copy_state(self, target: Timeline, until: Lsn | None) -> Lsn:
        """Make the first snapshot of another timeline from the state here at an LSN, else the last; return its LSN.

        This timeline stays as it is, and may be in use. Raises StorageError when the LSN is not kept here.
        """
        if until is not None:
            self.require_readable(until)
        base = self.snapshots.newest_at(until)
        end = None if until is None and self.wal.unsettled is None else self.wal.end()
        if end is None or until == base or not self.wal.holds(base, until or end):
            target.directory.mkdir(parents=True, exist_ok=True)
            with target.snapshots.path(base).open("wb") as file:
                for piece in basebackup(self.snapshots.path(base), signal=signal_text("none")):
                    file.write(piece)
            return base
        with replayed(
            self.snapshots,
            self.wal,
            base,
            scratch=target.directory / "replay",
            bin_directory=self._bin,
            run_as=self._run_as,
            until=until,
            last_pgdata=self._last_pgdata(),
        ) as scratch:
            rest = self._at_rest(scratch)
            assert rest is not None
            return target._take(rest)

    def _newest_at_rest(self) -> AtRest | None:
        found = [rest for rest in map(self._at_rest, self.pgdatas) if rest is not None]
        return max(found, key=lambda rest: rest.lsn, default=None)

    def _at_rest(self, pgdata: Path) -> AtRest | None:
        if not (pgdata / "global" / "pg_control").is_file():
            return None
        control = read_control(self._bin, pgdata)
        if control.get("Database cluster state") != "shut down":
            return None
        lsn = Lsn.parse(control["Latest checkpoint location"])
        return AtRest(pgdata, lsn, Segment.of(control["Latest checkpoint's REDO WAL file"]))

    def _is_complete(self, rest: AtRest) -> bool:
        """Tell whether a directory at rest is newer than the snapshots, and holds all that was streamed."""
        if rest.lsn <= (self.snapshots.newest() or INVALID_LSN):
            return False
        return self.wal.unsettled is None or (self.wal.end() or INVALID_LSN) <= rest.lsn + SHUTDOWN_CHECKPOINT_BYTES

    def _replay(self) -> Lsn:
        base = self.snapshots.newest()
        if base is None:
            raise HostError(f"{self.directory} has WAL, but no snapshot to begin from")
        with replayed(
            self.snapshots,
            self.wal,
            base,
            scratch=self.directory / "replay",
            bin_directory=self._bin,
            run_as=self._run_as,
            last_pgdata=self._last_pgdata(),
            own=newest_open(self._own_wals()),
        ) as scratch:
            rest = self._at_rest(scratch)
            assert rest is not None
            return self._take(rest)

    def _take(self, rest: AtRest) -> Lsn:
        """Make a snapshot of a directory at rest.

        The order of the steps is what a crash in between relies on: with the WAL up to the new snapshot in the store,
        both the old snapshot and the new one can be replayed from.
        """
        self.wal.adopt(rest.pgdata / "pg_wal", rest.lsn, rest.segment)
        self.snapshots.capture(rest.pgdata, rest.lsn, rest.segment.name)
        self.wal.settle()
        for own in self._own_wals():
            own.close()
        self.received = None
        self.wal.drop_before(self.snapshots.lsns()[0])
        return rest.lsn

    def _last_pgdata(self) -> Path | None:
        return next((path for path in self.pgdatas if (path / "global" / "pg_control").is_file()), None)


def wal_of(snapshot: Path) -> tuple[Segment, bytes]:
    """Return the WAL segment that a snapshot carries, its last entry; blocking."""
    with gzip_ng.open(snapshot, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[no-untyped-call]
        for entry in archive:
            directory, _, name = entry.name.rpartition("/")
            if directory == "pg_wal" and is_segment_name(name):
                file = archive.extractfile(entry)
                assert file is not None
                return Segment.of(name), file.read()
    raise StorageError(f"{snapshot} holds no WAL segment")
