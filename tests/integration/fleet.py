"""Several computes of one embedded world, each with ports of its own; commits wait for the safekeepers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import trio

from tests.integration.dev_process import alive, kill_tree
from trio_compute.embedded.compute_child import ComputeChild, Ports
from trio_compute.embedded.dev import connstr, open_endpoint
from trio_compute.embedded.endpoints import Addresses, Endpoint
from trio_compute.embedded.free_ports import free_port
from trio_compute.embedded.world import World, base_settings
from trio_compute.model.ids import Lsn

POLL_SECONDS = 0.01


class Member:
    """Hold one running compute of a fleet."""

    def __init__(self, endpoint: Endpoint, child: ComputeChild) -> None:
        self.endpoint = endpoint
        self.child = child

    async def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement over a connection of its own."""
        return await trio.to_thread.run_sync(self._run, statement)

    def _run(self, statement: str) -> list[tuple[Any, ...]]:
        url = connstr(self.child.ports, "postgres")
        with psycopg.connect(url, autocommit=True, sslmode="disable") as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    async def lsn(self) -> Lsn:
        """Return up to where a primary has committed."""
        return Lsn.parse((await self.sql("SELECT pg_current_wal_flush_lsn()"))[0][0])

    async def replayed(self, lsn: Lsn) -> None:
        """Wait until a standby has replayed up to an LSN; Postgres before 18 offers nothing to wait for."""
        with trio.fail_after(20):
            while (await self.sql(f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"))[0] != (True,):
                await trio.sleep(POLL_SECONDS)

    async def end(self) -> Lsn | None:
        """Terminate the compute over HTTP and return its LSN."""
        answer = await self.child.terminate("immediate")
        assert await self.child.process.wait() == 0
        return None if answer["lsn"] is None else Lsn.parse(answer["lsn"])

    async def kill(self) -> None:
        """Kill the compute and its Postgres with all backends."""
        pids = kill_tree(self.child.process.pid)
        await self.child.process.wait()
        while any(map(alive, pids)):
            await trio.sleep(POLL_SECONDS)


class Fleet:
    """Run computes in a world whose services run already."""

    def __init__(self, world: World, addresses: Addresses) -> None:
        self.world = world
        self.addresses = addresses
        # Known before anything runs, since the safekeepers must know where a primary may appear.
        self.ports = {name: Ports(free_port(), free_port(), free_port()) for name in ("primary", "replica", "static")}

    @asynccontextmanager
    async def compute(self, endpoint: Endpoint | None = None) -> AsyncIterator[Member]:
        """Run the primary, or another compute of the world, until the block ends."""
        endpoint = endpoint or self.world.primary
        config = self.world.config(
            self.addresses,
            base_settings(self.ports[endpoint.name].postgres),
            endpoint=endpoint,
            durable=endpoint.is_primary,
            primary_port=self.ports["primary"].postgres,
        )
        async with self.compute_with(config, endpoint) as member:
            yield member

    @asynccontextmanager
    async def compute_with(self, config: dict[str, Any], endpoint: Endpoint | None = None) -> AsyncIterator[Member]:
        """Run a compute with a configuration of the test's."""
        endpoint = endpoint or self.world.primary
        async with open_endpoint(self.world, config, endpoint, self.ports[endpoint.name]) as child:
            await child.reach("running")
            yield Member(endpoint, child)
