"""A real replica becomes the primary: real Postgres, real streaming, commits that wait for the safekeepers (08 §6)."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import trio

from tests.integration.compute import Rig
from tests.integration.fleet import Fleet, Member
from trio_compute.model.ids import Lsn

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

OVERRIDES = "SELECT name FROM pg_file_settings WHERE sourcefile ~ 'auto.conf'"
IN_FORCE = "SELECT current_setting('synchronous_standby_names'), current_setting('neon.safekeepers')"


@pytest.fixture
def fleet(rig: Rig) -> Fleet:
    return Fleet(rig.world, rig.addresses)


class Pair:
    """Hold a primary and the replica that shall take its place."""

    def __init__(self, fleet: Fleet, primary: Member, replica: Member) -> None:
        self.fleet = fleet
        self.primary = primary
        self.replica = replica

    def primary_spec(self, **changes: Any) -> dict[str, Any]:
        """Return the spec that the primary runs with, its port included."""
        return {**primary_config(self.fleet)["spec"], **changes}

    async def promote(self, lsn: Lsn | None, spec: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
        body = {"spec": spec or self.primary_spec(), "wal_flush_lsn": str(lsn or "0/0")}
        url = f"{self.replica.child.external_url}/promote"
        return await self.replica.child._client.post(url, json=body, **options)

    async def cache(self, member: Member, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Begin something with the cache of a compute and wait for its end."""
        base = member.child.external_url
        (await member.child._client.request(method, base + path, **options)).raise_for_status()
        with trio.fail_after(30):
            while True:
                told: dict[str, Any] = (await member.child._client.get(base + path)).json()
                if told["status"] not in {"offloading", "prewarming"}:
                    return told
                await trio.sleep(0.01)

    async def prewarm(self) -> dict[str, Any]:
        primary = self.fleet.world.primary.endpoint_id
        return await self.cache(self.replica, "POST", "/lfc/prewarm", params={"from_endpoint": primary})


def primary_config(fleet: Fleet) -> dict[str, Any]:
    from trio_compute.embedded.world import base_settings

    settings = base_settings(fleet.ports["primary"].postgres)
    config = fleet.world.config(fleet.addresses, settings, durable=True)
    config["spec"]["safekeepers_generation"] = 3
    return config


@asynccontextmanager
async def open_pair(fleet: Fleet, *, receives_from: tuple[str, ...] = ("primary", "replica")) -> AsyncIterator[Pair]:
    ports = [fleet.ports[name].postgres for name in receives_from]
    async with (
        fleet.world.open_receiver(*ports),
        fleet.compute_with(primary_config(fleet)) as primary,
        fleet.compute(fleet.world.endpoint("replica", "Replica")) as replica,
    ):
        yield Pair(fleet, primary, replica)
        if replica.child.process.returncode is None:
            await replica.end()


async def test_the_whole_choreography(fleet: Fleet) -> None:
    """§6.5: prewarm, terminate, promote; 100 rows are there, more can be written, and a fresh primary sees them all."""
    async with open_pair(fleet) as pair:
        primary, replica = pair.primary, pair.replica
        await primary.sql("CREATE TABLE kept AS SELECT generate_series(1, 100) AS number")
        await primary.sql("ALTER DATABASE postgres SET neon_stand_in.cache_pages = 300")
        assert (await pair.cache(primary, "POST", "/lfc/offload"))["status"] == "completed"
        early = await pair.promote(Lsn(0))
        assert (early.status_code, early.json()) == (500, {"status": "failed", "error": "compute NotPrewarmed"})
        await replica.replayed(await primary.lsn())
        told = await pair.prewarm()
        assert (told["status"], told["total"]) == ("completed", 300), told
        lsn = await primary.end()
        response = await pair.promote(lsn)
        assert response.status_code == 200, response.text
        assert list(response.json()) == [
            *("status", "lsn_wait_time_ms", "pg_promote_time_ms", "reconfigure_time_ms"),
        ]
        again = await pair.promote(Lsn(0))
        assert (again.status_code, again.content) == (200, response.content)
        assert (await replica.child.status() or {})["status"] == "running"
        assert await replica.sql("SELECT count(*) FROM kept") == [(100,)]
        await replica.sql("INSERT INTO kept VALUES (101)")
        assert await replica.sql("SHOW port") == [(str(fleet.ports["replica"].postgres),)]
        ended = await replica.end()
        assert lsn is not None
        assert ended is not None
        assert ended >= lsn
    await trio.to_thread.run_sync(fleet.world.recover)
    async with fleet.world.open_receiver(fleet.ports["primary"].postgres), fleet.compute() as fresh:
        assert await fresh.sql("SELECT count(*), max(number) FROM kept") == [(101, 101)]
        await fresh.end()


async def test_the_settings_are_those_of_postgresql_conf_and_of_later_configurations(fleet: Fleet) -> None:
    """P-03, P-04, F-22, A-20: nothing is left that would win over a later /configure."""
    async with open_pair(fleet) as pair:
        await pair.prewarm()
        lsn = await pair.primary.end()
        assert (await pair.promote(lsn)).status_code == 200
        replica, safekeepers = pair.replica, fleet.addresses.safekeepers
        assert await replica.sql(OVERRIDES) == []
        assert await replica.sql(IN_FORCE) == [("walproposer", f"g#3:{','.join(safekeepers)}")]
        source = "SELECT sourcefile FROM pg_settings WHERE name = 'synchronous_standby_names'"
        assert Path((await replica.sql(source))[0][0]).name == "postgresql.conf"
        spec = pair.primary_spec(safekeepers_generation=4, safekeeper_connstrings=safekeepers[:2])
        assert (await replica.child.configure({"spec": spec})).status_code == 200
        assert await replica.sql(IN_FORCE) == [("walproposer", f"g#4:{','.join(safekeepers[:2])}")]
        await replica.sql("CREATE TABLE written AS SELECT 1 AS number")


async def test_a_spec_without_the_setting_keeps_it_until_one_has_it(fleet: Fleet) -> None:
    """P-04: otherwise commits would not wait for the safekeepers any more."""
    async with open_pair(fleet) as pair:
        await pair.prewarm()
        lsn = await pair.primary.end()
        spec = pair.primary_spec()
        bare = copy.deepcopy(spec)
        bare["cluster"]["settings"] = None
        assert (await pair.promote(lsn, bare)).status_code == 200
        replica = pair.replica
        assert await replica.sql(OVERRIDES) == [("synchronous_standby_names",)]
        assert (await replica.sql(IN_FORCE))[0][0] == "walproposer"
        await replica.sql("CREATE TABLE written AS SELECT 1 AS number")
        assert (await replica.child.configure({"spec": {**spec, "operation_uuid": "x"}})).status_code == 200
        assert await replica.sql(OVERRIDES) == []
        assert (await replica.sql(IN_FORCE))[0][0] == "walproposer"


async def test_commits_of_the_promoted_server_wait_for_the_safekeepers(fleet: Fleet) -> None:
    """§6.2: without a walproposer a commit hangs, and as soon as one is there it returns."""
    async with open_pair(fleet, receives_from=("primary",)) as pair:
        await pair.primary.sql("CREATE TABLE kept (number int)")
        await pair.replica.replayed(await pair.primary.lsn())
        await pair.prewarm()
        lsn = await pair.primary.end()
        assert (await pair.promote(lsn, pair.primary_spec(skip_pg_catalog_updates=True))).status_code == 200
        committed = trio.Event()

        async def write() -> None:
            await pair.replica.sql("INSERT INTO kept VALUES (1)")
            committed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            waiting = "SELECT wait_event FROM pg_stat_activity WHERE query ~ '^INSERT' AND wait_event = 'SyncRep'"
            with trio.fail_after(10):
                while await pair.replica.sql(waiting) == []:
                    await trio.sleep(0.02)
            await trio.sleep(0.5)
            assert not committed.is_set()
            async with fleet.world.open_receiver(fleet.ports["replica"].postgres):
                with trio.fail_after(10):
                    await committed.wait()
                await pair.replica.end()


async def test_catalog_updates_run_and_the_quota_is_put_back(fleet: Fleet) -> None:
    """P-02, D-28."""
    async with open_pair(fleet) as pair:
        await pair.prewarm()
        lsn = await pair.primary.end()
        spec = pair.primary_spec(skip_pg_catalog_updates=False)
        spec["cluster"]["roles"].append({"name": "made_by_promotion", "encrypted_password": None, "options": None})
        response = await pair.promote(lsn, spec)
        assert response.status_code == 200, response.text
        replica = pair.replica
        assert await replica.sql("SELECT count(*) FROM pg_roles WHERE rolname = 'made_by_promotion'") == [(1,)]
        assert (replica.endpoint.pgdata / "compute_ctl_temp_override.conf").read_text() == ""


async def test_a_failed_promotion_leaves_a_replica_and_its_settings(fleet: Fleet) -> None:
    """P-01, P-10: the primary can be started again, or the promotion be tried again."""
    async with open_pair(fleet) as pair:
        await pair.prewarm()
        lsn = await pair.primary.end()
        assert lsn is not None
        replica = pair.replica
        before = await replica.sql(IN_FORCE)
        spec = pair.primary_spec(safekeeper_connstrings=["x:1\n2:3"])
        response = await pair.promote(lsn, spec)
        assert response.status_code == 400
        with trio.fail_after(30):
            response = await pair.promote(Lsn(lsn + 2**30))
        assert response.json() == {"status": "failed", "error": "didn't catch up with primary in 20 retries"}
        assert await replica.sql(OVERRIDES) == []
        assert await replica.sql(IN_FORCE) == before
        assert await replica.sql("SELECT pg_is_in_recovery()") == [(True,)]
        assert (await pair.promote(lsn)).status_code == 200
        await replica.sql("CREATE TABLE written AS SELECT 1 AS number")


async def test_a_server_that_was_promoted_by_other_means_is_refused(fleet: Fleet) -> None:
    """P-08; it still counts as a replica, so its end tells no LSN (§6.2)."""
    async with open_pair(fleet) as pair:
        await pair.prewarm()
        lsn = await pair.primary.end()
        await pair.replica.sql("SELECT pg_promote()")
        response = await pair.promote(lsn)
        assert (response.status_code, response.json()["error"]) == (500, "not in recovery")
        assert await pair.replica.end() is None


async def test_a_client_that_leaves_at_once_finds_the_result_later(fleet: Fleet) -> None:
    """§6.3."""
    async with open_pair(fleet) as pair:
        await pair.prewarm()
        lsn = await pair.primary.end()
        with pytest.raises(httpx.TimeoutException):
            await pair.promote(lsn, timeout=0.03)
        response = await pair.promote(lsn)
        assert response.json()["status"] == "completed"
        with pytest.raises(psycopg.errors.UndefinedTable):
            await pair.replica.sql("SELECT * FROM nowhere")
