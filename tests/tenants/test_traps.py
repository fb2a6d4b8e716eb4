"""A world in which everything is a trap: whatever we do in it, no tenant's code runs with our rights."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tenants.conftest import ALICE, MALLORY, Place
from tests.tenants.ground import fresh
from tests.tenants.hostile import lay_pg_temp
from tests.tenants.ours import ask_all, deleted
from trio_compute.errors import PostgresError

pytestmark = pytest.mark.postgres


def with_role(place: Place, **changes: Any) -> Any:
    return place.spec([fresh("newcomer")], **changes)


async def first(place: Place) -> None:
    await place.ours.apply(with_role(place), is_start=True)


async def nothing(place: Place) -> None:
    await place.ours.apply(place.spec())
    await place.ours.apply(place.spec())


async def role_goes(place: Place) -> None:
    leaver = place.ground.make_tenant(fresh("leaver"))
    for name in (place.system, place.app):
        place.ground.sql(f'GRANT ALL ON DATABASE "{name}" TO {leaver}')
        with place.ground.connect(name, leaver) as session:
            session.execute("CREATE SCHEMA mine; CREATE TABLE mine.t (id int); CREATE VIEW mine.v AS SELECT 1")
            session.execute(f"GRANT ALL ON mine.t TO {MALLORY}, {ALICE} WITH GRANT OPTION")
        with place.ground.connect(name, MALLORY) as session:
            session.execute(f"GRANT ALL ON public.plain TO {leaver}; GRANT ALL ON SCHEMA public TO {leaver}")
    await place.ours.apply(place.spec(delta=deleted(leaver)))
    assert not place.ground.exists("role", leaver)


async def database_goes(place: Place) -> None:
    delta = [{"action": "delete_db", "name": place.app}]
    await place.ours.apply(place.ours.spec([MALLORY], [(place.system, MALLORY)], delta))
    assert not place.ground.exists("database", place.app)


async def database_renamed(place: Place) -> None:
    name = fresh("renamed")
    delta = [{"action": "rename_db", "name": place.app, "new_name": name}]
    await place.ours.apply(place.ours.spec([MALLORY], [(place.system, MALLORY), (name, MALLORY)], delta))
    assert place.ground.exists("database", name)
    place.ground.do("ALTER DATABASE {} RENAME TO {}", name, place.app)


async def owner_changes(place: Place) -> None:
    await place.ours.apply(place.ours.spec([MALLORY, ALICE], [(place.system, ALICE), (place.app, ALICE)]))


async def subscriptions_go(place: Place) -> None:
    await place.ours.apply(place.spec(drop_subscriptions_before_start=True))


async def looked_ahead(place: Place) -> None:
    await place.ours.left_to_do(with_role(place, drop_subscriptions_before_start=True, delta=deleted(ALICE + "x")))


APPLIES = (
    first, nothing, role_goes, database_goes, database_renamed, owner_changes, subscriptions_go, looked_ahead,
)  # fmt: skip


async def test_the_traps_are_sharp(place: Place) -> None:
    """Otherwise all that follows would prove nothing: one careless statement of a superuser springs them."""
    with place.ground.connect(place.app, options="-c role=cloud_admin") as careless:
        careless.execute("SELECT count(datname), bool_or(datname = 'x' || 'y') FROM pg_database")
        careless.execute("INSERT INTO public.health_check VALUES (7)")
    assert {word.partition(" in ")[0] for word in place.judge.traps()} >= {
        "aggregate count", "operator =(name,text)", "check of public.health_check", "trigger health_check BEFORE ROW",
    }  # fmt: skip
    assert place.judge.gains() == [f"{MALLORY} is SUPERUSER"]


@pytest.mark.parametrize("step", APPLIES, ids=lambda step: step.__name__)
async def test_no_trap_springs_while_the_catalog_is_applied(place: Place, step: Any) -> None:
    """T-01, T-02, T-04: every overload, trigger, default, policy, rule, view and table of a tenant."""
    failure = None
    try:
        await step(place)
    except PostgresError as error:
        failure = error
    newcomers = {name for (name,) in place.ground.sql("SELECT rolname::text FROM pg_roles WHERE rolname ~ '^newcomer'")}
    crimes = place.judge.crimes(newcomers)
    assert not crimes, f"{failure}\n" + "\n".join(crimes)
    if failure is not None:
        raise failure


async def test_no_trap_springs_while_a_route_is_asked(place: Place) -> None:
    """T-01, T-02, T-04: as above, for every route and errand; what it answers is not the point here."""
    with place.ground.connect(place.system, MALLORY) as one, place.ground.connect(place.app, MALLORY) as other:
        lay_pg_temp(one)
        lay_pg_temp(other)
        failures = await ask_all(place.ours, place.app)
    crimes = place.judge.crimes()
    assert not crimes, f"{failures}\n" + "\n".join(crimes)
