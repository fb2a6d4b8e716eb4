"""What a deleted role leaves behind makes nobody more powerful, and none of it is lost (T-03, T-10)."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest

from tests.tenants.conftest import ALICE, MALLORY, TRUDY, Place
from tests.tenants.ground import Ground, fresh
from tests.tenants.ours import deleted

pytestmark = pytest.mark.postgres

_OWNED = """
SELECT classid, objid, pg_describe_object(classid, objid, 0) FROM pg_shdepend
WHERE refclassid = 'pg_authid'::regclass AND refobjid = (SELECT oid FROM pg_roles WHERE rolname = %s) AND deptype = 'o'
  -- These two say what the role may, and go with it.
  AND classid NOT IN ('pg_default_acl'::regclass, 'pg_user_mapping'::regclass)
  AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"""
_OWNER = """
SELECT pg_describe_object(%(c)s, %(o)s, 0), coalesce((
    SELECT r.rolname::text FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
    WHERE s.classid = %(c)s AND s.objid = %(o)s AND s.deptype = 'o'
      AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())), 'cloud_admin')"""
_POWER = """
SELECT rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
       OR EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid)
       OR EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles x ON x.oid = m.member
                  WHERE m.roleid = r.oid AND NOT x.rolsuper
                    AND x.oid <> (SELECT datdba FROM pg_database WHERE datname = current_database()))
FROM pg_roles r WHERE rolname = %s"""
_ESTATE = """
CREATE SCHEMA mine; GRANT ALL ON SCHEMA mine TO PUBLIC;
CREATE TABLE mine.t (id int PRIMARY KEY, s serial); INSERT INTO mine.t VALUES (1);
CREATE VIEW mine.v AS SELECT * FROM mine.t;
CREATE MATERIALIZED VIEW mine.m AS SELECT * FROM mine.t;
CREATE FUNCTION mine.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
CREATE PROCEDURE mine.p() LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN END';
CREATE FUNCTION mine.tr() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER tr BEFORE INSERT ON mine.t FOR EACH ROW EXECUTE FUNCTION mine.tr();
CREATE AGGREGATE mine.a(int) (sfunc = int4larger, stype = int);
CREATE SEQUENCE mine.s; CREATE DOMAIN mine.d AS int; CREATE TYPE mine.e AS ENUM ('x');
CREATE TYPE mine.r AS RANGE (subtype = date);
CREATE FUNCTION mine.eq(mine.e, int) RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR mine.=== (leftarg = mine.e, rightarg = int, function = mine.eq);
CREATE COLLATION mine.c FROM "C";
CREATE STATISTICS mine.st ON id, s FROM mine.t;
CREATE TEXT SEARCH CONFIGURATION mine.tc (COPY = pg_catalog.simple);
CREATE TEXT SEARCH DICTIONARY mine.td (TEMPLATE = pg_catalog.simple);
CREATE CONVERSION mine.cv FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE RULE ru AS ON DELETE TO mine.t DO ALSO SELECT 1;
CREATE POLICY po ON mine.t USING (true);
CREATE PUBLICATION pu FOR TABLE mine.t;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA mine GRANT ALL ON FUNCTIONS TO PUBLIC;
CREATE TABLE mine.part (id int) PARTITION BY RANGE (id);
CREATE TABLE mine.part1 PARTITION OF mine.part FOR VALUES FROM (0) TO (9);
CREATE TYPE mine.comp AS (a int);
CREATE UNLOGGED TABLE mine.un (id int);
CREATE FOREIGN TABLE mine.ft (a int) SERVER far;
CREATE USER MAPPING FOR CURRENT_USER SERVER far OPTIONS (password 'x');
GRANT ALL ON ALL TABLES IN SCHEMA mine TO PUBLIC;
SELECT lo_create(0), lo_from_bytea(0, 'large')"""
PLACES = ("system", "listed", "unlisted", "of another")


def settle(town: Place, where: str, leaver: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the database in which the leaver lives, and what the spec says of databases."""
    town.ground.do("ALTER DATABASE {} OWNER TO {}", town.app, ALICE if where == "of another" else MALLORY)
    listed = {"listed": [(town.app, MALLORY)], "of another": [(town.app, ALICE)]}.get(where, [])
    name = town.system if where == "system" else town.app
    town.ground.do("GRANT CREATE ON DATABASE {} TO {}", name, leaver)
    with town.ground.connect(name) as session:
        session.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw WITH SCHEMA pg_catalog")
        session.execute("CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw")
        session.execute(
            f"ALTER SERVER far OWNER TO {leaver}; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {leaver}"
        )
    return name, listed


def owners(ground: Ground, database: str, objects: list[Any]) -> dict[str, str]:
    """Return who owns each object now; one that is gone belongs to 'nobody: it is lost'."""
    found = {}
    for class_id, object_id, what in objects:
        [(still, owner)] = ground.sql(
            _OWNER.replace("%(c)s", str(class_id)).replace("%(o)s", str(object_id)), database=database
        )
        found[what] = owner if still else "nobody: it is lost"
    return found


@pytest.mark.parametrize("where", PLACES)
async def test_everything_goes_to_a_role_without_any_power(town: Place, where: str) -> None:
    """T-03: one of every kind of object, in the system database, in listed and unlisted ones; nothing is lost.

    The owner of the database may be a member of the heir: it can then keep the house, but is not who it runs as.
    """
    leaver = town.ground.make_tenant(fresh("leaver"))
    name, listed = settle(town, where, leaver)
    with town.ground.connect(name, leaver) as session:
        session.execute(_ESTATE)
    objects = town.ground.sql(_OWNED, leaver, database=name)
    assert len(objects) > 25
    await town.ours.apply(town.ours.spec([MALLORY, ALICE], listed, deleted(leaver)))
    assert not town.ground.exists("role", leaver)
    left = owners(town.ground, name, objects)
    assert {what: owner for what, owner in left.items() if owner.startswith("nobody")} == {}
    mighty = {owner for owner in left.values() if town.ground.sql(_POWER, owner, database=name) != [(False,)]}
    assert mighty == set(), left
    definers = "SELECT proname::text FROM pg_proc WHERE prosecdef AND pronamespace = 'mine'::regnamespace"
    assert town.ground.sql(definers, database=name) == []
    assert town.judge.gains() == []


async def test_what_a_member_of_the_owner_leaves_may_go_to_that_owner(town: Place) -> None:
    """T-03: the role could do all that the owner can; only then. SECURITY DEFINER is lost in any case."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    name, listed = settle(town, "listed", leaver)
    town.ground.do("GRANT {} TO {}", MALLORY, leaver)
    with town.ground.connect(name, leaver) as session:
        session.execute(_ESTATE)
    objects = town.ground.sql(_OWNED, leaver, database=name)
    await town.ours.apply(town.ours.spec([MALLORY], listed, deleted(leaver)))
    left = owners(town.ground, name, objects)
    assert not [what for what, owner in left.items() if owner.startswith("nobody") or owner == "cloud_admin"]
    strangers = {
        owner
        for owner in left.values()
        if owner != MALLORY and town.ground.sql(_POWER, owner, database=name) != [(False,)]
    }
    assert strangers == set()
    definers = "SELECT proname::text FROM pg_proc WHERE prosecdef AND pronamespace = 'mine'::regnamespace"
    assert town.ground.sql(definers, database=name) == []


_BODY = "LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN ALTER ROLE trudy SUPERUSER; {}END'"
_TABLE = "CREATE TABLE mine.x (id int); GRANT ALL ON mine.x TO PUBLIC; "
_MIGHTY = "UPDATE pg_catalog.pg_authid SET rolsuper = true WHERE rolname = 'trudy'"
_TRIGGER = "CREATE TRIGGER x BEFORE INSERT ON mine.x FOR EACH ROW EXECUTE FUNCTION mine.y()"
# What the leaver lays, and what the accomplice says later.
_EXPLOITS = {
    "definer": (f"CREATE FUNCTION mine.x() RETURNS void {_BODY.format('')}", "SELECT mine.x()"),
    "procedure": (f"CREATE PROCEDURE mine.x() {_BODY.format('')}", "CALL mine.x()"),
    "view": (
        "CREATE VIEW mine.x AS SELECT * FROM pg_catalog.pg_authid; GRANT ALL ON mine.x TO PUBLIC",
        _MIGHTY.replace("pg_catalog.pg_authid", "mine.x"),
    ),
    "rule": (
        f"{_TABLE}CREATE RULE x AS ON INSERT TO mine.x DO ALSO {_MIGHTY}",
        "INSERT INTO mine.x VALUES (1)",
    ),
    "trigger": (
        f"{_TABLE}CREATE FUNCTION mine.y() RETURNS trigger {_BODY.format('RETURN NEW; ')}; {_TRIGGER}",
        "INSERT INTO mine.x VALUES (1)",
    ),
}


@pytest.mark.parametrize("exploit", _EXPLOITS)
@pytest.mark.parametrize("where", ["system", "unlisted"])
async def test_an_accomplice_cannot_use_what_was_left_for_him(town: Place, where: str, exploit: str) -> None:
    """T-03: the attack itself; trudy waits until the leaver is deleted."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    name, listed = settle(town, where, leaver)
    town.ground.do("ALTER DATABASE {} OWNER TO {}", town.app, "cloud_admin")
    laid, used = _EXPLOITS[exploit]
    with town.ground.connect(name, leaver) as session:
        session.execute("CREATE SCHEMA mine; GRANT ALL ON SCHEMA mine TO PUBLIC")
        session.execute(laid.encode())
    await town.ours.apply(town.ours.spec([MALLORY, TRUDY], listed, deleted(leaver)))
    with town.ground.connect(name, TRUDY) as session, contextlib.suppress(psycopg.Error):
        session.execute(used.encode())
    assert town.judge.gains() == []


async def test_a_view_does_not_let_others_read_what_the_heir_may_read(town: Place) -> None:
    """T-03: a view reads with the rights of its owner; the owner of the database has more than the leaver had."""
    town.ground.do("ALTER DATABASE {} OWNER TO {}", town.app, ALICE)
    # Neither is a member of pg_read_all_data here: it is about tables that were never shared.
    leaver, reader = fresh("leaver"), fresh("reader")
    for role in (leaver, reader):
        town.ground.sql(f"CREATE ROLE {role} LOGIN")
    town.ground.do("GRANT CREATE ON DATABASE {} TO {}", town.app, leaver)
    town.ground.sql(
        "CREATE SCHEMA private AUTHORIZATION alice; CREATE TABLE private.diary AS SELECT 'secret' AS entry",
        database=town.app,
    )
    town.ground.sql(
        "ALTER TABLE private.diary OWNER TO alice; GRANT USAGE ON SCHEMA private TO PUBLIC", database=town.app
    )
    with town.ground.connect(town.app) as session:
        session.execute(f"SET ROLE {leaver}; CREATE SCHEMA mine; GRANT USAGE ON SCHEMA mine TO PUBLIC")
        session.execute(f"CREATE VIEW mine.peek AS SELECT * FROM private.diary; GRANT ALL ON mine.peek TO {reader}")
    await town.ours.apply(town.ours.spec([ALICE], [(town.app, ALICE)], deleted(leaver)))
    with town.ground.connect(town.app) as session:
        session.execute(f"SET ROLE {reader}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT * FROM mine.peek")


async def test_databases_of_a_deleted_role_do_not_go_to_the_superuser(town: Place) -> None:
    """T-03: their next owner is nobody's tool; what an owner may do in it would be done by the superuser."""
    leaver, name = town.ground.make_tenant(fresh("leaver")), fresh("estate")
    town.ground.do("CREATE DATABASE {} OWNER {}", name, leaver)
    try:
        with town.ground.connect(name, leaver) as session:
            session.execute("CREATE FUNCTION public.x() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")
        await town.ours.apply(town.ours.spec([MALLORY], [], deleted(leaver)))
        query = "SELECT r.rolsuper, p.prosecdef FROM pg_proc p JOIN pg_roles r ON r.oid = proowner WHERE proname = 'x'"
        assert town.ground.sql(query, database=name) == [(False, False)]
    finally:
        town.ground.do("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


async def test_a_subscription_of_a_deleted_role_is_not_the_superusers_afterwards(town: Place) -> None:
    """T-03: it applies changes as its owner. Before 16 Postgres wants a superuser; Neon's lets tenants own them."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    name, sub = town.app, fresh("sub")
    town.ground.do(
        ("CREATE SUBSCRIPTION {} CONNECTION 'host=127.0.0.1 port=1 password=x' "
        "PUBLICATION p WITH (connect=false, slot_name=NONE)"),
        sub,
        database=name,
    )  # fmt: skip
    owner = "UPDATE pg_subscription SET subowner = (SELECT oid FROM pg_roles WHERE rolname = %s) WHERE subname = %s"
    town.ground.sql(owner, leaver, sub, database=name)
    depends = (
        "INSERT INTO pg_shdepend SELECT 0, 'pg_subscription'::regclass, s.oid, 0, 'pg_authid'::regclass, r.oid, 'o'"
        " FROM pg_subscription s, pg_roles r WHERE rolname = %s AND subname = %s"
    )
    town.ground.sql(depends, leaver, sub, database=name)
    try:
        await town.ours.apply(town.spec(delta=deleted(leaver)))
        assert not town.ground.exists("role", leaver)
        query = (
            "SELECT rolname::text FROM pg_subscription JOIN pg_roles r ON "
            "r.oid = subowner WHERE subname = %s AND rolsuper"
        )
        assert town.ground.sql(query, sub) == []
    finally:
        town.ground.do("DROP SUBSCRIPTION IF EXISTS {}", sub, database=name)
