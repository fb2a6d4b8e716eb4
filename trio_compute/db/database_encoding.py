"""What a dump has to know of a database: whether it exists, its encoding, its settings (contract 06 R-11)."""

from __future__ import annotations

from trio_compute.db.fortress import options_of
from trio_compute.db.request_session import open_request_session
from trio_compute.deadlines import Deadlines

_QUERY = """\
SELECT pg_catalog.pg_encoding_to_char(encoding) FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) %s"""


async def undoing_options(connstr: str, database: str, deadlines: Deadlines) -> str:
    """Return the options that undo what a database sets for its sessions, for a program that has one of its own (T-07).

    Raises NotFound, and other PostgresErrors.
    """
    async with open_request_session(connstr, "database_schema", deadlines, database=database) as connection:
        return options_of(connection.undone)


async def database_encoding(connstr: str, name: str, deadlines: Deadlines) -> str | None:
    """Return the encoding of a database, None if there is none of this name; raise PostgresError, also if late."""
    async with open_request_session(connstr, "database_schema", deadlines) as connection:
        found = await connection.rows(_QUERY, name)
    return str(found[0][0]) if found else None
