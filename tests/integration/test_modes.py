"""Primary, replica and static computes of one world, end to end (contract 07 §3, 04 §3.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
import trio

from tests.integration.compute import Rig
from tests.integration.fleet import Fleet
from trio_compute.embedded.endpoints import static_mode

pytestmark = pytest.mark.postgres


@pytest.fixture
async def fleet(rig: Rig) -> AsyncIterator[Fleet]:
    fleet = Fleet(rig.world, rig.addresses)
    candidates = (fleet.ports[name].postgres for name in ("primary", "replica"))
    async with rig.world.open_receiver(*candidates):
        yield fleet


async def test_a_replica_streams_from_its_primary_and_is_read_only(fleet: Fleet) -> None:
    replica_endpoint = fleet.world.endpoint("replica", "Replica")
    async with fleet.compute() as primary:
        await primary.sql("CREATE TABLE seen AS SELECT 1 AS number")
        async with fleet.compute(replica_endpoint) as replica:
            assert await replica.sql("SHOW neon.compute_mode") == [("replica",)]
            await primary.sql("INSERT INTO seen VALUES (2)")
            await replica.replayed(await primary.lsn())
            assert await replica.sql("SELECT number FROM seen ORDER BY 1") == [(1,), (2,)]
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await replica.sql("INSERT INTO seen VALUES (3)")
            standbys = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' ORDER BY 1"
            assert await primary.sql(standbys) == [("ep-main-replica",), ("walproposer",)]
            assert fleet.world.pageserver.commands[-1].endswith("--gzip --replica")
            assert (replica_endpoint.pgdata / "standby.signal").is_file()
            assert await replica.end() is None
        assert await primary.end() is not None


async def test_a_replica_that_comes_late_finds_the_wal_with_the_safekeepers(fleet: Fleet) -> None:
    """The primary has recycled what the replica needs first."""
    async with fleet.compute() as primary:
        await primary.sql("CREATE TABLE early AS SELECT 1 AS number")
        for _ in range(3):
            await primary.sql("SELECT pg_switch_wal()")
            await primary.sql("CHECKPOINT")
        kept = await primary.sql("SELECT min(name) FROM pg_ls_waldir()")
        stored = min(path.name for path in fleet.world.timeline.wal.directory.glob("0*"))
        assert stored < kept[0][0]
        async with fleet.compute(fleet.world.endpoint("replica", "Replica")) as replica:
            await replica.replayed(await primary.lsn())
            assert await replica.sql("SELECT number FROM early") == [(1,)]
            await replica.end()
        await primary.end()


async def test_a_static_compute_shows_exactly_one_moment(fleet: Fleet) -> None:
    """All that was committed before the LSN, nothing after it, whatever the primary does meanwhile."""
    async with fleet.compute() as primary:
        await primary.sql("CREATE TABLE moments AS SELECT 1 AS number")
        moment = await primary.lsn()
        await primary.sql("INSERT INTO moments VALUES (2)")
        static = fleet.world.endpoint("static", static_mode(moment))
        async with fleet.compute(static) as still:
            await still.replayed(moment)
            assert await still.sql("SELECT number FROM moments") == [(1,)]
            assert await still.sql("SHOW neon.compute_mode") == [("static",)]
            await primary.sql("INSERT INTO moments VALUES (3)")
            assert await still.sql("SELECT number FROM moments") == [(1,)]
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await still.sql("INSERT INTO moments VALUES (4)")
            assert await still.end() is None
        await primary.end()


async def test_a_static_compute_needs_no_primary_and_can_look_at_a_clean_end(fleet: Fleet) -> None:
    """At the LSN that /terminate answered, although the log went on from there later."""
    async with fleet.compute() as primary:
        await primary.sql("CREATE TABLE moments AS SELECT 1 AS number")
        end = await primary.end()
    assert end is not None
    assert await trio.to_thread.run_sync(fleet.world.recover) == end
    async with fleet.compute() as primary:
        await primary.sql("INSERT INTO moments VALUES (2)")
        await primary.end()
    assert (await trio.to_thread.run_sync(fleet.world.recover) or end) > end
    async with fleet.compute(fleet.world.endpoint("static", static_mode(end))) as still:
        assert await still.sql("SELECT number FROM moments") == [(1,)]
        # It stands still because it reached its LSN, not because there is no WAL.
        assert await still.sql("SELECT pg_is_wal_replay_paused()") == [(True,)]
        await still.end()


async def test_a_promoted_replica_takes_over_with_all_guarantees(fleet: Fleet) -> None:
    """What it acknowledged after the promotion survives a kill −9, like everything before."""
    async with fleet.compute() as primary:
        await primary.sql("CREATE TABLE handed AS SELECT 1 AS number")
        async with fleet.compute(fleet.world.endpoint("replica", "Replica")) as replica:
            end = await primary.end()
            assert end is not None
            await replica.replayed(end)
            await replica.sql("ALTER SYSTEM SET synchronous_standby_names = walproposer")
            await replica.sql("SELECT pg_reload_conf()")
            assert await replica.sql("SELECT pg_promote()") == [(True,)]
            with trio.fail_after(20):
                await replica.sql("INSERT INTO handed VALUES (2)")
            await replica.kill()
    async with fleet.compute() as primary:
        assert await primary.sql("SELECT number FROM handed ORDER BY 1") == [(1,), (2,)]
        await primary.sql("INSERT INTO handed VALUES (3)")
        await primary.kill()
    async with fleet.compute() as primary:
        assert await primary.sql("SELECT number FROM handed ORDER BY 1") == [(1,), (2,), (3,)]
        await primary.end()
