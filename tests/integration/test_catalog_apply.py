"""The catalog on real Postgres: hostile names, deletions, renames, passwords (contract 05 §7, §8, §15)."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.integration.bare_postgres import PRIVILEGED, BarePostgres, apply, fresh, wanted
from trio_compute.plan.catalog.passwords import matches

pytestmark = pytest.mark.postgres

HOSTILE = [
    "neon",
    "with space",
    "with%20percent",
    "with\ttab",
    "with\nnewline",
    "🐘 émoji",
    'with "double" quotes',
    "with 'single' quotes",
    "dollar$",
    "$dollar$",
    "$x$",
    "$$",
    "x",
    "xx",
    "$xx$",
    "name$x$",
    "x" * 63,
    "a=b",
    "a#b&c",
    "back\\slash",
    '"name";\\n select 1;',
    "'; DROP ROLE cloud_admin; --",
]


def option(name: str, value: str | None = None, vartype: str = "bool") -> dict[str, Any]:
    return {"name": name, "value": value, "vartype": vartype}


async def test_names_of_every_kind_are_created_used_and_deleted_in_one_go(server: BarePostgres) -> None:
    """§15 test_compute_create_drop_dbs_and_roles: 22 names, with the drop flag on."""
    roles = [f"r{name}"[:63] for name in HOSTILE]
    databases = [(f"d{name}"[:63], owner) for name, owner in zip(HOSTILE, roles, strict=True)]
    state = wanted(roles, databases, drop_subscriptions_before_start=True, timeline_id="a" * 32)
    await apply(server, state)
    for name, owner in databases:
        server.do("CREATE TABLE mine (id int)", database=name, user=owner)
    assert (await apply(server, state)).is_empty
    delta = [{"action": "delete_db", "name": name} for name, _ in databases]
    delta += [{"action": "delete_role", "name": name} for name in roles]
    await apply(server, wanted(delta=delta, drop_subscriptions_before_start=True, timeline_id="a" * 32))
    assert not any(server.exists("database", name) for name, _ in databases)
    assert not any(server.exists("role", name) for name in roles)


async def test_a_new_role_has_the_attributes_of_the_contract(server: BarePostgres) -> None:
    """§7: members of the privileged role; one of an identity provider has nothing but its login."""
    name, external = fresh("member"), fresh("external")
    jwks = {"id": "i", "role_names": [external], "jwks_url": "http://x", "provider_name": "p", "jwt_audience": None}
    await apply(server, wanted([name, external], local_proxy_config={"jwks": [jwks]}))
    query = (
        "SELECT rolinherit, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication, rolcanlogin, rolsuper, "
        "pg_has_role(rolname, %s, 'member') FROM pg_roles WHERE rolname = %s"
    )
    assert server.sql(query, PRIVILEGED, name) == [(True, True, True, True, True, True, False, True)]
    assert server.sql(query, PRIVILEGED, external) == [(True, False, False, False, False, True, False, False)]


async def test_passwords_are_stored_as_given_and_a_null_removes_them(server: BarePostgres) -> None:
    """§7, K-16: an md5 role is left alone when nothing changed."""
    scram, md5 = fresh("scram"), fresh("md5")
    verifier = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0$" + "A" * 43 + "=:" + "B" * 43 + "="
    given = [{"name": scram, "encrypted_password": verifier}, {"name": md5, "encrypted_password": "0F" * 16}]
    await apply(server, wanted(given))
    stored = dict(server.sql("SELECT rolname, rolpassword FROM pg_authid WHERE rolname = ANY (%s)", [scram, md5]))
    assert stored == {scram: verifier, md5: "md5" + "0f" * 16}
    assert (await apply(server, wanted(given))).is_empty
    await apply(server, wanted([scram]))
    assert server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = %s", scram) == [(None,)]


async def test_options_of_roles_and_databases_arrive(server: BarePostgres) -> None:
    """§5, K-04: quoted by kind, repetitions dropped."""
    role, name = fresh("limited"), fresh("c_locale")
    options = [
        option("CONNECTION LIMIT", "5", "integer"),
        option("LOGIN"),
        option("VALID UNTIL", "2100-01-01", "string"),
    ]
    state = wanted([{"name": role, "encrypted_password": None, "options": options}])
    await apply(server, state)
    assert server.sql("SELECT rolconnlimit, rolvaliduntil::date::text FROM pg_roles WHERE rolname = %s", role) == [
        (5, "2100-01-01")
    ]
    spec = wanted(databases=[(name, role)])
    database = spec.databases[0]
    decoded = type(database)(
        name=name,
        owner=role,
        options=[
            type(state.roles[0].options[0])(name="LC_COLLATE", value="C", vartype="string"),  # type: ignore[index]
            type(state.roles[0].options[0])(name="TEMPLATE", value="template0", vartype="enum"),  # type: ignore[index]
            type(state.roles[0].options[0])(name="OWNER", value="postgres", vartype="string"),  # type: ignore[index]
        ],
    )
    await apply(server, type(spec)(privileged_role=PRIVILEGED, timeline_id=spec.timeline_id, databases=(decoded,)))
    query = "SELECT datcollate, pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = %s"
    assert server.sql(query, name) == [("C", role)]


async def test_a_second_apply_executes_nothing_over_one_session(server: BarePostgres) -> None:
    """K-32: what a database was prepared for is remembered."""
    role, names = fresh("owner"), [fresh("quiet") for _ in range(5)]
    state = wanted([role], [(name, role) for name in names])
    await apply(server, state)
    query = "SELECT coalesce(sum(sessions), 0) FROM pg_stat_database WHERE datname = ANY (%s)"
    before = server.sql(query, names)
    assert (await apply(server, state)).is_empty
    assert server.sql(query, names) == before
    # Made anew, a database is another one, whatever its name.
    server.do("DROP DATABASE {}", names[0])
    plan = await apply(server, state)
    assert [work.database for work in plan.databases] == [names[0]]


async def test_owners_can_create_in_public_and_the_privileged_role_gets_what_they_make(
    server: BarePostgres,
) -> None:
    """§8 ChangeSchemaPerms."""
    role, name = fresh("owner"), fresh("shop")
    await apply(server, wanted([role], [(name, role)]))
    server.do("CREATE TABLE public.goods (id int)", database=name, user=role)
    server.do("CREATE TABLE public.ours (id int)", database=name)
    grants = "SELECT has_table_privilege(%s, 'public.ours', 'SELECT WITH GRANT OPTION')"
    assert server.sql(grants, PRIVILEGED, database=name) == [(True,)]
    owner = server.sql("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'public'", database=name)
    assert owner == [("pg_database_owner" if server.sql("SHOW server_version_num")[0][0] >= "150000" else role,)]


async def test_a_changed_owner_is_changed_and_raw_names_are_compared(server: BarePostgres) -> None:
    """K-18: an owner whose name is in quotes is another one than without them."""
    plain = fresh("boss")
    quoted, name = f'"{plain}"', fresh("firm")
    await apply(server, wanted([plain, quoted], [(name, quoted)]))
    query = "SELECT r.rolname FROM pg_database d JOIN pg_roles r ON r.oid = datdba WHERE datname = %s"
    assert server.sql(query, name) == [(quoted,)]
    plan = await apply(server, wanted([plain, quoted], [(name, plain)]))
    assert not plan.is_empty
    assert server.sql(query, name) == [(plain,)]
    assert (await apply(server, wanted([plain, quoted], [(name, plain)]))).is_empty


async def test_renames_happen_once_and_stale_ones_are_passed_over(server: BarePostgres) -> None:
    """K-01, D-27: iff the old name exists and the new one does not."""
    old, new, before, after = fresh("old"), fresh("new"), fresh("before"), fresh("after")
    await apply(server, wanted([{"name": old, "encrypted_password": "0f" * 16}], [(before, old)]))
    delta = [
        {"action": "rename_role", "name": old, "new_name": new},
        {"action": "rename_db", "name": before, "new_name": after},
    ]
    state = wanted([{"name": new, "encrypted_password": "0e" * 16}], [(after, new)], delta)
    await apply(server, state)
    query = "SELECT r.rolname, r.rolpassword FROM pg_database d JOIN pg_authid r ON r.oid = datdba WHERE datname = %s"
    assert server.sql(query, after) == [(new, "md5" + "0e" * 16)]
    again = await apply(server, state)
    assert again.is_empty
    assert again.warnings == ()
    server.do("CREATE ROLE {}", old)
    assert "both exist" in (await apply(server, state)).warnings[0]
    gone = wanted(delta=[{"action": "rename_role", "name": fresh("no"), "new_name": fresh("none")}])
    assert "neither exists" in (await apply(server, gone)).warnings[0]


async def test_what_was_left_half_dropped_is_dropped_and_made_anew(server: BarePostgres) -> None:
    """K-25: forced, even if a session is left over; the spec then gets a new one."""
    name = fresh("invalid")
    await apply(server, wanted(databases=[(name, "cloud_admin")]))
    with server.connect(name) as session:
        server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", name)
        await apply(server, wanted(databases=[(name, "cloud_admin")]))
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    assert server.sql("SELECT datconnlimit FROM pg_database WHERE datname = %s", name) == [(-1,)]


async def test_a_template_and_a_database_in_use_are_deleted_too(server: BarePostgres) -> None:
    """§7 RenameAndDeleteDatabases: flag cleared, then with force; a missing one is normal (retries)."""
    name = fresh("model")
    await apply(server, wanted(databases=[(name, "cloud_admin")]))
    server.do("ALTER DATABASE {} IS_TEMPLATE true", name)
    delta = [{"action": "delete_db", "name": name}, {"action": "delete_db", "name": fresh("never")}]
    with server.connect(name):
        await apply(server, wanted(delta=delta))
    assert not server.exists("database", name)
    assert (await apply(server, wanted(delta=delta))).is_empty


async def test_privileges_that_a_crash_left_ungranted_are_granted(server: BarePostgres) -> None:
    """K-29: on databases and on the privileged role itself."""
    name, privileged = fresh("half"), "half_superuser"
    state = wanted(databases=[(name, "cloud_admin")], privileged_role=privileged)
    await apply(server, state)
    server.do("REVOKE ALL ON DATABASE {} FROM {}", name, privileged)
    server.do("ALTER ROLE {} NOBYPASSRLS", privileged)
    server.do("REVOKE pg_read_all_data FROM {}", privileged)
    await apply(server, state)
    assert server.sql("SELECT has_database_privilege(%s, %s, 'CREATE')", privileged, name) == [(True,)]
    assert server.sql(
        "SELECT rolbypassrls, pg_has_role(rolname, 'pg_read_all_data', 'member') FROM pg_roles WHERE rolname = %s",
        privileged,
    ) == [(True, True)]
    assert (await apply(server, state)).is_empty


@pytest.mark.parametrize("word", ["user", "select", "table"])
async def test_a_reserved_word_may_be_the_privileged_role(word: str, server: BarePostgres) -> None:
    """K-05, K-06: quoted everywhere; no other name is touched."""
    name = fresh("neon_superuser_copy")
    await apply(server, wanted([name], [(fresh("d"), name)], privileged_role=word))
    assert server.sql("SELECT pg_has_role(%s, %s, 'member')", name, word) == [(True,)]


@pytest.mark.parametrize(
    "setting",
    [
        "role = nobody_special",
        "statement_timeout = 1",
        "search_path = nowhere",
        "default_transaction_read_only = on",
        "lock_timeout = 1",
    ],
)
async def test_settings_that_users_put_on_a_database_do_not_disturb(setting: str, server: BarePostgres) -> None:
    """§2.1 test_db_with_custom_settings."""
    owner, name = fresh("owner"), fresh("custom")
    if not server.exists("role", "nobody_special"):
        server.sql("CREATE ROLE nobody_special")
    await apply(server, wanted([owner], [(name, owner)]))
    server.do(f"ALTER DATABASE {{}} SET {setting}", name)
    next_owner = fresh("owner")
    delta = [{"action": "delete_role", "name": owner}]
    await apply(server, wanted([next_owner], [(name, next_owner)], delta))
    assert not server.exists("role", owner)


async def test_the_superuser_and_a_role_get_the_passwords_of_the_spec(server: BarePostgres) -> None:
    """C-03, C-04: a verifier of ours for a plain one; once applied there is nothing to do."""
    name, plain = fresh("plain"), "Grüße \u00a0 aus 'Kiel'"
    listed = [{"name": each, "encrypted_password": plain, "options": None} for each in ("cloud_admin", name)]
    try:
        assert not (await apply(server, wanted(listed))).is_empty
        assert (await apply(server, wanted(listed))).is_empty
        rows = server.sql("SELECT rolname::text, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL")
        stored = dict(rows)
        assert all(matches(stored[each], plain) for each in ("cloud_admin", name))
        assert server.sql("SELECT rolsuper, rolcanlogin FROM pg_roles WHERE rolname = 'cloud_admin'") == [(True, True)]
    finally:
        await apply(server, wanted([{"name": "cloud_admin", "encrypted_password": None}]))
