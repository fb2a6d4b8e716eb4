"""Between the look and the deed a tenant changes what was looked at (T-08, T-10, T-15, and beyond)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import trio

from tests.tenants.conftest import ALICE, MALLORY, TRUDY, Place
from tests.tenants.ground import PASSWORD, fresh, named
from tests.tenants.ours import deleted
from trio_compute.errors import PostgresError
from trio_compute.model.parsed import ParsedSpec

pytestmark = pytest.mark.postgres
_WAITING = """
SELECT 1 FROM pg_stat_activity WHERE application_name ~ '^compute_ctl' AND wait_event_type = 'Lock' AND datname = %s"""


@asynccontextmanager
async def held_after_the_look(town: Place, spec: ParsedSpec, pauser: str) -> AsyncIterator[list[PostgresError]]:
    """Run an apply that stops after its look, where it wants to write a row that the pauser writes too.

    The block runs meanwhile; afterwards the apply goes on. Yields the list that gets its failure.
    """
    failures: list[PostgresError] = []

    async def run() -> None:
        try:
            await town.ours.apply(spec)
        except PostgresError as error:
            failures.append(error)
        done.set()

    done = trio.Event()
    with town.ground.connect("postgres", pauser) as session:
        session.execute("BEGIN")
        session.execute(named("ALTER ROLE {} PASSWORD 'another'", pauser))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            while not done.is_set() and not town.ground.sql(_WAITING, town.system):
                await trio.sleep(0.005)  # Postgres tells nobody
            if done.is_set():
                pytest.skip("the apply does not wait for a row that somebody else writes")
            try:
                yield failures
            finally:
                session.execute("ROLLBACK")


def in_postgres(town: Place, user: str, statement: str, *names: str) -> None:
    with town.ground.connect("postgres", user) as session:
        session.execute(named(statement, *names))


def rename(town: Place, leaver: str) -> None:
    """Let the role have another name."""
    in_postgres(town, "cloud_admin", "ALTER ROLE {} RENAME TO {}", leaver, leaver + "_x")


def remake(town: Place, leaver: str) -> None:
    """Let another role have the name, with things of its own."""
    rename(town, leaver)
    town.ground.make_tenant(leaver)
    own_more(town, leaver)


def own_more(town: Place, leaver: str) -> None:
    """Let the role have things where it had none, after it was looked for."""
    town.ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database="postgres")
    with town.ground.connect("postgres", leaver) as session:
        session.execute(named("CREATE TABLE public.{} AS SELECT 1 AS id", f"late_{leaver}"))
    with town.ground.connect(town.app, leaver) as session:
        session.execute("CREATE TABLE public.late AS SELECT 1 AS id")


Race = Callable[[Place, str], None]
RACES: dict[str, Race] = {
    "dropped": lambda town, _: in_postgres(town, MALLORY, "DROP DATABASE {}", town.app),
    "renamed": lambda town, _: in_postgres(town, MALLORY, "ALTER DATABASE {} RENAME TO {}", town.app, town.app + "_x"),
    "closed": lambda town, _: in_postgres(town, MALLORY, "ALTER DATABASE {} ALLOW_CONNECTIONS false", town.app),
    "template": lambda town, _: in_postgres(town, MALLORY, "ALTER DATABASE {} IS_TEMPLATE true", town.app),
    "given away": lambda town, _: in_postgres(town, "cloud_admin", "ALTER DATABASE {} OWNER TO {}", town.app, TRUDY),
    "public gone": lambda town, _: town.ground.sql("DROP SCHEMA public CASCADE", database=town.app, user=MALLORY),
    "unreachable": lambda town, _: in_postgres(
        town, MALLORY, "ALTER DATABASE {} SET local_preload_libraries = 'no_such_thing'", town.app
    ),
    "leaver renamed": rename,
    "leaver re-made": remake,
    "leaver owns more": own_more,
}  # fmt: skip


_OF_THE_DATABASE = ("dropped", "renamed", "closed", "template")
_CASES = [("nothing", race) for race in RACES] + [
    (deed, race) for deed in ("delete_db", "rename_db", "owner") for race in _OF_THE_DATABASE
]


@pytest.mark.parametrize(("deed", "race"), _CASES)
async def test_what_changes_between_look_and_deed_is_made_good_the_next_time(town: Place, race: str, deed: str) -> None:
    """T-08: never more than a failure that is told; the next apply leaves nothing to do, and nobody has gained."""
    ground, new = town.ground, fresh("renamed")
    leaver, pauser = ground.make_tenant(fresh("leaver")), fresh("pauser")
    ground.sql(f"CREATE ROLE {pauser} LOGIN PASSWORD '{PASSWORD}'")  # not the verifier: there is something to do
    ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=town.app)
    with ground.connect(town.app, leaver) as session:
        session.execute("CREATE TABLE public.kept AS SELECT 1 AS id")
    databases = {
        "nothing": [(town.app, MALLORY)],
        "delete_db": [],
        "rename_db": [(new, MALLORY)],
        "owner": [(town.app, ALICE)],
    }
    delta: list[dict[str, Any]] = deleted(leaver)
    if deed in {"delete_db", "rename_db"}:
        delta += [{"action": deed, "name": town.app, "new_name": new}]
    spec = town.ours.spec([MALLORY, ALICE, TRUDY, pauser], databases[deed], delta)
    try:
        async with held_after_the_look(town, spec, pauser):
            with contextlib.suppress(psycopg.Error):
                RACES[race](town, leaver)
        await town.ours.apply(spec)
        assert await town.ours.left_to_do(spec) == []
        assert not ground.exists("role", leaver)
        assert town.judge.gains({leaver, leaver + "_x", pauser}) == []
        query = "SELECT relname::text FROM pg_class WHERE relowner NOT IN (SELECT oid FROM pg_roles)"
        places = [name for name in (town.app, "postgres") if race != "closed" and ground.exists("database", name)]
        assert [ground.sql(query, database=database) for database in places] == [[] for _ in places]
    finally:
        tidy_up(town, new, leaver)


def tidy_up(town: Place, new: str, leaver: str) -> None:
    """Remove what a race has made under names of its own."""
    ground = town.ground
    for name in (new, town.app + "_x"):
        if ground.exists("database", name):
            ground.do("ALTER DATABASE {} IS_TEMPLATE false", name)
            ground.do("DROP DATABASE {} WITH (FORCE)", name)
    ground.do("DROP TABLE IF EXISTS public.{}", f"late_{leaver}")
    for role in (leaver + "_x", leaver):
        if ground.exists("role", role):
            for name in ("postgres", town.app):
                if ground.exists("database", name):
                    ground.do("ALTER DATABASE {} ALLOW_CONNECTIONS true", name)
                    ground.do("DROP OWNED BY {} CASCADE", role, database=name)
            ground.do("DROP ROLE {}", role)


async def test_a_deletion_is_not_turned_by_a_new_role_of_the_name(town: Place) -> None:
    """Beyond T-10: the role that was looked at is renamed, and its name given to a role of somebody else's."""
    ground = town.ground
    leaver, pauser = ground.make_tenant(fresh("leaver")), fresh("pauser")
    ground.sql(f"CREATE ROLE {pauser} LOGIN PASSWORD '{PASSWORD}'")
    ground.do("GRANT ALL ON SCHEMA public TO PUBLIC", database=town.app)
    spec = town.ours.spec([MALLORY, ALICE, pauser], [(town.app, MALLORY)], deleted(leaver))
    async with held_after_the_look(town, spec, pauser):
        remake(town, leaver)
    await town.ours.apply(spec)
    query = "SELECT count(*)::int FROM public.late"
    assert ground.sql(query, database=town.app) == [(1,)]
    ground.do("DROP TABLE IF EXISTS public.{}", f"late_{leaver}")
    ground.do("DROP OWNED BY {} CASCADE", leaver + "_x", database=town.app)
    ground.do("DROP ROLE {}", leaver + "_x")
