"""The reader of statements (T-01): it sees every way in which SQL leaves a name to search_path."""

from __future__ import annotations

import pytest

from tests.tenants.sql_reading import unqualified

P = "OPERATOR(pg_catalog.=)"


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT now()", ["function now"]),
        ("SELECT x FROM pg_catalog.unnest(ARRAY[1]) x, generate_series(1, 2)", ["function generate_series"]),
        ("CALL work()", ["function work"]),
        ("SELECT 1 = 1", ["operator ="]),
        ("SELECT NOT (- $1)", ["operator -"]),
        ("SELECT 1 = ANY (ARRAY[1])", ["operator ="]),
        ("SELECT 1 IN (1, 2)", ["operator ="]),
        ("SELECT 1 NOT IN (1, 2)", ["operator <>"]),
        (f"SELECT 1 {P} ANY (SELECT 1), 1 IN (SELECT 2)", ["operator = of IN"]),
        ("SELECT 1 BETWEEN 0 AND 2", ["operator BETWEEN"]),
        ("SELECT 'a' LIKE 'b'", ["operator ~~"]),
        ("SELECT 'a' NOT ILIKE 'b'", ["operator !~~*"]),
        ("SELECT 'a' SIMILAR TO 'b'", ["operator ~"]),
        ("SELECT NULLIF(1, 2)", ["operator ="]),
        ("SELECT 1 IS DISTINCT FROM 2", ["operator ="]),
        ("SELECT (1, 2) = (3, 4)", ["operator ="]),
        ("SELECT CASE 1 WHEN 1 THEN 2 END", ["operator = of CASE"]),
        ("SELECT 1 FROM pg_catalog.pg_class JOIN pg_catalog.pg_proc USING (oid)", ["operator = of USING"]),
        ("SELECT 1 FROM pg_catalog.pg_class NATURAL JOIN pg_catalog.pg_proc", ["operator = of USING"]),
        ("SELECT a FROM pg_catalog.pg_class ORDER BY a USING <", ["operator <"]),
        ("SELECT 'a'::text, CAST('b' AS name)", ["type text", "type name"]),
        ("SELECT %s::oid[]", ["type oid"]),
        ("SELECT text 'a'", ["type text"]),
        ("SELECT * FROM pg_catalog.json_to_record('{}') AS x(a text)", ["type text"]),
        ("CREATE TABLE a.b (c int, d text)", ["type text"]),
        ("SELECT 'a' COLLATE \"C\"", ["collation C"]),
        ("SELECT oid FROM pg_class", ["relation pg_class"]),
        ("INSERT INTO things VALUES (1)", ["relation things"]),
        ("LOCK TABLE things", ["relation things"]),
        ("WITH w AS (SELECT 1) SELECT * FROM w, v", ["relation v"]),
        ("SELECT * FROM (WITH w AS (SELECT 1) SELECT * FROM w) x, w", ["relation w"]),
        ("SELECT 'pg_class'::pg_catalog.regclass", ["regclass 'pg_class' in a literal"]),
        ("DROP FUNCTION work(int)", ["object work"]),
        ("DROP TABLE a.b, c", ["object c"]),
        ("DROP TYPE kind", ["type kind"]),
        ("CREATE FUNCTION work() RETURNS int LANGUAGE sql AS 'x'", ["the text of a function", "function work"]),
        ("CREATE INDEX ON a.b (c text_ops)", ["operator class text_ops"]),
        ("DO 'BEGIN END'", ["the text of a block"]),
        ("SELECT 1; SELECT now()", ["function now"]),
    ],
)
def test_a_name_that_search_path_would_have_to_find_is_named(sql: str, found: list[str]) -> None:
    """T-01."""
    assert unqualified(sql) == found


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT pg_catalog.count(*) FILTER (WHERE true) OVER () FROM pg_catalog.pg_class",
        f"SELECT 1 {P} 2, 1 {P} ANY (ARRAY[1]), 1 {P} ANY (SELECT 1)",
        "SELECT 'a'::pg_catalog.text, %s::pg_catalog.oid[], %(named)s::int, 5 OPERATOR(pg_catalog.%%) 2",
        "SELECT 1::int, true::boolean, 1::bigint, 1.5::double precision, INTERVAL '1 s', 'a'::varchar(3)",
        "SELECT coalesce(a, b), greatest(a, b), a IS NULL, a IS NOT TRUE, NOT a, ARRAY[a], current_user",
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class), current_schema",
        "SELECT CASE WHEN a THEN b ELSE c END, extract(epoch FROM pg_catalog.now()), ROW(a, b)",
        "SELECT DISTINCT a FROM pg_catalog.pg_class GROUP BY a ORDER BY a DESC LIMIT %s",
        "SELECT 'a' COLLATE pg_catalog.\"C\", 'pg_catalog.pg_class'::pg_catalog.regclass, '12'::pg_catalog.regclass",
        "WITH w AS (SELECT 1) SELECT * FROM w UNION SELECT * FROM w",
        "WITH RECURSIVE w AS (SELECT 1 UNION SELECT * FROM w) SELECT * FROM w",
        "INSERT INTO a.b VALUES (1) ON CONFLICT (id) DO UPDATE SET c = excluded.c",
        'CREATE SCHEMA x; DROP SCHEMA x; CREATE EXTENSION y WITH SCHEMA x VERSION "1"; ALTER EXTENSION y SET SCHEMA z',
        'GRANT USAGE ON SCHEMA x TO "role"; DROP OWNED BY "role"; ALTER ROLE x SET y = z; DROP EXTENSION e',
        "DROP FUNCTION a.work(int); ALTER TABLE a.b OWNER TO c; DROP TYPE a.b",
    ],
)
def test_what_is_qualified_or_needs_no_name_is_no_finding(sql: str) -> None:
    """T-01."""
    assert unqualified(sql) == []
