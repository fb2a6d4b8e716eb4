"""A switch to a prewarmed secondary under load, against Postgres' own stop and promotion without any of us."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from bench import rig
from bench.report import Report, Samples, Stretch, machine, now, stretches, verdict
from trio_compute.db.connection import open_connection
from trio_compute.db.target import Target
from trio_compute.embedded import binaries
from trio_compute.embedded.failover import FailoverReport, fail_over, open_pair
from trio_compute.embedded.world import World
from trio_compute.host.run_as import RunAs

SUMMARY = "write gap of a switch to a prewarmed secondary against Postgres' own stop + promote"
DEFAULT_RUNS = 10
LIMIT_ABOVE_MS = 150.0
WRITERS = 4
SETTLE_SECONDS = 0.5

T = TypeVar("T")

GAP = "write gap"
FLOOR = "own stop + own promote"

NOTES = [
    f"{WRITERS} clients insert row by row, each commit waits for the receiver; they try both servers in turn",
    "the gap is the longest time between two acknowledged commits, whichever client they are of",
    "floor: SIGINT → postmaster gone, then SELECT pg_promote(), in such a pair with nobody writing, in turns",
    "the stand-in's neon extension answers for the cache: prewarm and offload here tell nothing about a real cache",
]


def run(runs: int) -> Report:
    """Measure and return the report."""
    return rig.run(partial(_run, runs))


async def _run(runs: int) -> Report:
    samples, timelines, lost = Samples(), list[list[Stretch]](), 0
    tree = await trio.to_thread.run_sync(lambda: binaries.ensure(rig.MAJOR, rig.say))
    for number in range(1, runs + 1):
        rig.say(f"failover: run {number} of {runs}")
        samples.add_reference(FLOOR, await _in_a_world(tree, _floor))
        report = await _in_a_world(tree, _ours)
        lost += report.rows_lost
        timelines.append(
            [Stretch(name=it.name, start_ms=it.start_ms, duration_ms=it.duration_ms) for it in report.timeline]
        )
        _take(samples, report)
    return _report(samples, timelines, lost)


async def _in_a_world(tree: Path, measure: Callable[[World], Awaitable[T]]) -> T:
    """Measure something in a fresh world, which is removed afterwards."""
    user = binaries.ordinary_user()
    run_as = RunAs() if user is None else RunAs(user.pw_uid, user.pw_gid, user.pw_dir)
    directory = Path(tempfile.mkdtemp(prefix="trio-compute-bench-", dir=rig.places()[-1].directory))
    directory.chmod(0o755)
    try:
        world = World(directory, tree, rig.MAJOR, run_as)
        await trio.to_thread.run_sync(world.seed)
        return await measure(world)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _ours(world: World) -> FailoverReport:
    async with open_pair(world, rig.say) as pair:
        report = await fail_over(pair, writers=WRITERS, settle_seconds=SETTLE_SECONDS, say=lambda _text: None)
        await pair.secondary.terminate("immediate")
        return report


async def _floor(world: World) -> float:
    """Return how many milliseconds Postgres itself takes to stop and, beside it, to be promoted."""
    async with open_pair(world, rig.say) as pair:
        await trio.sleep(SETTLE_SECONDS)
        pid = int((world.primary.pgdata / "postmaster.pid").read_text(encoding="ascii").split()[0])
        async with open_connection(Target.parse(pair.urls[1])) as session:
            began = time.monotonic()
            await _end(pid)
            await session.execute("SELECT pg_promote()")
            return (time.monotonic() - began) * 1000


async def _end(pid: int) -> None:
    """Interrupt a process that is not our child and wait until it is gone."""
    fd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGINT)
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)


def _take(samples: Samples, report: FailoverReport) -> None:
    samples.add(GAP, report.write_gap_ms)
    samples.add("terminate (answer of /terminate)", report.terminate_ms)
    for state in (report.promote, report.prewarm, report.offload):
        for name, value in state.items():
            if name.endswith("_time_ms"):
                samples.add(name, value)
    samples.add("rows written", report.rows_written)
    samples.add("rows lost", report.rows_lost)


def _report(samples: Samples, timelines: list[list[Stretch]], lost: int) -> Report:
    gap = samples.result(GAP, "ms", against=FLOOR)
    others = [samples.result(name, "rows" if "rows" in name else "ms") for name in samples.ours if name != GAP]
    aims = [
        verdict(f"write gap ≤ floor + {LIMIT_ABOVE_MS:g} ms", gap.ours, (gap.reference or 0) + LIMIT_ABOVE_MS, "ms"),
        verdict("acknowledged rows lost, of all runs", lost, 0, "rows"),
    ]
    return Report(
        bench="failover",
        date=now(),
        machine=machine(),
        results=[gap, *others],
        aims=aims,
        breakdown={"one switch": stretches(timelines)},
        notes=NOTES,
        samples=samples.dump(),
    )
