-- Takes version 1.6 of the stand-in back.
\echo Use "ALTER EXTENSION neon UPDATE" to load this file. \quit

CREATE OR REPLACE FUNCTION neon_stand_in_version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT text '1.5' $$;

DROP FUNCTION prewarm_local_cache(bytea, integer);
DROP FUNCTION get_prewarm_info();
DROP FUNCTION get_local_cache_state(integer);
