"""Real computes, asked over HTTP for what SQL tells: activity, downtime, listing, extensions, grants (06 §15)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from tests.integration.compute import Rig
from trio_compute.embedded.compute_child import ComputeChild

pytestmark = pytest.mark.postgres

PATIENCE_SECONDS = 20.0


class Runtime:
    """Ask a compute over HTTP and its Postgres by SQL."""

    def __init__(self, rig: Rig, child: ComputeChild, sql: Any) -> None:
        self._rig, self._child, self._sql = rig, child, sql
        self.external = f"http://127.0.0.1:{child.ports.external}"
        self.internal = f"http://127.0.0.1:{child.ports.internal}"

    async def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        base = self.internal if body is not None else self.external
        headers = {"authorization": f"Bearer {self._rig.world.api_token()}"}
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client:
            return await client.request(method, base + path, headers=headers, json=body)

    async def sql(self, statement: str, *, database: str = "postgres", user: str = "cloud_admin") -> Any:
        url = f"postgresql://{user}@127.0.0.1:{self._child.ports.postgres}/{database}"
        return await trio.to_thread.run_sync(self._sql, url, statement)

    async def last_active(self) -> dt.datetime | None:
        text = (await self.ask("GET", "/status")).json()["last_active"]
        return None if text is None else dt.datetime.fromisoformat(text)

    async def settled(self) -> dt.datetime | None:
        """Wait until activity stays put for three rounds of the monitor, and return it."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                seen = await self.last_active()
                await trio.sleep(1.6)
                if await self.last_active() == seen:
                    return seen

    async def metric(self, name: str) -> float:
        lines = (await self.ask("GET", "/metrics")).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    async def until(self, holds: Callable[[], Any]) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while not await holds():
                await trio.sleep(0.05)


@pytest.mark.parametrize(
    ("features", "zone"), [([], "Pacific/Kiritimati"), (["activity_monitor_experimental"], "America/Los_Angeles")]
)
async def test_one_short_query_is_activity_and_an_idle_compute_has_none(
    rig: Rig, sql: Any, features: list[str], zone: str
) -> None:
    """06 §15, R-01, R-02: with the feature flag and without, east and west of Greenwich."""
    config = rig.config(features=features)
    # Workers of autovacuum would be activity too.
    config["spec"]["cluster"]["postgresql_conf"] += f"timezone = '{zone}'\nautovacuum = off\n"
    async with rig.compute(config) as child:
        await child.reach("running")
        runtime = Runtime(rig, child, sql)
        await runtime.sql("CREATE ROLE alice LOGIN")
        await runtime.sql("CREATE DATABASE work")
        before = await runtime.settled()
        began = dt.datetime.now(dt.UTC)
        # Without the flag only sessions that are there when somebody looks can be seen.
        statement, user = ("SELECT 1", "cloud_admin") if features else ("SELECT pg_sleep(1)", "alice")
        await runtime.sql(statement, database="work", user=user)

        async def advanced() -> bool:
            return await runtime.last_active() != before

        await runtime.until(advanced)
        seen = await runtime.settled()
        assert seen is not None
        assert began - dt.timedelta(seconds=0.5) <= seen <= dt.datetime.now(dt.UTC)
        await child.terminate("immediate")


async def test_a_lost_database_shows_as_downtime_in_the_metrics(rig: Rig, sql: Any) -> None:
    """06 §2.3, as Neon's own test does it."""
    async with rig.compute() as child:
        await child.reach("running")
        runtime = Runtime(rig, child, sql)
        names = ("compute_pg_current_downtime_ms", "compute_pg_downtime_ms_total")
        text = (await runtime.ask("GET", "/metrics")).text
        assert all(f"{name} 0" in text for name in names)
        await runtime.sql("DROP DATABASE postgres WITH (FORCE)", database="template1")

        async def both_rise() -> bool:
            return all([await runtime.metric(name) > 0 for name in names])

        await runtime.until(both_rise)
        await runtime.sql("CREATE DATABASE postgres", database="template1")

        async def is_up() -> bool:
            return await runtime.metric(names[0]) == 0

        await runtime.until(is_up)
        assert await runtime.metric(names[1]) > 0
        assert "downtime_info" in rig.log()
        await child.terminate("immediate")


async def test_the_routes_that_speak_sql_work_on_a_real_compute(rig: Rig, sql: Any) -> None:
    config = rig.config(skip_pg_catalog_updates=False)
    config["spec"]["cluster"]["postgresql_conf"] += "shared_preload_libraries = pg_stat_statements\n"
    async with rig.compute(config) as child:
        await child.reach("running")
        runtime = Runtime(rig, child, sql)
        assert (await runtime.ask("GET", "/insights")).json() == {"pg_stat_statements": []}
        extension = {"extension": "hstore", "database": "neondb"}
        for version in ("1.4", "1.4", "1.8"):
            answer = await runtime.ask("POST", "/extensions", {**extension, "version": version})
            assert (answer.status_code, answer.json()["version"]) == (201, version)
        assert (await runtime.ask("POST", "/extensions", {**extension, "version": "99"})).status_code == 409
        await runtime.sql("CREATE ROLE alice LOGIN; CREATE ROLE reader; CREATE SCHEMA auth")
        await runtime.sql("SELECT 1 AS by_alice", user="alice")
        found = (await runtime.ask("GET", "/insights")).json()["pg_stat_statements"]
        assert any("by_alice" in row["query"] for row in found)
        written = await runtime.ask("POST", "/check_writability")
        assert (written.status_code, written.content) == (200, b"true")
        grant = {"database": "postgres", "schema": "auth", "privileges": ["USAGE"], "role": "reader"}
        for _ in range(2):
            assert (await runtime.ask("POST", "/grants", grant)).status_code == 201
        assert await runtime.sql("SELECT has_schema_privilege('reader', 'auth', 'USAGE')") == [(True,)]
        missing = await runtime.ask("POST", "/grants", {**grant, "role": "nobody"})
        assert missing.status_code == 404
        listing = (await runtime.ask("GET", "/dbs_and_roles")).json()
        assert {"neondb", "postgres", "template1"} <= {database["name"] for database in listing["databases"]}
        assert "reader" in {role["name"] for role in listing["roles"]}
        statistics = 'compute_installed_extensions{extension_name="plpgsql"'
        assert statistics in (await runtime.ask("GET", "/metrics")).text
        assert "[NEON_EXT_STAT] {" in rig.log()
        await child.terminate("immediate")


async def test_a_request_that_hangs_does_not_hold_up_the_end(rig: Rig, sql: Any) -> None:
    """A-26 and the total of A-15: what is under way is cancelled with the life of the compute."""
    async with rig.compute() as child:
        await child.reach("running")
        runtime = Runtime(rig, child, sql)
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:

            async def check() -> None:
                answers.append(await runtime.ask("POST", "/check_writability"))

            lock = "BEGIN; LOCK TABLE pg_catalog.pg_event_trigger; SELECT pg_sleep(60)"
            nursery.start_soon(partial(_sleep_through, runtime, lock))
            await runtime.until(partial(_is_locked, runtime))
            nursery.start_soon(check)
            await runtime.until(partial(_waits, runtime))
            with trio.fail_after(15):
                await child.terminate("immediate")
        assert [answer.status_code for answer in answers] == [503]
        assert await child.process.wait() == 0


async def _sleep_through(runtime: Runtime, statement: str) -> None:
    with pytest.raises(Exception, match="terminat"):
        await runtime.sql(statement)


async def _is_locked(runtime: Runtime) -> bool:
    query = "SELECT 1 FROM pg_locks WHERE relation = 'pg_event_trigger'::regclass AND mode LIKE 'AccessExclusive%'"
    return bool(await runtime.sql(query))


async def _waits(runtime: Runtime) -> bool:
    query = (
        "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%availability_checker' AND wait_event = 'relation'"
    )
    return bool(await runtime.sql(query))
