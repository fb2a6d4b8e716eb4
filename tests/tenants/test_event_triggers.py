"""Event triggers that fire always and belong to a tenant, as Neon allows: not one in our sessions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from tests.tenants.conftest import ALICE, MALLORY, TRUDY, Place
from tests.tenants.ground import fresh
from tests.tenants.hostile import drop_event_triggers, lay_event_triggers
from tests.tenants.ours import ask_all, deleted

pytestmark = pytest.mark.postgres
_STATE = "SELECT evtname::text, evtenabled::text, evtowner FROM pg_event_trigger ORDER BY 1"


@pytest.fixture
def watched(town: Place) -> Iterator[Place]:
    """Return a town in which every statement sets something off."""
    for name in (town.system, town.app):
        with town.ground.connect(name, MALLORY) as tenant, town.ground.connect(name) as superuser:
            lay_event_triggers(tenant, superuser)
    yield town
    for name in (town.system, town.app):
        if town.ground.exists("database", name):
            with town.ground.connect(name) as superuser:
                drop_event_triggers(superuser)


async def test_an_apply_sets_off_no_event_trigger(watched: Place) -> None:
    """T-02: whatever the plan holds; and the triggers are as they were."""
    before = watched.ground.sql(_STATE, database=watched.app)
    leaver = watched.ground.make_tenant(fresh("leaver"))
    with watched.ground.connect(watched.app, MALLORY) as session:
        session.execute(f"GRANT ALL ON SCHEMA public TO {leaver}")
    with watched.ground.connect(watched.app, leaver) as session:
        session.execute("CREATE TABLE public.theirs (id int)")
        session.execute(f"SELECT lo_create(0); ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {TRUDY}")
    spec = watched.spec([fresh("newcomer")], drop_subscriptions_before_start=True)
    await watched.ours.apply(spec, is_start=True)
    await watched.ours.apply(watched.spec(delta=deleted(leaver)))
    await watched.ours.apply(watched.ours.spec([MALLORY, ALICE], [(watched.app, ALICE)]))
    assert watched.judge.traps() == []
    assert watched.ground.sql(_STATE, database=watched.app) == before


async def test_a_route_sets_off_no_event_trigger(watched: Place) -> None:
    """T-02: login triggers of 17 included."""
    failures = await ask_all(watched.ours, watched.app)
    traps = watched.judge.traps()
    assert not traps, f"{failures}\n" + "\n".join(traps)


async def test_a_login_trigger_that_never_ends_or_fails_keeps_nobody_of_us_out(town: Place) -> None:
    """T-02, T-08: the tenant's own sessions may suffer, ours may not (17+)."""
    if town.ground.major < 17:
        pytest.skip("there are no login triggers")
    with town.ground.connect(town.app) as superuser:
        superuser.execute(
            "CREATE FUNCTION public.never() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$BEGIN PERFORM pg_sleep(600); RAISE 'no'; END$$; "
            "CREATE EVENT TRIGGER never ON login EXECUTE FUNCTION "
            "public.never(); ALTER EVENT TRIGGER never ENABLE ALWAYS"
        )
    with trio.fail_after(30):
        await town.ours.apply(town.spec([fresh("newcomer")]))
        await town.ours.host.grant_on_schema(town.app, "public", "pg_monitor", ["USAGE", "CREATE"])
        assert "CREATE EVENT TRIGGER never" in await town.ours.dump(town.app)
        assert (await town.ours.host.collect_installed_extensions()).failures == 0


async def test_a_role_that_owns_an_event_trigger_can_be_deleted(watched: Place) -> None:
    """T-03, T-10: REASSIGN OWNED refuses any owner but a superuser; and to a superuser it must not go."""
    leaver = watched.ground.make_tenant(fresh("leaver"))
    owner = "UPDATE pg_event_trigger SET evtowner = (SELECT oid FROM pg_roles WHERE rolname = %s)"
    depends = (
        "INSERT INTO pg_shdepend SELECT d.oid, "
        "'pg_event_trigger'::regclass, e.oid, 0, 'pg_authid'::regclass, r.oid, 'o'"
        " FROM pg_event_trigger e, pg_database d, pg_roles r WHERE datname = current_database() AND rolname = %s"
    )
    watched.ground.sql(owner, leaver, database=watched.app)
    watched.ground.sql(depends, leaver, database=watched.app)
    try:
        await watched.ours.apply(watched.spec(delta=deleted(leaver)))
        assert not watched.ground.exists("role", leaver)
        left = "SELECT evtname::text FROM pg_event_trigger JOIN pg_roles r ON r.oid = evtowner WHERE rolsuper"
        assert watched.ground.sql(left, database=watched.app) == []
        assert watched.judge.traps() == []
    finally:
        watched.ground.sql("DELETE FROM pg_event_trigger", database=watched.app)
