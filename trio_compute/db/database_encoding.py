"""Whether a database exists, and how it is encoded, told by the catalog and not by a text (contract 06 R-11)."""

from __future__ import annotations

from trio_compute.db.request_session import open_request_session
from trio_compute.deadlines import Deadlines

_QUERY = """\
SELECT pg_catalog.pg_encoding_to_char(encoding) FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) %s"""


async def database_encoding(connstr: str, name: str, deadlines: Deadlines) -> str | None:
    """Return the encoding of a database, None if there is none of this name; raise PostgresError, also if late."""
    async with open_request_session(connstr, "database_schema", deadlines) as connection:
        found = await connection.rows(_QUERY, name)
    return str(found[0][0]) if found else None
