"""What a tenant can take or hold does not stop us, and where it may, the answer says who it is (T-12 … T-15, T-17)."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import psycopg
import pytest
import trio
import trio.testing
from msgspec import structs

from tests.tenants.conftest import ALICE, MALLORY, TRUDY, Place
from tests.tenants.ground import fresh, named
from tests.tenants.ours import QUICK, ROUTES, Ours, deleted, failure_of
from trio_compute.errors import PostgresError

pytestmark = pytest.mark.postgres

WORD = 0x7472696F
AT_ONCE = 4.0  # what stops nobody costs no patience either
_ADVISORY = (
    f"SELECT pg_advisory_lock({WORD})",
    f"SELECT pg_advisory_lock(0, {WORD})",
    f"SELECT pg_advisory_lock({WORD}, 0)",
    f"SELECT pg_advisory_lock_shared({WORD}::bigint << 32)",
    f"SELECT pg_advisory_lock_shared(g, {WORD}) FROM generate_series(1, 40) g",
)


@contextlib.contextmanager
def holding(place: Place, database: str, user: str, *statements: str) -> Iterator[None]:
    """Keep a transaction of a tenant open that has done something."""
    with place.ground.connect(database, user) as session:
        session.execute("BEGIN")
        for statement in statements:
            session.execute(statement.encode())
        yield


@pytest.mark.parametrize("what", ["apply", "install-trusted", "grants", "migrations", "neon-upgrade", "writability"])
async def test_advisory_locks_of_a_tenant_stop_nobody(town: Place, what: str) -> None:
    """T-14: our word in each of its forms, in the database that we work from and in the tenant's."""
    await town.ours.apply(town.spec())
    with contextlib.ExitStack() as stack:
        for database in (town.system, town.app, "postgres"):
            stack.enter_context(holding(town, database, TRUDY, *_ADVISORY))
        with trio.fail_after(AT_ONCE):
            if what == "apply":
                await town.ours.apply(town.spec([fresh("newcomer")], drop_subscriptions_before_start=True))
            else:
                await ROUTES[what](town.ours, town.app)


async def test_our_own_sessions_still_keep_each_other_waiting(town: Place) -> None:
    """T-14, K-14: six applies and the migrations at the same time; they agree."""
    names = [fresh("many") for _ in range(6)]
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(town.ours.apply, town.spec([name]))
        nursery.start_soon(town.ours.host.run_migrations)
    assert all(town.ground.exists("role", name) for name in names)


async def test_an_open_read_of_the_subscriptions_does_not_keep_them(town: Place) -> None:
    """T-14, beyond: everybody may read pg_subscription, in any database, and so hold a lock on all of it."""
    sub = fresh("sub")
    options = "CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect=false, slot_name=NONE)"
    town.ground.do(f"CREATE SUBSCRIPTION {{}} {options}", sub, database=town.app)
    with (
        contextlib.suppress(psycopg.errors.AdminShutdown),  # who does not let go is sent away
        holding(town, "postgres", TRUDY, "SELECT subname FROM pg_subscription"),
    ):
        await town.ours.apply(town.spec(drop_subscriptions_before_start=True, timeline_id="c" * 31 + "0"))
    assert town.ground.sql("SELECT 1 FROM pg_subscription WHERE subname = %s", sub) == []


@pytest.mark.parametrize("table", ["public.health_check", "neon.prepared_databases", "neon_migration.migration_id"])
async def test_a_lock_on_a_table_of_ours_stops_nobody(town: Place, table: str) -> None:
    """T-04: whoever may write a table may lock it; members may write all tables."""
    await town.ours.apply(town.spec())
    await town.ours.host.run_migrations()
    exists = town.ground.sql("SELECT to_regclass(%s) IS NOT NULL", table, database=town.system)
    if exists == [(False,)]:
        pytest.skip("there is no such table")
    statements = (f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",)
    with holding(town, town.system, MALLORY, *statements), trio.fail_after(3 * AT_ONCE):
        await town.ours.apply(town.spec([fresh("newcomer")]))
        await town.ours.host.run_migrations()
        assert await town.ours.host.check_writability()


async def test_a_grant_in_an_open_transaction_does_not_keep_a_role_for_ever(town: Place) -> None:
    """T-10, T-15, beyond: who grants something to a role locks it; if that stops the deletion, the answer says who."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    with town.ground.connect(town.app, MALLORY) as session:
        session.execute("CREATE TABLE public.bait (id int)")
    with holding(town, town.app, MALLORY, f"GRANT SELECT ON public.bait TO {leaver}"):
        await works_or_names(town, leaver, MALLORY)
    await town.ours.apply(town.spec(delta=deleted(leaver)))
    assert not town.ground.exists("role", leaver)


async def test_a_lock_of_a_third_on_a_table_of_the_leaver_is_named_or_ended(town: Place) -> None:
    """T-10, T-15: and the next attempt finds nothing lost."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    town.ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=town.app)
    with town.ground.connect(town.app, leaver) as session:
        session.execute("CREATE TABLE public.kept AS SELECT 42 AS id; GRANT ALL ON public.kept TO PUBLIC")
    with holding(town, town.app, TRUDY, "LOCK TABLE public.kept IN ACCESS EXCLUSIVE MODE"):
        await works_or_names(town, leaver, TRUDY)
    await town.ours.apply(town.spec(delta=deleted(leaver)))
    assert not town.ground.exists("role", leaver)
    assert town.ground.sql("SELECT id FROM public.kept", database=town.app) == [(42,)]


async def works_or_names(town: Place, leaver: str, blocker: str) -> None:
    """Delete a role; that may fail if the error names who was in the way, and who deletes waits for a limited time."""
    with trio.fail_after(QUICK.catalog_lock * 3):
        failure = await failure_of(town.ours.apply(town.spec(delta=deleted(leaver))))
    assert failure is None or blocker in str(failure), failure


async def test_a_session_in_template1_does_not_keep_a_database_from_being_made(town: Place) -> None:
    """T-15: everybody may connect to template1, and stay."""
    name = fresh("made")
    town.ground.sql("GRANT CONNECT ON DATABASE template1 TO PUBLIC")
    try:
        with town.ground.connect("template1", TRUDY) as sitter:
            sitter.execute("SELECT 1")
            spec = town.ours.spec([MALLORY], [*town.databases(), (name, MALLORY)])
            await town.ours.apply(spec)
        assert town.ground.exists("database", name)
    finally:
        town.ground.do("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


@pytest.mark.parametrize("action", ["delete_db", "rename_db"])
async def test_a_prepared_transaction_does_not_keep_a_database(town: Place, action: str) -> None:
    """T-15: nobody can be disconnected for it; it ends all the same, with a warning."""
    new = fresh("renamed")
    with town.ground.connect(town.app, MALLORY) as session:
        session.execute("BEGIN; CREATE TABLE public.x (id int); PREPARE TRANSACTION 'for ever'")
    try:
        delta = [{"action": action, "name": town.app, "new_name": new}]
        await town.ours.apply(town.ours.spec([MALLORY], [(town.system, MALLORY)], delta))
        assert not town.ground.exists("database", town.app)
        if action == "rename_db":
            town.ground.do("ALTER DATABASE {} RENAME TO {}", new, town.app)
    finally:
        left = town.ground.sql("SELECT gid, database FROM pg_prepared_xacts")
        for gid, database in left:
            town.ground.sql(f"ROLLBACK PREPARED '{gid}'", database=database)


async def test_a_prepared_transaction_of_a_role_does_not_keep_it(town: Place) -> None:
    """T-10: also one that holds locks on what has to change hands."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    town.ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=town.app)
    with town.ground.connect(town.app, leaver) as session:
        session.execute("CREATE TABLE public.held AS SELECT 1 AS id")
        session.execute("BEGIN; LOCK TABLE public.held; PREPARE TRANSACTION 'held'")
    try:
        await town.ours.apply(town.spec(delta=deleted(leaver)))
        assert not town.ground.exists("role", leaver)
        assert town.ground.sql("SELECT id FROM public.held", database=town.app) == [(1,)]
    finally:
        for gid, database in town.ground.sql("SELECT gid, database FROM pg_prepared_xacts"):
            town.ground.sql(f"ROLLBACK PREPARED '{gid}'", database=database)


async def test_a_tenant_that_comes_back_at_once_does_not_keep_its_database(town: Place) -> None:
    """T-15: for a rename, sessions are ended after some patience; a loop of connections must not win."""
    new = fresh("renamed")
    delta = [{"action": "rename_db", "name": town.app, "new_name": new}]
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(trio.to_thread.run_sync, connect_again_and_again, town, town.app)
        try:
            await town.ours.apply(town.ours.spec([MALLORY], [(town.system, MALLORY), (new, MALLORY)], delta))
        finally:
            if town.ground.exists("database", new):
                town.ground.do("ALTER DATABASE {} RENAME TO {}", new, town.app)
            town.ground.do("ALTER DATABASE {} ALLOW_CONNECTIONS false", town.app)
            town.ground.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'trudy'")
    town.ground.do("ALTER DATABASE {} ALLOW_CONNECTIONS true", town.app)


def connect_again_and_again(town: Place, database: str) -> None:
    """Sit in a database until it takes no connections any more."""
    import psycopg

    while True:
        try:
            with town.ground.connect(database, TRUDY) as session:
                session.execute("SELECT pg_sleep(0.2)")
        except psycopg.OperationalError as error:
            if "not currently accepting" in str(error):
                return


async def test_every_connection_is_taken_by_tenants(town: Place) -> None:
    """Beyond: what is reserved for superusers has to do, for as many databases as there are."""
    names = [fresh("full") for _ in range(4)]
    spec = town.ours.spec([MALLORY, ALICE], [*town.databases(), *((name, ALICE) for name in names)])
    await town.ours.apply(spec)
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(Exception):
                while True:
                    stack.enter_context(town.ground.connect("postgres", TRUDY))
            heir = fresh("heir")
            await town.ours.apply(
                town.ours.spec([MALLORY, heir], [*town.databases(), *((name, heir) for name in names)]), is_start=True
            )
            assert await town.ours.host.check_writability()
    finally:
        for name in names:
            town.ground.do("DROP DATABASE {} WITH (FORCE)", name)


@pytest.mark.slow
async def test_a_role_that_owns_more_than_the_lock_table_holds_can_be_deleted(town: Place) -> None:
    """T-12: 53200 for ever; this server has room for some hundred locks."""
    leaver, count = town.ground.make_tenant(fresh("leaver")), 2500
    town.ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=town.app)
    with town.ground.connect(town.app, leaver) as session:
        session.execute(
            f"DO $$BEGIN FOR i IN 1..{count} LOOP EXECUTE 'CREATE TABLE public.t' || i || ' (id int)'; "
            "IF i % 100 = 0 THEN COMMIT; END IF; END LOOP; END$$"
        )
    await Ours(town.ground, town.system, deadlines=structs.replace(QUICK, catalog_statement=60)).apply(
        town.spec(delta=deleted(leaver))
    )
    assert not town.ground.exists("role", leaver)
    query = "SELECT count(*)::int FROM pg_class WHERE relname ~ '^t[0-9]+$'"
    assert town.ground.sql(query, database=town.app) == [(count,)]


@pytest.mark.parametrize("kind", ["own table", "closed", "template", "vanished"])
async def test_a_dump_that_waits_is_given_up_and_takes_no_place(town: Place, kind: str) -> None:
    """T-13: a lock of the tenant holds a dump; it ends with an error, and does not delay those that can work."""
    limits = {name: 2.0 for name in QUICK.__struct_fields__ if "dump" in name}
    ours = Ours(town.ground, town.system, deadlines=structs.replace(QUICK, request_total=2, catalog_lock=2, **limits))
    if kind == "own table":
        with town.ground.connect(town.app, MALLORY) as session:
            session.execute("CREATE TABLE public.held (id int)")
        with holding(town, town.app, MALLORY, "LOCK TABLE public.held IN ACCESS EXCLUSIVE MODE"):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(fails, ours, town.app)
                await trio.testing.wait_all_tasks_blocked(0.1)
                with trio.fail_after(AT_ONCE):
                    assert "PostgreSQL database dump" in await ours.dump(town.system)
        return
    statement = {
        "closed": "ALTER DATABASE {} ALLOW_CONNECTIONS false",
        "template": "ALTER DATABASE {} IS_TEMPLATE true",
        "vanished": "DROP DATABASE {}",
    }[kind]
    town.ground.do(statement, town.app)
    with trio.fail_after(AT_ONCE):
        if kind == "template":
            assert "PostgreSQL database dump" in await ours.dump(town.app)
        else:
            await fails(ours, town.app)


async def fails(ours: Ours, database: str) -> None:
    """Ask for a dump that cannot be made; that is told within the limits."""
    with trio.fail_after(12), pytest.raises(PostgresError):
        await ours.dump(database)


@pytest.mark.parametrize("state", ["ALLOW_CONNECTIONS false", "CONNECTION LIMIT 0", "IS_TEMPLATE true"])
async def test_a_role_is_deleted_though_its_things_are_in_an_odd_database(town: Place, state: str) -> None:
    """T-17: a closed one is opened for us and closed again."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    town.ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=town.app)
    with town.ground.connect(town.app, leaver) as session:
        session.execute("CREATE TABLE public.kept AS SELECT 1 AS id")
    town.ground.do(f"ALTER DATABASE {{}} {state}", town.app)
    query = "SELECT datallowconn, datconnlimit, datistemplate FROM pg_database WHERE datname = %s"
    before = town.ground.sql(query, town.app)
    await town.ours.apply(town.spec(delta=deleted(leaver)))
    assert not town.ground.exists("role", leaver)
    assert town.ground.sql(query, town.app) == before
    town.ground.do("ALTER DATABASE {} ALLOW_CONNECTIONS true", town.app)
    assert town.ground.sql("SELECT id FROM public.kept", database=town.app) == [(1,)]


async def test_subscriptions_in_a_closed_database_are_not_noted_as_dropped(town: Place) -> None:
    """T-11: when it is opened, and the spec comes once more, they go."""
    sub = fresh("sub")
    options = "CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect=false, slot_name=NONE)"
    town.ground.do(f"CREATE SUBSCRIPTION {{}} {options}", sub, database=town.app)
    town.ground.do("ALTER DATABASE {} ALLOW_CONNECTIONS false", town.app)
    spec = town.spec(drop_subscriptions_before_start=True, timeline_id=uuid.uuid4().hex)
    with contextlib.suppress(PostgresError):
        await town.ours.apply(spec)
    town.ground.do("ALTER DATABASE {} ALLOW_CONNECTIONS true", town.app)
    await town.ours.apply(spec)
    assert town.ground.sql("SELECT 1 FROM pg_subscription WHERE subname = %s", sub) == []


async def test_a_row_of_our_own_that_a_tenant_holds_is_not_waited_for(town: Place) -> None:
    """T-04: an uncommitted INSERT of the key that we would write keeps everybody else waiting who writes it."""
    await town.ours.apply(town.spec())
    exists = town.ground.sql("SELECT to_regclass('public.health_check') IS NOT NULL", database=town.system)
    if exists == [(False,)]:
        with town.ground.connect(town.system, MALLORY) as session:
            session.execute("CREATE TABLE public.health_check (id int PRIMARY KEY, updated_at timestamptz)")
    upsert = "INSERT INTO public.health_check (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET updated_at = now()"
    with holding(town, town.system, MALLORY, upsert), trio.fail_after(AT_ONCE):
        assert await town.ours.host.check_writability()


def drop(place: Place, name: str) -> None:
    """Drop a database if it is there."""
    with place.ground.connect() as session:
        session.execute(named("DROP DATABASE IF EXISTS {} WITH (FORCE)", name))
