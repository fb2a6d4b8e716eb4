-- Gives ALTER EXTENSION neon UPDATE something to do where version 1.0 was installed before: the answer changes.
\echo Use "ALTER EXTENSION neon UPDATE" to load this file. \quit

CREATE OR REPLACE FUNCTION neon_stand_in_version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT text '1.1' $$;

CREATE FUNCTION neon_get_lfc_stats() RETURNS SETOF record
    LANGUAGE sql
    AS $$
        VALUES ('file_cache_misses'::text, 0::bigint), ('file_cache_hits', 0), ('file_cache_used', 0),
            ('file_cache_writes', 0)
    $$;

CREATE VIEW neon_lfc_stats AS
    SELECT * FROM neon_get_lfc_stats() AS p (lfc_key text, lfc_value bigint);
