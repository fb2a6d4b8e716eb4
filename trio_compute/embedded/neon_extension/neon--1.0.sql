-- First version of the stand-in: one function, so that there is an object in the extension's schema to look for.
\echo Use "CREATE EXTENSION neon" to load this file. \quit

CREATE FUNCTION neon_stand_in_version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT text '1.0' $$;

-- What follows in this file and in those of later versions is there to be asked, granted and dropped; its answers are
-- those of a server that has neither a cache nor pageservers.
CREATE FUNCTION pg_cluster_size() RETURNS bigint
    LANGUAGE sql STRICT
    AS $$ SELECT sum(pg_database_size(oid))::bigint FROM pg_database $$;

CREATE FUNCTION backpressure_lsns(
    OUT received_lsn pg_lsn, OUT disk_consistent_lsn pg_lsn, OUT remote_consistent_lsn pg_lsn
) RETURNS record
    LANGUAGE sql STRICT
    AS $$ SELECT pg_lsn '0/0', pg_lsn '0/0', pg_lsn '0/0' $$;

CREATE FUNCTION backpressure_throttling_time() RETURNS bigint
    LANGUAGE sql STRICT
    AS $$ SELECT bigint '0' $$;

CREATE FUNCTION local_cache_pages() RETURNS SETOF record
    LANGUAGE sql
    AS $$ SELECT NULL::int8, NULL::oid, NULL::oid, NULL::oid, NULL::int2, NULL::int8, NULL::int4 WHERE false $$;

CREATE VIEW local_cache AS
    SELECT * FROM local_cache_pages() AS p (
        pageoffs int8, relfilenode oid, reltablespace oid, reldatabase oid,
        relforknumber int2, relblocknumber int8, accesscount int4
    );
