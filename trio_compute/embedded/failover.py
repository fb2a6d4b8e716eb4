"""The choreography of a switch: prewarm a secondary, terminate the primary, promote (contract 08 §6.5)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import trio
from msgspec import Struct

from trio_compute.db.connection import open_connection
from trio_compute.db.target import Target
from trio_compute.embedded.compute_child import ComputeChild, Ports
from trio_compute.embedded.dev import connstr, open_endpoint
from trio_compute.embedded.endpoints import Addresses, Endpoint
from trio_compute.embedded.failover_load import CREATE, WriteLoad
from trio_compute.embedded.free_ports import free_port
from trio_compute.embedded.services import open_services
from trio_compute.embedded.world import World, base_settings
from trio_compute.errors import HostError

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 120.0
PROMOTION_STEPS = {
    "lsn_wait_time_ms": "wait for the LSN",
    "pg_promote_time_ms": "promote Postgres",
    "reconfigure_time_ms": "reconfigure",
}

Say = Callable[[str], object]


class Stretch(Struct, frozen=True):
    """Hold one bar of the timeline: in which lane, what, and when, in milliseconds since the load began."""

    lane: str
    name: str
    start_ms: float
    duration_ms: float


class FailoverReport(Struct, frozen=True, kw_only=True):
    """Say what a switch cost: rows that were written and lost, the gap in writing, and how long each step took."""

    rows_written: int
    rows_lost: int
    write_gap_ms: float
    lsn: str
    offload: dict[str, Any]
    prewarm: dict[str, Any]
    terminate_ms: float
    promote: dict[str, Any]
    timeline: list[Stretch]


class Pair(Struct, frozen=True):
    """Hold a primary, the secondary that streams from it, and what the secondary becomes."""

    primary: ComputeChild
    secondary: ComputeChild
    primary_spec: dict[str, Any]
    urls: tuple[str, str]
    endpoint_id: str


class _Timeline:
    """Take down what happens when."""

    def __init__(self) -> None:
        self.origin = time.monotonic()
        self.stretches: list[Stretch] = []

    @contextmanager
    def measure(self, lane: str, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.add(lane, name, begin, time.monotonic() - begin)

    def add(self, lane: str, name: str, begin: float, seconds: float) -> None:
        stretch = Stretch(lane, name, round((begin - self.origin) * 1000, 1), round(seconds * 1000, 1))
        self.stretches.append(stretch)


@asynccontextmanager
async def open_pair(world: World, say: Say) -> AsyncIterator[Pair]:
    """Run a primary whose commits wait for the safekeepers, and a secondary beside it."""
    ports = [Ports(free_port(), free_port(), free_port()) for _ in range(2)]
    replica = world.endpoint("replica", "Replica")
    async with (
        open_services(world) as addresses,
        world.open_receiver(*(each.postgres for each in ports), say=say),
        AsyncExitStack() as stack,
    ):
        config = world.config(addresses, base_settings(ports[0].postgres), durable=True)
        start = partial(_start, stack, world)
        primary = await start(config, world.primary, ports[0])
        secondary = await start(_replica_config(world, addresses, replica, ports), replica, ports[1])
        await _prepare(connstr(ports[0], "postgres"))
        yield Pair(
            primary,
            secondary,
            config["spec"],
            (connstr(ports[0], "postgres"), connstr(ports[1], "postgres")),
            world.primary.endpoint_id,
        )


def _replica_config(world: World, addresses: Addresses, replica: Endpoint, ports: list[Ports]) -> dict[str, Any]:
    settings = base_settings(ports[1].postgres)
    return world.config(addresses, settings, endpoint=replica, primary_port=ports[0].postgres)


async def _start(
    stack: AsyncExitStack, world: World, config: dict[str, Any], endpoint: Endpoint, ports: Ports
) -> ComputeChild:
    child = await stack.enter_async_context(open_endpoint(world, config, endpoint, ports))
    await child.reach("running")
    return child


async def _prepare(url: str) -> None:
    """Make the table of the load and the extension that has the functions of the cache."""
    async with open_connection(Target.parse(url)) as session:
        await session.execute(CREATE)
        await session.execute("CREATE SCHEMA IF NOT EXISTS neon")
        await session.execute("CREATE EXTENSION IF NOT EXISTS neon WITH SCHEMA neon")


async def fail_over(pair: Pair, *, writers: int, settle_seconds: float, say: Say) -> FailoverReport:
    """Switch from the primary to the secondary under load and return what it cost; raise HostError if a step fails."""
    timeline, load = _Timeline(), WriteLoad(pair.urls, writers=writers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run)
        await trio.sleep(settle_seconds)
        with timeline.measure("primary", "offload the cache's state"):
            offload = await _finish(pair.primary, "/lfc/offload", "")
        with timeline.measure("secondary", "prewarm"):
            prewarm = await _finish(pair.secondary, "/lfc/prewarm", f"?from_endpoint={pair.endpoint_id}")
        say(f"prewarmed: {prewarm['status']}")
        began = time.monotonic()
        with timeline.measure("primary", "terminate"):
            lsn = (await pair.primary.terminate("immediate"))["lsn"]
        terminate_ms = (time.monotonic() - began) * 1000
        say(f"primary terminated at {lsn}")
        promote = await _promote(pair, lsn, timeline)
        with trio.move_on_after(PATIENCE_SECONDS) as patience:
            await load.moved.wait()
            await trio.sleep(settle_seconds)
        load.stop()
        if patience.cancelled_caught:
            nursery.cancel_scope.cancel()
    if patience.cancelled_caught:
        raise HostError("the promoted secondary takes no writes")
    gap = load.gap()
    timeline.add("writes", "no commit acknowledged", gap.begin, gap.seconds)
    return FailoverReport(
        rows_written=len(load.commits),
        rows_lost=await load.lost(1),
        write_gap_ms=round(gap.seconds * 1000, 1),
        lsn=lsn,
        offload=offload,
        prewarm=prewarm,
        terminate_ms=round(terminate_ms, 1),
        promote=promote,
        timeline=sorted(timeline.stretches, key=lambda stretch: stretch.start_ms),
    )


async def _finish(child: ComputeChild, path: str, query: str) -> dict[str, Any]:
    """Begin a job and poll it to its end; raise HostError if it fails."""
    await child.post(path + query)
    with trio.move_on_after(PATIENCE_SECONDS):
        while True:
            state = await child.get(path)
            if state["status"] in {"completed", "skipped"}:
                return state
            if state["status"] in {"failed", "cancelled"}:
                raise HostError(f"{path} is {state['status']}: {state.get('error', '')}")
            await trio.sleep(POLL_SECONDS)
    raise HostError(f"{path} does not end")


async def _promote(pair: Pair, lsn: str, timeline: _Timeline) -> dict[str, Any]:
    began = time.monotonic()
    with timeline.measure("secondary", "POST /promote"):
        state = await pair.secondary.post("/promote", {"spec": pair.primary_spec, "wal_flush_lsn": lsn})
    if state.get("status") != "completed":
        raise HostError(f"/promote is {state}")
    # Its steps follow one another; only their lengths are known here.
    for field, name in PROMOTION_STEPS.items():
        seconds = state[field] / 1000
        timeline.add("secondary", name, began, seconds)
        began += seconds
    return state
