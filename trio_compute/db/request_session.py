"""Sessions for requests: short, limited in time as a whole, with errors that say what to answer (contract 03 A-15)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any

import psycopg
import trio
from msgspec import structs
from psycopg._encodings import pg2pyenc
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.types.string import StrDumperUnknown

from trio_compute.db.maintenance import Connection, ConnectRefused, failure_text, maintenance_target, open_maintenance
from trio_compute.errors import NotFound, SqlFailed, TimedOut
from trio_compute.settings import Deadlines

NO_SUCH_DATABASE = "3D000"
UNDEFINED_TABLE = "42P01"
DISK_FULL = "53100"
READ_ONLY = "25006"
_TIMEOUTS = frozenset({"57014", "55P03"})
_TEXTS = ("text", "name", "varchar", "bpchar")
# In these a name is what its bytes are; in all others Postgres would have converted it for us.
_AS_THEY_ARE = frozenset({b"UTF8", b"SQL_ASCII"})


class _TextLoader(Loader):
    """Carry bytes that are not UTF-8 as lone surrogates, so that nothing in a catalog makes reading fail (T-06)."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "surrogateescape")


class _TextDumper(StrDumperUnknown):
    """Give such bytes back as they came."""

    def dump(self, obj: str) -> bytes:
        return obj.encode("utf-8", "surrogateescape")


@asynccontextmanager
async def open_request_session(
    connstr: str,
    purpose: str,
    deadlines: Deadlines,
    *,
    database: str | None = None,
    turn: AbstractAsyncContextManager[None] | None = None,
) -> AsyncIterator[Connection]:
    """Open a maintenance session in a database, by default the URL's, and bound all that is done with it.

    `turn` is entered first, within the same limit. Raises TimedOut, NotFound for an unknown database, and SqlFailed,
    also for what the block lets out of psycopg.
    """
    limits = structs.replace(
        deadlines,
        catalog_connect=deadlines.request_connect,
        catalog_retry=deadlines.request_connect,
        catalog_statement=deadlines.request_total,
        catalog_lock=deadlines.request_total,
    )
    target = maintenance_target(connstr, purpose, limits)
    target = target if database is None else target.replace(dbname=database)
    try:
        with trio.fail_after(deadlines.request_total):
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(nullcontext() if turn is None else turn)
                with trio.fail_after(deadlines.request_connect):
                    connection = await stack.enter_async_context(open_maintenance(target, limits))
                    await _carry_bytes(connection)
                yield connection
    except trio.TooSlowError:
        raise TimedOut from None
    except ConnectRefused as error:
        if error.sqlstate == NO_SUCH_DATABASE and database is not None:
            raise NotFound(f"database {database!r} does not exist") from None
        raise SqlFailed(str(error), error.sqlstate) from None
    except psycopg.Error as error:
        if error.sqlstate in _TIMEOUTS:
            raise TimedOut from None
        raise SqlFailed(failure_text(error), error.sqlstate) from None


async def _carry_bytes(connection: Connection) -> None:
    """Let texts come and go as they are, whatever the encoding of the database (T-06)."""
    await connection.execute("SET client_encoding = 'SQL_ASCII'")
    for name in _TEXTS:
        connection.adapters.register_loader(name, _TextLoader)
    connection.adapters.register_dumper(str, _TextDumper)
    # What a tenant may have set for the database would let a check look at the past.
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)


def is_text(value: str) -> bool:
    """Tell whether a value of the catalog is UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: str) -> str:
    """Return a text of the catalog for people, with escapes for what is not UTF-8."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def decoded(connection: Connection, value: str) -> str:
    """Return a text that is in the encoding of the database, with replacement characters for what is not."""
    return value.encode("utf-8", "surrogateescape").decode(_codec(connection), "replace")


def as_stored(connection: Connection, name: str) -> str:
    """Return a name as the encoding of the database has it; roles and databases belong to no database."""
    try:
        return name.encode(_codec(connection)).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # then nothing there has that name
        return name


def _codec(connection: Connection) -> str:
    encoding = connection.pgconn.parameter_status(b"server_encoding") or b"UTF8"
    return "utf-8" if encoding in _AS_THEY_ARE else pg2pyenc(encoding)


async def run(connection: Connection, statement: str) -> None:
    """Send a statement without parameters."""
    await connection.execute(statement.encode("utf-8", "surrogateescape"))


async def rows(connection: Connection, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Return all rows of a query."""
    sent = query.encode("utf-8", "surrogateescape")
    return await (await connection.execute(sent, parameters or None)).fetchall()
