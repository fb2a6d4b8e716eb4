-- Gives ALTER EXTENSION neon UPDATE something to do where version 1.0 was installed before: the answer changes.
\echo Use "ALTER EXTENSION neon UPDATE" to load this file. \quit

CREATE OR REPLACE FUNCTION neon_stand_in_version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT text '1.1' $$;
