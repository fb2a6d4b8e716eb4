"""Install one extension at one version, or bring it there (contract 06 §8, R-14)."""

from __future__ import annotations

from trio_compute.db.maintenance import Connection
from trio_compute.db.request_session import open_request_session, rows
from trio_compute.errors import Conflicting, NotFound, SqlFailed
from trio_compute.plan.catalog.quoting import identifier
from trio_compute.settings import Deadlines
from trio_compute.telemetry.logging import get_logger

DEFAULT_SCHEMA = "public"
# The control file or the library is missing; Postgres has said so with the one code and with the other.
_NOT_AVAILABLE = frozenset({"0A000", "58P01"})
_NO_SUCH_VERSION = "22023"

_INSTALLED = "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = %s"
_FIXED_SCHEMA = """\
SELECT 1 FROM pg_catalog.pg_available_extension_versions
WHERE name = %s AND version = %s AND schema IS NOT NULL"""

log = get_logger("extensions")


async def install_extension(connstr: str, database: str, name: str, version: str, deadlines: Deadlines) -> bool:
    """Bring an extension of a database to a version; return whether anything had to be done.

    Raises NotFound for an unknown database and an extension that is not available, Conflicting for a version that
    cannot be reached, and other PostgresErrors.
    """
    try:
        async with (
            open_request_session(connstr, "install_extension", deadlines, database=database) as connection,
            connection.transaction(),
        ):
            statement = await _statement(connection, name, version)
            if statement is not None:
                await connection.execute(statement.encode())
    except SqlFailed as error:
        if error.sqlstate in _NOT_AVAILABLE:
            raise NotFound(str(error)) from None
        if error.sqlstate == _NO_SUCH_VERSION:
            raise Conflicting(str(error)) from None
        raise
    if statement is not None:
        log.info("extension installed", extension=name, version=version, database=database)
    return statement is not None


async def _statement(connection: Connection, name: str, version: str) -> str | None:
    installed = await rows(connection, _INSTALLED, name)
    if installed == [(version,)]:
        return None
    if installed:
        return f"ALTER EXTENSION {identifier(name)} UPDATE TO {identifier(version)}"
    if "--" in name or "/" in name or name.strip("-") != name:
        # Postgres reports these as it does a version that does not exist.
        raise NotFound(f"extension {name!r} is not available")
    # An extension whose control file names its schema refuses any other.
    fixed = await rows(connection, _FIXED_SCHEMA, name, version)
    schema = "" if fixed else f" WITH SCHEMA {DEFAULT_SCHEMA}"
    return f"CREATE EXTENSION IF NOT EXISTS {identifier(name)}{schema} VERSION {identifier(version)}"
