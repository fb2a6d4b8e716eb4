"""What a tenant can lay out: small functions over a session of that tenant, in a database that it owns.

Whatever is laid calls `trap.spring(name)`. In a tenant's own session that is harmless. Where the rights of a superuser
are at hand it writes a line into the server's log, which no rollback takes back, and makes the tenant a superuser.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import psycopg
from psycopg import sql as composed

from tests.tenants.ground import WORD, named

Session = psycopg.Connection[object]
Layer = Callable[[Session], None]
QUOTES = "''"  # the name of the schema that search_path='' means

_SPRING = f"""
CREATE FUNCTION trap.spring(what text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    place text := format('{WORD} %s in %s by %s (%s)', what, current_database(), current_user,
                         current_setting('application_name'));
BEGIN
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RAISE LOG '%', place;
        BEGIN
            EXECUTE format('ALTER ROLE %I SUPERUSER', {{tenant}});
        EXCEPTION WHEN OTHERS THEN
            RAISE LOG '%: % (%)', place, SQLERRM, SQLSTATE;
        END;
        RETURN;
    END IF;
    BEGIN
        SET LOCAL SESSION AUTHORIZATION cloud_admin;
        RAISE LOG '% after SET SESSION AUTHORIZATION', place;
        RAISE EXCEPTION 'as if nothing had happened';
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    BEGIN
        SET LOCAL ROLE cloud_admin;
        RAISE LOG '% after SET ROLE', place;
        RAISE EXCEPTION 'as if nothing had happened';
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
END
$body$"""
_HELPERS = """
CREATE FUNCTION trap.yes(what text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS
$$BEGIN PERFORM trap.spring(what); RETURN true; END$$;
CREATE FUNCTION trap.moment(what text) RETURNS timestamptz LANGUAGE plpgsql IMMUTABLE AS
$$BEGIN PERFORM trap.spring(what); RETURN pg_catalog.now(); END$$;
CREATE FUNCTION trap.number(what text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
$$BEGIN PERFORM trap.spring(what); RETURN 1; END$$;
CREATE FUNCTION trap.word(what text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
$$BEGIN PERFORM trap.spring(what); RETURN 'word'; END$$;
CREATE FUNCTION trap.on_row() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN
    PERFORM trap.spring('trigger ' || TG_NAME);
    IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
    RETURN NEW;
END$$;
CREATE FUNCTION trap.on_event() RETURNS event_trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM trap.spring('event trigger at ' || TG_EVENT || ' of ' || TG_TAG); END$$;
"""


def lay_spring(session: Session) -> None:
    """Make the schema `trap`, through which all that is laid works."""
    tenant = session.info.user
    session.execute("CREATE SCHEMA trap; GRANT USAGE ON SCHEMA trap TO PUBLIC")
    session.execute(composed.SQL(_SPRING).format(tenant=composed.Literal(tenant)))
    session.execute(_HELPERS)


def lay_schemas(session: Session) -> None:
    """Make the schemas that a search path may name: the two quotes, the superuser's, a word with a dollar."""
    for name in (QUOTES, "cloud_admin", "$user", "pg-temp", "neon,public"):
        session.execute(named("CREATE SCHEMA {}; GRANT ALL ON SCHEMA {} TO PUBLIC", name, name))


def lay_pg_temp(session: Session) -> None:
    """Make temporary objects; they last as long as the session."""
    session.execute("CREATE TEMPORARY TABLE pg_database AS SELECT * FROM pg_catalog.pg_database")
    session.execute("CREATE TEMPORARY VIEW pg_roles AS SELECT trap.yes('view pg_temp.pg_roles'), * FROM pg_authid")
    session.execute(
        "CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql AS $$SELECT trap.moment('pg_temp.now')$$"
    )


def lay_evil_table(session: Session, schema: str, name: str, columns: str, key: str) -> None:
    """Make a table in which every kind of expression and every trigger is a trap."""
    where = named("{}.{}", schema, name)
    what = composed.Literal(f"{schema}.{name}")
    session.execute(
        composed.SQL(
            "CREATE TABLE {where} ({columns}, evil_default bool DEFAULT trap.yes('default of ' || {what}), "
            "evil_generated bool GENERATED ALWAYS AS (trap.yes('generated column of ' || {what})) STORED, "
            "CONSTRAINT evil_check CHECK (trap.yes('check of ' || {what})))"
        ).format(where=where, what=what, columns=composed.SQL(columns))  # type: ignore[arg-type]
    )
    session.execute(
        composed.SQL(
            "CREATE INDEX ON {where} (trap.yes('index expression of ' || {what})) "
            "WHERE trap.yes('index predicate of ' || {what});"
            "CREATE POLICY evil ON {where} USING (trap.yes('policy of ' || {what})) "
            "WITH CHECK (trap.yes('policy of ' || {what}));"
            "ALTER TABLE {where} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
        ).format(where=where, what=what)
    )
    for number, moment in enumerate(("BEFORE", "AFTER")):
        for level in ("ROW", "STATEMENT"):
            trigger = f"{name} {moment} {level}"
            session.execute(
                composed.SQL(
                    f"CREATE TRIGGER {{trigger}} {moment} INSERT OR UPDATE OR DELETE ON {{where}} "
                    f"FOR EACH {level} EXECUTE FUNCTION trap.on_row();"
                    f"ALTER TABLE {{where}} ENABLE {('ALWAYS', 'REPLICA')[number]} TRIGGER {{trigger}}"
                ).format(trigger=composed.Identifier(trigger), where=where)
            )
    session.execute(composed.SQL("GRANT ALL ON {} TO PUBLIC").format(where))
    with contextlib.suppress(psycopg.Error):
        session.execute(
            composed.SQL("INSERT INTO {} ({}) VALUES ({})").format(where, composed.SQL(key), composed.SQL("0"))  # type: ignore[arg-type]
        )


def take_away(session: Session, statement: str) -> None:
    """Remove something of the compute's, if a tenant can."""
    with contextlib.suppress(psycopg.Error):
        session.execute(statement.encode())


def lay_health_check(session: Session) -> None:
    """Put a table full of traps in the place of the one that shows whether one can write."""
    take_away(session, "DROP TABLE public.health_check")
    columns = "id int PRIMARY KEY, updated_at timestamptz DEFAULT trap.moment('now')"
    lay_evil_table(session, "public", "health_check", columns, "id")


def lay_neon_schema(session: Session) -> None:
    """Make the schema of the platform before the platform does."""
    take_away(session, "DROP SCHEMA neon CASCADE")
    session.execute("CREATE SCHEMA neon; GRANT ALL ON SCHEMA neon TO PUBLIC")


def lay_migration_id(session: Session) -> None:
    """Put a table full of traps in the place of the count of migrations."""
    take_away(session, "DROP SCHEMA neon_migration CASCADE")
    session.execute("CREATE SCHEMA neon_migration; GRANT ALL ON SCHEMA neon_migration TO PUBLIC")
    lay_evil_table(session, "neon_migration", "migration_id", "key int PRIMARY KEY, id bigint DEFAULT 12", "key")


def lay_marker(session: Session) -> None:
    """Put a table full of traps in the place of the note about dropped subscriptions."""
    take_away(session, "DROP TABLE neon.drop_subscriptions_done")
    lay_evil_table(session, "neon", "drop_subscriptions_done", "id int PRIMARY KEY, timeline_id text", "id")


def lay_prepared_databases(session: Session) -> None:
    """Put a table full of traps in the place of the note about databases that need no work."""
    take_away(session, "DROP TABLE neon.prepared_databases")
    columns = "database oid PRIMARY KEY, mark text DEFAULT trap.word('mark')"
    lay_evil_table(session, "neon", "prepared_databases", columns, "database")


def lay_cache_functions(session: Session) -> None:
    """Put functions in the place of those of the neon extension, which then has no place of its own."""
    take_away(session, "DROP EXTENSION neon CASCADE")
    session.execute("""
        CREATE FUNCTION neon.get_local_cache_state() RETURNS bytea LANGUAGE sql AS
        $$SELECT trap.yes('neon.get_local_cache_state'); SELECT NULL::pg_catalog.bytea$$;
        CREATE FUNCTION neon.prewarm_local_cache(state bytea) RETURNS void LANGUAGE sql AS
        $$SELECT trap.yes('neon.prewarm_local_cache')$$;
        CREATE FUNCTION neon.get_prewarm_info(
            OUT total_pages int, OUT prewarmed_pages int, OUT skipped_pages int, OUT active_workers int)
        LANGUAGE sql AS $$SELECT trap.yes('neon.get_prewarm_info'); SELECT 1, 1, 0, 0$$;
        CREATE FUNCTION neon.get_perf_counters() RETURNS bool LANGUAGE sql AS $$SELECT trap.yes('perf')$$;
        CREATE VIEW neon.neon_perf_counters AS SELECT trap.yes('neon.neon_perf_counters')""")


def lay_write_check(session: Session) -> None:
    """Put a function in the place of the one of the lakebase profile."""
    take_away(session, "DROP FUNCTION public.health_check_write_succeeds()")
    session.execute("""
        CREATE FUNCTION public.health_check_write_succeeds() RETURNS int LANGUAGE sql AS
        $$SELECT trap.number('health_check_write_succeeds')$$""")


def lay_statements_view(session: Session) -> None:
    """Put a view in the place of what pg_stat_statements shows."""
    session.execute("""
        CREATE VIEW public.pg_stat_statements AS
        SELECT 1::oid AS userid, 1::oid AS dbid, 1::int8 AS queryid, trap.word('view pg_stat_statements') AS query,
               trap.number('view pg_stat_statements')::float8 AS mean_exec_time, 0::float8 AS mean_plan_time;
        CREATE FUNCTION public.pg_stat_statements(bool) RETURNS TABLE (userid oid, query text) LANGUAGE sql AS
        $$SELECT 1::oid, trap.word('function pg_stat_statements')$$;
        GRANT SELECT ON public.pg_stat_statements TO PUBLIC""")


def lay_sundries(session: Session) -> None:
    """Make one of everything else that has an owner or an expression."""
    session.execute("""
        CREATE DOMAIN public.odd AS text CHECK (trap.yes('domain'));
        CREATE TYPE public.pair AS (a public.odd, b int);
        CREATE TYPE public.mood AS ENUM ('a', 'b');
        CREATE FUNCTION trap.less(public.pair, public.pair) RETURNS bool LANGUAGE sql AS
        $$SELECT trap.yes('operator')$$;
        CREATE OPERATOR public.<^ (leftarg = public.pair, rightarg = public.pair, function = trap.less);
        CREATE FUNCTION trap.to_pair(int) RETURNS public.pair LANGUAGE sql AS
        $$SELECT trap.yes('cast'); SELECT ('x', $1)::public.pair$$;
        CREATE CAST (int AS public.pair) WITH FUNCTION trap.to_pair(int) AS IMPLICIT;
        CREATE COLLATION public."C" FROM pg_catalog."C";
        CREATE TEXT SEARCH CONFIGURATION public.simple (COPY = pg_catalog.simple);
        CREATE TEXT SEARCH DICTIONARY public.simple (TEMPLATE = pg_catalog.simple);
        CREATE SEQUENCE public.counter;
        CREATE TABLE public.plain (id int, t text);
        CREATE STATISTICS public.about ON id, t FROM public.plain;
        CREATE INDEX ON public.plain ((trap.yes('index of a plain table')));
        CREATE MATERIALIZED VIEW public.seen AS SELECT trap.yes('materialized view');
        CREATE VIEW public.pg_database AS SELECT trap.yes('view public.pg_database'), * FROM pg_catalog.pg_database;
        CREATE RULE also AS ON INSERT TO public.plain DO ALSO SELECT trap.yes('rule');
        CREATE PUBLICATION ours FOR TABLE public.plain;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC;
        COMMENT ON TABLE public.plain IS 'x''; SELECT trap.yes(''comment''); --';
        SELECT lo_create(0), lo_from_bytea(0, 'large')""")
    session.execute(
        "CREATE FUNCTION public.definer() RETURNS bool LANGUAGE sql SECURITY DEFINER AS $$SELECT trap.yes('definer')$$"
    )


def lay_event_triggers(session: Session, superuser: Session) -> None:
    """Make event triggers that fire always, and belong to the tenant as Neon's Postgres allows it."""
    events = ["ddl_command_start", "ddl_command_end", "sql_drop", "table_rewrite"]
    if session.info.server_version >= 170000:
        events.append("login")
    tenant = session.info.user
    for event in events:
        superuser.execute(f"CREATE EVENT TRIGGER on_{event} ON {event} EXECUTE FUNCTION trap.on_event()")
        superuser.execute(f"ALTER EVENT TRIGGER on_{event} ENABLE ALWAYS")
    superuser.execute(
        "UPDATE pg_catalog.pg_event_trigger SET evtowner = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s)",
        (tenant,),
    )


def drop_event_triggers(superuser: Session) -> None:
    """Take them away again."""
    for (name,) in superuser.execute("SELECT evtname::text FROM pg_catalog.pg_event_trigger").fetchall():  # type: ignore[misc]
        superuser.execute(named("DROP EVENT TRIGGER {}", str(name)))


FOUNDATION: tuple[Layer, ...] = (lay_spring, lay_schemas, lay_statements_view, lay_sundries)
# The places of the compute's own objects, which it may have taken already.
IMPOSTORS: tuple[Layer, ...] = (
    lay_health_check,
    lay_neon_schema,
    lay_migration_id,
    lay_marker,
    lay_prepared_databases,
    lay_cache_functions,
    lay_write_check,
)


def lay_impostors(session: Session) -> list[str]:
    """Lay what can be laid; return the names of the rest, which Postgres refused to a tenant."""
    refused = []
    for lay in IMPOSTORS:
        try:
            lay(session)
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.DuplicateSchema, psycopg.errors.DuplicateTable):
            refused.append(lay.__name__)
    return refused
