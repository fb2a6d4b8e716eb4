-- Changes nothing but the answer: versions of the stand-in that differ let its up- and downgrades be seen.
\echo Use "ALTER EXTENSION neon UPDATE" to load this file. \quit

CREATE OR REPLACE FUNCTION neon_stand_in_version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT text '1.1' $$;

DROP VIEW neon_perf_counters;
DROP VIEW neon_backend_perf_counters;
DROP FUNCTION get_perf_counters();
DROP FUNCTION get_backend_perf_counters();
DROP FUNCTION approximate_working_set_size_seconds(integer);
DROP FUNCTION approximate_working_set_size(boolean);
DROP VIEW neon_stat_file_cache;
