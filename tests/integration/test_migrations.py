"""Migrations on real Postgres: each once, in order, resumed after a failure (contract 05 §14, K-30, K-31)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.bare_postgres import QUICK, BarePostgres, apply, wanted
from trio_compute.db.migrations import run_migrations
from trio_compute.errors import PostgresError
from trio_compute.plan.migrations import MIGRATIONS
from trio_compute.telemetry.failpoints import failpoints
from trio_compute.telemetry.metrics import DB_MIGRATION_FAILED, DB_MIGRATION_ID, metrics

pytestmark = pytest.mark.postgres

CURRENT = "SELECT id FROM neon_migration.migration_id WHERE key = 0"


@pytest.fixture(autouse=True)
def _clean(server: BarePostgres) -> Iterator[None]:
    server.forget_migrations()
    yield
    failpoints.configure({"compute-migration": "off"})
    server.forget_migrations()


async def migrate(server: BarePostgres, role: str) -> int:
    return await run_migrations(server.url(), privileged_role=role, deadlines=QUICK)


async def test_the_privileged_role_ends_as_the_contract_says(server: BarePostgres, major: int) -> None:
    role = "migrated_admin"
    await apply(server, wanted(privileged_role=role))
    assert await migrate(server, role) == len(MIGRATIONS) == 12
    assert server.sql(CURRENT) == [(12,)]
    query = (
        "SELECT rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, "
        "rolconnlimit FROM pg_roles WHERE rolname = %s"
    )
    assert server.sql(query, role) == [(False, True, True, True, False, True, True, -1)]
    memberships = (
        "SELECT g.rolname, m.admin_option FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid "
        "JOIN pg_roles p ON p.oid = m.member WHERE p.rolname = %s"
    )
    groups = dict(server.sql(memberships, role))
    assert groups["pg_monitor"]
    assert groups["pg_signal_backend"]
    assert ("pg_create_subscription" in groups) == (major >= 16)
    forbidden = {"pg_execute_server_program", "pg_read_server_files", "pg_write_server_files", "pg_checkpoint"}
    assert not (forbidden | {"pg_use_reserved_connections"}) & groups.keys()
    function = "SELECT has_function_privilege(%s, %s, 'EXECUTE')"
    assert server.sql(function, role, "pg_show_replication_origin_status()") == [(True,)]
    if major >= 16:
        assert server.sql(function, role, "pg_log_standby_snapshot()") == [(True,)]
    assert server.sql("SELECT has_schema_privilege('public', 'neon_migration', 'USAGE')") == [(False,)]


async def test_members_inherit_and_others_do_not_bypass_row_security(server: BarePostgres) -> None:
    role = "migrated_members"
    await apply(server, wanted(["insider"], privileged_role=role))
    server.sql("CREATE ROLE outsider BYPASSRLS; ALTER ROLE insider NOINHERIT")
    await migrate(server, role)
    query = "SELECT rolname::text, rolinherit, rolbypassrls FROM pg_roles WHERE rolname = ANY (%s) ORDER BY 1"
    assert server.sql(query, ["insider", "outsider"]) == [("insider", True, True), ("outsider", True, False)]
    server.sql("DROP ROLE insider; DROP ROLE outsider")


async def test_a_migration_that_fails_leaves_no_trace_and_is_the_first_of_the_next_start(server: BarePostgres) -> None:
    """test_compute_migrations_retry: stop at each number, metric, resume."""
    role = "migrated_in_steps"
    await apply(server, wanted(privileged_role=role))
    for number in range(1, len(MIGRATIONS) + 1):
        failpoints.configure({"compute-migration": f"return({number})"})
        failed = metrics.value(DB_MIGRATION_FAILED, migration_id=str(number))
        with pytest.raises(PostgresError, match=rf"migration {number} \({MIGRATIONS[number - 1].name}\) failed"):
            await migrate(server, role)
        assert server.sql(CURRENT) == [(number - 1,)]
        assert metrics.value(DB_MIGRATION_FAILED, migration_id=str(number)) == failed + 1
    failpoints.configure({"compute-migration": "off"})
    await migrate(server, role)
    assert server.sql(CURRENT) == [(12,)]


async def test_a_note_of_a_newer_version_is_told_and_nothing_is_run(server: BarePostgres) -> None:
    """K-30: it shows as a gauge."""
    await apply(server, wanted())
    server.sql("ALTER ROLE cloud_admin SET trio_compute.migration = '13'; ALTER ROLE neon_superuser NOBYPASSRLS")
    with pytest.raises(PostgresError, match="migration 13 is noted, but there are 0 to 12"):
        await migrate(server, "neon_superuser")
    assert server.sql("SELECT to_regclass('neon_migration.migration_id')") == [(None,)]
    assert server.sql("SELECT rolbypassrls FROM pg_roles WHERE rolname = 'neon_superuser'") == [(False,)]
    assert metrics.value(DB_MIGRATION_ID) == 13
    server.sql("ALTER ROLE neon_superuser BYPASSRLS")


@pytest.mark.parametrize("recorded", [-1, 13, 999])
async def test_a_number_that_a_tenant_wrote_is_told_and_keeps_nothing_from_being_run(
    recorded: int, server: BarePostgres
) -> None:
    """T-04: members of pg_write_all_data can write the original's table; ours is another record."""
    await apply(server, wanted(["scribe"]))
    await migrate(server, "neon_superuser")
    server.sql("UPDATE neon_migration.migration_id SET id = %s", recorded, user="scribe")
    server.sql("ALTER ROLE neon_superuser NOBYPASSRLS; REVOKE pg_monitor FROM neon_superuser")
    with pytest.raises(PostgresError, match=f"migration {recorded} is recorded in neon_migration.migration_id"):
        await migrate(server, "neon_superuser")
    assert metrics.value(DB_MIGRATION_ID) == 12
    query = "SELECT rolbypassrls, pg_has_role(rolname, 'pg_monitor', 'MEMBER') FROM pg_roles WHERE rolname = %s"
    assert server.sql(query, "neon_superuser") == [(True, True)]
    server.sql("DROP ROLE scribe")


@pytest.mark.parametrize("recorded", [0, 5, 12])
async def test_what_the_original_recorded_is_believed_once_and_looked_at(recorded: int, server: BarePostgres) -> None:
    """T-04: a cluster that the original made has no note of ours; what its number claims is verified."""
    await apply(server, wanted())
    await migrate(server, "neon_superuser")
    server.sql("UPDATE neon_migration.migration_id SET id = %s", recorded)
    server.sql("ALTER ROLE cloud_admin RESET trio_compute.migration; ALTER ROLE neon_superuser NOBYPASSRLS")
    await migrate(server, "neon_superuser")
    assert server.sql(CURRENT) == [(12,)]
    assert server.sql("SELECT rolbypassrls FROM pg_roles WHERE rolname = 'neon_superuser'") == [(True,)]


async def test_a_table_of_a_tenant_in_the_place_of_the_record_is_left_alone(server: BarePostgres) -> None:
    """T-04: neither read nor written; the migrations run all the same."""
    await apply(server, wanted(["squatter"]))
    server.sql("CREATE SCHEMA neon_migration AUTHORIZATION squatter")
    server.sql("CREATE TABLE neon_migration.migration_id (key int PRIMARY KEY, id int8)", user="squatter")
    server.sql("INSERT INTO neon_migration.migration_id VALUES (0, 12)", user="squatter")
    assert await migrate(server, "neon_superuser") == 12
    assert metrics.value(DB_MIGRATION_ID) == 12
    assert server.sql(CURRENT) == [(12,)]
    owner = "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'neon_migration'"
    assert server.sql(owner) == [("squatter",)]
    await apply(server, wanted(["squatter"]))
    assert server.sql("SELECT id FROM neon_migration_set_aside.migration_id") == [(12,)]
    server.sql("DROP SCHEMA neon_migration_set_aside CASCADE; DROP ROLE squatter")
