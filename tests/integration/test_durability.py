"""A commit that was acknowledged is there at the next start, whatever was killed (issue: crash durability)."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import trio

from tests.integration.compute import Rig
from tests.integration.dev_process import alive, descendants, running_dev, start_and_kill
from tests.integration.fleet import POLL_SECONDS, Fleet
from trio_compute.embedded import binaries
from trio_compute.embedded.own_wal import OwnWal
from trio_compute.embedded.wal import SEGMENT_BYTES
from trio_compute.embedded.world import base_settings
from trio_compute.errors import HostError

pytestmark = pytest.mark.postgres

ROUNDS = int(os.environ.get("TRIO_COMPUTE_DURABILITY_ROUNDS", "3"))
WRITERS = 4


class Load:
    """Insert rows from several sessions and remember which ones were acknowledged."""

    def __init__(self, connstr: str, first: int) -> None:
        self._connstr = connstr
        self._next = first
        self._lock = threading.Lock()
        self.acknowledged: set[int] = set()
        self.grown = threading.Condition()
        self.tried = 0

    def write(self) -> None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(self._connstr, autocommit=True) as connection:
            while True:
                with self._lock:
                    number, self._next = self._next, self._next + 1
                # Some rows are large, so that WAL crosses pages and segments.
                size = random.choice((10, 10, 10, 3000, 200_000))
                connection.execute("INSERT INTO kept VALUES (%s, repeat('x', %s))", (number, size))
                with self.grown:
                    self.acknowledged.add(number)
                    self.grown.notify()

    def wait_for(self, rows: int) -> None:
        with self.grown:
            assert self.grown.wait_for(lambda: len(self.acknowledged) >= rows, timeout=60)

    @property
    def next(self) -> int:
        return self._next


@contextmanager
def under_load(connstr: str, first: int) -> Iterator[Load]:
    """Run writers; the block must end what they are connected to."""
    load = Load(connstr, first)
    writers = [threading.Thread(target=load.write) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        yield load
    finally:
        for writer in writers:
            writer.join(timeout=60)


@pytest.fixture
async def fleet(rig: Rig) -> AsyncIterator[Fleet]:
    fleet = Fleet(rig.world, rig.addresses)
    async with rig.world.open_receiver(fleet.ports["primary"].postgres):
        yield fleet


def rows_at(connstr: str) -> set[int]:
    with psycopg.connect(connstr, autocommit=True) as connection:
        return {number for (number,) in connection.execute("SELECT number FROM kept")}


@pytest.mark.slow
def test_no_acknowledged_row_is_lost_when_everything_is_killed_under_load(public_tmp: Path, major: int) -> None:
    """Kill −9 of the whole tree, at times of the recovery after it too.

    Every second time the data directory is lost as well, with the WAL that Postgres wrote: what the safekeepers have
    must suffice.
    """
    binaries.ensure(major)
    data, acknowledged, first = public_tmp / "world", set[int](), 0
    with running_dev(data, "--postgres", str(major)) as dev:
        with psycopg.connect(dev.connstr(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (number int PRIMARY KEY, filling text)")
        assert dev.interrupt() == 0
    for number in range(ROUNDS):
        with running_dev(data) as dev:
            assert acknowledged <= rows_at(dev.connstr()), f"round {number} lost rows"
            with under_load(dev.connstr(), first) as load:
                load.wait_for(random.randint(20, 400))
                time.sleep(random.random() / 20)  # any moment between two acknowledgements
                dev.kill_everything()
            acknowledged |= load.acknowledged
            first = load.next
        if number % 2:
            for lost in ("pgdata", "pgdata.wal"):
                shutil.rmtree(data / lost)
        if number % 3 == 1:
            start_and_kill(data, after_seconds=random.random() * 2)
    with running_dev(data) as dev:
        assert "took in what the last run left" in dev.said
        found = rows_at(dev.connstr())
        assert acknowledged <= found
        # What was not acknowledged may be there, one row for each writer and round at most.
        assert len(found - acknowledged) <= WRITERS * ROUNDS
        assert dev.interrupt() == 0
    sys.stdout.write(f"{ROUNDS} rounds: {len(acknowledged)} acknowledged, {len(found - acknowledged)} more found\n")


async def test_a_compute_that_is_killed_starts_again_in_the_same_world(fleet: Fleet) -> None:
    """Its safekeepers live on: what they disagree about makes the next start sync, and that recovers."""
    async with fleet.compute() as primary:
        await primary.sql("CREATE TABLE kept AS SELECT 1 AS number")
        await primary.kill()
    async with fleet.compute() as primary:
        assert await primary.sql("SELECT number FROM kept") == [(1,)]
        await primary.sql("INSERT INTO kept VALUES (2)")
        await primary.end()
    # A clean end, but nobody has made a snapshot of it either.
    async with fleet.compute() as primary:
        assert await primary.sql("SELECT number FROM kept ORDER BY 1") == [(1,), (2,)]
        await primary.end()


async def test_a_commit_waits_until_the_safekeepers_have_it(rig: Rig) -> None:
    """Nobody receives: the row is not acknowledged. Somebody does: it is, at once."""
    fleet = Fleet(rig.world, rig.addresses)
    port = fleet.ports["primary"].postgres
    skipping = {"skip_pg_catalog_updates": True}
    config = rig.world.config(rig.addresses, base_settings(port), durable=True)
    async with (
        fleet.compute_with({**config, "spec": config["spec"] | skipping}) as primary,
        trio.open_nursery() as jobs,
    ):
        acknowledged = trio.Event()

        async def commit() -> None:
            await primary.sql("CREATE TABLE kept AS SELECT 1 AS number")
            acknowledged.set()

        jobs.start_soon(commit)
        with trio.fail_after(10):
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            while await primary.sql(waiting) == [(0,)]:
                await trio.sleep(POLL_SECONDS)
        assert not acknowledged.is_set()
        async with rig.world.open_receiver(port):
            with trio.fail_after(10):
                await acknowledged.wait()
            await primary.end()


async def test_a_torn_end_of_the_wal_is_left_out(fleet: Fleet) -> None:
    """A record of which only a part arrived was never acknowledged; what precedes it stays."""
    async with fleet.compute() as primary:
        await primary.sql("CREATE TABLE kept AS SELECT 1 AS number")
        await primary.kill()
    wal = fleet.world.timeline.wal
    end = wal.end()
    assert end is not None
    wal.write(end + 8 - end % 8, bytes(range(1, 100)), 1)
    wal.close()
    async with fleet.compute() as primary:
        assert await primary.sql("SELECT number FROM kept") == [(1,)]
        await primary.end()


async def test_wal_that_cannot_be_replayed_is_an_error_with_postgres_words(fleet: Fleet) -> None:
    async with fleet.compute() as primary:
        await primary.sql("CREATE TABLE kept AS SELECT 1 AS number")
        await primary.kill()
    newest = fleet.world.snapshots.newest()
    assert newest is not None
    segment = fleet.world.timeline.wal.segment_at(newest)
    assert segment is not None
    fleet.world.timeline.wal.path(segment).write_bytes(bytes(SEGMENT_BYTES))
    shutil.rmtree(OwnWal(fleet.world.pgdata).directory)
    with pytest.raises(HostError, match=r"(?s)cannot replay the WAL of the last run.*checkpoint record"):
        await trio.to_thread.run_sync(fleet.world.recover)
    assert fleet.world.snapshots.newest() == newest
    assert not (fleet.world.timeline.directory / "replay").exists()


def test_a_killed_dev_leaves_nothing_that_the_next_one_trips_over(public_tmp: Path, major: int) -> None:
    """Only `dev` itself dies; its compute and Postgres live on, until the next start ends them."""
    binaries.ensure(major)
    data = public_tmp / "world"
    with running_dev(data, "--postgres", str(major)) as dev:
        with psycopg.connect(dev.connstr(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (number int PRIMARY KEY)")
        others = [pid for pid in descendants(dev.process.pid) if pid != dev.process.pid]
        dev.process.kill()
        dev.process.wait()
        left = [pid for pid in others if alive(pid)]
        assert len(left) > 1
        with running_dev(data) as again:
            assert "ended what the last run left running" in again.said
            assert rows_at(again.connstr()) == set()
            assert not any(map(alive, left))
            assert again.interrupt() == 0


async def test_a_crash_of_the_recovery_itself_loses_nothing(fleet: Fleet) -> None:
    """Between its steps: the WAL is complete but the snapshot is missing, or the snapshot is there unnoticed."""
    async with fleet.compute() as primary:
        await primary.sql("CREATE TABLE kept AS SELECT 1 AS number")
        await primary.kill()
    timeline, marker = fleet.world.timeline, fleet.world.timeline.wal.unsettled
    assert marker is not None
    first = await timeline.settle()  # what was killed may still be streaming its last bytes
    assert first is not None
    assert timeline.wal.unsettled is None
    timeline.snapshots.path(first).unlink()
    timeline.wal.mark_unsettled(marker)
    second = await timeline.settle()
    assert second is not None
    assert second >= first
    timeline.wal.mark_unsettled(marker)
    async with fleet.compute() as primary:
        assert await primary.sql("SELECT number FROM kept") == [(1,)]
        await primary.end()
