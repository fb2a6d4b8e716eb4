-- Version 1.6 of the stand-in: plays the functions of the local file cache. Nothing is cached and nothing is loaded;
-- what is real is how they behave towards who calls them. Settings say what they play, best set on the database:
--
--   neon_stand_in.cache_pages      pages in the cache; 0 means that there is no cache (default 128)
--   neon_stand_in.cache_state      the whole state as hexadecimal text, instead of one that is made up; empty means none
--   neon_stand_in.state_bytes      size of the made-up state (default: 16 for each page)
--   neon_stand_in.prewarm_seconds  how long a prewarm takes (default 0)
--   neon_stand_in.prewarm_skipped  how many of its pages it skips (default 0)
--   neon_stand_in.prewarm_error    a text that it fails with, half-way
--
-- neon.file_cache_size_limit = 0 and neon.file_cache_prewarm_limit = 0 switch the cache off, as they do the real one.
-- All names are of pg_catalog, which is searched first whatever the path is.
\echo Use "ALTER EXTENSION neon UPDATE" to load this file. \quit

CREATE OR REPLACE FUNCTION neon_stand_in_version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT text '1.6' $$;

CREATE FUNCTION get_local_cache_state(max_chunks integer DEFAULT NULL) RETURNS bytea
    LANGUAGE plpgsql
    AS $$
DECLARE
    pages int := coalesce(nullif(current_setting('neon_stand_in.cache_pages', true), ''), '128');
    given text := current_setting('neon_stand_in.cache_state', true);
    size int;
    head bytea;
BEGIN
    IF current_setting('neon.file_cache_size_limit', true) = '0'
        OR current_setting('neon.file_cache_prewarm_limit', true) = '0'
        OR max_chunks = 0 OR pages = 0 OR given = ''
    THEN
        RETURN NULL;
    END IF;
    IF given IS NOT NULL THEN
        RETURN decode(given, 'hex');
    END IF;
    head := convert_to('stand-in LFC state ' || pages || E'\n', 'UTF8');
    size := coalesce(nullif(current_setting('neon_stand_in.state_bytes', true), ''), (16 * pages)::text);
    RETURN head || convert_to(
        repeat('0123456789abcdef', greatest(0, size - length(head)) / 16), 'UTF8');
END $$;

-- What the latest prewarm has done is kept in a file of the data directory: a replica, which is what is prewarmed most
-- of all, can write neither tables nor sequences, and others must see it before the transaction ends.
CREATE FUNCTION get_prewarm_info(
    OUT total_pages integer, OUT prewarmed_pages integer, OUT skipped_pages integer, OUT active_workers integer
) RETURNS record
    LANGUAGE plpgsql STRICT
    AS $$
DECLARE
    words text[] := string_to_array(rtrim(pg_read_file('neon_stand_in_prewarm', 0, 1000, true), E'\n'), ' ');
BEGIN
    -- The file may come from the last life of this server or another one, and may be half-written.
    IF cardinality(words) = 5
        AND words[1] = extract(epoch FROM pg_postmaster_start_time())::text
    THEN
        total_pages := words[2];
        prewarmed_pages := words[3];
        skipped_pages := words[4];
        active_workers := words[5];
    END IF;
END $$;

CREATE FUNCTION prewarm_local_cache(state bytea, n_workers integer DEFAULT 1) RETURNS void
    LANGUAGE plpgsql STRICT
    AS $$
DECLARE
    key CONSTANT int := 1852141678;
    pages int;
    seconds float8 := coalesce(nullif(current_setting('neon_stand_in.prewarm_seconds', true), ''), '0');
    skipped int := coalesce(nullif(current_setting('neon_stand_in.prewarm_skipped', true), ''), '0');
    failure text := nullif(current_setting('neon_stand_in.prewarm_error', true), '');
    steps int;
    done int;
    life CONSTANT text := extract(epoch FROM pg_postmaster_start_time());
    file CONSTANT text := current_setting('data_directory') || '/neon_stand_in_prewarm';
BEGIN
    IF current_setting('neon.file_cache_size_limit', true) = '0' OR length(state) = 0 THEN
        RAISE LOG 'LFC is disabled or the state is empty';
        RETURN;
    END IF;
    IF substr(state, 1, 19) <> 'stand-in LFC state ' THEN
        RAISE EXCEPTION 'wrong magic of the LFC state';
    END IF;
    pages := split_part(split_part(
        encode(substr(state, 20, 20), 'escape'), E'\n', 1), ' ', 1);
    IF NOT pg_try_advisory_xact_lock(key, 1) THEN
        RAISE EXCEPTION 'another prewarm is active';
    END IF;
    skipped := least(skipped, pages);
    steps := greatest(1, ceil(seconds * 20)::int);
    EXECUTE format('COPY (SELECT %L) TO %L', concat_ws(' ', life, pages, 0, 0, 0), file);
    FOR step IN 1 .. steps LOOP
        PERFORM pg_sleep(seconds / steps);
        IF failure IS NOT NULL AND step * 2 >= steps THEN
            RAISE EXCEPTION '%', failure;
        END IF;
        done := pages::bigint * step / steps;
        EXECUTE format('COPY (SELECT %L) TO %L',
            concat_ws(' ', life, pages, greatest(0, done - skipped), least(skipped, done), (step = steps)::int), file);
    END LOOP;
END $$;
