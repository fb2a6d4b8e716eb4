"""Settings that a tenant puts on a database or on itself have no effect on our sessions (T-07)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import trio

from tests.tenants.conftest import ALICE, MALLORY, Place
from tests.tenants.ground import fresh, named
from tests.tenants.ours import ask_all, deleted
from trio_compute.db.request_session import open_request_session

pytestmark = pytest.mark.postgres

_SETTABLE = """
SELECT name, vartype, setting, min_val, max_val, enumvals FROM pg_settings
WHERE context IN ('user', 'backend') ORDER BY name"""
# What a session of the tests itself could not stand; each has a test of its own below.
_DEADLY = frozenset({"local_preload_libraries", "role", "session_authorization"})
_TEXTS = {
    "search_path": "'''''', nowhere",
    "TimeZone": "'Pacific/Chatham'",
    "DateStyle": "'German, DMY'",
    "client_encoding": "'EUC_JP'",
    "default_tablespace": "''",
    "temp_tablespaces": "''",
    "default_text_search_config": "'simple'",
    "application_name": "'walproposer'",
    "lc_monetary": "'C'", "lc_numeric": "'C'", "lc_time": "'C'",
}  # fmt: skip
_OTHERS = (
    ('"plpgsql.extra_errors"', "'all'"),
    ('"plpgsql.extra_warnings"', "'all'"),
    ('"plpgsql.variable_conflict"', "'error'"),
    ('"neon.forward_ddl"', "'on'"),
    ('"neon.timeline_id"', "'ffffffffffffffffffffffffffffffff'"),
    ('"pgaudit.log"', "'all'"),
    ('"compute.anything"', "'x'"),
)


def hostile_value(row: Any, *, most: bool) -> str | None:
    """Return a value that a program does not expect."""
    name, kind, now, least, greatest, words = row
    if kind == "bool":
        return "off" if now == "on" else "on"
    if kind in {"integer", "real"}:
        # Zero mostly means "no limit": one more than that hurts.
        return greatest if most else ("1" if least in {"0", "-1"} else least)
    if kind == "enum":
        others = [word for word in words if word != now]
        return f"'{others[-1 if most else 0]}'" if others else None
    return _TEXTS.get(name)


def spoil(place: Place, database: str, *, most: bool) -> list[str]:
    """Let a tenant set all that it can on its database; return the names of those that Postgres accepted."""
    accepted = []
    with place.ground.connect("postgres", MALLORY) as session:
        session.execute("DO 'BEGIN END'")  # now plpgsql has its settings
        wanted = [(f'"{row[0]}"', hostile_value(row, most=most)) for row in session.execute(_SETTABLE).fetchall()]
        for name, value in [*wanted, *_OTHERS]:
            if value is None or name.strip('"') in _DEADLY:
                continue
            try:
                session.execute(named("ALTER DATABASE {} SET ", database) + psycopg.sql.SQL(f"{name} = {value}"))
            except psycopg.Error:
                continue
            accepted.append(name)
    return accepted


@pytest.fixture(params=["least", "most"])
def spoilt(town: Place, request: pytest.FixtureRequest) -> Iterator[Place]:
    """Return a town both of whose databases have the worst settings that a tenant can give them."""
    for name in (town.system, town.app):
        assert len(spoil(town, name, most=request.param == "most")) > 100
    yield town
    for name in (town.system, town.app):
        if town.ground.exists("database", name):
            town.ground.do("ALTER DATABASE {} RESET ALL", name)


async def test_an_apply_does_all_of_its_work_in_spoilt_databases(spoilt: Place) -> None:
    """T-07: time limits of one millisecond, other encodings, another meaning of quotes and of NULL."""
    leaver = spoilt.ground.make_tenant(fresh("lea'v\\er"))
    spoilt.ground.do("ALTER SCHEMA public OWNER TO {}", leaver, database=spoilt.app)
    newcomer = fresh("new'c\\omer")
    await spoilt.ours.apply(spoilt.spec([newcomer]), is_start=True)
    await spoilt.ours.apply(spoilt.spec([newcomer], delta=deleted(leaver), drop_subscriptions_before_start=True))
    assert spoilt.ground.exists("role", newcomer)
    assert not spoilt.ground.exists("role", leaver)
    assert await spoilt.ours.left_to_do(spoilt.spec([newcomer])) == []


async def test_every_route_works_in_spoilt_databases(town: Place) -> None:
    """T-07."""
    await town.ours.apply(town.spec())
    for name in (town.system, town.app):
        spoil(town, name, most=False)
    assert await ask_all(town.ours, town.app) == {}


@pytest.mark.parametrize("which", ["system", "app"])
async def test_no_setting_of_any_session_of_ours_comes_from_a_database(town: Place, which: str) -> None:
    """T-07: the closed rule itself: Postgres says of each setting where it is from."""
    database = getattr(town, which)
    accepted = spoil(town, database, most=False)
    query = "SELECT name, setting FROM pg_catalog.pg_settings WHERE source IN ('database', 'user', 'database user')"
    settings = town.ours.host.settings
    async with open_request_session(settings.connstr, "test", settings.deadlines, database=database) as session:
        found = await (await session.execute(query.encode())).fetchall()
        assert found == [], f"{len(found)} of {len(accepted)}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("local_preload_libraries", "no_such_library"), ("role", MALLORY), ("session_authorization", MALLORY)],
)
async def test_a_setting_that_keeps_sessions_out_does_not_keep_us_out(town: Place, name: str, value: str) -> None:
    """T-07, T-08: a library that does not exist; another role."""
    for database in (town.system, town.app):
        town.ground.sql(f'ALTER DATABASE "{database}" SET {name} = "{value}"')
    leaver = town.ground.make_tenant(fresh("leaver"))
    town.ground.do("ALTER SCHEMA public OWNER TO {}", leaver, database=town.app)
    await town.ours.apply(town.spec([fresh("newcomer")], delta=deleted(leaver)))
    assert await ask_all(town.ours, town.app) == {}
    assert town.judge.gains([name for (name,) in town.ground.sql("SELECT rolname::text FROM pg_roles")]) == []


async def test_settings_of_a_role_that_are_large_or_not_text_disturb_nobody(town: Place) -> None:
    """Beyond T-06, T-07: we read no setting of a role whose content is not ours; 24 MB of it, or bytes."""
    import tracemalloc

    name = fresh("ascii")
    town.ground.sql(
        f"CREATE DATABASE {name} OWNER mallory ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    try:
        with town.ground.connect(name, MALLORY, client_encoding="SQL_ASCII") as session:
            # The one setting of a tenant that takes any text; others of a tenant's own invention Postgres refuses.
            session.execute(b"ALTER ROLE mallory SET search_path = '\xff\xfe'")
            session.execute(b"ALTER ROLE mallory IN DATABASE " + town.app.encode() + b" SET search_path = '\xff\xfe'")
            session.execute(b"ALTER DATABASE " + town.app.encode() + b" SET search_path = '\xff\xfe'")
            session.execute(
                b"ALTER ROLE mallory IN DATABASE " + name.encode() + b" SET search_path = '" + b"x" * (24 << 20) + b"'"
            )
        tracemalloc.start()
        with trio.fail_after(10):
            await town.ours.apply(town.spec([fresh("newcomer")]))
            await town.ours.host.list_catalog()
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
        town.ground.sql("ALTER ROLE mallory RESET ALL")
        town.ground.do("DROP DATABASE {} WITH (FORCE)", name)


async def test_a_mark_that_a_tenant_copies_is_not_believed(town: Place) -> None:
    """T-04: whatever we note in the catalogs, the same note by a tenant says nothing."""
    await town.ours.apply(town.ours.spec([MALLORY], [(town.system, MALLORY)]))
    await town.ours.apply(town.spec())
    query = "SELECT DISTINCT unnest(setconfig) FROM pg_db_role_setting WHERE setrole = 10"
    notes = [note for (note,) in town.ground.sql(query)]
    forged = fresh("forged")
    with town.ground.connect("postgres", MALLORY) as session:
        session.execute(named("CREATE DATABASE {}", forged))
        for note in notes:
            name, _, value = note.partition("=")
            for statement in (named("ALTER DATABASE {} SET ", forged), psycopg.sql.SQL("ALTER ROLE mallory SET ")):
                with contextlib.suppress(psycopg.Error):
                    session.execute(statement + psycopg.sql.SQL(f'"{name}" = ') + psycopg.sql.Literal(value))
    try:
        await town.ours.apply(town.ours.spec([MALLORY, ALICE], [*town.databases(), (forged, ALICE)]))
        query = "SELECT count(*)::int FROM pg_default_acl WHERE defaclnamespace = 'public'::regnamespace"
        assert town.ground.sql(query, database=forged) == [(2,)]
    finally:
        town.ground.sql("ALTER ROLE mallory RESET ALL")
        town.ground.do("DROP DATABASE {} WITH (FORCE)", forged)
