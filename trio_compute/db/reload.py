"""Let Postgres read its configuration again and find out what came of it (contract 04 F-13)."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import trio
from msgspec import Struct

from trio_compute.db.maintenance import failure_text, maintenance_target, open_maintenance
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError

PATIENCE_SECONDS = 5.0
POLL_SECONDS = 0.01

_LOADED_AT = "SELECT pg_catalog.pg_conf_load_time()"
# A setting that only waits for a restart has an error there too, of the same words as a value that cannot be taken.
_ERRORS = """\
SELECT coalesce(f.name, pg_catalog.format('line %s', f.sourceline)), f.error FROM pg_catalog.pg_file_settings f
LEFT JOIN pg_catalog.pg_settings s ON s.name OPERATOR(pg_catalog.=) pg_catalog.lower(f.name)
WHERE f.error IS NOT NULL AND NOT coalesce(s.pending_restart, false) ORDER BY f.seqno"""
_UNREADABLE = """\
SELECT 1 FROM pg_catalog.pg_file_settings f
LEFT JOIN pg_catalog.pg_settings s ON s.name OPERATOR(pg_catalog.=) pg_catalog.lower(f.name)
WHERE f.error IS NOT NULL AND s.name IS NULL"""
_PENDING = "SELECT name FROM pg_catalog.pg_settings WHERE pending_restart ORDER BY name"


class ReloadReport(Struct, frozen=True):
    """Hold the settings that wait for a restart, and what Postgres cannot read in its files."""

    pending_restart: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


async def reload_and_check(connstr: str, deadlines: Deadlines, reload: Callable[[], None]) -> ReloadReport:
    """Call `reload`, wait until Postgres has read its files, and return the outcome; raise PostgresError.

    A file with a line or a name that it does not know changes nothing at all, and is not waited for.
    """
    target = maintenance_target(connstr, "reload", deadlines)
    async with open_maintenance(target, deadlines) as connection:
        try:
            before = await connection.rows(_LOADED_AT)
            reload()
            unreadable = await connection.rows(_UNREADABLE)
            with trio.move_on_after(0 if unreadable else PATIENCE_SECONDS):
                while await connection.rows(_LOADED_AT) == before:  # noqa: ASYNC110  (Postgres tells nobody)
                    await trio.sleep(POLL_SECONDS)
            pending = await connection.rows(_PENDING)
            errors = await connection.rows(_ERRORS)
        except psycopg.Error as error:
            raise PostgresError(f"cannot see what came of the reload: {failure_text(error)}") from None
    return ReloadReport(tuple(str(name) for (name,) in pending), tuple(f"{name}: {text}" for name, text in errors))
