"""Sessions for the functions of the neon extension that save and load the local file cache (contract 08 §3.3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from msgspec import structs

from trio_compute.db.maintenance import Connection, failure_text, maintenance_target, open_maintenance
from trio_compute.db.own_objects import require_own_schema
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.model.lfc import PrewarmInfo

_LOAD = "SELECT neon.prewarm_local_cache(%b)"
_INFO = "SELECT total_pages, prewarmed_pages, skipped_pages, active_workers FROM neon.get_prewarm_info()"
_STATE = "SELECT neon.get_local_cache_state()"


class CacheSession:
    """Speak to the extension over one maintenance session."""

    def __init__(self, connection: Connection, refusal: PostgresError | None) -> None:
        # Why nothing may be called: functions of these names would be somebody else's (contract 11 T-02).
        self._refusal = refusal
        # Who gives up waiting has asked the server already, or the server is about to go.
        connection.cancel_seconds = 0.0
        self._connection = connection

    async def load(self, state: bytes) -> bool:
        """Load the pages that a state names; return False if a cancellation ended it. Raise PostgresError."""
        self._require_ours()
        try:
            await self._connection.execute(_LOAD, (state,))
        except psycopg.errors.QueryCanceled:
            return False
        except psycopg.Error as error:
            raise PostgresError(failure_text(error)) from None
        return True

    async def cancel(self) -> None:
        """Ask the server to cancel what this session runs, and nothing else; raise PostgresError if that fails."""
        try:
            await self._connection.cancel_safe(timeout=5.0)
        except psycopg.Error as error:
            raise PostgresError(failure_text(error)) from None

    async def info(self) -> PrewarmInfo:
        """Return how far the latest prewarm is or was; raise PostgresError."""
        self._require_ours()
        try:
            row = await (await self._connection.execute(_INFO)).fetchone()
        except psycopg.Error as error:
            raise PostgresError(failure_text(error)) from None
        return PrewarmInfo(*(row or (None, None, None, None)))

    async def state(self) -> bytes | None:
        """Return the list of cached pages, None where there is no cache; raise PostgresError."""
        try:
            self._require_ours()
            # In the binary format; as text it would be twice as long.
            row = await (await self._connection.execute(_STATE, binary=True)).fetchone()
        except PostgresError as error:
            raise PostgresError("querying LFC state") from error
        except psycopg.Error as error:
            raise PostgresError("querying LFC state") from PostgresError(failure_text(error))
        value = None if row is None else row[0]
        if value is not None and not isinstance(value, bytes):
            raise PostgresError("deserializing LFC state") from PostgresError(
                f"it is no bytea but {type(value).__name__}"
            )
        return value

    def _require_ours(self) -> None:
        if self._refusal is not None:
            raise self._refusal


@asynccontextmanager
async def open_cache_session(connstr: str, deadlines: Deadlines, purpose: str) -> AsyncIterator[CacheSession]:
    """Open a session whose statements may take as long as they need; raise PostgresError."""
    unlimited = structs.replace(deadlines, catalog_statement=0.0)
    async with open_maintenance(maintenance_target(connstr, purpose, unlimited), deadlines) as connection:
        refusal = None
        try:
            await require_own_schema(connection, "neon")
        except PostgresError as error:
            refusal = error
        except psycopg.Error as error:
            refusal = PostgresError(failure_text(error))
        yield CacheSession(connection, refusal)
