-- Changes nothing but the answer: versions of the stand-in that differ let its up- and downgrades be seen.
\echo Use "ALTER EXTENSION neon UPDATE" to load this file. \quit

CREATE OR REPLACE FUNCTION neon_stand_in_version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT text '1.5' $$;

-- Since 1.2.
CREATE VIEW neon_stat_file_cache AS
    WITH stats AS (SELECT json_object_agg(lfc_key, lfc_value) AS s FROM neon_lfc_stats)
    SELECT (s ->> 'file_cache_misses')::bigint AS file_cache_misses,
        (s ->> 'file_cache_hits')::bigint AS file_cache_hits,
        (s ->> 'file_cache_used')::bigint AS file_cache_used,
        (s ->> 'file_cache_writes')::bigint AS file_cache_writes,
        NULL::numeric AS file_cache_hit_ratio
    FROM stats;
GRANT SELECT ON neon_stat_file_cache TO pg_monitor;

-- Since 1.3.
CREATE FUNCTION approximate_working_set_size(reset boolean) RETURNS integer
    LANGUAGE sql
    AS $$ SELECT 0 $$;
GRANT EXECUTE ON FUNCTION approximate_working_set_size(boolean) TO pg_monitor;

-- Since 1.4.
CREATE FUNCTION approximate_working_set_size_seconds(duration integer DEFAULT NULL) RETURNS integer
    LANGUAGE sql
    AS $$ SELECT 0 $$;
GRANT EXECUTE ON FUNCTION approximate_working_set_size_seconds(integer) TO pg_monitor;

-- Since 1.5.
CREATE FUNCTION get_backend_perf_counters() RETURNS SETOF record
    LANGUAGE sql
    AS $$ SELECT 0, pid, 'getpage_wait_seconds_count'::text, NULL::float8, 0::float8 FROM pg_stat_activity $$;

CREATE FUNCTION get_perf_counters() RETURNS SETOF record
    LANGUAGE sql
    AS $$
        VALUES ('getpage_wait_seconds_count'::text, NULL::float8, 0::float8), ('getpage_wait_seconds_sum', NULL, 0),
            ('getpage_wait_seconds_bucket', 'Infinity', 0)
    $$;

CREATE VIEW neon_backend_perf_counters AS
    SELECT * FROM get_backend_perf_counters() AS p (
        procno integer, pid integer, metric text, bucket_le float8, value float8
    );

CREATE VIEW neon_perf_counters AS
    SELECT * FROM get_perf_counters() AS p (metric text, bucket_le float8, value float8);

REVOKE ALL ON FUNCTION get_backend_perf_counters() FROM PUBLIC;
REVOKE ALL ON FUNCTION get_perf_counters() FROM PUBLIC;
