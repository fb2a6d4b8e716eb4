"""List roles and databases (contract 06 §5, R-10; T-06)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trio_compute.db.carried_text import escaped, is_text
from trio_compute.db.request_session import open_request_session
from trio_compute.deadlines import Deadlines
from trio_compute.model.responses import CatalogDatabase, CatalogResponse, CatalogRole
from trio_compute.telemetry.logging import get_logger

MOST_SHOWN = 10

_ROLES = "SELECT rolname, rolpassword FROM pg_catalog.pg_authid ORDER BY rolname"
_ROLES_ONLY = "SELECT rolname, NULL FROM pg_catalog.pg_authid ORDER BY rolname"
_DATABASES = """\
SELECT d.datname, o.rolname, NOT d.datallowconn, d.datconnlimit OPERATOR(pg_catalog.=) -2
FROM pg_catalog.pg_database d JOIN pg_catalog.pg_authid o ON o.oid OPERATOR(pg_catalog.=) d.datdba
ORDER BY d.datname"""

log = get_logger("catalog")


async def list_catalog(connstr: str, deadlines: Deadlines, *, hide_passwords: bool) -> CatalogResponse:
    """Return all roles and databases, those of the system included; hidden passwords are not even read (A-08).

    What no text can name is passed over. Raises PostgresError: an answer that is cut short is never taken for a
    whole one.
    """
    async with open_request_session(connstr, "get_dbs_and_roles", deadlines) as connection:
        roles = await connection.rows(_ROLES_ONLY if hide_passwords else _ROLES)
        databases = await connection.rows(_DATABASES)
    _tell_unreadable([row[:1] for row in roles] + [row[:2] for row in databases])
    return CatalogResponse(
        [CatalogRole(*row) for row in roles if is_text(row[0])],
        [CatalogDatabase(*row) for row in databases if is_text(row[0]) and is_text(row[1])],
    )


def _tell_unreadable(names: Sequence[tuple[Any, ...]]) -> None:
    unreadable = [escaped(name) for row in names for name in row if not is_text(name)]
    found = list(dict.fromkeys(unreadable))
    if found:
        more = ", …" if len(found) > MOST_SHOWN else ""
        log.warning("names that are not UTF-8 are passed over", names=", ".join(found[:MOST_SHOWN]) + more)
