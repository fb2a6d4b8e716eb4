"""List roles and databases (contract 06 §5, R-10)."""

from __future__ import annotations

from trio_compute.db.request_session import open_request_session, rows
from trio_compute.model.responses import CatalogDatabase, CatalogResponse, CatalogRole
from trio_compute.settings import Deadlines

_ROLES = "SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid ORDER BY rolname"
_ROLES_ONLY = "SELECT rolname::text, NULL FROM pg_catalog.pg_authid ORDER BY rolname"
_DATABASES = """\
SELECT d.datname::text, o.rolname::text, NOT d.datallowconn, d.datconnlimit = -2
FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles o ON o.oid = d.datdba ORDER BY d.datname"""


async def list_catalog(connstr: str, deadlines: Deadlines, *, hide_passwords: bool) -> CatalogResponse:
    """Return all roles and databases, those of the system included; hidden passwords are not even read (A-08).

    Raises PostgresError: an answer that is cut short is never taken for a whole one.
    """
    async with open_request_session(connstr, "get_dbs_and_roles", deadlines) as connection:
        roles = await rows(connection, _ROLES_ONLY if hide_passwords else _ROLES)
        databases = await rows(connection, _DATABASES)
    return CatalogResponse([CatalogRole(*row) for row in roles], [CatalogDatabase(*row) for row in databases])
