-- First version of the stand-in: one function, so that there is an object in the extension's schema to look for.
\echo Use "CREATE EXTENSION neon" to load this file. \quit

CREATE FUNCTION neon_stand_in_version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT text '1.0' $$;
