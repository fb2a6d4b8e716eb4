"""Privileges that hang on a role where only their grantor can easily revoke them (K-19 … K-21)."""

from __future__ import annotations

import pytest

from tests.integration.bare_postgres import PRIVILEGED, BarePostgres, apply, fresh, wanted

pytestmark = pytest.mark.postgres


def deletion(*roles: str) -> list[dict[str, str]]:
    return [{"action": "delete_role", "name": role} for role in roles]


async def test_a_grantor_that_may_not_even_use_the_schema_is_no_obstacle(server: BarePostgres) -> None:
    """K-19: the grantor lost its privilege on the schema after it had granted, as owner or by the grant option."""
    leaver, owner, middle, boss, name = (fresh(word) for word in ("leaver", "owner", "middle", "boss", "walled"))
    await apply(server, wanted([leaver, boss], [(name, boss)]))
    for outsider in (owner, middle):
        server.do("CREATE ROLE {} LOGIN", outsider)
    with server.connect(name) as session:
        session.execute(f"CREATE SCHEMA walled; GRANT USAGE ON SCHEMA walled TO {owner}, {middle}")
        session.execute(f"CREATE TABLE walled.t (a int); ALTER TABLE walled.t OWNER TO {owner}")
        session.execute("CREATE FUNCTION walled.f(walled.t) RETURNS int LANGUAGE sql AS 'SELECT 1'")
        session.execute(f"ALTER FUNCTION walled.f OWNER TO {owner}")
        session.execute(
            f"SET ROLE {owner}; GRANT SELECT ON walled.t TO {leaver}; GRANT ALL ON walled.t TO {middle} "
            f"WITH GRANT OPTION; GRANT ALL ON FUNCTION walled.f TO {leaver}"
        )
        session.execute(f"SET ROLE {middle}; GRANT UPDATE ON walled.t TO {leaver}")
        session.execute(f"RESET ROLE; REVOKE USAGE ON SCHEMA walled FROM {owner}, {middle}")
    await apply(server, wanted([boss], [(name, boss)], deletion(leaver)))
    assert not server.exists("role", leaver)
    for outsider in (owner, middle):
        query = "SELECT has_schema_privilege(%s, 'walled', 'USAGE')"
        assert server.sql(query, outsider, database=name) == [(False,)]
    assert server.sql("SELECT has_table_privilege(%s, 'walled.t', 'UPDATE')", middle, database=name) == [(True,)]


async def test_privileges_on_shared_objects_go_once_though_many_databases_are_worked_on(server: BarePostgres) -> None:
    """K-21: each `DROP OWNED` touches shared objects, which must not happen in several databases at once."""
    for _ in range(3):
        leaver, keeper, names = fresh("leaver"), fresh("keeper"), [fresh("many") for _ in range(6)]
        await apply(server, wanted([leaver, keeper], [(name, keeper) for name in names]))
        for name in names:
            server.do("CREATE SCHEMA {} AUTHORIZATION {}", leaver, leaver, database=name)
            server.do("GRANT ALL ON DATABASE {} TO {}", name, leaver)
        await apply(server, wanted([keeper], [(name, keeper) for name in names], deletion(leaver)), workers=6)
        assert not server.exists("role", leaver)


async def test_a_privilege_on_a_database_that_another_user_granted_is_revoked(server: BarePostgres) -> None:
    """K-19, K-20: by the grant option, on a database that no spec lists."""
    leaver, middle, name = fresh("leaver"), fresh("middle"), fresh("lent")
    await apply(server, wanted([leaver, middle], [(name, "cloud_admin")]))
    server.do("GRANT CREATE ON DATABASE {} TO {} WITH GRANT OPTION", name, middle)
    server.do("GRANT CREATE ON DATABASE {} TO {}", name, leaver, user=middle)
    await apply(server, wanted([middle], delta=deletion(leaver)))
    assert not server.exists("role", leaver)
    assert server.sql("SELECT has_database_privilege(%s, %s, 'CREATE')", middle, name) == [(True,)]


async def test_memberships_that_a_role_granted_do_not_keep_it(server: BarePostgres) -> None:
    """K-20: since Postgres 16 a grantor of memberships cannot be dropped before them."""
    leaver, group, member = fresh("leaver"), fresh("group"), fresh("member")
    await apply(server, wanted([leaver, member]))
    server.do("CREATE ROLE {}", group, user=leaver)
    server.do("GRANT {} TO {} WITH ADMIN OPTION", group, leaver)
    server.do("GRANT {} TO {}", group, member, user=leaver)
    await apply(server, wanted([member], delta=deletion(leaver)))
    assert not server.exists("role", leaver)
    assert server.exists("role", group)


async def test_settings_and_memberships_of_a_role_go_with_it(server: BarePostgres) -> None:
    leaver, name = fresh("leaver"), fresh("set")
    await apply(server, wanted([leaver], [(name, "cloud_admin")]))
    server.do("ALTER ROLE {} IN DATABASE {} SET work_mem = '5MB'", leaver, name)
    server.do("ALTER ROLE {} SET search_path = nowhere", leaver)
    server.do("GRANT pg_monitor TO {}", leaver)
    await apply(server, wanted(delta=deletion(leaver)))
    assert not server.exists("role", leaver)


async def test_a_role_that_is_renamed_and_deleted_in_one_go_takes_nothing_with_it(server: BarePostgres) -> None:
    """K-01, K-20: what hangs on it is looked for under its old name."""
    old, new, name = fresh("old"), fresh("new"), fresh("kept")
    await apply(server, wanted([old], [(name, old)]))
    server.do("CREATE TABLE public.theirs (id int)", database=name, user=old)
    delta = [{"action": "rename_role", "name": old, "new_name": new}, *deletion(new)]
    await apply(server, wanted(delta=delta))
    assert not server.exists("role", new)
    ((owner,),) = server.sql("SELECT tableowner::text FROM pg_tables WHERE tablename = 'theirs'", database=name)
    assert owner.startswith("heir_of_deleted_roles_")


async def test_default_privileges_of_and_for_a_role_go(server: BarePostgres) -> None:
    """K-19: also those that another role gave, and such without a schema."""
    leaver, owner, name = fresh("leaver"), fresh("owner"), fresh("defaults")
    await apply(server, wanted([leaver, owner], [(name, owner)]))
    with server.connect(name) as session:
        session.execute(f"SET ROLE {owner}; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {leaver} WITH GRANT OPTION")
        session.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO {leaver}")
        session.execute(f"SET ROLE {leaver}; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {PRIVILEGED}")
    await apply(server, wanted([owner], [(name, owner)], deletion(leaver)))
    assert not server.exists("role", leaver)


async def test_several_roles_that_granted_to_one_another_are_deleted_together(server: BarePostgres) -> None:
    """K-19: whatever the order, the grants of the others are gone when each is dropped."""
    first, second, owner, name = fresh("first"), fresh("second"), fresh("owner"), fresh("web")
    await apply(server, wanted([first, second, owner], [(name, owner)]))
    server.do("CREATE TABLE public.t (id int)", database=name, user=owner)
    server.do("GRANT SELECT ON public.t TO {} WITH GRANT OPTION", first, database=name, user=owner)
    server.do("GRANT SELECT ON public.t TO {} WITH GRANT OPTION", second, database=name, user=first)
    server.do("GRANT INSERT ON public.t TO {} WITH GRANT OPTION", second, database=name, user=owner)
    server.do("GRANT INSERT ON public.t TO {}", first, database=name, user=second)
    await apply(server, wanted([owner], [(name, owner)], deletion(first, second)))
    assert not server.exists("role", first)
    assert not server.exists("role", second)
