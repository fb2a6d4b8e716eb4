"""The lakebase phases on real Postgres, as far as it has what they name (contract 05 §12, K-28)."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from msgspec import structs

from tests.integration.bare_postgres import BarePostgres, apply, wanted

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
    await apply(server, STATE)
    query = "SELECT rolname::text, rolsuper, rolcanlogin FROM pg_roles WHERE rolname LIKE 'databricks%%' ORDER BY 1"
    found = {name: flags for name, *flags in server.sql(query)}
    assert found["databricks_control_plane"] == [True, True]
    assert found["databricks_gateway"] == found[MONITOR] == [False, True]
    assert server.sql("SELECT rolreplication FROM pg_roles WHERE rolname = 'databricks_superuser'") == [(False,)]
    assert server.sql("SELECT public.health_check_write_succeeds()", user=MONITOR) == [(1,)]
    assert server.sql("SELECT pg_has_role(%s, 'pg_monitor', 'member')", MONITOR) == [(True,)]
    assert server.sql("SELECT has_function_privilege(%s, 'pg_ls_dir(text)', 'EXECUTE')", MONITOR) == [(True,)]
    # What only Neon's own Postgres has is missing here: a warning each, not an error.
    await apply(server, STATE)


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
