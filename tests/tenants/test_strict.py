"""The attacks at the centre once more where everybody needs a password, the superuser too."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from tests.tenants.conftest import ALICE, MALLORY, TRUDY, Place
from tests.tenants.ground import fresh
from tests.tenants.hostile import FOUNDATION, lay_impostors
from tests.tenants.ours import ask_all, deleted
from tests.tenants.overloads import lay_overloads
from trio_compute.errors import PostgresError

pytestmark = pytest.mark.postgres


async def test_all_that_we_do_in_a_trapped_world(either_town: Place) -> None:
    """T-01, T-02, T-04, T-07: one after another, as a compute does it."""
    town, ground = either_town, either_town.ground
    for name in (town.system, town.app):
        with ground.connect(name, MALLORY) as session:
            for lay in FOUNDATION[1:]:
                lay(session)
            lay_impostors(session)
            lay_overloads(session)
        ground.do("ALTER DATABASE {} SET search_path = '''''', public", name)
        ground.do("ALTER DATABASE {} SET role = {}", name, MALLORY)
        ground.do("ALTER DATABASE {} SET idle_in_transaction_session_timeout = 1", name)
    leaver, newcomer = ground.make_tenant(fresh("leaver")), fresh("newcomer")
    for spec in (town.spec([newcomer]), town.spec([newcomer], delta=deleted(leaver))):
        with contextlib.suppress(PostgresError):
            await town.ours.apply(spec)
    failures = await ask_all(town.ours, town.app, but=["dump"])
    crimes = town.judge.crimes({newcomer})
    assert not crimes, f"{failures}\n" + "\n".join(crimes)
    with ground.connect("postgres", newcomer) as session:
        assert session.execute("SELECT current_user::text").fetchone() == (newcomer,)


async def test_a_deleted_role_and_its_heir_cannot_log_in(either_town: Place) -> None:
    """T-03, T-10: not by their old password, nor without one."""
    town, ground = either_town, either_town.ground
    leaver = ground.make_tenant(fresh("leaver"))
    ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=town.app)
    with ground.connect(town.app, leaver) as session:
        session.execute("CREATE TABLE public.kept AS SELECT 1 AS id")
        session.execute(
            "CREATE FUNCTION public.x() RETURNS void LANGUAGE plpgsql SECURITY "
            "DEFINER AS 'BEGIN ALTER ROLE trudy SUPERUSER; END'"
        )
        ground.do("ALTER DATABASE {} OWNER TO {}", town.app, "cloud_admin")
        await town.ours.apply(town.ours.spec([MALLORY, TRUDY, ALICE], [], deleted(leaver)))
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    [(heir,)] = ground.sql("SELECT tableowner::text FROM pg_tables WHERE tablename = 'kept'", database=town.app)
    assert heir != "cloud_admin"
    for role in (leaver, heir):
        with pytest.raises(psycopg.OperationalError):
            ground.connect(town.app, role)
    with ground.connect(town.app, TRUDY) as session, contextlib.suppress(psycopg.Error):
        session.execute("SELECT public.x()")
    assert town.judge.gains() == []


async def test_the_superuser_keeps_its_password_and_nobody_else_gets_its_name(either_town: Place) -> None:
    """T-05's kind: roles that differ in case, in blanks, or that a spec calls like ours."""
    town, ground = either_town, either_town.ground
    query = "SELECT rolpassword, rolsuper FROM pg_authid WHERE rolname = 'cloud_admin'"
    before = ground.sql(query)
    names = ["Cloud_Admin", "cloud_admin ", "zenith_admin"]
    with ground.connect("postgres", MALLORY) as session:
        for name in names:
            session.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'mine'")
    try:
        await town.ours.apply(town.ours.spec([MALLORY, "Cloud_Admin", "cloud_admin "], town.databases()))
        assert ground.sql(query) == before
        gains = town.judge.gains({"Cloud_Admin", "cloud_admin "})
        assert [word for word in gains if "SUPERUSER" in word or word.endswith(" cloud_admin")] == []
    finally:
        for name in names:
            ground.do("DROP ROLE {}", name)
