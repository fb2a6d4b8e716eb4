"""Roles and databases that go, with all that hangs on them (contract 05 §8, K-19 … K-24)."""

from __future__ import annotations

import pytest

from tests.integration.bare_postgres import PRIVILEGED, BarePostgres, apply, fresh, wanted
from trio_compute.deadlines import Deadlines
from trio_compute.plan.catalog.failures import CatalogFailed

pytestmark = pytest.mark.postgres


# What a role may do by itself, its groups included.
POWERS = """\
SELECT rolsuper, rolcanlogin, rolcreatedb, rolcreaterole, rolbypassrls,
       EXISTS (SELECT FROM pg_auth_members WHERE member = a.oid)
FROM pg_authid a WHERE rolname = %s"""
MEMBERS = """\
SELECT m.rolname::text FROM pg_auth_members a JOIN pg_authid m ON m.oid = a.member
WHERE a.roleid = (SELECT oid FROM pg_authid WHERE rolname = %s)"""


def deletion(*roles: str) -> list[dict[str, str]]:
    return [{"action": "delete_role", "name": role} for role in roles]


def subscribe(server: BarePostgres, database: str, name: str) -> None:
    """Make a subscription that is enabled and has a slot, whose publisher cannot be reached."""
    server.do(
        "CREATE SUBSCRIPTION {} CONNECTION 'host=127.0.0.1 port=1 dbname=x' PUBLICATION p "
        "WITH (connect = false, slot_name = 'somewhere')",
        name,
        database=database,
    )
    server.do("ALTER SUBSCRIPTION {} ENABLE", name, database=database)


async def test_what_a_role_owns_and_was_granted_goes_in_every_database(server: BarePostgres) -> None:
    """K-20, K-21, T-03: also in databases that no spec lists; nothing becomes a superuser's."""
    leaver, keeper, listed, unlisted, owned = (
        fresh(word) for word in ("leaver", "keeper", "listed", "unlisted", "own")
    )
    await apply(server, wanted([leaver, keeper], [(listed, keeper), (unlisted, keeper), (owned, leaver)]))
    for database in (listed, unlisted, owned):
        server.do("CREATE TABLE public.theirs (id int)", database=database)
        server.do("ALTER TABLE public.theirs OWNER TO {}", leaver, database=database)
        server.do("CREATE SCHEMA {} AUTHORIZATION {}", leaver, leaver, database=database)
    state = wanted([keeper], [(listed, keeper)], deletion(leaver))
    await apply(server, state)
    assert not server.exists("role", leaver)
    query = "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = %s"
    for database in (listed, unlisted, owned):
        ((heir,),) = server.sql("SELECT tableowner::text FROM pg_tables WHERE tablename = 'theirs'", database=database)
        assert heir.startswith("heir_of_deleted_roles_")
        assert server.sql(POWERS, heir) == [(False,) * 6]
        assert server.sql(MEMBERS, heir) == []
    assert server.sql(query, owned) == [(heir,)]
    assert (await apply(server, state)).is_empty


@pytest.mark.parametrize("leaver_name", ["leaver", "le'av\"er\\ $x$"])
@pytest.mark.parametrize("grantor_is_privileged", [True, False])
async def test_grants_by_others_are_revoked(
    grantor_is_privileged: bool, leaver_name: str, server: BarePostgres
) -> None:
    """K-19: tables, columns, sequences, functions, schemas; one other table without any privilege is no obstacle."""
    leaver, owner, name = fresh(leaver_name), fresh("owner"), fresh("granted")
    await apply(server, wanted([leaver, owner], [(name, owner)]))
    grantor = PRIVILEGED if grantor_is_privileged else owner
    server.do("CREATE SCHEMA deep AUTHORIZATION {}", grantor, database=name)
    with server.connect(name) as session:
        session.execute(f'SET ROLE "{grantor}"')
        session.execute("CREATE TABLE deep.t (a int, b int); CREATE SEQUENCE deep.s")
        session.execute("CREATE FUNCTION deep.f(int) RETURNS int LANGUAGE sql AS 'SELECT 1'")
        quoted = '"' + leaver.replace('"', '""') + '"'
        session.execute(f"GRANT SELECT ON deep.t TO {quoted} WITH GRANT OPTION; GRANT UPDATE (b) ON deep.t TO {quoted}")
        session.execute(f"GRANT USAGE ON SCHEMA deep TO {quoted}; GRANT ALL ON deep.s TO {quoted}")
        session.execute(f"GRANT ALL ON FUNCTION deep.f(int) TO {quoted}")
        session.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA deep GRANT ALL ON TABLES TO {quoted}")
        session.execute("RESET ROLE; CREATE TABLE public.foreign_to_all (id int)")
    await apply(server, wanted([owner], [(name, owner)], deletion(leaver)))
    assert not server.exists("role", leaver)
    assert server.sql("SELECT count(*)::int FROM deep.t", database=name) == [(0,)]


async def test_grants_by_a_grantee_with_the_grant_option_are_revoked_as_that_grantee(server: BarePostgres) -> None:
    """K-19: only the grantor itself may revoke."""
    leaver, middle, owner, name = fresh("leaver"), fresh("middle"), fresh("owner"), fresh("chain")
    await apply(server, wanted([leaver, middle, owner], [(name, owner)]))
    server.do("CREATE TABLE public.t (id int)", database=name)
    server.do("ALTER TABLE public.t OWNER TO {}", owner, database=name)
    server.do("GRANT SELECT ON public.t TO {} WITH GRANT OPTION", middle, database=name, user=owner)
    server.do("GRANT SELECT ON public.t TO {}", leaver, database=name, user=middle)
    await apply(server, wanted([middle, owner], [(name, owner)], deletion(leaver)))
    assert not server.exists("role", leaver)
    assert server.sql("SELECT has_table_privilege(%s, 'public.t', 'SELECT')", middle, database=name) == [(True,)]


async def test_a_role_is_deleted_though_public_is_gone(server: BarePostgres) -> None:
    """§15: `public` dropped."""
    leaver, owner, name = fresh("leaver"), fresh("owner"), fresh("bare")
    await apply(server, wanted([leaver, owner], [(name, owner)]))
    server.do("CREATE SCHEMA other AUTHORIZATION {}", leaver, database=name)
    server.sql("DROP SCHEMA public CASCADE", database=name)
    await apply(server, wanted([owner], [(name, owner)], deletion(leaver)))
    assert not server.exists("role", leaver)


async def test_a_closed_database_is_opened_for_a_deletion_and_closed_again(server: BarePostgres) -> None:
    """T-17: its limit of connections is what it was too, and its owner was never let in."""
    leaver, closed = fresh("leaver"), fresh("closed")
    await apply(server, wanted([leaver], [(closed, "cloud_admin")]))
    server.do("CREATE TABLE public.t (id int)", database=closed)
    server.do("ALTER TABLE public.t OWNER TO {}", leaver, database=closed)
    server.do("ALTER DATABASE {} CONNECTION LIMIT 7", closed)
    server.do("ALTER DATABASE {} ALLOW_CONNECTIONS false", closed)
    state = wanted(delta=deletion(leaver))
    await apply(server, state)
    assert not server.exists("role", leaver)
    form = "SELECT datallowconn, datconnlimit FROM pg_database WHERE datname = %s"
    assert server.sql(form, closed) == [(False, 7)]
    assert (await apply(server, state)).is_empty
    server.do("ALTER DATABASE {} ALLOW_CONNECTIONS true", closed)
    assert server.sql("SELECT count(*)::int FROM public.t", database=closed) == [(0,)]


async def test_a_database_with_an_active_subscription_is_deleted(server: BarePostgres) -> None:
    """§15 test_dropdb_with_subscription, with a hostile name, beside one that never existed."""
    name = fresh("sub'\"scr$x$ibed")
    await apply(server, wanted(databases=[(name, "cloud_admin")]))
    subscribe(server, name, "sub'\"s\\")
    delta = [{"action": "delete_db", "name": name}, {"action": "delete_db", "name": fresh("never")}]
    await apply(server, wanted(delta=delta))
    assert not server.exists("database", name)


async def test_inherited_subscriptions_go_everywhere_once_for_each_timeline(server: BarePostgres) -> None:
    """§11, K-22, K-23: every connectable database; the timeline of the spec is what is noted."""
    listed, unlisted = fresh("listed"), fresh("unlisted")
    await apply(server, wanted(databases=[(listed, "cloud_admin"), (unlisted, "cloud_admin")]))
    for name in (listed, unlisted):
        subscribe(server, name, "inherited")
    timeline = "b" * 31 + "1"
    state = wanted(databases=[(listed, "cloud_admin")], drop_subscriptions_before_start=True, timeline_id=timeline)
    await apply(server, state)
    assert server.sql("SELECT count(*)::int FROM pg_subscription") == [(0,)]
    assert server.sql("SELECT id, timeline_id FROM neon.drop_subscriptions_done") == [(1, timeline)]
    subscribe(server, listed, "made_here")
    await apply(server, state)
    assert server.sql("SELECT subname::text FROM pg_subscription") == [("made_here",)]
    child = "b" * 31 + "2"
    await apply(server, wanted(drop_subscriptions_before_start=True, timeline_id=child))
    assert server.sql("SELECT count(*)::int FROM pg_subscription") == [(0,)]
    assert server.sql("SELECT id, timeline_id FROM neon.drop_subscriptions_done") == [(1, child)]


async def test_a_listed_database_is_not_deleted(server: BarePostgres) -> None:
    """K-37: a stale deletion cannot be told from an intended new one, so nothing is lost."""
    name = fresh("kept")
    await apply(server, wanted(databases=[(name, "cloud_admin")]))
    server.sql("CREATE TABLE precious (id int)", database=name)
    await apply(server, wanted(databases=[(name, "cloud_admin")], delta=[{"action": "delete_db", "name": name}]))
    assert server.sql("SELECT count(*)::int FROM precious", database=name) == [(0,)]


async def test_subscriptions_of_many_databases_go_side_by_side(server: BarePostgres) -> None:
    """§11: five databases at once; the lock on the shared catalog makes them take turns."""
    names = [fresh("branch") for _ in range(5)]
    await apply(server, wanted(databases=[(name, "cloud_admin") for name in names]))
    for name in names:
        for number in range(3):
            subscribe(server, name, f"inherited '{number}\"")
    state = wanted(drop_subscriptions_before_start=True, timeline_id="c" * 32)
    await apply(server, state, workers=5)
    assert server.sql("SELECT count(*)::int FROM pg_subscription") == [(0,)]
    assert (await apply(server, state)).is_empty


async def test_a_timeline_is_noted_only_if_its_subscriptions_are_gone_everywhere(server: BarePostgres) -> None:
    """K-22: a failure in one database leaves it to the next start."""
    stuck, free = fresh("stuck"), fresh("free")
    await apply(server, wanted(databases=[(stuck, "cloud_admin"), (free, "cloud_admin")]))
    for name in (stuck, free):
        subscribe(server, name, "inherited")
    timeline = "d" * 32
    state = wanted(drop_subscriptions_before_start=True, timeline_id=timeline)
    with server.connect(stuck) as holder:
        holder.execute("BEGIN; COMMENT ON SUBSCRIPTION inherited IS 'a user keeps it open'")
        with pytest.raises(CatalogFailed) as raised:
            await apply(server, state, workers=1, deadlines=Deadlines(catalog_lock=0.5))
    assert {failure.database for failure in raised.value.failures} == {stuck}
    noted = "SELECT timeline_id FROM neon.drop_subscriptions_done"
    has_table = server.sql("SELECT to_regclass('neon.drop_subscriptions_done')::text")[0][0]
    assert not has_table or server.sql(noted) != [(timeline,)]
    await apply(server, state)
    assert server.sql(noted) == [(timeline,)]
    assert server.sql("SELECT count(*)::int FROM pg_subscription") == [(0,)]
