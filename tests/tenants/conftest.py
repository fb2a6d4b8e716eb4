"""One server of each major, on which a tenant called mallory owns everything that a spec can give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import MAJORS
from tests.integration.conftest import ordinary_run_as, rig, seeded_world, world
from tests.tenants.ground import Ground, fresh
from tests.tenants.hostile import FOUNDATION, lay_impostors, lay_spring
from tests.tenants.ours import Ours
from tests.tenants.overloads import lay_overloads
from tests.tenants.verdict import Judge
from trio_compute.embedded import binaries

__all__ = ["rig", "seeded_world", "world"]  # fixtures of whole computes

MALLORY = "mallory"  # lays the traps
TRUDY = "trudy"  # helps
ALICE = "alice"  # wants to be left alone
TRAPPED, TRAPPED_LATER, TOWN = "trapped_at_once", "trapped_later", "town"


@pytest.fixture(scope="session", params=MAJORS, ids=lambda major: f"pg{major}")
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def running(major: int, *, strict: bool) -> Iterator[Ground]:
    ground = Ground(binaries.ensure(major), ordinary_run_as(), strict=strict)
    try:
        ground.start()
        for name in (MALLORY, TRUDY, ALICE):
            ground.make_tenant(name)
        yield ground
    finally:
        ground.remove()


@pytest.fixture(scope="session")
def trusting(major: int) -> Iterator[Ground]:
    """Run a server that believes everybody on this machine."""
    yield from running(major, strict=False)


@pytest.fixture(scope="session")
def strict(major: int) -> Iterator[Ground]:
    """Run a server that asks everybody for a password, the superuser too."""
    yield from running(major, strict=True)


@pytest.fixture
def ground(trusting: Ground) -> Ground:
    return trusting


@pytest.fixture(params=["trust", "scram"])
def either_ground(request: pytest.FixtureRequest, major: int) -> Ground:
    """Return a server of either kind; for the few tests that are worth both."""
    found: Ground = request.getfixturevalue("trusting" if request.param == "trust" else "strict")
    return found


@pytest.fixture
def judge(ground: Ground) -> Iterator[Judge]:
    judge = Judge(ground)
    yield judge
    judge.punish()


@dataclasses.dataclass(frozen=True)
class Place:
    """Hold a server, the database that the compute works from and one of the tenant's, both full of traps."""

    ground: Ground
    system: str
    app: str
    judge: Judge
    ours: Ours

    def databases(self) -> list[tuple[str, str]]:
        """Return what a spec says about both."""
        return [(self.system, MALLORY), (self.app, MALLORY)]

    def spec(self, roles: list[str] | None = None, delta: list[dict[str, Any]] | None = None, **changes: Any) -> Any:
        """Return a spec that lists what there is, and some roles more."""
        names = [MALLORY, TRUDY, ALICE, *(roles or [])]
        return self.ours.spec(names, self.databases(), delta or [], **changes)


async def lay_everything(ground: Ground) -> None:
    """Make the two databases that all others are copies of: trapped before, and after, the compute was there."""
    if ground.exists("database", TRAPPED):
        return
    for name in (TRAPPED, TRAPPED_LATER):
        ground.do("CREATE DATABASE {} OWNER {}", name, MALLORY)
        if name == TRAPPED_LATER:
            ours = Ours(ground, name)
            await ours.apply(ours.spec([MALLORY, TRUDY, ALICE], [(name, MALLORY)]))
        with ground.connect(name, MALLORY) as session:
            for lay in FOUNDATION:
                lay(session)
            refused = lay_impostors(session)
            assert name == TRAPPED_LATER or not refused
            lay_overloads(session)


def lay_town(ground: Ground) -> None:
    """Make a database with nothing in it but what a trap needs."""
    if not ground.exists("database", TOWN):
        ground.do("CREATE DATABASE {} OWNER {}", TOWN, MALLORY)
        if ground.major < 15:  # as an apply does it
            ground.do("ALTER SCHEMA public OWNER TO {}", MALLORY, database=TOWN)
        with ground.connect(TOWN, MALLORY) as session:
            lay_spring(session)


def make_place(ground: Ground, template: str, *, lakebase: bool = False) -> Place:
    """Copy a database twice: one that the compute works from, and one more."""
    system, app = fresh("system"), fresh("app")
    for name in (system, app):
        ground.do("CREATE DATABASE {} OWNER {} TEMPLATE {}", name, MALLORY, template)
    return Place(ground, system, app, Judge(ground), Ours(ground, system, lakebase=lakebase))


def remove_place(place: Place) -> None:
    place.judge.punish()
    for name in (place.system, place.app):
        if place.ground.exists("database", name):
            place.ground.do("ALTER DATABASE {} IS_TEMPLATE false", name)
            mine = "DELETE FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = %s)"
            place.ground.sql(mine, name)
            place.ground.do("DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture(params=[TRAPPED, TRAPPED_LATER])
async def place(request: pytest.FixtureRequest, ground: Ground) -> Any:
    """Return two databases full of traps, to which their search path leads."""
    await lay_everything(ground)
    place = make_place(ground, request.param)
    for name in (place.system, place.app):
        ground.do("""ALTER DATABASE {} SET search_path = '''''', public, cloud_admin, pg_catalog""", name)
    yield place
    remove_place(place)


@pytest.fixture
def town(ground: Ground) -> Iterator[Place]:
    """Return two databases of mallory with nothing in them, for tests that lay what they need."""
    lay_town(ground)
    place = make_place(ground, TOWN)
    yield place
    remove_place(place)


@pytest.fixture
def either_town(either_ground: Ground) -> Iterator[Place]:
    """Return the same on a server that trusts, and on one that asks for passwords."""
    lay_town(either_ground)
    place = make_place(either_ground, TOWN)
    yield place
    remove_place(place)
