"""/lfc/prewarm and /lfc/offload: contract 08 §1, §2, §4, 03 §5.4."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from tests.component.http.world import World, open_world, stands
from tests.fakes.specs import TENANT, TIMELINE
from trio_compute.errors import PostgresError
from trio_compute.lifecycle.status import Status

STORAGE = {"endpoint_id": "ep-own", "endpoint_storage_addr": "storage:1", "endpoint_storage_token": "a-token"}
POSTGRES_UP = (
    *(Status.RUNNING, Status.CONFIGURATION_PENDING, Status.CONFIGURATION),
    *(Status.REFRESH_CONFIGURATION_PENDING, Status.REFRESH_CONFIGURATION),
)
REFUSING = [status for status in Status if status not in POSTGRES_UP]


def keep_state(world: World, endpoint: str = "ep-own") -> None:
    url = f"http://storage:1/{TENANT}/{TIMELINE}/{endpoint}/lfc_state"
    world.host.endpoint_storage.frames[url] = b"packed state"


def refusal(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json()


async def settled(client: httpx.AsyncClient, path: str) -> bytes:
    """Return the state as soon as it is a final one."""
    with trio.fail_after(10):
        while True:
            response = await client.get(path)
            assert response.status_code == 200
            assert response.headers["content-type"] == "application/json"
            if response.json()["status"] not in {"prewarming", "offloading"}:
                return response.content
            await trio.sleep(0.005)


async def test_before_anything_is_asked_for() -> None:
    async with open_world() as world, world.client() as client:
        assert (await client.get("/lfc/prewarm")).content == b'{"status":"not_prewarmed"}'
        assert (await client.get("/lfc/offload")).content == b'{"status":"not_offloaded"}'


@pytest.mark.parametrize("status", list(Status))
async def test_states_are_told_and_cancelled_in_every_status(status: Status) -> None:
    """L-01: GET and DELETE always work."""
    async with open_world(status) as world, world.client() as client:
        assert (await client.get("/lfc/prewarm")).status_code == 200
        assert (await client.get("/lfc/offload")).status_code == 200
        response = await client.delete("/lfc/prewarm")
        assert (response.status_code, response.content) == (202, b"")


@pytest.mark.parametrize("status", REFUSING)
@pytest.mark.parametrize("path", ["/lfc/prewarm", "/lfc/offload"])
async def test_nothing_begins_unless_postgres_runs(path: str, status: Status) -> None:
    """L-01, D-25, A-01: 412, and the state is as before."""
    async with open_world(status) as world, world.client() as client:
        before = (await client.get(path)).content
        assert refusal(await client.post(path)) == (412, {"error": f"invalid compute status: {status.kebab}"})
        assert (await client.get(path)).content == before


@pytest.mark.parametrize("status", [*POSTGRES_UP, Status.FAILED])
@pytest.mark.parametrize("path", ["/lfc/prewarm", "/lfc/offload"])
async def test_both_begin_wherever_postgres_runs(path: str, status: Status) -> None:
    """T-09: a failed apply says nothing about the cache."""
    async with open_world(status) as world, world.client() as client:
        world.compute.postgres_running = True
        assert (await client.post(path)).status_code == 202


async def test_a_prewarm_is_accepted_at_once_and_tells_its_result_in_order() -> None:
    """§2: members in this order."""
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        keep_state(world)
        response = await client.post("/lfc/prewarm")
        assert (response.status_code, response.content) == (202, b"")
        state = await settled(client, "/lfc/prewarm")
        assert state.startswith(
            b'{"status":"completed","total":100,"prewarmed":80,"skipped":20,"state_download_time_ms":'
        )
        members = [
            *("status", "total", "prewarmed", "skipped"),
            *("state_download_time_ms", "uncompress_time_ms", "prewarm_time_ms"),
        ]
        assert list((await client.get("/lfc/prewarm")).json()) == members


async def test_a_null_of_postgres_becomes_0() -> None:
    """§3 step 11."""
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        keep_state(world)
        world.host.cache.tells_nothing = True
        await client.post("/lfc/prewarm")
        assert (await settled(client, "/lfc/prewarm")).startswith(
            b'{"status":"completed","total":0,"prewarmed":0,"skipp'
        )


async def test_a_prewarm_beside_another_one_is_429() -> None:
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        keep_state(world)
        world.host.endpoint_storage.slow["headers"] = 1000
        await client.post("/lfc/prewarm")
        assert (await client.get("/lfc/prewarm")).content == b'{"status":"prewarming"}'
        refused = (429, {"error": "Multiple requests for prewarm are not allowed"})
        assert refusal(await client.post("/lfc/prewarm")) == refused
        assert refusal(await client.post("/lfc/prewarm", params={"from_endpoint": "other"})) == refused
        await client.delete("/lfc/prewarm")
        assert await settled(client, "/lfc/prewarm") == b'{"status":"cancelled"}'
        assert (await client.post("/lfc/prewarm")).status_code == 202


async def test_a_stored_state_may_be_absent_and_a_prewarm_may_fail() -> None:
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        await client.post("/lfc/prewarm")
        assert await settled(client, "/lfc/prewarm") == b'{"status":"skipped"}'
        keep_state(world)
        world.host.cache.failures["load"] = PostgresError("wrong magic")
        await client.post("/lfc/prewarm")
        expected = b'{"status":"failed","error":"loading LFC state into postgres: wrong magic"}'
        assert await settled(client, "/lfc/prewarm") == expected


async def test_another_endpoint_may_be_named() -> None:
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        keep_state(world, "ep%20other")
        await client.post("/lfc/prewarm?from_endpoint=ep+other&whatever=1")
        assert (await settled(client, "/lfc/prewarm")).startswith(b'{"status":"completed"')


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_what_cannot_be_an_endpoint_is_400(name: str) -> None:
    """L-12."""
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        status, body = refusal(await client.post("/lfc/prewarm", params={"from_endpoint": name}))
        assert status == 400
        assert list(body) == ["error"]
        assert (await client.get("/lfc/prewarm")).content == b'{"status":"not_prewarmed"}'


@pytest.mark.parametrize("query", ["?", "?unknown=1"])
async def test_foreign_parameters_are_ignored(query: str) -> None:
    """A-12, which wins over 08 §1."""
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        assert (await client.post(f"/lfc/prewarm{query}")).status_code == 202
        assert await settled(client, "/lfc/prewarm") == b'{"status":"skipped"}'


async def test_an_offload_is_accepted_at_once_and_tells_its_result_in_order() -> None:
    """§4."""
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        response = await client.post("/lfc/offload")
        assert (response.status_code, response.content) == (202, b"")
        await settled(client, "/lfc/offload")
        told = (await client.get("/lfc/offload")).json()
        assert list(told) == ["status", "state_query_time_ms", "compress_time_ms", "state_upload_time_ms"]
        assert told["status"] == "completed"
        assert all(isinstance(value, int) for name, value in told.items() if name != "status")


async def test_an_offload_beside_another_one_is_429() -> None:
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        world.host.endpoint_storage.slow["upload"] = 1000
        await client.post("/lfc/offload")
        assert (await client.get("/lfc/offload")).content == b'{"status":"offloading"}'
        refused = (429, {"error": "Multiple requests for prewarm offload are not allowed"})
        assert refusal(await client.post("/lfc/offload")) == refused


async def test_an_offload_beside_a_prewarm_is_429() -> None:
    """L-06."""
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        world.host.endpoint_storage.slow["headers"] = 1000
        await client.post("/lfc/prewarm")
        assert (await client.post("/lfc/offload")).status_code == 429
        assert (await client.get("/lfc/offload")).content == b'{"status":"not_offloaded"}'


async def test_an_empty_cache_is_skipped_and_a_failure_is_told() -> None:
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        world.host.cache.saved = None
        await client.post("/lfc/offload")
        assert await settled(client, "/lfc/offload") == b'{"status":"skipped"}'
        world.host.cache.failures["connect"] = PostgresError("no free connection")
        await client.post("/lfc/offload")
        expected = b'{"status":"failed","error":"connecting to postgres: no free connection"}'
        assert await settled(client, "/lfc/offload") == expected


async def test_a_request_that_comes_when_the_compute_is_about_to_end_is_503() -> None:
    """The status is running still, as it is after Postgres died (02 §10.3)."""
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        world.end_errands()
        await stands(lambda: world.life.errands._nursery is None)
        for path in ("/lfc/prewarm", "/lfc/offload"):
            before = (await client.get(path)).content
            assert refusal(await client.post(path)) == (503, {"error": "compute is terminating"})
            assert (await client.get(path)).content == before


async def test_progress_is_told_while_a_prewarm_runs() -> None:
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        keep_state(world)
        world.host.cache.load_seconds = 1000
        world.host.cache.pages = 10_000_000
        await client.post("/lfc/prewarm")
        with trio.fail_after(10):
            while "pages_done" not in (told := (await client.get("/lfc/prewarm")).json()):
                await trio.sleep(0.01)
        assert list(told) == ["status", "pages_done", "pages_total", "pages_per_second", "estimate_seconds"]
        assert told["status"] == "prewarming"
        assert 0 < told["pages_done"] < told["pages_total"] == 10_000_000


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, "/lfc/prewarm") for method in ("GET", "POST", "DELETE")]
    + [(method, "/lfc/offload") for method in ("GET", "POST")]
    + [("POST", "/promote")],
)
async def test_a_token_is_needed(method: str, path: str) -> None:
    async with open_world() as world, world.client(None) as client:
        assert (await client.request(method, path)).status_code in {400, 401}


async def test_a_secret_in_an_error_is_not_shown() -> None:
    """A-07."""
    async with open_world(spec_changes=STORAGE) as world, world.client() as client:
        keep_state(world)
        world.host.cache.failures["load"] = PostgresError("bearer abc.def.ghi is no good")
        await client.post("/lfc/prewarm")
        assert b"abc.def" not in await settled(client, "/lfc/prewarm")
