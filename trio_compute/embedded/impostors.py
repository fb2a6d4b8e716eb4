"""Whoever else calls himself as our receiver does, or keeps it out: he is ended at once, and that is told (T-19).

This is order, not safety. An impostor's first word may count before anybody can look, and Postgres then no longer
waits for us until it is started again. What makes that harmless is that its own WAL is kept (own_wal.py).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg
import trio

from trio_compute.db.connection import TrioConnection, open_connection
from trio_compute.db.target import Target
from trio_compute.errors import ComputeError, PostgresError

LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 5.0
AGAIN_SECONDS = 0.2
OWN_PIDS = 8
NAME = "dev_receiver_guard"
LIES = "; it acknowledged what nobody has stored: commits wait for the safekeepers again after a restart"

# Names are compared as Postgres compares them. A look at our own past connections would find what ends by itself.
_LOOK = """\
SELECT a.usename::text, a.application_name, a.pid,
       coalesce((SELECT r.flush_lsn > pg_catalog.pg_current_wal_flush_lsn()
                 FROM pg_catalog.pg_stat_replication r WHERE r.pid = a.pid), false),
       pg_catalog.pg_terminate_backend(a.pid)
FROM pg_catalog.pg_stat_activity a
WHERE a.backend_type = 'walsender' AND a.pid <> ALL (%(ours)s)
  AND (pg_catalog.lower(a.application_name) = %(name)s
       OR a.pid IN (SELECT s.active_pid FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = %(slot)s)
       OR %(crowded)s AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles o WHERE o.oid = a.usesysid AND o.rolsuper))"""


class Guard:
    """Look after the place of our receiver at one primary; `ours` holds the pids of its walsenders, old ones too."""

    def __init__(self, user: str, name: str, slot: str, say: Callable[[str], object]) -> None:
        self._user = user
        self._name = name
        self._slot = slot
        self._say = say
        self._answered = math.inf
        self.ours: deque[int] = deque(maxlen=OWN_PIDS)

    async def watch(self, port: int, scope: trio.CancelScope) -> None:
        """End impostors at a primary until the scope is cancelled."""
        self._answered = trio.current_time()
        with scope:
            while True:
                try:
                    await self._keep_looking(port)
                except (ComputeError, psycopg.Error, trio.TooSlowError) as error:
                    self._complain(error)
                await trio.sleep(AGAIN_SECONDS)

    async def _keep_looking(self, port: int) -> None:
        async with open_connection(self._target(port), connect_timeout_seconds=PATIENCE_SECONDS) as connection:
            while True:
                await self._look(connection, crowded=False)
                self._answered = trio.current_time()
                await trio.sleep(LOOK_SECONDS)

    def _complain(self, error: Exception) -> None:
        # A primary that comes or goes says no for a moment.
        if trio.current_time() - self._answered > PATIENCE_SECONDS:
            self._answered = math.inf
            self._say(f"nobody looks for impostors of the safekeepers: {error}")

    async def make_room(self, port: int, *, crowded: bool) -> None:
        """End once who has our name or slot, and if it is crowded every receiver that is no superuser's."""
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                async with open_connection(self._target(port)) as connection:
                    await self._look(connection, crowded=crowded)
        except (psycopg.Error, trio.TooSlowError) as error:
            raise PostgresError(f"no room can be made for the receiver: {error}") from error

    def _target(self, port: int) -> Target:
        return Target("127.0.0.1", port, self._user, "postgres", application_name=NAME)

    async def _look(self, connection: TrioConnection[Any], *, crowded: bool) -> None:
        values = {"ours": list(self.ours), "name": self._name, "slot": self._slot, "crowded": crowded}
        with trio.fail_after(PATIENCE_SECONDS):
            rows = await (await connection.execute(_LOOK.encode(), values, prepare=True)).fetchall()
        for user, name, pid, lied, _ in rows:
            self._say(
                f"ended a receiver of role {user!r} that called itself {name!r} (pid {pid}){LIES if lied else ''}"
            )
