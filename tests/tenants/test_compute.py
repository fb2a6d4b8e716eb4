"""A whole compute, from its command line and over HTTP, whose tenants have laid every trap before it starts again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psycopg
import pytest
import trio

from tests.integration.compute import Rig
from tests.tenants.ground import WORD, named
from tests.tenants.hostile import FOUNDATION, lay_impostors
from tests.tenants.overloads import lay_overloads
from trio_compute.embedded.compute_child import ComputeChild

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

APP, QUIET = "app", "quiet"
ROUTES = (
    ("GET", "/dbs_and_roles", None),
    ("POST", "/check_writability", None),
    ("GET", "/insights", None),
    ("GET", f"/database_schema?database={QUIET}", None),
    ("GET", "/metrics", None),
    ("GET", "/status", None),
    ("POST", "/extensions", {"extension": "citext", "database": QUIET, "version": "1.6"}),
    ("POST", "/grants", {"database": QUIET, "schema": "public", "role": "alice", "privileges": ["CREATE"]}),
)


def config(
    rig: Rig, delta: list[dict[str, Any]] | None = None, *, roles: tuple[str, ...] = ("mallory", "trudy", "alice")
) -> dict[str, Any]:
    cluster = dict(rig.config()["spec"]["cluster"])
    cluster["roles"] = [{"name": name, "encrypted_password": None} for name in roles]
    cluster["databases"] = [
        {"name": "postgres", "owner": "mallory"}, {"name": APP, "owner": "mallory"}, {"name": QUIET, "owner": "alice"},
    ]  # fmt: skip
    return rig.config(skip_pg_catalog_updates=False, cluster=cluster, delta_operations=delta)


@asynccontextmanager
async def compute(rig: Rig, document: dict[str, Any]) -> AsyncIterator[ComputeChild]:
    """Run a compute whose commits are durable, and end it in an orderly way."""
    async with rig.world.open_receiver(rig.ports.postgres), rig.compute(document) as child:
        await child.reach("running", give_up=("failed", "terminated"))
        yield child
        await child.terminate("fast")
        await child.reach("terminated")


def session(rig: Rig, database: str, user: str) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host="127.0.0.1", port=rig.ports.postgres, dbname=database, user=user, autocommit=True, sslmode="disable"
    )


def wait_for_migrations(rig: Rig) -> None:
    """Wait until those of the start are over, which would make a schema at the same moment as the traps."""
    with session(rig, "postgres", "cloud_admin") as looking:
        done = "SELECT 1 FROM pg_db_role_setting WHERE 'trio_compute.migration=12' = ANY (setconfig)"
        while looking.execute(done).fetchone() is None:
            time.sleep(0.02)  # Postgres tells nobody
        while looking.execute("SELECT to_regclass('neon_migration.migration_id')").fetchone() == (None,):
            time.sleep(0.02)


def lay_traps(rig: Rig) -> None:
    """Lay them in the database that the compute works from, and in one of the tenant's."""
    for database in ("postgres", APP):
        with session(rig, database, "mallory") as tenant:
            for lay in FOUNDATION:
                lay(tenant)
            lay_impostors(tenant)
            lay_overloads(tenant)
            for setting in (
                "search_path = '''''', public",
                "role = mallory",
                "idle_session_timeout = 100",
                "DateStyle = German",
            ):
                tenant.execute(named("ALTER DATABASE {} SET ", database) + psycopg.sql.SQL(setting))
    with session(rig, "postgres", "trudy") as tenant:
        tenant.execute(
            "CREATE SCHEMA mine; CREATE VIEW mine.x AS SELECT * FROM "
            "pg_catalog.pg_authid; GRANT ALL ON SCHEMA mine TO PUBLIC"
        )
        tenant.execute(
            "CREATE FUNCTION mine.y() RETURNS void LANGUAGE plpgsql SECURITY "
            "DEFINER AS 'BEGIN ALTER ROLE alice SUPERUSER; END'"
        )
        tenant.execute("CREATE TABLE mine.kept AS SELECT 42 AS id; GRANT ALL ON ALL TABLES IN SCHEMA mine TO PUBLIC")


def guilty(rig: Rig) -> list[str]:
    """Return what the log says of traps, and who is a superuser."""
    with psycopg.connect(
        f"postgresql://cloud_admin@127.0.0.1:{rig.ports.postgres}/{QUIET}?options=-c%20search_path%3Dpg_catalog",
        autocommit=True,
    ) as judge:
        rows = judge.execute("SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolsuper AND oid <> 10").fetchall()
    found = {line.partition(f"{WORD} ")[2].partition(" (")[0] for line in rig.log().splitlines() if f"{WORD} " in line}
    return sorted(found) + [f"{name} is a superuser" for (name,) in rows]


async def ask_everything(rig: Rig, child: ComputeChild) -> dict[str, int]:
    """Ask every route that speaks SQL; return what each answered."""
    headers = {"authorization": f"Bearer {rig.world.api_token()}"}
    answers = {}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        for method, path, body in ROUTES:
            base = f"http://127.0.0.1:{child.ports.internal if body else child.ports.external}"
            answer = await client.request(method, base + path, headers=headers, json=body)
            answers[path] = answer.status_code
    return answers


async def test_a_compute_starts_serves_and_ends_in_a_trapped_world(rig: Rig) -> None:
    """T-01 … T-04, T-07, T-08: start, traps, every route, a deletion, another start, and migrations at each."""
    async with compute(rig, config(rig)) as child:
        await trio.to_thread.run_sync(wait_for_migrations, rig)
        await trio.to_thread.run_sync(lay_traps, rig)
        answers = await ask_everything(rig, child)
        crimes = await trio.to_thread.run_sync(guilty, rig)
        assert not crimes, "\n".join(crimes)
        assert {path for path, code in answers.items() if code >= 400} == set()
    async with compute(rig, config(rig)) as child:
        await ask_everything(rig, child)
        spec = config(rig, [{"action": "delete_role", "name": "trudy"}], roles=("mallory", "alice"))
        answer = await child.configure(spec)
        crimes = await trio.to_thread.run_sync(guilty, rig)
        assert not crimes, answer.text + "\n".join(crimes)
        await trio.to_thread.run_sync(exploit, rig)
        crimes = await trio.to_thread.run_sync(guilty, rig)
        assert not crimes, "\n".join(crimes)
        assert (await child.get("/status"))["status"] == "running"


def exploit(rig: Rig) -> None:
    """Use what trudy left, and look whether her table is there."""
    with session(rig, "postgres", "alice") as tenant:
        tenant.execute("SET search_path = pg_catalog; RESET ROLE")
        for statement in ("SELECT mine.y()", "UPDATE mine.x SET rolsuper = true WHERE rolname = 'alice'"):
            try:
                tenant.execute(statement.encode())
            except psycopg.Error:
                continue
        assert tenant.execute("SELECT id FROM mine.kept").fetchall() == [(42,)]


async def test_a_database_that_refuses_us_does_not_keep_a_compute_from_starting(rig: Rig) -> None:
    """T-08, T-09: its failure is told, and tried again; the routes work, also after a /configure that failed."""
    delta = [{"action": "delete_role", "name": "trudy"}]
    smaller = config(rig, delta, roles=("mallory", "alice"))
    async with compute(rig, config(rig)):
        await trio.to_thread.run_sync(break_app, rig)
    async with compute(rig, smaller) as child:
        assert {path for path, code in (await ask_everything(rig, child)).items() if code >= 400} == set()
        assert APP in str((await child.get("/status")).items())
        assert (await child.configure(smaller)).status_code == 500
        assert {path for path, code in (await ask_everything(rig, child)).items() if code >= 400} == set()
        with session(rig, "postgres", "cloud_admin") as superuser:
            superuser.execute("UPDATE pg_catalog.pg_database SET dattablespace = 1663")
        assert (await child.configure(smaller)).status_code == 200
        with session(rig, APP, "mallory") as tenant:
            assert tenant.execute("SELECT id FROM mine.kept").fetchall() == [(1,)]


def break_app(rig: Rig) -> None:
    """Let trudy have something in a database whose files then cannot be found."""
    with session(rig, APP, "mallory") as tenant:
        tenant.execute("CREATE SCHEMA mine; GRANT ALL ON SCHEMA mine TO PUBLIC")
    with session(rig, APP, "trudy") as tenant:
        tenant.execute("CREATE TABLE mine.kept AS SELECT 1 AS id; GRANT ALL ON mine.kept TO PUBLIC")
    with session(rig, "postgres", "cloud_admin") as superuser:
        superuser.execute("UPDATE pg_catalog.pg_database SET dattablespace = 99999 WHERE datname = %s", (APP,))
