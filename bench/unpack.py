"""The whole libpq path of a basebackup against `gunzip | tar x` of the same backup."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import trio

from bench import rig
from bench.report import Report, Samples, machine, now, verdict
from trio_compute.embedded import binaries
from trio_compute.embedded.snapshots import capture_if_at_rest
from trio_compute.embedded.wire import serve_session
from trio_compute.embedded.world import World
from trio_compute.host.run_as import RunAs

SUMMARY = "basebackup over libpq against gunzip | tar x, with peak memory"
DEFAULT_RUNS = 5
LARGE_RUNS = 3
PAGE_BYTES = 8192
FILE_BYTES = 8 * 1024 * 1024
RATIO_LIMIT = 1.0
MEMORY_LIMIT_MB = 64.0

# Unpacked megabytes added to the 39 MB of a new cluster; half of every page is noise.
SIZES = {"5 MB": 0, "25 MB": 40, "1 GB unpacked": 1000}

NOTES = [
    "5 and 25 MB are compressed sizes: a new cluster, and one with 40 MB of half-compressible pages; 1 GB is unpacked",
    "ours: connect, CopyData, gunzip, unpack, checks; a process of its own, imports done before the clock starts",
    "the stand-in pageserver lives in the bench process, on the same cores; it sends a prepared buffer from memory",
    "both sides: a fresh directory, sync(2) before the clock starts, no fsync",
    "memory: peak RSS of the whole process above its RSS just before the transfer",
]


def run(runs: int) -> Report:
    """Measure and return the report."""
    return rig.run(partial(_run, runs))


async def _run(runs: int) -> Report:
    samples = Samples()
    places = rig.places()
    with tempfile.TemporaryDirectory(prefix="trio-compute-bench-", dir=rig.DISK) as directory:
        Path(directory).chmod(0o755)
        world = await _seeded(Path(directory))
        for size, extra in SIZES.items():
            backup = await trio.to_thread.run_sync(_make_backup, world, extra)
            for place in places:
                for number in range(1, (runs if extra < 500 else min(runs, LARGE_RUNS)) + 1):
                    rig.say(f"unpack: {size} on {place.label}, run {number}")
                    await _measure(samples, world, backup, f"{size}, {place.label}", place)
    return _report(samples, [f"{size}, {place.label}" for size in SIZES for place in places])


async def _seeded(directory: Path) -> World:
    tree = await trio.to_thread.run_sync(lambda: binaries.ensure(rig.MAJOR, rig.say))
    user = binaries.ordinary_user()
    run_as = RunAs() if user is None else RunAs(user.pw_uid, user.pw_gid, user.pw_dir)
    world = World(directory, tree, rig.MAJOR, run_as)
    await trio.to_thread.run_sync(world.seed)
    return world


def _make_backup(world: World, extra_megabytes: int) -> Path:
    """Return a backup of a new cluster with so many megabytes more."""
    newest = world.snapshots.newest()
    assert newest is not None
    scratch = world.directory / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    with tarfile.open(world.snapshots.path(newest)) as archive:
        archive.extractall(scratch, filter="data")
    for number in range(extra_megabytes * 1024 * 1024 // FILE_BYTES):
        page = os.urandom(PAGE_BYTES // 2) + bytes(PAGE_BYTES // 2)
        pages = b"".join(os.urandom(PAGE_BYTES // 2) + page[PAGE_BYTES // 2 :] for _ in range(FILE_BYTES // PAGE_BYTES))
        (scratch / "base" / "1" / f"{90000 + number}").write_bytes(pages)
    target = world.directory / f"backup-{extra_megabytes}"
    snapshots = type(world.snapshots)(target)
    lsn = capture_if_at_rest(snapshots, world.real_bin, scratch)
    assert lsn is not None
    shutil.rmtree(scratch)
    return snapshots.path(lsn)


async def _measure(samples: Samples, world: World, backup: Path, label: str, place: rig.Place) -> None:
    ours = await _in_fresh_directory(place, partial(_fetch, world, backup))
    samples.add(label, ours["seconds"] * 1000)
    samples.add(f"memory, {label}", ours["peak_mb"] - ours["idle_mb"])
    floor = await _in_fresh_directory(place, partial(_gunzip_tar, backup))
    samples.add_reference(label, floor * 1000)


async def _in_fresh_directory(place: rig.Place, function: Callable[[Path], Coroutine[Any, Any, Any]]) -> Any:
    directory = Path(tempfile.mkdtemp(prefix="trio-compute-bench-", dir=place.directory))
    await trio.to_thread.run_sync(os.sync)
    try:
        return await function(directory)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(directory, ignore_errors=True))


async def _fetch(world: World, backup: Path, target: Path) -> dict[str, float]:
    identity = world.identity
    like = SimpleNamespace(identity=identity, snapshots=type(world.snapshots)(backup.parent))
    pageserver = rig.PreparedPageserver(cast("World", like))
    async with trio.open_nursery() as nursery:
        session = partial(serve_session, authenticate=None, handle_query=pageserver.handle)
        listeners = await nursery.start(partial(trio.serve_tcp, session, 0, host="127.0.0.1"))
        url = f"postgresql://no_user@127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        arguments = [url, identity.tenant_id, identity.timeline_id, str(target)]
        result = await trio.run_process(
            [sys.executable, "-m", "bench.fetch_once", *arguments], capture_stdout=True, stdin=subprocess.DEVNULL
        )
        nursery.cancel_scope.cancel()
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


async def _gunzip_tar(backup: Path, target: Path) -> float:
    with backup.open("rb") as file:
        began = time.monotonic()
        await trio.run_process(["/bin/sh", "-c", 'gunzip | tar x -C "$0"', str(target)], stdin=file)
        return time.monotonic() - began


def _report(samples: Samples, labels: list[str]) -> Report:
    results, aims = [], []
    for label in labels:
        figure = samples.result(label, "ms", against=label, what="gunzip | tar x")
        results.append(figure)
        aims.append(
            verdict(f"basebackup ≤ {RATIO_LIMIT:.1f} × gunzip | tar x, {label}", figure.ratio or 0, RATIO_LIMIT, "×")
        )
    for label in labels:
        memory = samples.result(f"memory, {label}", "MB")
        results.append(memory)
        if label.startswith("1 GB"):
            aims.append(verdict(f"memory above idle, {label}", memory.ours, MEMORY_LIMIT_MB, "MB"))
    return Report(
        bench="unpack",
        date=now(),
        machine=machine(),
        results=results,
        aims=aims,
        notes=NOTES,
        samples=samples.dump(),
    )
