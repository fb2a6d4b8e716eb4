"""Sessions for requests: short, limited in time as a whole, with errors that say what to answer (contract 03 A-15)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext

import psycopg
import trio
from msgspec import structs
from psycopg._encodings import pg2pyenc

from trio_compute.db.carried_text import decoded as carried
from trio_compute.db.carried_text import encoded
from trio_compute.db.maintenance import Connection, ConnectRefused, failure_text, maintenance_target, open_maintenance
from trio_compute.deadlines import Deadlines
from trio_compute.errors import NotFound, SqlFailed, TimedOut

NO_SUCH_DATABASE = "3D000"
UNDEFINED_TABLE = "42P01"
DISK_FULL = "53100"
READ_ONLY = "25006"
_TIMEOUTS = frozenset({"57014", "55P03"})
# In these a name is what its bytes are; in all others Postgres would have converted it for us.
_AS_THEY_ARE = frozenset({b"UTF8", b"SQL_ASCII"})


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


def decoded(connection: Connection, value: str) -> str:
    """Return a text that is in the encoding of the database, with replacement characters for what is not."""
    return encoded(value).decode(_codec(connection), "replace")


def as_stored(connection: Connection, name: str) -> str:
    """Return a name as the encoding of the database has it; roles and databases belong to no database."""
    try:
        return carried(name.encode(_codec(connection)))
    except UnicodeEncodeError:  # then nothing there has that name
        return name


def _codec(connection: Connection) -> str:
    encoding = connection.pgconn.parameter_status(b"server_encoding") or b"UTF8"
    return "utf-8" if encoding in _AS_THEY_ARE else pg2pyenc(encoding)
