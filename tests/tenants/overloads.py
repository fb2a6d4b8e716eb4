"""Overloads of whatever a superuser's statement could meet, made from the server's own catalogs.

Each does what the original does, so that nobody notices, and springs the trap first. Those with the very arguments of
an original win where their schema stands before `pg_catalog`; those with better matching ones win wherever they can
be found at all, because an original with `anyelement`, `"any"` or a cast has to step back.
"""

from __future__ import annotations

import psycopg

from tests.tenants.hostile import QUOTES, Session

_PREAMBLE = "SET search_path = pg_catalog; SET check_function_bodies = off"
_EXACT = """
DO $do$
DECLARE each record; called text;
BEGIN
    FOR each IN
        SELECT p.proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result,
               p.pronargs AS n, p.provariadic <> 0 AS is_variadic, p.proretset OR p.proallargtypes IS NOT NULL AS is_row
        FROM pg_proc p JOIN pg_type r ON r.oid = p.prorettype
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.provariadic <> '"any"'::regtype
          AND (r.typtype <> 'p' OR r.typname IN ('void', 'record'))
          AND NOT EXISTS (SELECT FROM unnest(p.proargtypes::oid[]) a(t) JOIN pg_type ON pg_type.oid = a.t
                          WHERE typtype = 'p')
          AND (r.typname <> 'record' OR p.proallargtypes IS NOT NULL)
    LOOP
        called := format('pg_catalog.%I(%s)', each.proname,
            (SELECT coalesce(string_agg(
                             CASE WHEN each.is_variadic AND i = each.n THEN 'VARIADIC ' ELSE '' END || '$' || i,
                             ', ' ORDER BY i), '') FROM generate_series(1, each.n) i));
        BEGIN
            EXECUTE format('CREATE FUNCTION {schema}.%I(%s) RETURNS %s LANGUAGE sql AS %L', each.proname,
                each.arguments, each.result,
                format('SELECT trap.spring(%L); SELECT %s%s', 'function ' || each.proname,
                    CASE WHEN each.is_row THEN '* FROM ' ELSE '' END, called));
        EXCEPTION WHEN OTHERS THEN
            NULL;  -- some cannot be written like this
        END;
    END LOOP;
END $do$"""
# Polymorphic originals, and the variadic "any": one overload for each of a few types.
_BETTER = """
DO $do$
DECLARE each record; t text;
BEGIN
    FOR each IN
        SELECT p.proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result,
               p.pronargs AS n, p.proretset OR p.proallargtypes IS NOT NULL AS is_row
        FROM pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.provariadic = 0
          AND pg_get_function_arguments(p.oid) ~ 'any(element|array|nonarray|compatible)'
          AND pg_get_function_arguments(p.oid) !~ '(internal|range|"any"|cstring)'
    LOOP
        FOREACH t IN ARRAY ARRAY['text', 'name', 'oid', 'integer', 'bigint', '"char"', 'aclitem', 'regclass'] LOOP
            BEGIN
                EXECUTE format('CREATE FUNCTION {schema}.%I(%s) RETURNS %s LANGUAGE sql AS %L', each.proname,
                    regexp_replace(regexp_replace(each.arguments, 'any(compatible)?array', t || '[]', 'g'),
                                   'any(element|nonarray|compatiblenonarray|compatible)', t, 'g'),
                    regexp_replace(regexp_replace(each.result, 'any(compatible)?array', t || '[]', 'g'),
                                   'any(element|nonarray|compatiblenonarray|compatible)', t, 'g'),
                    format('SELECT trap.spring(%L); SELECT %spg_catalog.%I(%s)', 'better ' || each.proname,
                        CASE WHEN each.is_row THEN '* FROM ' ELSE '' END, each.proname,
                        (SELECT string_agg('$' || i, ', ' ORDER BY i) FROM generate_series(1, each.n) i)));
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
        END LOOP;
    END LOOP;
END $do$"""
_VARIADIC = """
DO $do$
DECLARE f text; signature text;
BEGIN
    FOREACH f IN ARRAY ARRAY['format', 'concat', 'concat_ws', 'json_build_object', 'jsonb_build_object',
                             'json_build_array', 'num_nulls'] LOOP
        FOR signature IN
            WITH RECURSIVE t(n) AS (VALUES ('text'), ('name'), ('oid'), ('integer'), ('regclass'), ('regnamespace')),
            s(words, depth) AS (
                SELECT 'text', 1 UNION ALL
                SELECT words || ', ' || n, depth + 1 FROM s, t WHERE depth < 4 AND (depth < 3 OR n IN ('text', 'name')))
            SELECT words FROM s WHERE depth > 1
        LOOP
            BEGIN
                EXECUTE format('CREATE FUNCTION {schema}.%I(%s) RETURNS %s LANGUAGE sql AS %L', f, signature,
                    CASE WHEN f LIKE 'json%' THEN split_part(f, '_', 1)
                         WHEN f = 'num_nulls' THEN 'integer' ELSE 'text' END,
                    format('SELECT trap.spring(%L); SELECT pg_catalog.%I(%s)', 'better ' || f, f,
                        (SELECT string_agg('$' || i, ', ') FROM
                         generate_series(1, array_length(string_to_array(signature, ', '), 1)) i)));
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
        END LOOP;
    END LOOP;
END $do$"""
_AGGREGATES = """
DO $do$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['text', 'name', 'oid', 'integer', 'bigint', 'boolean', 'timestamptz', 'float8'] LOOP
        EXECUTE format('CREATE FUNCTION {schema}.agg_last(%1$s, %1$s) RETURNS %1$s LANGUAGE sql AS %2$L', t,
                       'SELECT trap.spring(''aggregate max''); SELECT coalesce($2, $1)');
        EXECUTE format('CREATE FUNCTION {schema}.agg_count(bigint, %1$s) RETURNS bigint LANGUAGE sql AS %2$L', t,
                       'SELECT trap.spring(''aggregate count''); SELECT $1 + ($2 IS NOT NULL)::int');
        EXECUTE format('CREATE FUNCTION {schema}.agg_list(%1$s[], %1$s) RETURNS %1$s[] LANGUAGE sql AS %2$L', t,
                       'SELECT trap.spring(''aggregate array_agg''); SELECT pg_catalog.array_append($1, $2)');
        EXECUTE format('CREATE AGGREGATE {schema}.max(%1$s) (sfunc = {schema}.agg_last, stype = %1$s)', t);
        EXECUTE format('CREATE AGGREGATE {schema}.min(%1$s) (sfunc = {schema}.agg_last, stype = %1$s)', t);
        EXECUTE format('CREATE AGGREGATE {schema}.bool_or(%1$s) (sfunc = {schema}.agg_last, stype = %1$s)', t);
        EXECUTE format('CREATE AGGREGATE {schema}.sum(%1$s) (sfunc = {schema}.agg_last, stype = %1$s)', t);
        EXECUTE format('CREATE AGGREGATE {schema}.count(%1$s) '
                       '(sfunc = {schema}.agg_count, stype = bigint, initcond = 0)', t);
        EXECUTE format('CREATE AGGREGATE {schema}.array_agg(%1$s) (sfunc = {schema}.agg_list, stype = %1$s[])', t);
    END LOOP;
    CREATE FUNCTION {schema}.agg_join(text, text, text) RETURNS text LANGUAGE sql AS
    'SELECT trap.spring(''aggregate string_agg''); SELECT pg_catalog.concat_ws($3, $1, $2)';
    CREATE AGGREGATE {schema}.string_agg(text, text) (sfunc = {schema}.agg_join, stype = text);
END $do$"""
_OPERATORS = """
DO $do$
DECLARE each record; f text;
BEGIN
    FOR each IN
        SELECT o.oid, o.oprname, CASE WHEN o.oprleft <> 0 THEN format_type(o.oprleft, NULL) END AS l,
               format_type(o.oprright, NULL) AS r, format_type(o.oprresult, NULL) AS result
        FROM pg_operator o
        WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprright <> 0
          AND NOT EXISTS (SELECT FROM pg_type t WHERE t.oid IN (o.oprleft, o.oprright, o.oprresult) AND t.typtype = 'p')
    LOOP
        f := 'op' || each.oid;
        EXECUTE format('CREATE FUNCTION {schema}.%I(%s) RETURNS %s LANGUAGE sql AS %L', f,
            concat_ws(', ', each.l, each.r), each.result, format('SELECT trap.spring(%L); SELECT %s',
            format('operator %s(%s,%s)', each.oprname, each.l, each.r),
            CASE WHEN each.l IS NULL THEN format('OPERATOR(pg_catalog.%s) $1', each.oprname)
            ELSE format('$1 OPERATOR(pg_catalog.%s) $2', each.oprname) END));
        EXECUTE format('CREATE OPERATOR {schema}.%s (%srightarg = %s, function = {schema}.%I)', each.oprname,
            'leftarg = ' || each.l || ', ', each.r, f);
    END LOOP;
END $do$"""
_CROSS_OPERATORS = """
DO $do$
DECLARE o text; l text; r text; f text; n int := 0;
BEGIN
    FOREACH o IN ARRAY ARRAY['=', '<>', '<', '>', '<=', '>=', '||', '~', '!~', '~~', '+', '-', '*', '/'] LOOP
        FOREACH l IN ARRAY ARRAY['oid', 'integer', 'bigint', 'name', 'text', '"char"', 'regclass', 'varchar'] LOOP
            FOREACH r IN ARRAY ARRAY['oid', 'integer', 'bigint', 'name', 'text', '"char"', 'regclass', 'varchar'] LOOP
                CONTINUE WHEN EXISTS (SELECT FROM pg_operator WHERE oprname = o AND oprleft = l::regtype
                                      AND oprright = r::regtype AND oprnamespace = 'pg_catalog'::regnamespace);
                n := n + 1;
                f := 'cross' || n;
                EXECUTE format('CREATE FUNCTION {schema}.%I(%s, %s) RETURNS %s LANGUAGE sql AS %L', f, l, r,
                    CASE WHEN o = '||' THEN 'text' WHEN o IN ('+', '-', '*', '/') THEN 'bigint' ELSE 'boolean' END,
                    format(CASE WHEN o IN ('||', '~', '!~', '~~')
                                     OR 'text' IN (l, r) OR 'name' IN (l, r) OR 'varchar' IN (l, r)
                                     OR '"char"' IN (l, r)
                                THEN 'SELECT trap.spring(%1$L); SELECT $1::text OPERATOR(pg_catalog.%2$s) $2::text'
                                ELSE 'SELECT trap.spring(%1$L); SELECT $1::oid::bigint OPERATOR(pg_catalog.%2$s) '
                                     '$2::oid::bigint' END,
                           format('better operator %s(%s,%s)', o, l, r), o));
                EXECUTE format('CREATE OPERATOR {schema}.%s (leftarg = %s, rightarg = %s, function = {schema}.%I)',
                               o, l, r, f);
            END LOOP;
        END LOOP;
    END LOOP;
END $do$"""
_TYPES = """
DO $do$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['text', 'name', 'oid', 'int8', 'int4', 'bool', 'timestamptz', 'regclass', 'regnamespace',
                             'float8', 'bytea', 'pg_lsn', 'aclitem', 'regtype'] LOOP
        EXECUTE format('CREATE DOMAIN {schema}.%I AS pg_catalog.%I CHECK (trap.yes(%L))', t, t, 'type ' || t);
    END LOOP;
END $do$"""


def lay_exact(session: Session, schema: str) -> None:
    """Overload every built-in function and operator that can be written in SQL, and the common types."""
    for text in (_EXACT, _OPERATORS, _TYPES):
        _run(session, text, schema)


def lay_better(session: Session, schema: str) -> None:
    """Overload what matches better than a built-in: polymorphic functions, aggregates, operators with casts."""
    for text in (_BETTER, _VARIADIC, _AGGREGATES, _CROSS_OPERATORS):
        _run(session, text, schema)


def lay_overloads(session: Session) -> None:
    """Overload everything where a search path of two quotes looks, and what can win from there in other schemas."""
    session.execute("CREATE SCHEMA overloads")
    lay_better(session, "overloads")
    lay_exact(session, "overloads")
    session.execute(f'DROP SCHEMA "{QUOTES}"; ALTER SCHEMA overloads RENAME TO "{QUOTES}"')
    for schema in ("public", "cloud_admin"):
        lay_better(session, schema)
    session.execute(f'GRANT ALL ON SCHEMA "{QUOTES}", public, cloud_admin TO PUBLIC')


def _run(session: Session, text: str, schema: str) -> None:
    session.execute(_PREAMBLE)
    try:
        session.execute(text.replace("{schema}", schema))
    except psycopg.Error as error:
        raise AssertionError(f"the trap cannot be laid: {error}") from error
    finally:
        session.execute("RESET search_path; RESET check_function_bodies")
