"""The SQL of a promotion (contract 08 §6.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import trio
from msgspec import structs

from trio_compute.db.maintenance import Connection, failure_text, maintenance_target, open_maintenance
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.model.ids import Lsn
from trio_compute.plan.catalog.quoting import literal
from trio_compute.plan.promotion import SAFEKEEPERS, STANDBY_NAMES

RELOAD_SECONDS = 5.0
POLL_SECONDS = 0.01

_POSITION = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text"
_VALUE = "SELECT pg_catalog.current_setting(%s, true)"
# Each of the two settings, and whether it stands in the file of ALTER SYSTEM, in another one, or in both.
_PLACES = """\
SELECT pg_catalog.lower(f.name), pg_catalog.bool_or(f.sourcefile OPERATOR(pg_catalog.~) '/postgresql[.]auto[.]conf$'),
       pg_catalog.bool_or(f.sourcefile OPERATOR(pg_catalog.!~) '/postgresql[.]auto[.]conf$')
FROM pg_catalog.pg_file_settings f WHERE pg_catalog.lower(f.name) OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[])
GROUP BY 1"""


class PromotionSession:
    """Speak to a replica that shall become a primary, over one maintenance session."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def replayed(self) -> Lsn | None:
        """Return up to where WAL is replayed, zero if nothing is; None if the server is not in recovery."""
        ((in_recovery, position),) = await self._rows(_POSITION)
        return Lsn.parse(position or "0/0") if in_recovery else None

    async def override(self, name: str, value: str) -> None:
        """Give a setting a value that wins over postgresql.conf; effective after a reload."""
        await self._rows(f"ALTER SYSTEM SET {name} = {literal(value)}")

    async def reload(self, name: str, value: str) -> None:
        """Let the server read its files, and wait until a setting has a value; raise PostgresError if it does not."""
        await self._rows("SELECT pg_catalog.pg_reload_conf()")
        with trio.move_on_after(RELOAD_SECONDS):
            while await self._rows(_VALUE, (name,)) != [(value,)]:  # noqa: ASYNC110  (Postgres tells nobody)
                await trio.sleep(POLL_SECONDS)
            return
        raise PostgresError(f"{name} did not take effect within {RELOAD_SECONDS:g} s")

    async def promote(self) -> bool:
        """End recovery and wait until the server takes writes, for as long as it grants by itself; return whether."""
        return bool(await self._rows("SELECT * FROM pg_catalog.pg_promote()") == [(True,)])

    async def is_read_only(self) -> bool:
        """Tell whether a transaction of ours could not write."""
        return await self._rows("SHOW transaction_read_only") == [("on",)]

    async def reset(self, *, replaced_only: bool) -> frozenset[str]:
        """Take overrides back and reload, with `replaced_only` only where postgresql.conf has the setting too.

        Returns the names of those that stay.
        """
        places = await self._rows(_PLACES, ([SAFEKEEPERS, STANDBY_NAMES],))
        kept = {name for name, overridden, replaced in places if overridden and replaced_only and not replaced}
        for name, overridden, _ in places:
            if overridden and name not in kept:
                await self._rows(f"ALTER SYSTEM RESET {name}")
        await self._rows("SELECT pg_catalog.pg_reload_conf()")
        return frozenset(kept)

    async def _rows(self, query: str, parameters: tuple[Any, ...] | None = None) -> list[tuple[Any, ...]]:
        try:
            return await self._connection.rows(query, *(parameters or ()))
        except psycopg.Error as error:
            raise PostgresError(failure_text(error)) from None


@asynccontextmanager
async def open_promotion_session(connstr: str, deadlines: Deadlines) -> AsyncIterator[PromotionSession]:
    """Open a session whose statements may take as long as they need; raise PostgresError."""
    unlimited = structs.replace(deadlines, catalog_statement=0.0)
    async with open_maintenance(maintenance_target(connstr, "apply_config", unlimited), deadlines) as connection:
        yield PromotionSession(connection)
