"""What each migration leaves, one check for each row, and what a repeat or another role name changes (05 §14, §15)."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import psycopg
import pytest

from tests.integration.bare_postgres import QUICK, BarePostgres, apply, fresh, wanted
from trio_compute.db import migrations
from trio_compute.db.migrations import run_migrations
from trio_compute.errors import PostgresError
from trio_compute.plan.migrations import MIGRATIONS
from trio_compute.telemetry.failpoints import failpoints

pytestmark = pytest.mark.postgres

CURRENT = "SELECT id FROM neon_migration.migration_id WHERE key = 0"
MEMBER = (
    "SELECT count(*)::int FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid "
    "JOIN pg_roles p ON p.oid = m.member WHERE p.rolname = %s AND g.rolname = %s"
)
ADMIN = f"{MEMBER} AND m.admin_option"
EXECUTABLE = "SELECT has_function_privilege(%s, %s, 'EXECUTE')::int"
# Number, since which major it does anything, query, its second parameter.
CHECKS: list[tuple[int, int, str, str]] = [
    (1, 0, "SELECT rolbypassrls::int FROM pg_roles WHERE rolname = %s AND '' = %s", ""),
    (3, 16, MEMBER, "pg_create_subscription"),
    (4, 0, ADMIN, "pg_monitor"),
    (10, 16, EXECUTABLE, "pg_export_snapshot()"),
    (10, 16, EXECUTABLE, "pg_log_standby_snapshot()"),
    (11, 0, EXECUTABLE, "pg_show_replication_origin_status()"),
    (12, 0, ADMIN, "pg_signal_backend"),
]


@pytest.fixture(autouse=True)
def _clean(server: BarePostgres) -> Iterator[None]:
    server.forget_migrations()
    yield
    failpoints.configure({"compute-migration": "off"})
    server.forget_migrations()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is logged about migrations."""
    found: list[str] = []

    def collect(event: str, /, **_values: object) -> None:
        found.append(event)

    monkeypatch.setattr(migrations, "log", SimpleNamespace(info=collect, warning=collect, error=collect))
    return found


async def migrate(server: BarePostgres, role: str) -> int:
    return await run_migrations(server.url(), privileged_role=role, deadlines=QUICK)


@pytest.mark.parametrize(("number", "since", "query", "subject"), CHECKS)
async def test_a_migration_does_its_part_and_not_before_its_turn(
    number: int, since: int, query: str, subject: str, server: BarePostgres, major: int
) -> None:
    """§14: what is undone beforehand is done by exactly that number, on the majors that have it."""
    role = fresh("stepwise")
    await apply(server, wanted(privileged_role=role))
    server.do("ALTER ROLE {} NOBYPASSRLS", role)
    if major < 16 and subject.startswith(("pg_create", "pg_log")):
        assert await migrate(server, role) == 12
        return
    if subject.endswith("()"):  # everybody may execute these by default
        server.sql(f"REVOKE EXECUTE ON FUNCTION {subject} FROM PUBLIC")
    try:
        for last, is_done in ((number, 0), (number + 1, int(major >= since))):
            failpoints.configure({"compute-migration": f"return({last})" if last <= 12 else "off"})
            if last <= 12:
                with pytest.raises(PostgresError, match="failpoint"):
                    await migrate(server, role)
            else:
                await migrate(server, role)
            assert server.sql(CURRENT) == [(last - 1,)]
            assert server.sql(query, role, subject) == [(is_done,)]
    finally:
        if subject == "pg_export_snapshot()":
            server.sql(f"GRANT EXECUTE ON FUNCTION {subject} TO PUBLIC")


async def test_the_log_tells_of_each_migration(server: BarePostgres, lines: list[str]) -> None:
    """§14: the words that tests of the platform look for."""
    await apply(server, wanted())
    failpoints.configure({"compute-migration": "return(4)"})
    with pytest.raises(PostgresError):
        await migrate(server, "neon_superuser")
    assert lines == [
        *(f"{word} migration id={number}" for number in (1, 2, 3) for word in ("Running", "Finished")),
        "Running migration id=4",
        "Failed to run migration id=4",
    ]
    lines.clear()
    failpoints.configure({"compute-migration": "off"})
    await migrate(server, "neon_superuser")
    assert lines[:7] == [
        "Running migration id=4",
        "Finished migration id=4",
        *(f"Skipping migration id={n}" for n in (5, 6, 7, 8, 9)),
    ]
    lines.clear()
    await migrate(server, "neon_superuser")
    assert lines == []


async def test_with_another_name_there_is_no_neon_superuser(server: BarePostgres) -> None:
    """K-06, test_privileged_role_override."""
    away = fresh("away")
    was_there = server.exists("role", "neon_superuser")
    if was_there:
        server.do("ALTER ROLE neon_superuser RENAME TO {}", away)
    try:
        member = fresh("neon_superuser_member")
        await apply(server, wanted([member], [(fresh("shop"), member)], privileged_role="my_superuser"))
        await migrate(server, "my_superuser")
        assert not server.exists("role", "neon_superuser")
        assert server.exists("role", "my_superuser")
    finally:
        if was_there:
            server.do("ALTER ROLE {} RENAME TO neon_superuser", away)


async def test_a_reserved_word_as_role_name_is_migrated(server: BarePostgres) -> None:
    """K-05."""
    await apply(server, wanted(privileged_role="order"))
    assert await migrate(server, "order") == len(MIGRATIONS)


async def test_names_in_the_catalog_of_any_kind_do_not_disturb_the_loop_over_roles(server: BarePostgres) -> None:
    """Number 2 alters every role by name."""
    names = [fresh(text) for text in ('quo"te', "apos'trophe", "back\\slash", "$migration$", "perc%ent")]
    await apply(server, wanted(names))
    await migrate(server, "neon_superuser")
    query = "SELECT count(*)::int FROM pg_roles WHERE rolname = ANY (%s) AND rolinherit AND rolbypassrls"
    assert server.sql(query, names) == [(len(names),)]


async def test_a_missing_privileged_role_fails_the_first_and_leaves_zero(server: BarePostgres) -> None:
    """§14: nothing persists, the error tells Postgres' words."""
    with pytest.raises(PostgresError, match=r'migration 1 .* role "nobody_there" does not exist'):
        await migrate(server, "nobody_there")
    assert server.sql(CURRENT) == [(0,)]


async def test_a_member_of_the_privileged_role_can_do_what_it_is_for(server: BarePostgres, major: int) -> None:
    """§15 test_neon_superuser, as far as an unpatched Postgres goes (§17)."""
    owner, name, made = fresh("owner"), fresh("shop"), fresh("made")
    await apply(server, wanted([owner], [(name, owner)]))
    await migrate(server, "neon_superuser")
    with server.connect(name, user=owner) as session:
        session.execute(f"CREATE ROLE {made} CREATEDB".encode())
        session.execute(f"CREATE DATABASE {made}_db".encode())
        session.execute(b"CREATE TABLE public.t (id int); CREATE PUBLICATION p FOR TABLE public.t")
        session.execute(b"SELECT count(*) FROM pg_catalog.pg_stat_activity")
        if major >= 16:
            text = (
                "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=1 password=x' PUBLICATION p WITH (connect=false)"
            )
            session.execute(text.encode())
            session.execute(b"ALTER SUBSCRIPTION s SET (slot_name = NONE)")
            session.execute(b"DROP SUBSCRIPTION s")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(b"SELECT pg_read_file('/etc/passwd')")
