"""The superuser's sessions: how they are opened, and what keeps two of them apart (contract 05 §2, K-10 … K-14)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import trio

from trio_compute.db.connection import ConnectFailed, TrioConnection, open_connection
from trio_compute.db.refusal import refusal
from trio_compute.db.target import Target
from trio_compute.errors import PostgresError
from trio_compute.model import catalog_rules
from trio_compute.model.catalog_rules import FORMER_SUPERUSER
from trio_compute.plan.catalog.quoting import identifier, literal
from trio_compute.settings import Deadlines
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger

# One number for all of us, so that an apply, the migrations and an extension update never run at the same time (K-14).
ADVISORY_LOCK = 0x7472696F  # "trio"
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
_NO_LOGIN = frozenset({"28P01", "28000"})
_NO_SLOT = frozenset({"53300"})
_NOT_YET = frozenset({"57P03"})
_HOLDERS = """\
SELECT a.pid, a.usename::text, a.application_name FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database()
WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 0 AND l.objid = %s AND l.objsubid = 1"""

log = get_logger("catalog")

Connection = TrioConnection[tuple[Any, ...]]


class ConnectRefused(PostgresError):
    """Report that no maintenance session could be opened; `sqlstate` is None if the server did not even answer."""

    def __init__(self, message: str, sqlstate: str | None) -> None:
        super().__init__(f"{message} (SQLSTATE {sqlstate})" if sqlstate else message)
        self.sqlstate = sqlstate


def maintenance_target(connstr: str, purpose: str, deadlines: Deadlines) -> Target:
    """Return where a maintenance session goes; settings that users put on databases or roles cannot disturb it.

    The operator's own options come last and win.
    """
    target = Target.parse(connstr)
    ours = {
        "role": catalog_rules.SUPERUSER,
        "default_transaction_read_only": "off",
        "search_path": "''",
        "statement_timeout": str(round(deadlines.catalog_statement * 1000)),
        "lock_timeout": str(round(deadlines.catalog_lock * 1000)),
        "pgaudit.log": "none",
    }
    options = " ".join([*(f"-c {name}={value}" for name, value in ours.items()), target.options]).rstrip()
    return target.replace(options=options, application_name=f"compute_ctl:{purpose}")


@asynccontextmanager
async def open_maintenance(target: Target, deadlines: Deadlines) -> AsyncIterator[Connection]:
    """Open a session that does not report our own changes to the control plane.

    While there is no free connection it is tried again, up to a limit. Raises PostgresError.
    """
    connection = await _connect(target, deadlines)
    try:
        connection.prepare_threshold = None
        connection.add_notice_handler(_log_notice)
        try:
            await connection.execute("SET neon.forward_ddl = false")
        except psycopg.Error as error:
            raise ConnectRefused(failure_text(error), error.sqlstate) from None
        yield connection
    finally:
        await connection.close()


def _log_notice(notice: psycopg.errors.Diagnostic) -> None:
    log.debug("notice", severity=notice.severity_nonlocalized, about=brief(notice.message_primary or ""))


async def _connect(target: Target, deadlines: Deadlines) -> Connection:
    give_up_at, pause = trio.current_time() + deadlines.catalog_retry, FIRST_PAUSE_SECONDS
    fallen_back = False
    while True:
        try:
            return await TrioConnection.connect(target, connect_timeout_seconds=deadlines.catalog_connect)
        except ConnectFailed as error:
            state = await refusal(target, timeout_seconds=deadlines.catalog_connect)
            if state in _NO_LOGIN and not fallen_back:
                fallen_back = True
                await _make_superuser(target, deadlines, error)
                continue
            if state not in _NO_SLOT | _NOT_YET or trio.current_time() + pause > give_up_at:
                raise ConnectRefused(brief(error), state) from None
            log.warning("no free connection to Postgres", retry_in_seconds=pause)
        await trio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def _make_superuser(target: Target, deadlines: Deadlines, first: ConnectFailed) -> None:
    """Give an old cluster the superuser that all work is done as (K-11)."""
    options = (
        f"-c role={FORMER_SUPERUSER} -c default_transaction_read_only=off -c search_path='' -c statement_timeout=0"
    )
    superuser = catalog_rules.SUPERUSER
    old, name = target.replace(user=FORMER_SUPERUSER, options=options), identifier(superuser)
    try:
        async with open_connection(old, connect_timeout_seconds=deadlines.catalog_connect) as connection:
            await connection.execute("SET neon.forward_ddl = false")
            async with connection.transaction():
                query = "SELECT rolpassword IS NOT NULL FROM pg_catalog.pg_authid WHERE rolname = %s"
                known = await (await connection.execute(query, (superuser,))).fetchone()
                word = "ALTER" if known else "CREATE"
                has_password = known is not None and known[0]
                is_ours = target.user == superuser and not has_password
                password = _password_words(connection, target.password) if is_ours else ""
                await connection.execute(f"{word} ROLE {name} SUPERUSER LOGIN{password}".encode())
                await connection.execute(f"GRANT {identifier(FORMER_SUPERUSER)} TO {name}".encode())
    except (PostgresError, psycopg.Error) as second:
        raise PostgresError(
            f"neither {superuser} nor {FORMER_SUPERUSER} can log in: {brief(first)}; {brief(second)}"
        ) from None
    log.info("superuser made", name=superuser)


def _password_words(connection: Connection, password: str) -> str:
    """Return the clause for the password that we were given, which no log of the server can then show."""
    if not password:
        return ""
    verifier = connection.pgconn.encrypt_password(password.encode(), catalog_rules.SUPERUSER.encode(), b"scram-sha-256")
    return f" PASSWORD {literal(verifier.decode())}"


@asynccontextmanager
async def exclusive(connection: Connection) -> AsyncIterator[None]:
    """Keep other maintenance sessions of this database waiting; raise PostgresError if one keeps us too long."""
    try:
        await connection.execute("SELECT pg_catalog.pg_advisory_lock(%s)", (ADVISORY_LOCK,))
    except psycopg.errors.LockNotAvailable:
        holder = await _holder(connection)
        text = f"another maintenance session holds the lock of the catalog{holder} (SQLSTATE 55P03)"
        raise PostgresError(text) from None
    except psycopg.Error as error:
        raise PostgresError(f"cannot get the lock of the catalog: {failure_text(error)}") from None
    try:
        yield
    finally:
        # Closing the session frees the lock too; a broken one cannot say so any more.
        if not connection.closed and not connection.broken:
            with suppress(psycopg.Error), trio.CancelScope(shield=True), trio.move_on_after(1):
                await connection.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (ADVISORY_LOCK,))


async def _holder(connection: Connection) -> str:
    try:
        cursor = await connection.execute(_HOLDERS, (ADVISORY_LOCK,))
        found = [f"pid {pid} of {user}, application {name!r}" for pid, user, name in await cursor.fetchall()]
    except psycopg.Error:  # then the error does without
        return ""
    return f": {brief('; '.join(found))}" if found else ""


async def upgrade_neon_extension(connection: Connection) -> None:
    """Update the neon extension if this database has it."""
    installed = await connection.execute("SELECT 1 FROM pg_catalog.pg_extension WHERE extname = 'neon'")
    if await installed.fetchone() is not None:
        async with exclusive(connection):
            await connection.execute("ALTER EXTENSION neon UPDATE")
        log.info("neon extension is up to date")


def failure_text(error: psycopg.Error) -> str:
    """Return Postgres' own words for an error, on one line, without the statement."""
    return brief(error.diag.message_primary or error)
