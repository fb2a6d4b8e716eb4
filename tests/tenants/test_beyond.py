"""Attacks that no row names."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg import pq

from tests.integration.bare_postgres import PRIVILEGED
from tests.integration.conftest import ordinary_run_as
from tests.tenants.conftest import ALICE, MALLORY, TRUDY, Place, lay_town, make_place, remove_place
from tests.tenants.ground import Ground, fresh
from tests.tenants.ours import deleted, failure_of
from trio_compute.embedded import binaries
from trio_compute.errors import PostgresError

pytestmark = pytest.mark.postgres


async def test_a_role_with_things_in_every_template_and_in_ours_can_be_deleted(town: Place) -> None:
    """T-17's kind: template1, which is nobody's, and the database that we work from; twice is no failure."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    town.ground.sql("GRANT CONNECT ON DATABASE template1 TO PUBLIC")
    for name in ("template1", town.system, town.app):
        with town.ground.connect(name, leaver) as session:
            session.execute("SELECT lo_create(0); ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC")
    await town.ours.apply(town.spec(delta=deleted(leaver)))
    await town.ours.apply(town.spec(delta=deleted(leaver)))
    assert not town.ground.exists("role", leaver)
    town.ground.sql("SELECT lo_unlink(oid) FROM pg_largeobject_metadata", database="template1")


@pytest.fixture
def busy(town: Place) -> Iterator[Callable[[Callable[[psycopg.Connection[object]], None], str], None]]:
    """Return a function that lets a tenant do something again and again until the test is over."""
    over, threads = threading.Event(), list[threading.Thread]()

    def begin(act: Callable[[psycopg.Connection[object]], None], user: str) -> None:
        def run() -> None:
            while not over.is_set():
                with contextlib.suppress(psycopg.Error), town.ground.connect("postgres", user) as session:
                    while not over.is_set():
                        with contextlib.suppress(psycopg.errors.DatabaseError):
                            act(session)
                        if session.closed:
                            break

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield begin
    over.set()
    for thread in threads:
        thread.join(timeout=30)


_LOOPS = {
    "re-creates the role": lambda role, _: f"CREATE ROLE {role} LOGIN",
    "re-grants membership": lambda role, _: f"GRANT {PRIVILEGED} TO {role}",
    "lets it log in again": lambda role, _: f"ALTER ROLE {role} LOGIN PASSWORD 'mine'",
    "grants it things": lambda role, app: f'GRANT ALL ON DATABASE "{app}" TO {role}',
    "settings of the database": lambda _, app: f'ALTER DATABASE "{app}" SET work_mem = \'1MB\'',
    "closes and opens": lambda _, app: (f'ALTER DATABASE "{app}" ALLOW_CONNECTIONS false; ALTER '
                                       f'DATABASE "{app}" ALLOW_CONNECTIONS true'),
    "template and not": lambda _, app: (f'ALTER DATABASE "{app}" IS_TEMPLATE true; ALTER '
                                       f'DATABASE "{app}" IS_TEMPLATE false'),
    "settings of its own": lambda *_: "ALTER ROLE mallory SET work_mem = '1MB'; ALTER ROLE mallory PASSWORD 'x'",
}  # fmt: skip


@pytest.mark.parametrize("loop", _LOOPS)
async def test_a_tenant_that_does_something_again_and_again_delays_us_at_most(
    town: Place, loop: str, busy: object
) -> None:
    """T-10, T-15: what it re-creates, re-sets and takes back; when it stops, one apply is enough."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    assert callable(busy)
    statement = _LOOPS[loop](leaver, town.app).encode()
    busy(lambda session: session.execute(statement), MALLORY)
    busy(lambda session: session.execute(statement), MALLORY)
    with trio.fail_after(30):
        failure = await failure_of(town.ours.apply(town.spec(delta=deleted(leaver))))
    may_fail = loop not in {"settings of the database", "settings of its own", "template and not"}
    assert failure is None or may_fail, failure
    assert [word for word in town.judge.gains({leaver}) if leaver not in word] == []


@pytest.mark.parametrize("loop", ["re-creates the role", "lets it log in again", "closes and opens"])
async def test_after_such_a_tenant_one_apply_is_enough(town: Place, loop: str) -> None:
    """T-10: nothing is left half done."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    statement = _LOOPS[loop](leaver, town.app).encode()
    over = threading.Event()

    def run() -> None:
        with town.ground.connect("postgres", MALLORY) as session:
            while not over.is_set():
                with contextlib.suppress(psycopg.Error):
                    session.execute(statement)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with contextlib.suppress(PostgresError):
            await town.ours.apply(town.spec(delta=deleted(leaver)))
    finally:
        over.set()
        thread.join(timeout=30)
    town.ground.do("ALTER DATABASE {} ALLOW_CONNECTIONS true", town.app)
    spec = town.spec(delta=deleted(leaver))
    await town.ours.apply(spec)
    assert not town.ground.exists("role", leaver)
    assert await town.ours.left_to_do(spec) == []


async def test_the_privileged_role_that_a_tenant_has_bent_is_as_it_should_be(town: Place) -> None:
    """CREATEROLE before 16 reaches it: without attributes, renamed, with a login, or with members of its own."""
    if town.ground.major >= 16:
        pytest.skip("a member cannot change it")
    await town.ours.apply(town.spec())
    bent = ["NOBYPASSRLS", "NOCREATEDB", "NOCREATEROLE"]
    with town.ground.connect("postgres", MALLORY) as session:
        for word in bent:
            with contextlib.suppress(psycopg.Error):
                session.execute(f"ALTER ROLE {PRIVILEGED} {word}")
        with contextlib.suppress(psycopg.Error):
            session.execute(f"ALTER ROLE {PRIVILEGED} LOGIN PASSWORD 'mine'")
    try:
        await town.ours.apply(town.spec())
        query = "SELECT rolcanlogin, rolbypassrls, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = %s"
        assert town.ground.sql(query, PRIVILEGED) == [(False, True, True, True)]
    finally:
        town.ground.sql(f"ALTER ROLE {PRIVILEGED} NOLOGIN PASSWORD NULL BYPASSRLS CREATEDB CREATEROLE")


async def test_a_member_does_not_reach_roles_that_run_programs(town: Place) -> None:
    """Before 16 CREATEROLE grants pg_execute_server_program and with it the operating system; T-03's kind, in Postgres.

    The compute cannot forbid it; what it can is to see it at the next apply: nobody of a spec is a member then.
    """
    if town.ground.major >= 16:
        pytest.skip("CREATEROLE grants only what it was given")
    dangerous = ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files")
    with town.ground.connect("postgres", MALLORY) as session:
        for role in dangerous:
            session.execute(f"GRANT {role} TO {TRUDY}")
    try:
        await town.ours.apply(town.spec())
        assert town.judge.gains() == []
    finally:
        for role in dangerous:
            town.ground.sql(f"REVOKE {role} FROM {TRUDY}")


async def test_a_replication_session_does_not_keep_what_is_to_go(town: Place) -> None:
    """T-15: every member may open them, and slots; for a database and for a role."""
    leaver, slot = town.ground.make_tenant(fresh("leaver")), fresh("slot")
    with town.ground.connect(town.app, leaver) as session:
        session.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    with replicating(town, leaver):
        try:
            await town.ours.apply(town.spec(delta=deleted(leaver)))
            assert not town.ground.exists("role", leaver)
            delta = [{"action": "delete_db", "name": town.app}]
            await town.ours.apply(town.ours.spec([MALLORY], [(town.system, MALLORY)], delta))
            assert not town.ground.exists("database", town.app)
        finally:
            town.ground.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")


@contextlib.contextmanager
def replicating(town: Place, user: str) -> Iterator[None]:
    """Keep a session of the replication protocol open."""
    info = f"{town.ground.url(town.app, user)}?replication=database&sslmode=disable"
    connection = pq.PGconn.connect(info.encode())
    try:
        assert connection.status == pq.ConnStatus.OK, connection.error_message
        yield
    finally:
        connection.finish()


async def test_a_member_of_the_leaver_and_its_children_are_no_obstacle(town: Place) -> None:
    """T-10: roles that it made, is a member of, gave to others, with admin option, in circles of grants."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    child, grandchild = fresh("child"), fresh("grandchild")
    with town.ground.connect("postgres", leaver) as session:
        session.execute(f"CREATE ROLE {child} CREATEROLE LOGIN; CREATE ROLE {grandchild} ROLE {TRUDY} ADMIN {ALICE}")
        session.execute(f"GRANT {child} TO {MALLORY} WITH ADMIN OPTION")
    town.ground.do("GRANT {} TO {} WITH ADMIN OPTION", leaver, MALLORY)
    with town.ground.connect("postgres", MALLORY) as session:
        session.execute(f"GRANT {leaver} TO {TRUDY} WITH ADMIN OPTION")
    try:
        await town.ours.apply(town.spec(delta=deleted(leaver)))
        assert not town.ground.exists("role", leaver)
        assert town.ground.exists("role", child)
    finally:
        for role in (child, grandchild):
            town.ground.do("DROP ROLE IF EXISTS {}", role)


@pytest.fixture
def counting(major: int) -> Iterator[Place]:
    """Run a server of its own that counts statements, with an extension whose script is careless."""
    tree = private_tree(binaries.ensure(major))
    ground = Ground(tree, ordinary_run_as())
    with (ground.data / "postgresql.conf").open("a") as file:
        file.write("shared_preload_libraries = 'pg_stat_statements'\n")
    try:
        ground.start()
        for name in (MALLORY, TRUDY, ALICE):
            ground.make_tenant(name)
        lay_town(ground)
        place = make_place(ground, "town")
        yield place
        remove_place(place)
    finally:
        ground.remove()
        shutil.rmtree(tree, ignore_errors=True)


def private_tree(tree: Path) -> Path:
    """Return a tree of hard links, to which files can be added."""
    copy = Path(tempfile.mkdtemp(prefix="trio-compute-tree-", dir="/var/tmp"))
    copy.chmod(0o755)
    shutil.copytree(tree, copy, copy_function=link, symlinks=True, dirs_exist_ok=True)
    folder = copy / "share" / "extension"
    (folder / "careless.control").write_text("default_version = '1.0'\nrelocatable = true\n")
    (folder / "careless--1.0.sql").write_text(
        "CREATE TABLE careless (id int);\nINSERT INTO careless SELECT length(concat('a'::text, 'b'::text)) "
        "WHERE 1::oid = 1::int4 AND lower('X'::varchar) = 'x';\n"
    )
    return copy


def link(source: str, target: str) -> None:
    """Link a file, or copy it to another file system."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


async def test_insights_are_ours_or_none(counting: Place) -> None:
    """T-02, T-06, beyond: the view in a schema of the tenant, texts that are no text, and texts of megabytes."""
    with counting.ground.connect(counting.system, MALLORY) as session:
        session.execute(
            "CREATE VIEW public.pg_stat_statements AS SELECT trap.yes('view'), 1::oid AS userid, 'x' AS query, "
            "1.0::float8 AS mean_exec_time, 1.0::float8 AS mean_plan_time"
        )
    await counting.ours.host.collect_insights()
    with contextlib.suppress(PostgresError):
        await counting.ours.apply(counting.spec())
    await counting.ours.host.collect_insights()
    assert counting.judge.crimes() == []
    with counting.ground.connect(counting.system, MALLORY) as session:
        session.execute("DROP VIEW IF EXISTS public.pg_stat_statements")
    await counting.ours.apply(counting.spec())
    name = fresh("ascii")
    counting.ground.sql(
        f"CREATE DATABASE {name} OWNER mallory ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    with counting.ground.connect(name, MALLORY, client_encoding="SQL_ASCII") as session:
        session.execute(b'SELECT 1 AS "caf\xe9\xff"')
        for number in range(30):
            session.execute(b"SELECT 1 AS c%d /* " % number + b"x" * (1 << 20) + b"*/")
    statements = await counting.ours.host.collect_insights()
    assert sum(len(str(statement)) for statement in statements) < 8 << 20
    counting.ground.do("DROP DATABASE {} WITH (FORCE)", name)


async def test_the_script_of_an_extension_finds_nothing_of_a_tenants_making(counting: Place) -> None:
    """T-02: it runs as a superuser, with the schema it goes to in its search path."""
    with counting.ground.connect(counting.app, MALLORY) as session:
        session.execute(
            "CREATE FUNCTION public.concat(text, text) RETURNS text LANGUAGE sql AS $$SELECT trap.word('script')$$; "
            "CREATE FUNCTION public.lower(varchar) RETURNS text LANGUAGE sql "
            "AS $$SELECT trap.word('script'); SELECT 'x'$$; "
            "CREATE FUNCTION public.same(oid, int) RETURNS bool LANGUAGE sql AS $$SELECT trap.yes('script')$$; "
            "CREATE OPERATOR public.= (leftarg = oid, rightarg = int, function = public.same)"
        )
    with contextlib.suppress(PostgresError):
        await counting.ours.host.install_extension(counting.app, "careless", "1.0")
    assert counting.judge.crimes() == []
