"""The one door to Postgres: how sessions of the superuser are opened (contract 05 §2, 11 T-01 … T-07)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import trio
from psycopg.adapt import AdaptersMap
from psycopg.pq import DiagnosticField

from trio_compute.db import event_triggers
from trio_compute.db.carried_text import ADAPTERS, encoded, escaped
from trio_compute.db.connection import ConnectFailed, TrioConnection
from trio_compute.db.fortress import (
    EVENT_TRIGGERS_SINCE,
    OPENING,
    as_former_superuser,
    fortified,
    is_modern,
    learn_major,
    modern,
    neutral_values,
    refuses_modern,
    setting_statement,
)
from trio_compute.db.refusal import ACCEPTED, refusal
from trio_compute.db.target import Target
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.model import catalog_rules
from trio_compute.model.catalog_rules import FORMER_SUPERUSER
from trio_compute.plan.catalog.blocks import NOTABLE
from trio_compute.plan.catalog.quoting import identifier, literal
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
_NO_LOGIN = frozenset({"28P01", "28000"})
_NO_SLOT = frozenset({"53300"})
_NOT_YET = frozenset({"57P03"})
# Who is let in when asked once more, or gets as far as the options, may have failed for want of a place a moment ago.
_LET_IN = frozenset({ACCEPTED, "42704"})
MOST_SECOND_CHANCES = 3
_SUPERUSER_FOUND = """\
SELECT rolpassword IS NOT NULL FROM pg_catalog.pg_authid WHERE rolname OPERATOR(pg_catalog.=) %s"""
# Whoever owns an extension may add to it, and what it brings runs as superuser when it is updated.
_HAS_EXTENSION = """\
SELECT 1 FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_authid o ON o.oid OPERATOR(pg_catalog.=) e.extowner
WHERE e.extname OPERATOR(pg_catalog.=) 'neon' AND o.rolsuper"""

log = get_logger("catalog")


class ConnectRefused(PostgresError):
    """Report that no maintenance session could be opened; `sqlstate` is None if the server did not even answer."""

    def __init__(self, message: str, sqlstate: str | None) -> None:
        super().__init__(f"{message} (SQLSTATE {sqlstate})" if sqlstate else message)
        self.sqlstate = sqlstate


class Connection(TrioConnection[tuple[Any, ...]]):
    """A session of the superuser in which nothing of a stranger takes effect."""

    # Settings of the database and of the role that were undone: names and values that hold instead, alternately.
    undone: tuple[str, ...] = ()
    # Before 17, whether this database has event triggers that fire even in a session like this one.
    wakes_event_triggers = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._adapters = AdaptersMap(ADAPTERS)
        self.prepare_threshold = None

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows, none if it has no result; psycopg's errors are passed on."""
        cursor = await self.execute(encoded(query), parameters or None)
        return await cursor.fetchall() if cursor.description else []

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[None]:
        """Open a transaction for statements that could set off event triggers, which stand still meanwhile (T-02)."""
        async with self.transaction():
            sleepers = await event_triggers.silence(self.rows) if self.wakes_event_triggers else []
            yield
            await event_triggers.wake(self.rows, sleepers)


def maintenance_target(connstr: str, purpose: str, deadlines: Deadlines) -> Target:
    """Return where a maintenance session goes, with options that no database, role or operator can undo (T-01)."""
    return fortified(Target.parse(connstr), purpose, deadlines)


def fortress_options(connstr: str, deadlines: Deadlines) -> str:
    """Return the options of such a session for a child that speaks SQL itself, such as pg_dump."""
    target = maintenance_target(connstr, "child", deadlines)
    return modern(target).options if is_modern(target) else target.options


@asynccontextmanager
async def open_maintenance(
    target: Target, deadlines: Deadlines, *, retry_seconds: float | None = None
) -> AsyncIterator[Connection]:
    """Open a session that does not report our own changes to the control plane.

    While there is no free connection it is tried again, for `catalog_retry` unless `retry_seconds` says otherwise.
    Raises PostgresError.
    """
    retry_seconds = deadlines.catalog_retry if retry_seconds is None else retry_seconds
    connection = await _connect(target, deadlines, trio.current_time() + retry_seconds)
    try:
        connection.add_notice_handler(_log_notice)
        await _shut_out_strangers(connection)
        yield connection
    finally:
        await connection.close()


async def _shut_out_strangers(connection: Connection) -> None:
    """Undo what the database and the role set for their sessions, and make sure that we are who we mean to be."""
    try:
        ((_, user, wakes, hostile),) = await connection.rows(OPENING)
        if hostile:
            connection.undone = words = tuple(neutral_values(hostile))
            await connection.rows(setting_statement(len(words) // 2), *words)
    except psycopg.Error as error:
        raise ConnectRefused(failure_text(error), error.sqlstate) from None
    if user not in {catalog_rules.SUPERUSER, FORMER_SUPERUSER}:
        raise ConnectRefused(f"the session is one of {escaped(user)!r}, not of {catalog_rules.SUPERUSER}", None)
    connection.wakes_event_triggers = wakes and _major(connection) < EVENT_TRIGGERS_SINCE


def _log_notice(notice: psycopg.errors.Diagnostic) -> None:
    about = brief(notice.message_primary or "")
    if notice.sqlstate == NOTABLE:
        log.warning("catalog", about=about)
    else:
        log.debug("notice", severity=notice.severity_nonlocalized, about=about)


async def _connect(target: Target, deadlines: Deadlines, give_up_at: float) -> Connection:
    pause, chances = FIRST_PAUSE_SECONDS, MOST_SECOND_CHANCES
    fallen_back = False
    while True:
        try:
            return await _connect_once(target, deadlines.catalog_connect)
        except ConnectFailed as error:
            state = await refusal(modern(target), timeout_seconds=deadlines.catalog_connect)
            if state in _NO_LOGIN and not fallen_back:
                fallen_back = True
                await _make_superuser(target, deadlines, error)
                continue
            chances -= state in _LET_IN
            can_pass = state in _NO_SLOT | _NOT_YET or (state in _LET_IN and chances >= 0)
            if not can_pass or trio.current_time() + pause > give_up_at:
                raise ConnectRefused(brief(error), None if state in _LET_IN else state) from None
            log.warning("no free connection to Postgres", retry_in_seconds=pause)
        await trio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def _connect_once(target: Target, timeout_seconds: float) -> Connection:
    """Connect with all options that the server knows; which these are is found out once.

    Only a server that says that it does not know them is asked without: else whoever can make us fail could have a
    login trigger of 17 run in our session.
    """
    if is_modern(target) is not False:
        try:
            connection = await Connection.connect(modern(target), connect_timeout_seconds=timeout_seconds)
        except ConnectFailed as error:
            if is_modern(target) or not refuses_modern(target, str(error)):
                raise
        else:
            learn_major(target, _major(connection))
            return connection
    connection = await Connection.connect(target, connect_timeout_seconds=timeout_seconds)
    learn_major(target, _major(connection))
    if not is_modern(target):
        return connection
    await connection.close()  # not the server that we knew
    return await Connection.connect(modern(target), connect_timeout_seconds=timeout_seconds)


def _major(connection: Connection) -> int:
    return connection.info.server_version // 10000


async def _make_superuser(target: Target, deadlines: Deadlines, first: ConnectFailed) -> None:
    """Give an old cluster the superuser that all work is done as (K-11)."""
    superuser = catalog_rules.SUPERUSER
    try:
        connection = await _connect_once(as_former_superuser(target), deadlines.catalog_connect)
        try:
            await _shut_out_strangers(connection)
            async with connection.transaction():
                known = await connection.rows(_SUPERUSER_FOUND, superuser)
                word = "ALTER" if known else "CREATE"
                is_ours = target.user == superuser and known != [(True,)]
                password = _password_words(connection, target.password) if is_ours else ""
                await connection.rows(f"{word} ROLE {identifier(superuser)} SUPERUSER LOGIN{password}")
                await connection.rows(f"GRANT {identifier(FORMER_SUPERUSER)} TO {identifier(superuser)}")
        finally:
            await connection.close()
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


async def upgrade_neon_extension(connection: Connection) -> None:
    """Update the neon extension if this database has it."""
    if await connection.rows(_HAS_EXTENSION):
        async with connection.changes():
            await connection.rows("ALTER EXTENSION neon UPDATE")
        log.info("neon extension is up to date")


def failure_text(error: psycopg.Error) -> str:
    """Return Postgres' own words for an error, on one line, without the statement."""
    return error_field(error, DiagnosticField.MESSAGE_PRIMARY) or brief(error)


def error_field(error: psycopg.Error, field: DiagnosticField) -> str | None:
    """Return one field of an error as text that everybody can show, None if the server did not send it."""
    value = error.pgresult.error_field(field) if error.pgresult is not None else None
    return None if value is None else brief(value.decode(errors="backslashreplace"))
