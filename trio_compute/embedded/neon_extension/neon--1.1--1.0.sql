-- Changes nothing but the answer: versions of the stand-in that differ let its up- and downgrades be seen.
\echo Use "ALTER EXTENSION neon UPDATE" to load this file. \quit

CREATE OR REPLACE FUNCTION neon_stand_in_version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT text '1.0' $$;

DROP VIEW neon_lfc_stats;
DROP FUNCTION neon_get_lfc_stats();
