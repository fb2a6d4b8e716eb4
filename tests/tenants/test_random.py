"""Tenants and applies in any order: whatever they did, nobody has gained, nothing is lost, and one apply is enough."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.tenants.conftest import ALICE, MALLORY, TOWN, TRUDY, Place, lay_town, make_place, remove_place
from tests.tenants.ground import Ground, fresh
from tests.tenants.ours import ROUTES, deleted
from trio_compute.errors import PostgresError

pytestmark = pytest.mark.postgres

# The long form makes a failure small as well, which takes minutes.
EXAMPLES = int(os.environ.get("TRIO_COMPUTE_TENANT_EXAMPLES", "0"))
PHASES = (Phase.generate, Phase.shrink) if EXAMPLES else (Phase.generate,)
# What a tenant says; `{app}` and `{system}` are databases, `{leaver}` is who shall go, `{n}` is a number.
SAYINGS = (
    "CREATE SCHEMA \"''\"",
    "CREATE SCHEMA neon",
    "CREATE SCHEMA neon_migration",
    "CREATE FUNCTION \"''\".format(text, text) RETURNS text LANGUAGE sql AS $$SELECT trap.word('format')$$",
    (
        "CREATE FUNCTION \"''\".same(oid, int) RETURNS bool LANGUAGE sql AS "
        "$$SELECT trap.yes('same'); SELECT $1::int8 = $2$$"
    ),
    "CREATE OPERATOR \"''\".= (leftarg = oid, rightarg = int, function = \"''\".same)",
    "CREATE TABLE public.health_check (id int PRIMARY KEY, updated_at timestamptz CHECK (trap.yes('check')))",
    "CREATE TABLE neon_migration.migration_id (key int PRIMARY KEY, id int8 CHECK (trap.yes('check')))",
    "CREATE VIEW public.pg_stat_statements AS SELECT trap.yes('view'), 1::oid AS userid, 'x' AS query",
    "DROP SCHEMA public CASCADE",
    "CREATE SCHEMA public",
    "DROP TABLE public.health_check",
    "CREATE FUNCTION public.definer{n}() RETURNS bool LANGUAGE sql SECURITY DEFINER AS $$SELECT trap.yes('definer')$$",
    "CREATE VIEW public.mirror{n} AS SELECT * FROM pg_catalog.pg_authid",
    "GRANT ALL ON ALL TABLES IN SCHEMA public TO {leaver} WITH GRANT OPTION",
    "GRANT ALL ON SCHEMA public TO {leaver}, trudy WITH GRANT OPTION",
    "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {leaver}",
    "ALTER DATABASE {app} SET search_path = '''''', public, pg_catalog",
    "ALTER DATABASE {app} SET role = mallory",
    "ALTER DATABASE {app} SET idle_in_transaction_session_timeout = 1",
    "ALTER DATABASE {app} SET local_preload_libraries = 'no_such_thing'",
    "ALTER DATABASE {app} SET default_transaction_read_only = on",
    "ALTER DATABASE {app} ALLOW_CONNECTIONS false",
    "ALTER DATABASE {app} ALLOW_CONNECTIONS true",
    "ALTER DATABASE {app} CONNECTION LIMIT 0",
    "ALTER DATABASE {app} IS_TEMPLATE true",
    "ALTER DATABASE {app} RESET ALL",
    "SELECT lo_create(0)",
    "CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public",
    "CREATE EXTENSION IF NOT EXISTS neon",
    "INSERT INTO neon_migration.migration_id VALUES (0, 12)",
    "UPDATE neon_migration.migration_id SET id = 99",
    "DELETE FROM neon.prepared_databases",
    "ALTER ROLE {leaver} SET work_mem = '1MB'",
    "GRANT {leaver} TO trudy",
)
SPEAKERS = (MALLORY, TRUDY, "leaver")


@dataclasses.dataclass
class Story:
    """Hold the state of one example."""

    place: Place
    leaver: str
    kept: set[tuple[str, str]]
    number: int = 0

    def say(self, speaker: str, database: str, text: str) -> None:
        """Let a tenant say something; it may be refused."""
        self.number += 1
        words = (
            text.replace("{app}", f'"{self.place.app}"')
            .replace("{leaver}", self.leaver)
            .replace("{n}", str(self.number))
        )
        with contextlib.suppress(psycopg.Error):
            self.place.ground.sql(words, database=database, user=self.leaver if speaker == "leaver" else speaker)

    def keep(self, speaker: str, database: str) -> None:
        """Let a tenant make a table with a row; if that is acknowledged, it must be there for ever."""
        self.number += 1
        schema, user = f"kept{self.number}", self.leaver if speaker == "leaver" else speaker
        self.place.ground.sql(f'GRANT CREATE ON DATABASE "{database}" TO PUBLIC')
        with contextlib.suppress(psycopg.Error):
            self.place.ground.sql(
                f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.t AS SELECT 1 AS id", database=database, user=user
            )
            self.kept.add((database, schema))

    async def apply(self, what: str) -> None:
        """Apply a spec; a failure is allowed, and told as such."""
        delta: list[dict[str, Any]] = {
            "leaver": deleted(self.leaver),
            "other": deleted("nobody_like_that"),
        }.get(what, [])
        owner = ALICE if what == "owner" else MALLORY
        spec = self.place.ours.spec(
            [MALLORY, TRUDY, ALICE], [(self.place.system, MALLORY), (self.place.app, owner)], delta,
            drop_subscriptions_before_start=what == "subscriptions",
        )  # fmt: skip
        with contextlib.suppress(PostgresError):
            await self.place.ours.apply(spec)

    async def ask(self, route: str) -> None:
        """Ask a route; a failure is allowed."""
        with contextlib.suppress(PostgresError):
            await ROUTES[route](self.place.ours, self.place.app)

    async def end(self) -> None:
        """Look at what came of it."""
        ground = self.place.ground
        for statement in ("ALLOW_CONNECTIONS true", "IS_TEMPLATE false", "RESET ALL"):
            ground.do(f"ALTER DATABASE {{}} {statement}", self.place.app)
        crimes = [word for word in self.place.judge.crimes({self.leaver}) if self.leaver not in word]
        assert not crimes, "\n".join(crimes)
        spec = self.place.spec(delta=deleted(self.leaver))
        with contextlib.suppress(PostgresError):
            await self.place.ours.apply(spec)
        assert not ground.exists("role", self.leaver)
        crimes = self.place.judge.crimes()
        assert not crimes, "\n".join(crimes)
        for database, schema in self.kept:
            query = (
                f"SELECT rolname <> 'cloud_admin' FROM pg_class JOIN pg_roles r ON r.oid = "
                f"relowner WHERE relnamespace = '{schema}'::regnamespace"
            )
            assert ground.sql(query, database=database) == [(True,)]
            assert ground.sql(f"SELECT id FROM {schema}.t", database=database) == [(1,)]


_places = st.sampled_from(["app", "system"])
_speakers = st.sampled_from(SPEAKERS)
_steps = st.one_of(
    st.tuples(st.just("say"), _speakers, _places, st.sampled_from(SAYINGS)),
    st.tuples(st.just("say"), st.just(MALLORY), _places, st.sampled_from(SAYINGS)),
    st.tuples(st.just("keep"), _speakers, _places),
    st.tuples(st.just("apply"), st.sampled_from(["plain", "leaver", "owner", "other", "subscriptions"])),
    st.tuples(st.just("ask"), st.sampled_from([route for route in ROUTES if route != "dump"])),
)


async def tell(ground: Ground, steps: list[Any]) -> None:
    lay_town(ground)
    place = make_place(ground, TOWN)
    story = Story(place, ground.make_tenant(fresh("leaver")), set())
    try:
        for kind, *rest in steps:
            if kind == "apply":
                await story.apply(rest[0])
            elif kind == "ask":
                await story.ask(rest[0])
            else:
                rest[1] = getattr(place, rest[1])
                story.say(*rest) if kind == "say" else story.keep(*rest)
        await story.end()
    finally:
        remove_place(place)
        with contextlib.suppress(psycopg.Error):
            ground.sql(f"DROP OWNED BY {story.leaver} CASCADE; DROP ROLE IF EXISTS {story.leaver}")


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES or 20,
    phases=PHASES,
    report_multiple_bugs=False,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(steps=st.lists(_steps, min_size=4, max_size=16))
def test_any_order_of_tenants_and_applies_ends_well(trusting: Ground, steps: list[Any]) -> None:
    """T-01 … T-17, as far as one can say it without a lock held in between."""
    trio.run(tell, trusting, steps)
