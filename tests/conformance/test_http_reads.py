"""GET /status and /metrics.json: contract 03 §4 and §5, 02 §1 and §4.2."""

from __future__ import annotations

import datetime as dt

import pytest

from tests.component.http.world import STARTED_AT, World, open_world
from tests.fakes import specs
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status

KEYS = ["start_time", "tenant", "timeline", "status", "last_active", "error"]
METRICS = {
    *("wait_for_spec_ms", "sync_sk_check_ms", "sync_safekeepers_ms", "pageserver_connect_micros", "basebackup_bytes"),
    *("basebackup_ms", "start_postgres_ms", "config_ms", "total_startup_ms", "load_ext_ms", "num_ext_downloaded"),
    *("largest_ext_size", "total_ext_download_size"),
}
NAMES = {
    "empty",
    "configuration_pending",
    "init",
    "running",
    "configuration",
    "failed",
    "refresh_configuration_pending",
    "refresh_configuration",
    "termination_pending_fast",
    "termination_pending_immediate",
    "terminated",
}


async def read(world: World, path: str = "/status") -> dict[str, object]:
    async with world.client() as client:
        response = await client.get(path)
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        return response.json()  # type: ignore[no-any-return]


class TestStatus:
    def test_the_contract_knows_eleven_statuses(self) -> None:
        """02 §1."""
        assert {status.value for status in Status} == NAMES

    @pytest.mark.parametrize("status", Status)
    async def test_it_answers_in_every_status_with_all_six_keys(self, status: Status) -> None:
        """§4: all six keys always present; §5: no precondition."""
        async with open_world(status) as world:
            body = await read(world)
            assert list(body)[: len(KEYS)] == KEYS
            assert set(body) - {*KEYS} == {"revision", "history"}
            assert body["status"] == status.value

    async def test_an_empty_compute_is_nobodys(self) -> None:
        """02 §5: tenant and timeline null."""
        async with open_world(Status.EMPTY) as world:
            body = await read(world)
            assert [body[key] for key in ("tenant", "timeline", "last_active", "error")] == [None] * 4

    async def test_ids_are_lower_case_hex(self) -> None:
        """§4: hex32."""
        async with open_world(spec_changes={"tenant_id": specs.TENANT.upper()}) as world:
            body = await read(world)
            assert (body["tenant"], body["timeline"]) == (specs.TENANT, specs.TIMELINE)

    async def test_a_failed_compute_says_why(self) -> None:
        """§4."""
        async with open_world(Status.FAILED) as world:
            assert (await read(world))["error"] == "could not start"

    async def test_an_error_is_told_without_secrets(self) -> None:
        """A-07: central redaction, never in bodies."""
        async with open_world(Status.INIT) as world:
            world.compute.apply(ev.StartFailed(error="no connection to postgresql://u:hunter2@h/db password=hunter2"))
            error = str((await read(world))["error"])
            assert "hunter2" not in error
            assert "postgresql://u:" in error

    @pytest.mark.parametrize(
        ("microsecond", "fraction"), [(0, ""), (120_000, ".120"), (1000, ".001"), (123_456, ".123456"), (10, ".000010")]
    )
    async def test_times_have_the_fraction_they_need(self, microsecond: int, fraction: str) -> None:
        """§4: `start_time` with `Z`, `last_active` with `+00:00`; 0, 3, 6 (or 9) digits as needed."""
        moment = STARTED_AT.replace(microsecond=microsecond)
        async with open_world(Status.EMPTY) as world:
            world.compute.apply(ev.SpecKnown(spec=specs.parsed(), at=moment))
            world.compute.apply(ev.Started())
            world.compute.apply(ev.Active(at=moment))
            body = await read(world)
            assert body["start_time"] == f"2026-03-04T05:06:07{fraction}Z"
            assert body["last_active"] == f"2026-03-04T05:06:07{fraction}+00:00"

    async def test_times_are_utc_wherever_they_come_from(self) -> None:
        """§4."""
        async with open_world() as world:
            east = STARTED_AT.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30)))
            world.compute.apply(ev.Active(at=east))
            assert (await read(world))["last_active"] == "2026-03-04T05:06:07+00:00"


class TestMetrics:
    async def test_there_are_13_counters_all_0_at_first(self) -> None:
        """02 §4.2."""
        async with open_world(Status.EMPTY) as world:
            assert await read(world, "/metrics.json") == dict.fromkeys(METRICS, 0)

    async def test_a_measured_span_shows_up(self) -> None:
        """02 §4.2: all u64."""
        async with open_world() as world:
            world.compute.spans.add("start_postgres", start_seconds=world.compute.spans.now() - 1.5)
            body = await read(world, "/metrics.json")
            assert 1500 <= int(str(body["start_postgres_ms"])) < 3000
            assert {type(value) for value in body.values()} == {int}

    @pytest.mark.parametrize("status", Status)
    async def test_it_answers_in_every_status(self, status: Status) -> None:
        """§5: no precondition."""
        async with open_world(status) as world:
            assert set(await read(world, "/metrics.json")) == METRICS
