"""Let Postgres read its configuration again and find out what came of it (contract 04 F-13)."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import trio
from msgspec import Struct

from trio_compute.db.maintenance import Connection, failure_text, maintenance_target, open_maintenance
from trio_compute.errors import PostgresError
from trio_compute.settings import Deadlines

PATIENCE_SECONDS = 5.0
POLL_SECONDS = 0.01

_LOADED_AT = "SELECT pg_catalog.pg_conf_load_time()"
_ERRORS = """\
SELECT coalesce(name, 'line ' || sourceline), error FROM pg_catalog.pg_file_settings
WHERE error IS NOT NULL AND error <> 'setting could not be applied' ORDER BY seqno"""
_PENDING = "SELECT name FROM pg_catalog.pg_settings WHERE pending_restart ORDER BY name"


class ReloadReport(Struct, frozen=True):
    """Hold the settings that wait for a restart, and what Postgres cannot read in its files."""

    pending_restart: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


async def reload_and_check(connstr: str, deadlines: Deadlines, reload: Callable[[], None]) -> ReloadReport:
    """Call `reload`, wait until Postgres has read its files, and return the outcome; raise PostgresError.

    A file that it cannot read at all changes nothing, which takes as long as our patience to be sure of.
    """
    target = maintenance_target(connstr, "reload", deadlines)
    async with open_maintenance(target, deadlines) as connection:
        try:
            before = await _rows(connection, _LOADED_AT)
            reload()
            errors = await _rows(connection, _ERRORS)
            with trio.move_on_after(PATIENCE_SECONDS if not errors else 0.2):
                while await _rows(connection, _LOADED_AT) == before:  # noqa: ASYNC110  (Postgres tells nobody)
                    await trio.sleep(POLL_SECONDS)
            pending = await _rows(connection, _PENDING)
        except psycopg.Error as error:
            raise PostgresError(f"cannot see what came of the reload: {failure_text(error)}") from None
    return ReloadReport(tuple(str(name) for (name,) in pending), tuple(f"{name}: {text}" for name, text in errors))


async def _rows(connection: Connection, query: str) -> list[tuple[object, ...]]:
    return await (await connection.execute(query.encode())).fetchall()
