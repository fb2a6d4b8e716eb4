"""Whether a database exists, told by the catalog and not by a text in the server's language (contract 06 R-11)."""

from __future__ import annotations

import psycopg

from trio_compute.db.maintenance import failure_text, maintenance_target, open_maintenance
from trio_compute.errors import PostgresError
from trio_compute.settings import Deadlines

_QUERY = "SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s"


async def database_exists(connstr: str, name: str, deadlines: Deadlines) -> bool:
    """Tell whether there is a database of this name; raise PostgresError if Postgres cannot be asked."""
    target = maintenance_target(connstr, "database_schema", deadlines)
    async with open_maintenance(target, deadlines) as connection:
        try:
            return await (await connection.execute(_QUERY, (name,))).fetchone() is not None
        except psycopg.Error as error:
            raise PostgresError(failure_text(error)) from None
