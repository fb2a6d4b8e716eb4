"""Clients that write while a switch happens, and remember every commit that was acknowledged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import psycopg
import trio
from msgspec import Struct

from trio_compute.db.connection import TrioConnection, open_connection
from trio_compute.db.target import Target
from trio_compute.errors import PostgresError

CREATE = "CREATE TABLE public.failover_load (writer int, number int)"
INSERT = "INSERT INTO public.failover_load VALUES (%s, %s)"
SELECT = "SELECT writer, number FROM public.failover_load"
CONNECT_SECONDS = 1.0
RETRY_SECONDS = 0.005
READ_ONLY_RETRY_SECONDS = 0.005
PATIENT_REFUSALS = 20


class Commit(Struct, frozen=True):
    """Hold one acknowledged row: whose, which, when on the monotonic clock, and by which server."""

    writer: int
    number: int
    at: float
    server: int


class Gap(Struct, frozen=True):
    """Hold the longest time in which no commit was acknowledged."""

    begin: float
    seconds: float


class WriteLoad:
    """Insert one row after another from several clients, at whichever of some servers takes it."""

    def __init__(self, urls: Sequence[str], *, writers: int) -> None:
        self._targets = [Target.parse(url) for url in urls]
        self._writers = writers
        self._stopping = False
        self.commits: list[Commit] = []
        self.moved = trio.Event()

    async def run(self) -> None:
        """Write until `stop`, through all errors: a client tries the servers in turn, as one behind a proxy would."""
        async with trio.open_nursery() as nursery:
            for writer in range(self._writers):
                nursery.start_soon(self._write, writer)

    def stop(self) -> None:
        """Let each client finish the row that it is at."""
        self._stopping = True

    async def _write(self, writer: int) -> None:
        number = server = 0
        while not self._stopping:
            try:
                async with open_connection(self._targets[server], connect_timeout_seconds=CONNECT_SECONDS) as session:
                    number = await self._insert(session, writer, number, server)
            except (psycopg.Error, PostgresError):
                # A row whose commit was not acknowledged may be there or not; its number is not used again.
                number += 1
                server = (server + 1) % len(self._targets)
                await trio.sleep(RETRY_SECONDS)

    async def _insert(self, session: TrioConnection[object], writer: int, number: int, server: int) -> int:
        refusals = 0
        while not self._stopping:
            try:
                await session.execute(INSERT, (writer, number))
            except psycopg.errors.ReadOnlySqlTransaction:
                refusals += 1
                if refusals > PATIENT_REFUSALS:
                    raise
                # It may be promoted any moment; a new connection would cost the server more than a new try.
                await trio.sleep(READ_ONLY_RETRY_SECONDS)
                continue
            refusals = 0
            self.commits.append(Commit(writer, number, time.monotonic(), server))
            if server > 0:
                self.moved.set()
            number += 1
        return number

    def gap(self) -> Gap:
        """Return the longest time between two acknowledged commits, of whichever client."""
        times = sorted(commit.at for commit in self.commits)
        pauses = [Gap(before, after - before) for before, after in pairwise(times)]
        return max(pauses, key=lambda gap: gap.seconds, default=Gap(0.0, 0.0))

    async def lost(self, server: int) -> int:
        """Return how many acknowledged rows a server does not have."""
        async with open_connection(self._targets[server]) as session:
            rows = await (await session.execute(SELECT)).fetchall()
        return len({(commit.writer, commit.number) for commit in self.commits} - {tuple(row) for row in rows})
