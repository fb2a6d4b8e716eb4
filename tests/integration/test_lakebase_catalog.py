"""The lakebase phases on real Postgres, as far as it has what they name (contract 05 §12, K-28)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from msgspec import structs

from tests.integration.bare_postgres import BarePostgres, apply, bare_postgres, fresh, wanted
from tests.integration.conftest import ordinary_run_as
from trio_compute.embedded import binaries

pytestmark = pytest.mark.postgres

STATE = structs.replace(wanted(privileged_role="databricks_superuser"), lakebase=True, reader_statement_timeout="30s")
MONITOR = "databricks_monitor"


@pytest.fixture(autouse=True)
def _gone_afterwards(server: BarePostgres) -> Iterator[None]:
    server.sql("CREATE ROLE databricks_reader_7; CREATE ROLE databricks_reader_x")
    yield
    server.sql("DROP FUNCTION IF EXISTS public.health_check_write_succeeds()")
    for role in (
        MONITOR,
        "databricks_control_plane",
        "databricks_gateway",
        "databricks_reader_7",
        "databricks_reader_x",
    ):
        if server.exists("role", role):
            server.do("DROP OWNED BY {}", role)
            server.do("DROP ROLE {}", role)


async def test_the_roles_of_the_platform_are_there_and_may_what_they_must(server: BarePostgres) -> None:
    """§12, K-28: all of it over a session whose search path is of no use."""
    await apply(server, STATE)
    query = "SELECT rolname::text, rolsuper, rolcanlogin FROM pg_roles WHERE rolname LIKE 'databricks%%' ORDER BY 1"
    found = {name: flags for name, *flags in server.sql(query)}
    assert found["databricks_control_plane"] == [True, True]
    assert found["databricks_gateway"] == found[MONITOR] == [False, True]
    assert server.sql("SELECT rolreplication FROM pg_roles WHERE rolname = 'databricks_superuser'") == [(False,)]
    assert server.sql("SELECT public.health_check_write_succeeds()", user=MONITOR) == [(1,)]
    assert server.sql("SELECT pg_has_role(%s, 'pg_monitor', 'member')", MONITOR) == [(True,)]
    assert server.sql("SELECT has_function_privilege(%s, 'pg_ls_dir(text)', 'EXECUTE')", MONITOR) == [(True,)]
    # What only Databricks' own Postgres has is missing here: a warning, not an error.
    again = await apply(server, STATE)
    assert again.is_empty
    assert [warning.split(" is ")[0] for warning in again.warnings] == ["extension databricks_auth"]


@pytest.mark.parametrize(
    ("undo", "operation"),
    [
        ("REVOKE USAGE ON SCHEMA neon FROM databricks_monitor", "grant schema neon to databricks_monitor"),
        ("REVOKE INSERT ON public.health_check FROM databricks_monitor", "grant table health_check to"),
        ("REVOKE EXECUTE ON FUNCTION pg_ls_dir(text) FROM databricks_monitor", "grant function pg_ls_dir to"),
        ("ALTER ROLE databricks_monitor RESET statement_timeout", "limit the statements of role"),
        ("DROP FUNCTION public.health_check_write_succeeds()", "create function health_check_write_succeeds"),
    ],
)
async def test_what_is_taken_away_is_given_back_and_nothing_else(
    undo: str, operation: str, server: BarePostgres
) -> None:
    """§12, K-29, K-32."""
    await apply(server, STATE)
    server.sql(undo)
    done = [step.what for _, phase in (await apply(server, STATE)).located() for step in phase.operations]
    assert len(done) == 1
    assert done[0].startswith(operation)
    assert (await apply(server, STATE)).is_empty


async def test_without_the_schema_public_there_are_warnings_only(server: BarePostgres) -> None:
    name = fresh("bare")
    server.do("CREATE DATABASE {}", name)
    server.sql("DROP SCHEMA public CASCADE", database=name)
    plan = await apply(server, STATE, url=server.url(name))
    assert any("health_check_write_succeeds is not created" in warning for warning in plan.warnings)
    assert (await apply(server, STATE, url=server.url(name))).is_empty
    server.do("DROP DATABASE {}", name)


async def test_with_what_the_platform_ships_all_of_it_is_granted(major: int, public_tmp: Path) -> None:
    """§12: databricks_auth is made anew on each apply; the counters of the neon extension are open to the monitor."""
    tree = public_tmp / "tree"
    shutil.copytree(binaries.ensure(major), tree, symlinks=True)
    extensions = tree / "share" / "extension"
    control = "default_version = '1.0'\nrelocatable = true\n"
    (extensions / "databricks_auth.control").write_text(control)
    (extensions / "databricks_auth--1.0.sql").write_text("CREATE VIEW databricks_auth_metrics AS SELECT 1 AS n;")
    for shipped in bare_postgres(tree, ordinary_run_as()):
        first = await apply(shipped, STATE)
        assert first.warnings == ()
        assert shipped.sql("SELECT * FROM public.databricks_auth_metrics", user=MONITOR) == [(1,)]
        counters = "SELECT count(*)::int FROM neon.neon_perf_counters"
        function = "SELECT count(*)::int FROM neon.get_perf_counters() AS p (metric text, le float8, value float8)"
        assert shipped.sql(counters, user=MONITOR) == shipped.sql(function, user=MONITOR) == [(3,)]
        again = await apply(shipped, STATE)
        assert [phase.name for _, phase in again.located()] == ["HandleDatabricksAuthExtension"]
        assert shipped.sql("SELECT * FROM public.databricks_auth_metrics", user=MONITOR) == [(1,)]


async def test_readers_and_the_monitor_are_limited(server: BarePostgres) -> None:
    await apply(server, STATE)
    query = "SELECT setrole::regrole::text, setconfig FROM pg_db_role_setting WHERE setdatabase = 0"
    settings = dict(server.sql(query))
    assert settings["databricks_reader_7"] == ["statement_timeout=30s"]
    assert settings[MONITOR] == ["statement_timeout=60s"]
    assert "databricks_reader_x" not in settings


async def test_a_health_check_that_cannot_write_says_so_with_its_mark(server: BarePostgres) -> None:
    await apply(server, STATE)
    with server.connect(user=MONITOR) as session:
        session.execute("SET default_transaction_read_only = on")
        with pytest.raises(psycopg.Error, match=r"\[DATABRICKS_SMGR\]"):
            session.execute("SELECT public.health_check_write_succeeds()")
