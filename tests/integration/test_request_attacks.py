"""What tenants put in the way of requests: other objects, other names, other bytes (11 T-01, T-02, T-06, T-14)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
import trio

from tests.component.http.logs import LogLines
from tests.component.http.world import stands
from tests.integration.bare_postgres import QUICK, BarePostgres, fresh
from tests.integration.conftest import ordinary_run_as
from tests.integration.test_schema_dump import COMPLETE, asked, dump
from trio_compute.db.database_encoding import database_encoding
from trio_compute.db.grants import grant_on_schema
from trio_compute.db.insights import collect_insights
from trio_compute.db.install_extension import install_extension
from trio_compute.db.installed_extensions import collect_installed_extensions
from trio_compute.db.listing import list_catalog
from trio_compute.embedded import binaries
from trio_compute.telemetry import logging as telemetry

pytestmark = pytest.mark.postgres

ODD = b"caf\xe9"
SHOWN = r"caf\xe9"
RISE = (
    "CREATE FUNCTION {schema}.rise() RETURNS text LANGUAGE plpgsql AS $$ BEGIN"
    " EXECUTE 'ALTER ROLE {role} SUPERUSER'; RETURN 'x';"
    " EXCEPTION WHEN insufficient_privilege THEN RETURN 'x'; END $$;"
)


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    lines = LogLines()
    monkeypatch.setattr(telemetry, "sink", lines)
    return lines


@pytest.fixture(scope="module")
def watched(major: int) -> Iterator[BarePostgres]:
    """Run a server that counts statements, with one tenant and his database."""
    server = BarePostgres(binaries.ensure(major), ordinary_run_as())
    with (server.data / "postgresql.conf").open("a") as file:
        file.write("shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track_planning = on\n")
    try:
        server.start()
        server.sql("CREATE ROLE tenant LOGIN; CREATE EXTENSION pg_stat_statements")
        yield server
    finally:
        server.remove()


@pytest.fixture
def home(watched: BarePostgres) -> Iterator[str]:
    name = fresh("home")
    watched.do("CREATE DATABASE {} OWNER tenant", name)
    watched.do("ALTER SCHEMA public OWNER TO tenant", database=name)
    watched.sql("CREATE EXTENSION pg_stat_statements", database=name)
    yield name
    watched.do("DROP DATABASE {} WITH (FORCE)", name)


def has_risen(server: BarePostgres) -> bool:
    return bool(server.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'tenant'")[0][0])


async def test_insights_do_not_read_what_stands_in_the_place_of_the_view(
    watched: BarePostgres, home: str, log_lines: LogLines
) -> None:
    """T-02: the owner of public moved it aside, and a view that calls his function made him superuser."""
    watched.sql(
        "ALTER SCHEMA public RENAME TO aside; CREATE SCHEMA public;"
        + RISE.format(schema="public", role="tenant")
        + "CREATE VIEW public.pg_stat_statements AS SELECT rise() AS query, 1::oid AS userid, 1.0 AS mean_exec_time,"
        " 1.0 AS mean_plan_time;"
        "CREATE FUNCTION public.pg_stat_statements(boolean) RETURNS SETOF text LANGUAGE sql AS 'SELECT public.rise()'",
        database=home,
        user="tenant",
    )
    assert await collect_insights(watched.url(home), QUICK) == []
    assert not has_risen(watched)
    [line] = log_lines.with_text("no insights: who owns the schema")
    assert "aside" in line


async def test_insights_come_from_the_extension_wherever_a_superuser_has_put_it(
    watched: BarePostgres, home: str, log_lines: LogLines
) -> None:
    """T-02: a view of that name in public, an overload beside the function, do not matter."""
    watched.sql(
        'CREATE SCHEMA "st""ats"; ALTER EXTENSION pg_stat_statements SET SCHEMA "st""ats";'
        'GRANT ALL ON SCHEMA "st""ats" TO tenant',
        database=home,
    )
    watched.sql(
        RISE.format(schema="public", role="tenant") + "CREATE VIEW public.pg_stat_statements AS SELECT rise();"
        'CREATE FUNCTION "st""ats".pg_stat_statements(anyelement) RETURNS SETOF text LANGUAGE sql'
        " AS 'SELECT public.rise()'",
        database=home,
        user="tenant",
    )
    watched.sql("SELECT 4711", database=home, user="tenant")
    found = await collect_insights(watched.url(home), QUICK)
    assert any(row["query"] == "SELECT $1" for row in found)
    assert not has_risen(watched)
    assert not log_lines.with_text("no insights")


def encoding_of(server: BarePostgres, database: str) -> str:
    query = "SELECT pg_encoding_to_char(encoding)::text FROM pg_database WHERE datname = %s"
    return str(server.sql(query, database)[0][0])


def odd_session(server: BarePostgres, database: str) -> psycopg.Connection[Any]:
    return server.connect(database, client_encoding="SQL_ASCII")


@pytest.fixture(params=["SQL_ASCII", "LATIN1"])
def odd(watched: BarePostgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """Make a database in another encoding, and in it a role, a database, a schema whose names are no UTF-8."""
    name = fresh("odd")
    watched.sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{request.param}' LOCALE 'C'")
    with odd_session(watched, name) as session:
        session.execute(b'CREATE ROLE "' + ODD + b'"')
        session.execute(b'CREATE DATABASE "' + ODD + b'" OWNER "' + ODD + b'" TEMPLATE template0')
        session.execute(b'CREATE DATABASE theirs OWNER "' + ODD + b'"')
        session.execute(b'CREATE SCHEMA "' + ODD + b'"')
    yield name
    with odd_session(watched, name) as session:
        session.execute(b'DROP DATABASE "' + ODD + b'"')
        session.execute(b"DROP DATABASE theirs")
        session.execute(b'DROP ROLE "' + ODD + b'"')
    watched.do("DROP DATABASE {} WITH (FORCE)", name)


async def test_names_that_are_no_text_are_passed_over_with_one_warning(
    watched: BarePostgres, odd: str, log_lines: LogLines
) -> None:
    """T-06: /dbs_and_roles failed for good; two roles and databases here, and a database of such an owner."""
    listing = await list_catalog(watched.url(), QUICK, hide_passwords=False)
    json.dumps([role.name for role in listing.roles]).encode()
    assert {"cloud_admin", "tenant"} <= {role.name for role in listing.roles}
    assert {odd, "postgres"} <= (names := {database.name for database in listing.databases})
    assert "theirs" not in names
    [line] = log_lines.with_text("names that are not UTF-8 are passed over")
    assert line.count("xe9") == 1
    assert await list_catalog(watched.url(odd), QUICK, hide_passwords=False) == listing


async def test_statistics_leave_out_what_cannot_be_named(watched: BarePostgres, odd: str, log_lines: LogLines) -> None:
    """T-06."""
    statistics = await collect_installed_extensions(watched.url(), QUICK)
    assert statistics.failures == 0
    [line] = log_lines.with_text("databases whose names are not UTF-8 are not looked at")
    assert "xe9" in line


async def test_a_statement_that_cannot_be_converted_hides_the_texts_and_not_the_answer(
    watched: BarePostgres, odd: str, log_lines: LogLines
) -> None:
    """T-06: SQLSTATE 22021 of pg_stat_statements, in a UTF-8 database, for a statement of another one."""
    watched.sql("SELECT pg_stat_statements_reset()")
    watched.sql("SELECT 1", user="tenant")
    with watched.connect(odd, "tenant", client_encoding="SQL_ASCII") as session:
        session.execute(b'SELECT 1 AS "' + ODD + b'"')
    there = {row["query"] for row in await collect_insights(watched.url(), QUICK)}
    encoding = encoding_of(watched, odd)
    if encoding == "SQL_ASCII":
        assert there == {None}
        assert len(log_lines.with_text("insights without the texts")) == 1
    else:
        assert 'SELECT $1 AS "café"' in there
    watched.sql("CREATE EXTENSION pg_stat_statements", database=odd)
    here = {row["query"] for row in await collect_insights(watched.url(odd), QUICK)}
    assert {"SQL_ASCII": 'SELECT $1 AS "caf\ufffd"', "LATIN1": 'SELECT $1 AS "café"'}[encoding] in here


async def test_requests_work_in_databases_of_other_encodings(watched: BarePostgres, odd: str) -> None:
    """T-06: /extensions, /grants, /database_schema; a schema of a LATIN1 database is found by its name."""
    watched.sql("CREATE ROLE reader")
    try:
        grant = partial(grant_on_schema, watched.url(), odd, role="reader", privileges=["USAGE"], deadlines=QUICK)
        assert await install_extension(watched.url(), odd, "hstore", "1.8", QUICK)
        assert await grant(schema="public")
        if encoding_of(watched, odd) == "LATIN1":
            assert await grant(schema="café")
            assert not await grant(schema="café")
        assert await database_encoding(watched.url(odd), odd, QUICK)
        async with asked(watched) as client:
            response = await dump(client, odd)
        assert response.status_code == 200
        assert COMPLETE.encode() in response.content[-200:]
        assert b"CREATE SCHEMA" in response.content
    finally:
        watched.sql("DROP OWNED BY reader", database=odd)
        watched.sql("DROP ROLE reader")


HOSTILE = """
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE TABLE hostile.pg_authid (oid oid); CREATE TABLE hostile.pg_database (oid oid);
CREATE TABLE hostile.pg_extension (oid oid); CREATE TABLE hostile.pg_namespace (oid oid);
CREATE DOMAIN hostile.text AS pg_catalog.text CHECK (hostile.trap());
CREATE DOMAIN hostile.name AS pg_catalog.name CHECK (hostile.trap());
CREATE DOMAIN hostile.oid AS pg_catalog.oid CHECK (hostile.trap());
CREATE DOMAIN hostile.bool AS pg_catalog.bool CHECK (hostile.trap());
"""
FUNCTIONS = (
    *("count()", "now()", "row_to_json(record)", "unnest(anyarray)", "aclexplode(aclitem[])", "current_database()"),
    *("concat(text)", "pg_is_in_recovery()", "pg_stat_clear_snapshot()", "pg_backend_pid()"),
)
OPERANDS = ("oid,oid", "name,text", "text,text", '"char","char"', "name,name", "int4,int4", "float8,float8", "xid,xid")


@pytest.fixture
def trapped(watched: BarePostgres) -> Iterator[str]:
    """Make a database with a schema full of traps, and return options that put it before all others."""
    name = fresh("trapped")
    watched.do("CREATE DATABASE {}", name)
    watched.sql(HOSTILE, database=name)
    traps = [
        f"CREATE FUNCTION hostile.{function.replace('(text)', '(pg_catalog.text)')} RETURNS boolean LANGUAGE plpgsql"
        " AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;"
        for function in FUNCTIONS
    ]
    for number, operands in enumerate(OPERANDS):
        left, right = operands.split(",")
        traps.append(
            f"CREATE FUNCTION hostile.trap{number}({operands}) RETURNS boolean LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;"
        )
        traps += [
            f"CREATE OPERATOR hostile.{sign} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = hostile.trap{number});"
            for sign in ("=", "<>", "+")
        ]
    watched.sql("".join(traps), database=name)
    yield name
    watched.do("DROP DATABASE {} WITH (FORCE)", name)


async def test_statements_work_though_a_hostile_schema_stands_first(watched: BarePostgres, trapped: str) -> None:
    """T-01: here the operator's own options put it there; every name is qualified, so none is caught."""
    url = f"{watched.url(trapped)}?options=-c%20search_path%3Dhostile,pg_catalog"
    with pytest.raises(psycopg.Error, match="trapped"):
        watched.sql("SET search_path = hostile, pg_catalog; SELECT 1 = 1", database=trapped)
    assert (await list_catalog(url, QUICK, hide_passwords=False)).roles
    assert await database_encoding(url, trapped, QUICK)
    watched.sql("CREATE EXTENSION pg_stat_statements", database=trapped)
    assert await collect_insights(url, QUICK) != []
    assert (await collect_installed_extensions(url, QUICK)).failures == 0
    assert await install_extension(url, trapped, "xml2", "1.1", QUICK)
    assert await install_extension(url, trapped, "hstore", "1.4", QUICK)
    assert await install_extension(url, trapped, "hstore", "1.8", QUICK)
    assert await grant_on_schema(url, trapped, "public", "tenant", ["CREATE"], QUICK)


async def test_a_grant_that_somebody_else_makes_at_the_same_time_is_repeated(watched: BarePostgres, home: str) -> None:
    """T-14: `tuple concurrently updated` is XX000; it was 500, or needed a lock that anybody can take."""
    granted: list[bool] = []

    async def grant() -> None:
        granted.append(await grant_on_schema(watched.url(), home, "public", "cloud_admin", ["CREATE"], QUICK))

    def waits() -> bool:
        return bool(watched.sql("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))

    with watched.connect(home, "tenant") as session:
        session.execute("SELECT pg_advisory_lock(1953655151)")
        session.execute("BEGIN; GRANT USAGE ON SCHEMA public TO pg_monitor")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grant)
            await stands(waits)
            session.execute("COMMIT")
    assert granted == [True]
