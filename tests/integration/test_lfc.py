"""Prewarm and offload with real Postgres, the stand-in extension and the embedded endpoint storage (contract 08)."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import zstandard

from tests.integration.compute import Rig
from trio_compute.embedded.compute_child import ComputeChild
from trio_compute.embedded.dev import connstr
from trio_compute.embedded.http_services import ObjectFaults

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


class Cache:
    """Talk to a compute about its cache."""

    def __init__(self, rig: Rig, child: ComputeChild, sql: Any) -> None:
        self.rig = rig
        self.child = child
        self._sql = sql

    def sql(self, statement: str) -> list[Any]:
        return list(self._sql(self.rig.connstr, statement))

    def play(self, **settings: object) -> None:
        """Tell the stand-in what it shall play from now on."""
        for name, value in settings.items():
            self.sql(f"ALTER DATABASE postgres SET neon_stand_in.{name} = '{value}'")

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        url = f"{self.child.external_url}{path}"
        return await self.child._client.request(method, url, **options)

    async def begin(self, path: str, **options: Any) -> None:
        response = await self.request("POST", path, **options)
        assert response.status_code == 202, response.text

    async def state(self, path: str) -> dict[str, Any]:
        told: dict[str, Any] = (await self.request("GET", path)).json()
        return told

    async def end_of(self, path: str) -> dict[str, Any]:
        with trio.fail_after(30):
            while (told := await self.state(path))["status"] in {"prewarming", "offloading"}:
                await trio.sleep(0.01)
        return told

    async def prewarm(self, **options: Any) -> dict[str, Any]:
        await self.begin("/lfc/prewarm", **options)
        return await self.end_of("/lfc/prewarm")

    async def offload(self) -> dict[str, Any]:
        await self.begin("/lfc/offload")
        return await self.end_of("/lfc/offload")

    async def metric(self, name: str) -> float:
        text = (await self.request("GET", "/metrics")).text
        (line,) = [line for line in text.splitlines() if line.startswith(f"compute_ctl_lfc_{name}_total ")]
        return float(line.split()[1])

    def stored(self) -> Path:
        (path,) = (self.rig.world.directory / "objects").glob("*/*/*/lfc_state")
        return path


@asynccontextmanager
async def cache_of(rig: Rig, sql: Any, **spec_changes: Any) -> AsyncIterator[Cache]:
    config = rig.config(**{"skip_pg_catalog_updates": False, **spec_changes})
    async with rig.compute(config) as child:
        await child.reach("running")
        yield Cache(rig, child, sql)
        if child.process.returncode is None:
            await child.terminate("immediate")
            await child.process.wait()


async def test_a_state_is_stored_and_loaded_again(rig: Rig, sql: Any) -> None:
    async with cache_of(rig, sql) as cache:
        cache.play(cache_pages=1000, prewarm_skipped=200)
        told = await cache.offload()
        assert told["status"] == "completed", told
        state = zstandard.ZstdDecompressor().decompressobj().decompress(cache.stored().read_bytes())
        assert state == cache.sql("SELECT neon.get_local_cache_state()")[0][0]
        told = await cache.prewarm()
        assert told["status"] == "completed", told
        assert (told["total"], told["prewarmed"], told["skipped"]) == (1000, 800, 200)
        assert await cache.metric("prewarms") == await cache.metric("offloads") == 1
        assert await cache.metric("prewarm_errors") == await cache.metric("offload_errors") == 0
        spans = {span.name: span for span in await cache.child.spans()}
        parts = ("state_download", "uncompress", "prewarm", "info")
        whole = spans["lfc.prewarm"].duration_seconds
        assert whole is not None
        assert sum(spans[f"lfc.prewarm.{part}"].duration_seconds or 0 for part in parts) == pytest.approx(
            whole, abs=0.02
        )


async def test_an_empty_cache_is_skipped_both_ways(rig: Rig, sql: Any) -> None:
    """§6.4: `neon.file_cache_size_limit=0`."""
    off = {"name": "neon.file_cache_size_limit", "value": "0", "vartype": "integer"}
    cluster = {**rig.config()["spec"]["cluster"], "settings": [off]}
    async with cache_of(rig, sql, cluster=cluster) as cache:
        assert await cache.offload() == {"status": "skipped"}
        assert await cache.prewarm() == {"status": "skipped"}


async def test_progress_is_told_and_a_cancelled_load_ends_in_postgres_too(rig: Rig, sql: Any) -> None:
    """L-03, L-04: and an immediate new prewarm finds no other one active."""
    async with cache_of(rig, sql) as cache:
        cache.play(cache_pages=100_000)
        await cache.offload()
        cache.play(prewarm_seconds=60)
        await cache.request("DELETE", "/lfc/prewarm")
        await cache.begin("/lfc/prewarm")
        assert (await cache.request("POST", "/lfc/prewarm")).status_code == 429
        assert (await cache.request("POST", "/lfc/offload")).status_code == 429
        with trio.fail_after(20):
            while "pages_done" not in (told := await cache.state("/lfc/prewarm")) or told["pages_done"] == 0:
                await trio.sleep(0.05)
        assert told["pages_total"] == 100_000
        assert 0 < told["pages_per_second"] < 5000
        assert 20 < told["estimate_seconds"] < 200
        other = "SELECT pid FROM pg_stat_activity WHERE query ~ 'prewarm_local' AND pid <> pg_backend_pid()"
        assert len(cache.sql(other)) == 1
        await cache.request("DELETE", "/lfc/prewarm")
        await cache.request("DELETE", "/lfc/prewarm")
        assert await cache.end_of("/lfc/prewarm") == {"status": "cancelled"}
        assert cache.sql(other) == []
        cache.play(prewarm_seconds=0.1)
        assert (await cache.prewarm())["status"] == "completed"
        assert await cache.metric("prewarm_errors") == 0


async def test_postgres_dying_in_the_middle_of_a_prewarm_leaves_a_failed_one(rig: Rig, sql: Any) -> None:
    """L-02."""
    async with cache_of(rig, sql) as cache:
        await cache.offload()
        cache.play(prewarm_seconds=60)
        await cache.begin("/lfc/prewarm")
        with trio.fail_after(20):
            while "pages_total" not in await cache.state("/lfc/prewarm"):
                await trio.sleep(0.02)
        (pid,) = cache.sql(
            "SELECT pid FROM pg_stat_activity WHERE query ~ 'prewarm_local' AND pid <> pg_backend_pid()"
        )[0]
        os.kill(pid, signal.SIGKILL)
        told = await cache.end_of("/lfc/prewarm")
        assert told["status"] == "failed"
        with trio.fail_after(20):
            await cache.child.process.wait()


@pytest.mark.parametrize(
    ("faults", "prewarm", "offload"),
    [
        (
            ObjectFaults(status=500),
            "500 Internal Server Error querying endpoint storage",
            "request to endpoint storage failed: 500 Internal Server Error",
        ),
        (
            ObjectFaults(status=401),
            "401 Unauthorized querying endpoint storage",
            "request to endpoint storage failed: 401 Unauthorized",
        ),
        (ObjectFaults(cut_bytes=1), "decoding LFC state: it is cut short", None),
        (ObjectFaults(cut_bytes=10_000), "decoding LFC state: it is cut short", None),
    ],
)
async def test_faults_of_the_storage_are_told_and_pass(
    faults: ObjectFaults, prewarm: str, offload: str | None, rig: Rig, sql: Any
) -> None:
    async with cache_of(rig, sql) as cache:
        assert (await cache.offload())["status"] == "completed"
        for name in ("status", "cut_bytes"):
            setattr(rig.world.object_faults, name, getattr(faults, name))
        assert await cache.prewarm() == {"status": "failed", "error": prewarm}
        told = await cache.offload()
        assert told == {"status": "failed", "error": offload} if offload else told["status"] == "completed"
        rig.world.object_faults.status, rig.world.object_faults.cut_bytes = None, 0
        assert (await cache.prewarm())["status"] == "completed"


async def test_a_token_of_another_endpoint_may_read_but_not_write(rig: Rig, sql: Any) -> None:
    """07 §9: a replica reads what its primary stored; here it stores under an id that its token does not name."""
    async with cache_of(rig, sql) as cache:
        await cache.offload()
        config = rig.config(skip_pg_catalog_updates=False, endpoint_id="ep-another")
        assert (await cache.child.configure(config)).status_code == 200
        assert await cache.offload() == {
            "status": "failed",
            "error": "request to endpoint storage failed: 401 Unauthorized",
        }
        told = await cache.prewarm(params={"from_endpoint": rig.world.primary.endpoint_id})
        assert told["status"] == "completed"


async def test_a_storage_that_is_not_there_is_told(rig: Rig, sql: Any) -> None:
    async with cache_of(rig, sql, endpoint_storage_addr="127.0.0.1:1") as cache:
        told = await cache.prewarm()
        assert told["error"].startswith("querying endpoint storage: ")
        told = await cache.offload()
        assert told["error"].startswith("writing to endpoint storage: ")


async def test_a_silent_storage_is_given_up_by_a_cancellation_and_by_the_end(rig: Rig, sql: Any) -> None:
    """L-05."""
    async with cache_of(rig, sql) as cache:
        rig.world.object_faults.delay_seconds = 1000
        await cache.begin("/lfc/offload")
        await trio.sleep(0.1)
        await cache.begin("/lfc/prewarm")
        await trio.sleep(0.1)
        await cache.request("DELETE", "/lfc/prewarm")
        assert await cache.end_of("/lfc/prewarm") == {"status": "cancelled"}
        with trio.fail_after(10):
            await cache.child.terminate("immediate")


async def test_a_state_of_100_megabytes_goes_both_ways(rig: Rig, sql: Any) -> None:
    async with cache_of(rig, sql) as cache:
        cache.play(cache_pages=5_000_000, state_bytes=100_000_000)
        assert (await cache.offload())["status"] == "completed"
        told = await cache.prewarm()
        assert told["status"] == "completed", told
        assert told["total"] == 5_000_000


async def test_what_postgres_refuses_is_told(rig: Rig, sql: Any) -> None:
    async with cache_of(rig, sql) as cache:
        cache.play(cache_state="00ff")
        await cache.offload()
        error = "loading LFC state into postgres: wrong magic of the LFC state"
        assert await cache.prewarm() == {"status": "failed", "error": error}
        cache.sql("ALTER DATABASE postgres RESET neon_stand_in.cache_state")
        await cache.offload()
        cache.play(prewarm_seconds=0.2, prewarm_error="no space")
        assert await cache.prewarm() == {"status": "failed", "error": "loading LFC state into postgres: no space"}


async def test_a_compute_without_the_extension_fails_only_the_prewarm(rig: Rig, sql: Any) -> None:
    async with cache_of(rig, sql, skip_pg_catalog_updates=True) as cache:
        told = await cache.offload()
        assert told["error"].startswith("querying LFC state: schema")
        assert (await cache.child.status() or {})["status"] == "running"


async def test_it_prewarms_by_itself_and_stores_at_its_interval(rig: Rig, sql: Any) -> None:
    async with cache_of(rig, sql) as cache:
        await cache.offload()
    async with cache_of(rig, sql, autoprewarm=True, offload_lfc_interval_seconds=1) as cache:
        assert (await cache.end_of("/lfc/prewarm"))["status"] == "completed"
        with trio.fail_after(20):
            while await cache.metric("offloads") < 2:
                await trio.sleep(0.05)
        assert await cache.metric("prewarms") == 1


async def test_the_extension_goes_down_and_up_between_all_versions(rig: Rig, sql: Any) -> None:
    """06 §13.3."""
    async with cache_of(rig, sql) as cache:
        version = "SELECT extversion FROM pg_extension WHERE extname = 'neon'"
        with trio.fail_after(10):
            while "neon extension is up to date" not in rig.log():
                await trio.sleep(0.05)
        assert cache.sql(version) == [("1.6",)]
        for step in ("1.5", "1.0", "1.6", "1.1"):
            cache.sql(f"ALTER EXTENSION neon UPDATE TO '{step}'")
            assert cache.sql("SELECT neon.neon_stand_in_version()") == [(step,)]
    async with cache_of(rig, sql) as cache:
        with trio.fail_after(10):
            while cache.sql(version) != [("1.6",)]:
                await trio.sleep(0.05)
        assert connstr(cache.child.ports, "postgres") == rig.connstr
