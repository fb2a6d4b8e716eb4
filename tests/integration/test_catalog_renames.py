"""Roles and databases that change their names, with all that was noted under the old ones (contract 05 §7, K-01)."""

from __future__ import annotations

import pytest

from tests.integration.bare_postgres import QUICK, BarePostgres, apply, fresh, wanted
from trio_compute.db.migrations import run_migrations
from trio_compute.model import catalog_rules

pytestmark = pytest.mark.postgres


def rename(old: str, new: str) -> dict[str, str]:
    return {"action": "rename_db", "name": old, "new_name": new}


async def prepared_for(server: BarePostgres, database: str) -> set[str]:
    """Return to whom a table of the superuser's in `public` is open, beside the superuser itself."""
    server.do("DROP TABLE IF EXISTS public.probe; CREATE TABLE public.probe (id int)", database=database)
    query = (
        "SELECT DISTINCT grantee::regrole::text FROM aclexplode((SELECT relacl FROM pg_class WHERE relname = 'probe'))"
    )
    return {name for (name,) in server.sql(query, database=database)} - {"cloud_admin"}


async def test_names_that_go_round_take_their_notes_along(server: BarePostgres) -> None:
    """K-32: what a database is prepared for is known by the database, not by its name."""
    first, second, a, b, c = fresh("first"), fresh("second"), fresh("a"), fresh("b"), fresh("c")
    await apply(server, wanted([first, second], [(a, first), (b, second)]))
    state = wanted([first, second], [(a, first), (c, first)], [rename(a, c), rename(b, a)])
    plan = await apply(server, state)
    assert [work.database for work in plan.databases] == [a]
    assert (await apply(server, state)).is_empty
    owners = "SELECT datname::text, datdba::regrole::text FROM pg_database WHERE datname = ANY (%s)"
    assert dict(server.sql(owners, [a, b, c])) == {a: first, c: first}


async def test_a_name_that_is_deleted_and_given_to_another_database_is_prepared_for_that_one(
    server: BarePostgres,
) -> None:
    """K-32: delete d and rename e to d in one go; what was noted of the old d is no note of the new one."""
    owner, d, e = fresh("owner"), fresh("d"), fresh("e")
    await apply(server, wanted([owner], [(d, owner)]))
    server.do("CREATE DATABASE {}", e)
    await apply(server, wanted([owner], delta=[{"action": "delete_db", "name": d}, rename(e, d)]))
    state = wanted([owner], [(d, owner)])
    await apply(server, state)
    assert await prepared_for(server, d) == {"neon_superuser"}
    assert (await apply(server, state)).is_empty


async def test_a_database_that_is_renamed_first_and_deleted_then_may_have_subscriptions(server: BarePostgres) -> None:
    """§6 stage 4: they are looked for under the old name."""
    old, new = fresh("old"), fresh("new")
    await apply(server, wanted(databases=[(old, "cloud_admin")]))
    server.do(
        "CREATE SUBSCRIPTION {} CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect=false, slot_name=NONE)",
        fresh("sub"),
        database=old,
    )
    await apply(server, wanted(delta=[rename(old, new), {"action": "delete_db", "name": new}]))
    assert not server.exists("database", old)
    assert not server.exists("database", new)


async def test_another_superuser_can_stand_for_ours(server: BarePostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """K-36: the name is in one place; all work is done as, and handed to, that one."""
    boss, leaver, name = "boss", fresh("leaver"), fresh("theirs")
    await apply(server, wanted([leaver], [(name, leaver)]))
    server.do("CREATE ROLE {} SUPERUSER LOGIN", boss)
    monkeypatch.setattr(catalog_rules, "SUPERUSER", boss)
    url = server.url(user=boss)
    await apply(server, wanted(delta=[{"action": "delete_role", "name": leaver}]), url=url)
    await run_migrations(url, privileged_role="neon_superuser", deadlines=QUICK)
    owners = "SELECT (SELECT datdba::regrole::text FROM pg_database WHERE datname = %s), nspowner::regrole::text"
    found = server.sql(f"{owners} FROM pg_namespace WHERE nspname = 'neon_migration'", name)
    server.do("DROP DATABASE {}", name)
    server.sql("DROP SCHEMA neon_migration CASCADE; REASSIGN OWNED BY boss TO cloud_admin; DROP OWNED BY boss")
    server.sql("DROP ROLE boss")
    ((heir, owner),) = found
    assert heir.startswith("heir_of_deleted_roles_")
    assert owner == boss
