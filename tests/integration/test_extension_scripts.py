"""What `/extensions` lets an extension's script find: nothing that a tenant has made (11 T-02, T-18)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from tests.component.http.world import stands
from tests.integration.bare_postgres import QUICK, BarePostgres, bare_postgres, fresh
from tests.integration.conftest import ordinary_run_as
from trio_compute.db.install_extension import install_extension
from trio_compute.embedded import binaries
from trio_compute.errors import Conflicting, NotFound, SqlFailed

pytestmark = pytest.mark.postgres

# `lower(varchar)` is nothing that Postgres has: it takes its own `lower(text)`, or whatever fits better.
CALLS = "SELECT lower('X'::varchar), 1::int2 <-> 2::int2;"
TABLE = "CREATE TABLE {0}_note (text text UNIQUE); GRANT ALL ON {0}_note TO PUBLIC;"
OPERATOR = (
    "CREATE FUNCTION {0}_far(int, int) RETURNS int LANGUAGE sql AS 'SELECT 1';"
    "CREATE OPERATOR <-> (LEFTARG = int, RIGHTARG = int, FUNCTION = {0}_far);"
)
UPDATE = "INSERT INTO {0}_note VALUES ('updated'); DELETE FROM {0}_note WHERE text = 'old';"
# Name, and what its control file says beside the version.
EXTENSIONS = {
    "movable": "relocatable = true\ntrusted = true",
    "immovable": "relocatable = false\ntrusted = true",
    "housed": "relocatable = false\nschema = 'house'",
    "addon": "relocatable = true\nrequires = 'movable'",
    "lowly": "relocatable = true\nsuperuser = false",
    "liar": "relocatable = true",
    "broken": "relocatable = true",
}
PLANTS = {
    "function": "CREATE FUNCTION public.lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT public.rise()'",
    "operator": (
        "CREATE FUNCTION public.any_name(int2, int2) RETURNS text LANGUAGE sql AS 'SELECT public.rise()';"
        "CREATE OPERATOR public.<-> (LEFTARG = int2, RIGHTARG = int2, FUNCTION = public.any_name)"
    ),
    "aggregate": (
        "CREATE FUNCTION public.step(text, varchar) RETURNS text LANGUAGE sql AS 'SELECT public.rise()';"
        "CREATE AGGREGATE public.lower(varchar) (SFUNC = public.step, STYPE = text)"
    ),
}
IMPATIENT = structs.replace(QUICK, extension_writers=0.3)


def write_extensions(directory: Path) -> None:
    for name, control in EXTENSIONS.items():
        (directory / f"{name}.control").write_text(f"default_version = '1.0'\n{control}\n")
        operator = OPERATOR.format(name)
        first = {"addon": CALLS, "broken": "SELECT 1 / 0;"}.get(name, TABLE.format(name) + operator + CALLS)
        outside = "CREATE SCHEMA outside; CREATE TABLE outside.liar_table (x int);" if name == "liar" else ""
        (directory / f"{name}--1.0.sql").write_text(first + outside)
        (directory / f"{name}--1.0--1.1.sql").write_text(CALLS + ("" if name == "addon" else UPDATE.format(name)))


@pytest.fixture(scope="module")
def own_server(major: int) -> Iterator[BarePostgres]:
    """Run a server of a tree of its own, which has extensions that trust their search_path."""
    directory = Path(tempfile.mkdtemp(prefix="trio-compute-tree-", dir="/dev/shm"))
    directory.chmod(0o755)
    try:
        tree = directory / "tree"
        shutil.copytree(binaries.ensure(major), tree, symlinks=True)
        write_extensions(next(tree.rglob("hstore.control")).parent)
        yield from bare_postgres(tree, ordinary_run_as())
    finally:
        shutil.rmtree(directory)


class Tenant:
    """Own a database, and wait in it for somebody who can make him superuser."""

    def __init__(self, server: BarePostgres) -> None:
        self.server, self.name, self.database = server, fresh("tenant"), fresh("home")
        server.do("CREATE ROLE {} LOGIN", self.name)
        server.do("CREATE DATABASE {} OWNER {}", self.database, self.name)
        server.do("ALTER SCHEMA public OWNER TO {}", self.name, database=self.database)
        self.do(
            "CREATE FUNCTION public.rise() RETURNS text LANGUAGE plpgsql AS $$ BEGIN"
            f" EXECUTE 'ALTER ROLE {self.name} SUPERUSER'; RETURN 'x';"
            " EXCEPTION WHEN insufficient_privilege THEN RETURN 'x'; END $$"
        )

    def do(self, statements: str) -> list[Any]:
        return self.server.sql(statements, database=self.database, user=self.name)

    def plant(self, kind: str) -> None:
        self.do(PLANTS[kind])

    @property
    def has_risen(self) -> bool:
        return bool(self.server.sql("SELECT rolsuper FROM pg_roles WHERE rolname = %s", self.name)[0][0])

    async def install(self, name: str, version: str = "1.0", deadlines: Any = IMPATIENT) -> bool:
        return await install_extension(self.server.url(self.database), self.database, name, version, deadlines)

    def place(self, name: str) -> list[Any]:
        query = (
            "SELECT e.extversion, n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
            " WHERE extname = %s"
        )
        return self.server.sql(query, name, database=self.database)

    def leftovers(self) -> list[Any]:
        return self.server.sql("SELECT nspname FROM pg_namespace WHERE nspname ~ '^trio_'", database=self.database)

    def remove(self) -> None:
        self.server.do("DROP DATABASE {} WITH (FORCE)", self.database)
        self.server.do("DROP ROLE {}", self.name)


@pytest.fixture
def tenant(own_server: BarePostgres) -> Iterator[Tenant]:
    tenant = Tenant(own_server)
    yield tenant
    assert tenant.leftovers() == []
    tenant.remove()


@pytest.mark.parametrize("kind", PLANTS)
async def test_the_script_of_a_new_extension_does_not_see_what_stands_in_public(tenant: Tenant, kind: str) -> None:
    """T-02: an overload in public was called by the script, and its owner became superuser."""
    tenant.plant(kind)
    assert await tenant.install("movable")
    assert not tenant.has_risen
    assert tenant.place("movable") == [("1.0", "public")]
    assert not await tenant.install("movable")


@pytest.mark.parametrize("kind", PLANTS)
async def test_the_script_of_an_update_does_not_see_it_either(tenant: Tenant, kind: str) -> None:
    """T-02: although a tenant installed the trusted extension himself, in a schema of his own."""
    tenant.do("CREATE SCHEMA mine; CREATE EXTENSION movable SCHEMA mine")
    tenant.do(PLANTS[kind].replace("public.lower", "mine.lower").replace("public.<->", "mine.<->"))
    assert await tenant.install("movable", "1.1")
    assert not tenant.has_risen
    assert tenant.place("movable") == [("1.1", "mine")]
    assert tenant.do("SELECT text FROM mine.movable_note") == [("updated",)]


async def test_what_the_owner_of_an_extension_added_to_it_is_named(tenant: Tenant) -> None:
    """T-02: a member of an extension is no better than its owner."""
    tenant.do("CREATE EXTENSION movable")
    tenant.plant("function")
    tenant.do("ALTER EXTENSION movable ADD FUNCTION public.lower(varchar)")
    with pytest.raises(Conflicting, match=r"function .*lower\(character varying\)"):
        await tenant.install("movable", "1.1")
    assert not tenant.has_risen
    assert tenant.place("movable") == [("1.0", "public")]


async def test_an_extension_that_a_tenant_owns_as_a_whole_is_not_updated(tenant: Tenant) -> None:
    """T-02: `superuser = false` in the control file; its table may have triggers, its functions any content."""
    tenant.do("CREATE EXTENSION lowly")
    tenant.do(
        "CREATE FUNCTION public.on_write() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM public.rise(); RETURN NEW; END $$;"
        "CREATE TRIGGER t BEFORE INSERT ON lowly_note FOR EACH ROW EXECUTE FUNCTION public.on_write()"
    )
    with pytest.raises(Conflicting, match=r"table .*lowly_note"):
        await tenant.install("lowly", "1.1")
    assert not tenant.has_risen


@pytest.mark.parametrize("name", ["movable", "immovable"])
async def test_a_trigger_on_a_table_of_the_extension_is_named(tenant: Tenant, name: str) -> None:
    """T-02: whoever is given TRIGGER on a table that an update writes."""
    tenant.server.sql(f"CREATE EXTENSION {name}", database=tenant.database)
    tenant.do(
        "CREATE FUNCTION public.on_write() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM public.rise(); RETURN NEW; END $$;"
        f"CREATE TRIGGER t BEFORE INSERT ON {name}_note FOR EACH ROW EXECUTE FUNCTION public.on_write()"
    )
    with pytest.raises(Conflicting, match=f"trigger t on table .*{name}_note"):
        await tenant.install(name, "1.1")
    assert not tenant.has_risen


ON_DELETE = (
    "CREATE FUNCTION public.on_delete() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN PERFORM public.rise(); RETURN NULL; END $$;"
    "CREATE TABLE public.reader (text text REFERENCES {0}_note (text) ON DELETE CASCADE);"
    "INSERT INTO {0}_note VALUES ('old'); INSERT INTO public.reader VALUES ('old');"
    "CREATE TRIGGER t AFTER DELETE ON public.reader FOR EACH ROW EXECUTE FUNCTION public.on_delete()"
)


@pytest.mark.parametrize("name", ["movable", "immovable"])
async def test_a_table_that_refers_to_one_of_the_extension_is_named(tenant: Tenant, name: str) -> None:
    """T-02: the triggers of a cascade run as who deleted; before 18 that was the script."""
    tenant.server.sql(f"CREATE EXTENSION {name}", database=tenant.database)
    tenant.do(ON_DELETE.format(name))
    with pytest.raises(Conflicting, match="constraint reader_text_fkey on table"):
        await tenant.install(name, "1.1")
    assert not tenant.has_risen
    tenant.do("DROP TABLE public.reader; DROP FUNCTION public.on_delete(), public.rise()")
    assert await tenant.install(name, "1.1")


async def test_a_trigger_on_a_table_of_a_required_extension_is_named(tenant: Tenant) -> None:
    """T-02: the script of the one may write to the tables of the other."""
    tenant.server.sql("CREATE SCHEMA closed; CREATE EXTENSION movable SCHEMA closed", database=tenant.database)
    tenant.server.sql("GRANT USAGE ON SCHEMA closed TO PUBLIC", database=tenant.database)
    tenant.do(
        "CREATE FUNCTION public.on_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
        "CREATE TRIGGER t BEFORE INSERT ON closed.movable_note FOR EACH ROW EXECUTE FUNCTION public.on_write()"
    )
    with pytest.raises(Conflicting, match=r"trigger t on table closed\.movable_note"):
        await tenant.install("addon")
    tenant.do("DROP FUNCTION public.on_write() CASCADE")
    assert await tenant.install("addon")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("kind", PLANTS)
async def test_where_an_extension_cannot_be_moved_what_its_script_would_find_is_named(
    tenant: Tenant, kind: str, version: str
) -> None:
    """T-02: and once that is gone, it works."""
    tenant.server.sql("CREATE EXTENSION immovable" if version == "1.1" else "", database=tenant.database)
    tenant.plant(kind)
    with pytest.raises(Conflicting, match=r"would run as superuser and find .*rise\(\)"):
        await tenant.install("immovable", version)
    assert not tenant.has_risen
    tenant.do("DROP FUNCTION IF EXISTS lower(varchar), any_name(int2, int2) CASCADE" if kind != "aggregate" else "")
    tenant.do("DROP AGGREGATE lower(varchar); DROP FUNCTION step(text, varchar)" if kind == "aggregate" else "")
    tenant.do("DROP FUNCTION rise()")
    assert await tenant.install("immovable", version)
    assert tenant.place("immovable") == [(version, "public")]


async def test_what_is_not_of_the_schemas_of_the_script_is_nobodys_business(tenant: Tenant) -> None:
    """T-02: tables of the tenant, and functions elsewhere, do not matter."""
    tenant.do("DROP FUNCTION rise(); CREATE TABLE public.t (x int); CREATE SCHEMA mine")
    tenant.do("CREATE FUNCTION mine.lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT $1'")
    assert await tenant.install("immovable")


async def test_a_schema_that_the_control_file_names_is_made_or_looked_into(tenant: Tenant) -> None:
    """T-02, R-14: `schema = 'house'`."""
    assert await tenant.install("housed")
    assert tenant.place("housed") == [("1.0", "house")]
    tenant.server.sql("DROP EXTENSION housed; DROP SCHEMA house", database=tenant.database)
    tenant.do("CREATE SCHEMA house")
    tenant.do(PLANTS["function"].replace("public.lower", "house.lower"))
    with pytest.raises(Conflicting, match=r"function house\.lower"):
        await tenant.install("housed")
    assert not tenant.has_risen


async def test_the_schema_of_a_required_extension_is_looked_into(tenant: Tenant) -> None:
    """T-02: the script finds that one second in its search_path."""
    with pytest.raises(Conflicting, match="required extension"):
        await tenant.install("addon")
    assert await tenant.install("movable")
    tenant.plant("function")
    with pytest.raises(Conflicting, match=r"function .*lower\(character varying\)"):
        await tenant.install("addon")
    assert not tenant.has_risen
    tenant.do("DROP FUNCTION lower(varchar), rise()")
    assert await tenant.install("addon")
    assert tenant.place("addon") == [("1.0", "public")]


async def test_an_extension_that_cannot_be_moved_although_it_says_so_is_installed_the_other_way(
    tenant: Tenant,
) -> None:
    """T-02: one of its tables stands in another schema; then public has to be clean."""
    with pytest.raises(Conflicting, match=r"rise\(\)"):
        await tenant.install("liar")
    tenant.do("DROP FUNCTION rise()")
    assert await tenant.install("liar")
    assert tenant.place("liar") == [("1.0", "public")]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_what_is_not_committed_yet_is_waited_for(tenant: Tenant, end: str) -> None:
    """T-02: between the look and the script nobody can make anything."""
    tenant.do("DROP FUNCTION rise()")
    outcome: list[bool | Conflicting] = []

    async def install() -> None:
        try:
            outcome.append(await tenant.install("immovable", deadlines=QUICK))
        except Conflicting as error:
            outcome.append(error)

    with tenant.server.connect(tenant.database, tenant.name) as session:
        session.execute("BEGIN; CREATE FUNCTION public.lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT $1'")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(install)
            await stands(lambda: locks_of_makers(tenant) > 0)
            assert outcome == []
            session.execute(end)
    assert (outcome == [True]) is (end == "ROLLBACK")
    assert end == "ROLLBACK" or "lower(" in str(outcome[0])


def locks_of_makers(tenant: Tenant) -> int:
    query = "SELECT count(*) FROM pg_locks WHERE mode = 'ShareRowExclusiveLock' AND relation = 'pg_proc'::regclass"
    return int(tenant.server.sql(query, database=tenant.database)[0][0])


async def test_who_does_not_commit_in_time_is_named(tenant: Tenant) -> None:
    """T-02, T-14: bounded; a session by its pid, a prepared transaction by its gid."""
    tenant.do("DROP FUNCTION rise()")
    make = "BEGIN; CREATE FUNCTION public.lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT $1'"
    with tenant.server.connect(tenant.database, tenant.name, application_name="a maker") as session:
        session.execute(make)
        with pytest.raises(Conflicting, match=rf"pid {session.info.backend_pid} of {tenant.name}, .*'a maker'"):
            await tenant.install("immovable")
        session.execute("PREPARE TRANSACTION 'made'")
    with pytest.raises(Conflicting, match=f"prepared transaction 'made' of {tenant.name}"):
        await tenant.install("immovable")
    tenant.do("ROLLBACK PREPARED 'made'")
    assert await tenant.install("immovable")


async def test_an_advisory_lock_of_a_tenant_holds_up_nobody(tenant: Tenant) -> None:
    """T-14: 0x7472696F was ours, and anybody could take it."""
    with tenant.server.connect(tenant.database, tenant.name) as session:
        session.execute("SELECT pg_advisory_lock(1953655151)")
        with trio.fail_after(5):
            assert await tenant.install("movable")


async def test_what_the_catalog_does_not_allow_is_a_conflict(tenant: Tenant) -> None:
    """T-18: each was 500."""
    install = partial(install_extension, tenant.server.url(tenant.database), tenant.database, deadlines=QUICK)
    for name, makes in {
        "movable": ["CREATE TABLE public.movable_note (x int)", "CREATE TYPE public.movable_note AS (x int)"],
        "hstore": ["CREATE TYPE public.hstore AS (x int)"],
        "citext": ["CREATE DOMAIN public.citext AS text"],
    }.items():
        for make in makes:
            tenant.do(make)
            with pytest.raises(Conflicting, match="already exists"):
                await install(name, {"hstore": "1.8", "citext": "1.6"}.get(name, "1.0"))
            kind, _, what = make.removeprefix("CREATE ").partition(" ")
            tenant.do(f"DROP {kind} {what.split()[0]}")
    with pytest.raises(Conflicting, match="division by zero"):
        await install("broken", "1.0")
    with pytest.raises(Conflicting, match="version"):
        await install("movable", "7")
    with pytest.raises(NotFound, match="is not available"):
        await install("nothing", "1.0")
    assert await install("movable", "1.1")
    with pytest.raises(Conflicting, match="no update path"):
        await install("movable", "1.0")
    tenant.do("DROP SCHEMA public CASCADE")
    with pytest.raises(Conflicting, match='schema "public" does not exist'):
        await install("hstore", "1.8")


async def test_what_is_ours_is_no_conflict(tenant: Tenant) -> None:
    """T-18: a server that shuts down, or has no room for a session."""
    tenant.server.do("ALTER DATABASE {} CONNECTION LIMIT 0", tenant.database)
    with pytest.raises(SqlFailed) as failure:
        await install_extension("postgresql://cloud_admin@127.0.0.1:1/postgres", "postgres", "hstore", "1.8", QUICK)
    assert failure.value.sqlstate is None
    assert await tenant.install("movable")


ALL = "SELECT name, default_version FROM pg_available_extensions WHERE name <> 'plpgsql' ORDER BY name"


async def test_all_extensions_of_the_tree_stand_where_a_plain_creation_puts_them(server: BarePostgres) -> None:
    """T-02: what is moved in and out is the same in the end."""
    objects = (
        "SELECT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid"
        " WHERE d.deptype = 'e' AND e.extname <> 'plpgsql' ORDER BY 1"
    )
    ours, plain = fresh("ours"), fresh("plain")
    server.do("CREATE DATABASE {}", ours)
    server.do("CREATE DATABASE {}", plain)
    for name, version in sorted(server.sql(ALL), key=lambda pair: needs(server, pair[0])):
        try:
            server.sql(f'CREATE EXTENSION "{name}"', database=plain)
        except Exception:  # noqa: BLE001  (its library or its language is missing)
            with pytest.raises((Conflicting, NotFound)):
                await install_extension(server.url(ours), ours, name, version, QUICK)
        else:
            assert await install_extension(server.url(ours), ours, name, version, QUICK), name
    assert server.sql(objects, database=ours) == server.sql(objects, database=plain)
    server.do("DROP DATABASE {}", ours)
    server.do("DROP DATABASE {}", plain)


def needs(server: BarePostgres, name: str) -> tuple[int, str]:
    query = "SELECT coalesce(max(cardinality(requires)), 0) FROM pg_available_extension_versions WHERE name = %s"
    return int(server.sql(query, name)[0][0]), name
