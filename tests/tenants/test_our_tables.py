"""What we believe about a database cannot be forged: not by writing, replacing, or dropping (T-04)."""

from __future__ import annotations

import contextlib
import uuid

import psycopg
import pytest

from tests.integration.bare_postgres import PRIVILEGED
from tests.tenants.conftest import ALICE, MALLORY, TRUDY, Place
from tests.tenants.ground import fresh, named
from tests.tenants.ours import deleted, failure_of
from trio_compute.errors import Conflicting, PostgresError

pytestmark = pytest.mark.postgres

_MIGRATED = f"""
SELECT pg_has_role('{PRIVILEGED}', 'pg_monitor', 'member'),
       has_function_privilege('{PRIVILEGED}', 'pg_show_replication_origin_status()', 'EXECUTE'),
       pg_has_role('{PRIVILEGED}', 'pg_signal_backend', 'member')"""


def forget_migrations(place: Place) -> None:
    """Let the cluster be as one on which no migration ever ran."""
    with place.ground.connect(place.system) as session:
        session.execute(f"REVOKE pg_monitor, pg_signal_backend FROM {PRIVILEGED} CASCADE")
        session.execute(f"REVOKE EXECUTE ON FUNCTION pg_show_replication_origin_status() FROM {PRIVILEGED}")


def write_all(place: Place, user: str, statement: str) -> int:
    """Run a statement on every table in schemas of ours, as a tenant; return how often that worked."""
    query = """SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
               WHERE relkind IN ('r', 'p', 'v') AND nspname IN ('neon', 'neon_migration') OR relname = 'health_check'"""
    worked = 0
    with place.ground.connect(place.system, user) as session:
        for schema, table in place.ground.sql(query, database=place.system):
            with contextlib.suppress(psycopg.Error):
                session.execute(named(statement, schema, table))
                worked += 1
    return worked


@pytest.mark.parametrize("number", [12, 5, 99, -1, None])
async def test_a_forged_number_of_migrations_skips_none(town: Place, number: int | None) -> None:
    """T-04: what the number claims is verified: rights that a migration gives are there in the end, or it is told."""
    forget_migrations(town)
    with town.ground.connect(town.system, MALLORY) as session:
        session.execute(
            "CREATE SCHEMA neon_migration; CREATE TABLE neon_migration.migration_id (key int PRIMARY KEY, id bigint)"
        )
        session.execute("INSERT INTO neon_migration.migration_id VALUES (0, %s)", (number,))
    told = False
    try:
        await town.ours.host.run_migrations()
    except PostgresError as error:
        told = "migration" in str(error)
    assert told or town.ground.sql(_MIGRATED, database=town.system) == [(True, True, True)]
    assert not (told and number in {12, 5}), "such a number is not even strange"


async def test_a_number_that_a_member_writes_later_skips_none(town: Place) -> None:
    """T-04: every member may write every table; whatever it writes into ours, the next start makes good."""
    await town.ours.apply(town.spec())
    await town.ours.host.run_migrations()
    forget_migrations(town)
    with town.ground.connect(town.system, TRUDY) as session, contextlib.suppress(psycopg.Error):
        session.execute("UPDATE neon_migration.migration_id SET id = 12")
    await town.ours.host.run_migrations()
    assert town.ground.sql(_MIGRATED, database=town.system) == [(True, True, True)]


@pytest.mark.parametrize(
    "statement", ["DELETE FROM {}.{}", "TRUNCATE {}.{}", "DROP TABLE {}.{}", "ALTER TABLE {}.{} RENAME TO gone"]
)
async def test_what_a_tenant_takes_away_from_our_tables_is_made_good(town: Place, statement: str) -> None:
    """T-04: and afterwards there is nothing left to do."""
    await town.ours.apply(town.spec())
    await town.ours.host.run_migrations()
    write_all(town, TRUDY, statement)
    write_all(town, MALLORY, statement)
    await town.ours.apply(town.spec(), is_start=True)
    await town.ours.host.run_migrations()
    assert await town.ours.host.check_writability()
    assert await town.ours.left_to_do(town.spec()) == []


async def test_a_forged_mark_does_not_keep_a_database_from_being_prepared(town: Place) -> None:
    """T-04: copied from a database that was prepared, by who may write all tables."""
    await town.ours.apply(town.spec())
    forged = fresh("forged")
    with town.ground.connect(town.system, TRUDY) as session:
        session.execute(named("CREATE DATABASE {}", forged))
        with contextlib.suppress(psycopg.Error):
            session.execute(
                "INSERT INTO neon.prepared_databases SELECT d.oid, mark FROM "
                "neon.prepared_databases, pg_catalog.pg_database d "
                "WHERE datname = %s ON CONFLICT DO NOTHING",
                (forged,),
            )
    try:
        await town.ours.apply(town.ours.spec([MALLORY, TRUDY], [*town.databases(), (forged, TRUDY)]))
        query = "SELECT count(*)::int FROM pg_default_acl WHERE defaclnamespace = 'public'::regnamespace"
        assert town.ground.sql(query, database=forged) == [(2,)]
    finally:
        town.ground.do("DROP DATABASE {} WITH (FORCE)", forged)


async def test_a_forged_marker_does_not_keep_inherited_subscriptions(town: Place) -> None:
    """T-04: the marker of this timeline, written by a tenant on the parent branch."""
    timeline, sub = uuid.uuid4().hex, fresh("sub")
    await town.ours.apply(town.spec(drop_subscriptions_before_start=True, timeline_id=uuid.uuid4().hex))
    with town.ground.connect(town.system, TRUDY) as session, contextlib.suppress(psycopg.Error):
        session.execute("UPDATE neon.drop_subscriptions_done SET timeline_id = %s", (timeline,))
    options = "CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect=false, slot_name=NONE)"
    town.ground.do(f"CREATE SUBSCRIPTION {{}} {options}", sub, database=town.app)
    await town.ours.apply(town.spec(drop_subscriptions_before_start=True, timeline_id=timeline))
    assert town.ground.sql("SELECT 1 FROM pg_subscription WHERE subname = %s", sub) == []


async def test_a_marker_made_by_a_tenant_beforehand_is_not_believed(town: Place) -> None:
    """T-04: in a schema neon of its own."""
    timeline, sub = uuid.uuid4().hex, fresh("sub")
    with town.ground.connect(town.system, MALLORY) as session:
        session.execute(
            "CREATE SCHEMA neon; CREATE TABLE neon.drop_subscriptions_done (id int PRIMARY KEY, timeline_id text)"
        )
        session.execute("INSERT INTO neon.drop_subscriptions_done VALUES (1, %s)", (timeline,))
    options = "CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect=false, slot_name=NONE)"
    town.ground.do(f"CREATE SUBSCRIPTION {{}} {options}", sub, database=town.app)
    with contextlib.suppress(PostgresError):
        await town.ours.apply(town.spec(drop_subscriptions_before_start=True, timeline_id=timeline))
    assert town.ground.sql("SELECT 1 FROM pg_subscription WHERE subname = %s", sub) == []


@pytest.mark.parametrize(
    "impostor",
    [
        "CREATE VIEW public.health_check AS SELECT 1 AS id, now() AS updated_at",
        "CREATE TABLE public.health_check (nothing int)",
        "CREATE TABLE public.health_check (id int PRIMARY KEY, updated_at timestamptz CHECK (false))",
        "CREATE SEQUENCE public.health_check",
        "CREATE TYPE public.health_check AS (a int)",
        (
            "CREATE TABLE public.health_check (id int, updated_at timestamptz); "
            "INSERT INTO public.health_check VALUES (1), (1)"
        ),
        "CREATE FOREIGN TABLE public.health_check (id int, updated_at timestamptz) SERVER nowhere",
        "DROP SCHEMA public CASCADE",
        "SELECT 1",
    ],
)
async def test_a_write_check_tells_whether_one_can_write_whatever_a_tenant_made(town: Place, impostor: str) -> None:
    """T-04: it touches nothing that a tenant can prepare, and works before any apply."""
    with town.ground.connect(town.system) as session:
        session.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw WITH SCHEMA pg_catalog")
        session.execute(
            "CREATE SERVER nowhere FOREIGN DATA WRAPPER postgres_fdw; GRANT ALL ON FOREIGN SERVER nowhere TO PUBLIC"
        )
    with town.ground.connect(town.system, MALLORY) as session:
        session.execute(impostor.encode())
    assert await town.ours.host.check_writability()
    await town.ours.apply(town.spec())
    assert await town.ours.host.check_writability()


async def test_the_table_of_older_versions_goes_if_it_is_ours_and_stays_if_it_is_not(town: Place) -> None:
    """T-04: a database that had public.health_check loses it, but a tenant's table of that name is data."""
    columns = "id int4 PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY, updated_at timestamptz DEFAULT now()"
    town.ground.sql(
        f"CREATE TABLE public.health_check ({columns}); INSERT INTO public.health_check VALUES (1)",
        database=town.system,
    )
    with town.ground.connect(town.app, MALLORY) as session:
        session.execute(
            f"CREATE TABLE public.health_check ({columns}, mine text); INSERT "
            f"INTO public.health_check (mine) VALUES ('x')"
        )
    await town.ours.apply(town.spec(), is_start=True)
    theirs = "SELECT mine FROM public.health_check"
    assert town.ground.sql(theirs, database=town.app) == [("x",)]
    gone = "SELECT to_regclass('public.health_check') IS NULL"
    assert town.ground.sql(gone, database=town.system) == [(True,)]


async def test_a_schema_neon_of_a_tenant_holds_nothing_of_ours(town: Place) -> None:
    """T-02, T-04: who owns a schema can drop and replace whatever is in it."""
    with town.ground.connect(town.system, MALLORY) as session:
        session.execute("CREATE SCHEMA neon; CREATE SCHEMA neon_migration")
    for step in (town.ours.apply(town.spec()), town.ours.host.run_migrations()):
        with contextlib.suppress(PostgresError):
            await step
    query = """
        SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        JOIN pg_roles o ON o.oid = relowner JOIN pg_roles s ON s.oid = nspowner
        WHERE nspname ~ '^neon' AND o.rolsuper AND NOT s.rolsuper
        UNION ALL
        SELECT n.nspname::text, e.extname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace
        JOIN pg_roles s ON s.oid = nspowner WHERE nspname ~ '^neon' AND NOT s.rolsuper"""
    assert town.ground.sql(query, database=town.system) == []


async def test_an_extension_of_a_tenant_does_not_pass_for_ours(town: Place) -> None:
    """T-02, beyond: neon is a trusted extension, so a database owner can install it, own it, and move it."""
    with town.ground.connect(town.system, MALLORY) as session:
        session.execute("CREATE SCHEMA lair; CREATE EXTENSION neon WITH SCHEMA lair VERSION '1.5'")
        session.execute(
            "CREATE FUNCTION lair.now() RETURNS timestamptz LANGUAGE sql AS $$SELECT trap.moment('lair.now')$$; "
            "ALTER EXTENSION neon ADD FUNCTION lair.now()"
        )
    with contextlib.suppress(PostgresError):
        await town.ours.apply(town.spec())
    with contextlib.suppress(PostgresError):
        await town.ours.host.upgrade_neon_extension()
    with contextlib.suppress(PostgresError):
        await town.ours.use_cache()
    assert town.judge.crimes() == []
    query = (
        "SELECT nspname::text, e.extowner <> 10 FROM pg_extension e JOIN "
        "pg_namespace n ON n.oid = extnamespace WHERE extname = 'neon'"
    )
    # Either it is ours now, or it is left alone where it was.
    assert town.ground.sql(query, database=town.system) in ([("neon", False)], [("lair", True)])


_OBSTACLES = {
    "no schema": "DROP SCHEMA public CASCADE",
    "a type": "CREATE TYPE public.citext AS ENUM ('x')",
    "a function": "CREATE FUNCTION public.citext(char) RETURNS text LANGUAGE sql AS 'SELECT NULL::text'",
    "a table": "CREATE TABLE public.citext (id int)",
}


@pytest.mark.parametrize("obstacle", _OBSTACLES)
async def test_an_extension_that_finds_its_place_taken_is_a_conflict(town: Place, obstacle: str) -> None:
    """T-18: the tenant's fault, not ours."""
    with town.ground.connect(town.app, MALLORY) as session:
        session.execute(_OBSTACLES[obstacle].encode())
    failure = await failure_of(town.ours.host.install_extension(town.app, "citext", "1.6"))
    assert failure is None or isinstance(failure, Conflicting), repr(failure)
    assert town.judge.crimes() == []


async def test_a_role_that_was_a_member_only_of_what_it_should_is_not_more_afterwards(town: Place) -> None:
    """T-03, T-04: applies, deletions and migrations change no membership of anybody else."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    await town.ours.apply(town.spec(delta=deleted(leaver)))
    await town.ours.host.run_migrations()
    await town.ours.apply(town.ours.spec([MALLORY, ALICE], [(town.app, ALICE)]))
    assert town.judge.gains() == []
