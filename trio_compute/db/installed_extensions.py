"""Count which extensions are installed in how many databases (contract 06 §7, R-12, R-13)."""

from __future__ import annotations

from trio_compute.db.carried_text import escaped, is_text
from trio_compute.db.request_session import open_request_session
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError, cause_chain
from trio_compute.plan.extension_statistics import InstalledExtension, Statistics
from trio_compute.telemetry.logging import get_logger

PURPOSE = "get_installed_extensions"
MAX_DATABASES = 500

# Nobody can create a database while somebody is connected to its template (05 K-26).
_DATABASES = """\
SELECT datname, pg_catalog.count(*) OVER () FROM pg_catalog.pg_database
WHERE datallowconn AND datconnlimit OPERATOR(pg_catalog.<>) -2 AND NOT datistemplate ORDER BY datname LIMIT %s"""
_EXTENSIONS = "SELECT extname, extversion, extowner::bigint FROM pg_catalog.pg_extension"

log = get_logger("extensions")


async def collect_installed_extensions(
    connstr: str, deadlines: Deadlines, *, max_databases: int = MAX_DATABASES
) -> Statistics:
    """Look into each database, one after another; one that cannot be looked at is only logged.

    Raises PostgresError if not even the databases can be listed.
    """
    async with open_request_session(connstr, PURPOSE, deadlines) as connection:
        databases = await connection.rows(_DATABASES, max_databases)
    if databases and databases[0][1] > max_databases:
        log.warning("not all databases are looked at", databases=databases[0][1], looked_at=max_databases)
    found: list[InstalledExtension] = []
    failures = 0
    unreadable = [escaped(name) for name, _ in databases if not is_text(name)]
    if unreadable:
        log.warning("databases whose names are not UTF-8 are not looked at", databases=", ".join(unreadable))
    for name in (name for name, _ in databases if is_text(name)):
        try:
            found += await _extensions_of(connstr, name, deadlines)
        except PostgresError as error:
            failures += 1
            log.warning("extensions of a database are not counted", database=name, error=cause_chain(error))
    return Statistics.of(found, failures)


async def _extensions_of(connstr: str, database: str, deadlines: Deadlines) -> list[InstalledExtension]:
    async with open_request_session(connstr, PURPOSE, deadlines, database=database) as connection:
        return [InstalledExtension.of(*row) for row in await connection.rows(_EXTENSIONS)]
