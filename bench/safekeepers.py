"""The safekeeper check against one plain round trip to one safekeeper."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from bench import rig
from bench.report import Report, Samples, machine, now, verdict
from trio_compute.db.connection import open_connection
from trio_compute.db.target import Target
from trio_compute.embedded.endpoints import Addresses
from trio_compute.embedded.services import open_services
from trio_compute.embedded.world import World
from trio_compute.model.addresses import split_host_port
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec, parse_spec
from trio_compute.model.spec import Cluster, ComputeSpec
from trio_compute.storage.safekeepers import check_safekeepers_synced

SUMMARY = "safekeeper check of three against one plain round trip"
DEFAULT_RUNS = 101
RATIO_LIMIT = 2.0
LSN = Lsn.parse("0/2000000")

NOTES = [
    "one round trip: connect, log in, TIMELINE_STATUS, close, on the same Trio connection class",
    "the check asks three safekeepers at once and needs two answers; all of them live in the bench process",
    "in a start the check runs beside the making of PGDATA: see prepare_pgdata in the startup bench",
]


def run(runs: int) -> Report:
    """Measure and return the report."""
    return rig.run(partial(_run, runs))


async def _run(runs: int) -> Report:
    samples = Samples()
    async with rig.open_rig() as stand:
        world = stand.world
        for member in world.safekeepers.members:
            member.advance(f"{world.identity.tenant_id}/{world.identity.timeline_id}", LSN)
        async with open_services(world) as addresses:
            parsed, target = _spec(world, addresses), _target(world, addresses.safekeepers[0])
            for _ in range(runs):
                samples.add(
                    "check of three", await _timed(partial(check_safekeepers_synced, parsed, timeout_seconds=5))
                )
                samples.add_reference("round trip", await _timed(partial(_round_trip, target)))
    figure = samples.result("check of three", "ms", against="round trip", what="one plain round trip")
    aims = [verdict(f"check ≤ {RATIO_LIMIT:.0f} × one round trip", figure.ratio or 0, RATIO_LIMIT, "×")]
    return Report(bench="safekeepers", date=now(), machine=machine(), results=[figure], aims=aims, notes=NOTES)


async def _timed(function: Callable[[], Awaitable[object]]) -> float:
    began = time.monotonic()
    await function()
    return (time.monotonic() - began) * 1000


def _spec(world: World, addresses: Addresses) -> ParsedSpec:
    return parse_spec(
        ComputeSpec(
            format_version=1.0,
            cluster=Cluster(roles=[], databases=[]),
            suspend_timeout_seconds=-1,
            tenant_id=world.identity.tenant_id,
            timeline_id=world.identity.timeline_id,
            pageserver_connstring=addresses.pageserver,
            safekeeper_connstrings=addresses.safekeepers,
            storage_auth_token=world.storage_token(),
        )
    )


def _target(world: World, address: str) -> Target:
    host, port = split_host_port(address, what="safekeeper")
    identity = world.identity
    options = f"-c timeline_id={identity.timeline_id} tenant_id={identity.tenant_id}"
    return Target(
        host=host, port=port, user="no_user", dbname="no_user", password=world.storage_token(), options=options
    )


async def _round_trip(target: Target) -> None:
    async with open_connection(target) as connection:
        await (await connection.execute("TIMELINE_STATUS")).fetchone()
    await trio.lowlevel.checkpoint()
