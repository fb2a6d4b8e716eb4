"""The superuser's session: its target, the catalog it reads, the statements it runs (contract 05 §2 and §3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import psycopg

from trio_compute.db.connection import TrioConnection, open_connection
from trio_compute.db.target import Target
from trio_compute.errors import PostgresError
from trio_compute.plan.catalog import Catalog, Statement
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger

# Settings that users may have put on a database or role must not get in our way; the operator's own options win.
PROTECTIVE_OPTIONS = (
    "-c role=cloud_admin -c default_transaction_read_only=off -c search_path= "
    "-c statement_timeout=0 -c pgaudit.log=none"
)

log = get_logger("catalog")


@asynccontextmanager
async def open_maintenance(connstr: str, *, purpose: str) -> AsyncIterator[TrioConnection[tuple[object, ...]]]:
    """Open a session as the superuser that does not report our own changes to the control plane."""
    target = Target.parse(connstr)
    options = f"{PROTECTIVE_OPTIONS} {target.options}".rstrip()
    target = target.replace(options=options, application_name=f"compute_ctl:{purpose}")
    async with open_connection(target) as connection:
        connection.prepare_threshold = None
        await connection.execute("SET neon.forward_ddl = false")
        yield connection


async def read_catalog(connection: TrioConnection[tuple[object, ...]]) -> Catalog:
    """Return the roles with their stored passwords and the databases with their owners."""
    roles = await connection.execute("SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid")
    passwords = {str(name): None if stored is None else str(stored) for name, stored in await roles.fetchall()}
    databases = await connection.execute(
        "SELECT d.datname::text, r.rolname::text FROM pg_catalog.pg_database d "
        "JOIN pg_catalog.pg_roles r ON r.oid = d.datdba"
    )
    return Catalog(passwords, {str(name): str(owner) for name, owner in await databases.fetchall()})


async def upgrade_neon_extension(connection: TrioConnection[tuple[object, ...]]) -> None:
    """Update the neon extension if this database has it."""
    installed = await connection.execute("SELECT 1 FROM pg_catalog.pg_extension WHERE extname = 'neon'")
    if await installed.fetchone() is not None:
        await connection.execute("ALTER EXTENSION neon UPDATE")
        log.info("neon extension is up to date")


async def execute_all(connection: TrioConnection[tuple[object, ...]], statements: Sequence[Statement]) -> None:
    """Execute statements one after another; raise PostgresError that names the first one to fail, without its SQL."""
    for statement in statements:
        log.info("catalog change", why=statement.why)
        try:
            await connection.execute(statement.query)
        except psycopg.Error as error:
            message = brief(error.diag.message_primary or error)
            raise PostgresError(f"could not {statement.why}: {message} (SQLSTATE {error.sqlstate})") from None
