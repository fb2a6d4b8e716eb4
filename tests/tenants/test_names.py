"""Names that are no text, and names that mean something: nothing makes reading them fail (T-05, T-06, T-16)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from tests.component.http.logs import LogLines
from tests.fakes.specs import parsed
from tests.tenants.conftest import ALICE, MALLORY, TRUDY, Place, make_place, remove_place
from tests.tenants.ground import fresh
from tests.tenants.ours import ask_all, deleted, failure_of
from trio_compute.errors import SpecError
from trio_compute.telemetry import logging as telemetry

pytestmark = pytest.mark.postgres

BYTES = b"caf\xe9\xff"
_ENCODINGS = ("SQL_ASCII", "LATIN1")


@pytest.fixture(params=_ENCODINGS)
def odd(town: Place, request: pytest.FixtureRequest) -> Iterator[tuple[Place, str]]:
    """Return a town with a database of another encoding, and names in all catalogs that are no UTF-8."""
    name = fresh("odd")
    ground = town.ground
    ground.sql(
        f"CREATE DATABASE {name} OWNER mallory ENCODING '{request.param}' "
        f"LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    word = BYTES + name.encode()
    with ground.connect(name, MALLORY, client_encoding=request.param) as session:
        session.execute(b'CREATE ROLE "role_' + word + b'" LOGIN')
        session.execute(b'CREATE DATABASE "db_' + word + b'"')
        session.execute(b'CREATE SCHEMA "s_' + word + b'"')
        session.execute(b'CREATE TABLE public."t_' + word + b'" ("c_' + word + b"\" text DEFAULT '" + BYTES + b"')")
        session.execute(
            b'CREATE FUNCTION public."f_' + word + b'"("a_' + word + b"\" int) RETURNS int LANGUAGE sql AS 'SELECT 1'"
        )
        session.execute(b'CREATE PUBLICATION "p_' + word + b'"')
        session.execute(b'COMMENT ON DATABASE "' + name.encode() + b"\" IS '" + BYTES + b"'")
    yield town, name
    with ground.connect(name, client_encoding=request.param) as session:
        session.execute("SELECT gid FROM pg_prepared_xacts")
        session.execute(b'DROP DATABASE IF EXISTS "db_' + word + b'"')
        session.execute(b'DROP OWNED BY "role_' + word + b'" CASCADE')
        session.execute(b'DROP ROLE IF EXISTS "role_' + word + b'"')
    ground.do("DROP DATABASE {} WITH (FORCE)", name)


async def test_an_apply_converges_beside_names_that_are_no_text(odd: tuple[Place, str]) -> None:
    """T-06: roles and databases of such names disturb nobody, also where the plan is shown."""
    town, name = odd
    spec = town.ours.spec([MALLORY, fresh("newcomer")], [*town.databases(), (name, MALLORY)])
    await town.ours.apply(spec, is_start=True)
    assert await town.ours.left_to_do(spec) == []


async def test_names_that_are_no_text_are_left_out_of_the_list_and_told(
    odd: tuple[Place, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """T-06: an answer in JSON cannot hold them; a warning shows them escaped."""
    town, name = odd
    lines = LogLines()
    monkeypatch.setattr(telemetry, "sink", lines)
    found = msgspec.json.encode(await town.ours.host.list_catalog())
    assert name.encode() in found
    assert [line for line in lines if "WARN" in line and "caf" in line]


async def test_a_role_that_is_deleted_owns_things_whose_names_are_no_text(odd: tuple[Place, str]) -> None:
    """T-06: what is generated on the server is run there, and never decoded."""
    town, name = odd
    leaver = town.ground.make_tenant(fresh("leaver"))
    town.ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=name)
    town.ground.do("GRANT CREATE ON DATABASE {} TO {}", name, leaver)
    encoding = {"client_encoding": "SQL_ASCII"}
    with town.ground.connect(name, leaver, **encoding) as session:
        session.execute(b'CREATE TABLE public."mine_' + BYTES + b'" AS SELECT 1 AS "c_' + BYTES + b'"')
        session.execute(b'CREATE SCHEMA "mine_' + BYTES + b'"')
        session.execute(
            b'CREATE FUNCTION public."mine_' + BYTES + b"\"() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'"
        )
        session.execute(b'GRANT ALL ON public."mine_' + BYTES + b'" TO alice WITH GRANT OPTION')
    with town.ground.connect(name, MALLORY, **encoding) as session:
        table = b'public."t_' + BYTES + name.encode() + b'"'
        session.execute(b"GRANT ALL ON " + table + b" TO trudy WITH GRANT OPTION")
        session.execute(b'GRANT ALL ("c_' + BYTES + name.encode() + b'") ON ' + table + b" TO " + leaver.encode())
    with town.ground.connect(name, TRUDY, **encoding) as session:
        session.execute(b"GRANT ALL ON " + table + b" TO " + leaver.encode())
    await town.ours.apply(town.ours.spec([MALLORY, ALICE, TRUDY], [(name, MALLORY)], deleted(leaver)))
    assert not town.ground.exists("role", leaver)
    with town.ground.connect(name, **encoding) as session:
        session.execute(b'SELECT * FROM public."mine_' + BYTES + b'"')


async def test_every_route_answers_beside_names_that_are_no_text(odd: tuple[Place, str]) -> None:
    """T-06."""
    town, name = odd
    await town.ours.apply(town.spec())
    assert await ask_all(town.ours, name) == {}


async def test_what_blocks_us_may_have_a_name_that_is_no_text(town: Place) -> None:
    """T-06, T-15: the names of prepared transactions are such too."""
    name = fresh("ascii")
    town.ground.sql(
        f"CREATE DATABASE {name} OWNER mallory ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    with town.ground.connect(name, MALLORY, client_encoding="SQL_ASCII") as session:
        session.execute(b"BEGIN; CREATE TABLE public.x (id int); PREPARE TRANSACTION '" + BYTES + b"'")
    try:
        delta = [{"action": "delete_db", "name": name}]
        await town.ours.apply(town.ours.spec([MALLORY], [], delta))
        assert not town.ground.exists("database", name)
    finally:
        if town.ground.exists("database", name):
            with town.ground.connect(name, client_encoding="SQL_ASCII") as session:
                session.execute(b"ROLLBACK PREPARED '" + BYTES + b"'")
            town.ground.do("DROP DATABASE {} WITH (FORCE)", name)


@pytest.mark.parametrize("name", ["public", "none", "pg_mine", "pg_", "PG_x", "current_user", "session_user"])
@pytest.mark.parametrize("where", ["role", "owner", "rename"])
def test_a_name_that_postgres_reserves_is_refused(name: str, where: str) -> None:
    """T-16: with the path in the specification; what no major refuses is allowed."""
    listed = name if where == "role" else ALICE
    cluster = {
        "roles": [{"name": listed, "encrypted_password": None}],
        "databases": [{"name": "x", "owner": name if where == "owner" else listed}],
    }
    delta = [{"action": "rename_role", "name": "y", "new_name": name}] if where == "rename" else None
    if name in {"public", "none"} or name.startswith("pg_"):
        with pytest.raises(SpecError, match=name):
            parsed(cluster=cluster, delta_operations=delta)
    else:
        parsed(cluster=cluster, delta_operations=delta)


LONGEST = "\U0001f418" * 15 + "abc"  # 63 bytes


async def test_names_as_long_as_can_be_are_no_other_names(town: Place) -> None:
    """Beyond T-03: what is made of such names, as that of an heir, must not be cut in a character, nor collide."""
    twins = ["\U0001f418" * 15 + ending for ending in ("abx", "aby")]
    leaver = LONGEST
    town.ground.make_tenant(leaver)
    try:
        for name in twins:
            town.ground.do("CREATE DATABASE {} OWNER {}", name, MALLORY)
            town.ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=name)
            with town.ground.connect(name, leaver) as session:
                session.execute("CREATE TABLE public.kept AS SELECT 1 AS id")
        spec = town.ours.spec([MALLORY, ALICE], [(twins[0], MALLORY), (twins[1], ALICE)], deleted(leaver))
        await town.ours.apply(spec)
        assert not town.ground.exists("role", leaver)
        owners = [
            town.ground.sql("SELECT tableowner::text FROM pg_tables WHERE tablename = 'kept'", database=name)
            for name in twins
        ]
        assert all(owner for owner in owners)
        assert await town.ours.left_to_do(spec) == []
    finally:
        for name in twins:
            town.ground.do("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        if town.ground.exists("role", leaver):
            town.ground.do("DROP ROLE {}", leaver)


async def test_a_role_called_web_access_gets_nothing_for_its_name(town: Place) -> None:
    """T-05."""
    with town.ground.connect("postgres", MALLORY) as session:
        session.execute("CREATE ROLE web_access LOGIN")
    try:
        await town.ours.apply(town.spec())
        for name in (town.system, town.app):
            query = "SELECT has_schema_privilege('web_access', 'public', 'CREATE')"
            assert town.ground.sql(query, database=name) == [(town.ground.major < 15,)]
    finally:
        for name in (town.system, town.app):
            town.ground.sql("DROP OWNED BY web_access", database=name)
        town.ground.sql("DROP ROLE web_access")


@pytest.mark.parametrize("role", ["databricks_monitor", "databricks_control_plane", "databricks_gateway"])
async def test_a_role_called_like_one_of_the_platform_gets_nothing_for_its_name(town: Place, role: str) -> None:
    """T-05: in the lakebase profile."""
    with town.ground.connect("postgres", MALLORY) as session:
        session.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'mine'")
    lakebase = make_place(town.ground, "town", lakebase=True)
    settings = [{"name": "databricks.reader_statement_timeout", "value": "7s", "vartype": "string"}]
    try:
        failure = await failure_of(lakebase.ours.apply(lakebase.spec(settings=settings)))
        assert failure is None or role in str(failure), failure
        assert [word for word in lakebase.judge.gains() if word.startswith(role)] == []
        query = (
            "SELECT rolsuper, pg_has_role(%s, 'pg_monitor', 'member'), "
            "has_function_privilege(%s, 'pg_ls_dir(text)', 'EXECUTE') FROM pg_roles WHERE rolname = %s"
        )
        assert lakebase.ground.sql(query, role, role, role, database=lakebase.system) == [(False, False, False)]
    finally:
        remove_place(lakebase)
        forget_platform(town)


def forget_platform(town: Place) -> None:
    """Remove the roles of the lakebase profile."""
    found = town.ground.sql("SELECT rolname::text FROM pg_roles WHERE rolname ~ '^databricks_'")
    for (name,) in found:
        town.ground.do("DROP OWNED BY {}", name)
        town.ground.do("DROP ROLE {}", name)


async def test_a_role_called_like_an_heir_inherits_nothing(town: Place) -> None:
    """Beyond T-03, T-05: a tenant that knows how heirs are called makes one first, or becomes a member of it."""
    first, second = (town.ground.make_tenant(fresh("leaver")) for _ in range(2))
    owner = "SELECT tableowner::text FROM pg_tables WHERE tablename = 'left_behind'"
    oid = "SELECT oid::text FROM pg_database WHERE datname = %s"
    town.ground.do("ALTER DATABASE {} OWNER TO {}", town.app, ALICE)
    for leaver, name in ((first, town.system), (second, town.app)):
        town.ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=name)
        with town.ground.connect(name, leaver) as session:
            session.execute("CREATE TABLE public.left_behind AS SELECT 'secret' AS what")
    await town.ours.apply(town.ours.spec([MALLORY, ALICE], [], deleted(first)))
    [(known,)] = town.ground.sql(owner, database=town.system)
    [(one,)], [(other,)] = town.ground.sql(oid, town.system), town.ground.sql(oid, town.app)
    guess = known.replace(one, other).replace(town.system, town.app).replace(first, second)
    if town.ground.exists("role", guess):
        pytest.skip("there is one heir for all, which was there before any tenant could make it")
    with town.ground.connect("postgres", MALLORY) as session:
        session.execute(f"CREATE ROLE \"{guess}\" LOGIN PASSWORD 'mine' ROLE mallory")
    await town.ours.apply(town.ours.spec([MALLORY, ALICE], [], deleted(second)))
    [(heir,)] = town.ground.sql(owner, database=town.app)
    query = "SELECT rolcanlogin OR pg_has_role('mallory', oid, 'member') FROM pg_roles WHERE rolname = %s"
    assert town.ground.sql(query, heir) == [(False,)], heir
