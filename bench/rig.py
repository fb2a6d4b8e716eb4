"""The test rig: computes and bare Postgres servers side by side, on the same backup, configuration and filesystem."""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import trio

import trio_compute
from bench.probe import cpu_seconds, fetch, filesystem
from bench.report import Stretch
from trio_compute.embedded import binaries
from trio_compute.embedded.compute_child import Ports
from trio_compute.embedded.dev import compute_arguments
from trio_compute.embedded.endpoints import Addresses
from trio_compute.embedded.free_ports import free_port
from trio_compute.embedded.page_commands import BasebackupCommand
from trio_compute.embedded.pageserver import Pageserver
from trio_compute.embedded.progress import SpanView
from trio_compute.embedded.services import open_services
from trio_compute.embedded.snapshots import Snapshots
from trio_compute.embedded.wire import Session, message
from trio_compute.embedded.world import World, base_settings
from trio_compute.errors import HostError
from trio_compute.host.run_as import RunAs
from trio_compute.postgres.postmaster import is_ready

MAJOR = 17
DISK = Path("/var/tmp")
MEMORY = Path("/dev/shm")
COPY_SLICE_BYTES = 128 * 1024
NEEDED_BYTES = 500_000_000
READY_POLL_SECONDS = 0.002
STATUS_POLL_SECONDS = 0.02
IDLE_WINDOW_SECONDS = 0.25
IDLE_SHARE = 0.02
PATIENCE_SECONDS = 60.0
STOP_SECONDS = 15.0
LOG_TAIL_CHARACTERS = 2000

T = TypeVar("T")


class Place(NamedTuple):
    """Name a filesystem on which data directories are made."""

    label: str
    directory: Path


class Ready(NamedTuple):
    """Hold a bare Postgres server that accepts connections, and how long that took from its spawn."""

    process: trio.Process
    seconds: float


def run(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a bench; a stop signal cancels it, so that everything is cleaned up, and then ends us with 128 + its number.

    Expected errors leave as ComputeError, not as a group.
    """
    results: list[T] = []
    stopped_by: list[signal.Signals] = []

    async def watch(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as arrivals:
            task_status.started()
            async for number in arrivals:
                stopped_by.append(signal.Signals(number))
                scope.cancel()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: watch(nursery.cancel_scope, task_status))
            results.append(await function())
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except* HostError as group:
        raise _leaf(group) from None
    if stopped_by:
        raise SystemExit(128 + stopped_by[0])
    return results[0]


def _leaf(group: BaseExceptionGroup[HostError]) -> HostError:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Run something that blocks in a thread, which is left to itself when we are cancelled."""
    return await trio.to_thread.run_sync(partial(function, *args), abandon_on_cancel=True)


class PreparedPageserver(Pageserver):
    """Serve a backup from memory, its protocol messages made beforehand: the least work beside what is measured."""

    def __init__(self, like: World) -> None:
        super().__init__({(like.identity.tenant_id, like.identity.timeline_id): like.snapshots})
        self._prepared: dict[Path, bytes] = {}

    async def _send_archive(self, session: Session, snapshots: Snapshots, command: BasebackupCommand) -> None:
        path = snapshots.at(command.lsn)
        if path not in self._prepared:
            data = path.read_bytes()
            slices = (data[at : at + COPY_SLICE_BYTES] for at in range(0, len(data), COPY_SLICE_BYTES))
            self._prepared[path] = b"".join(message(b"d", piece) for piece in slices)
        await session.send(self._prepared[path])


class Compute:
    """Talk to one compute, which is a child process of ours."""

    def __init__(self, process: trio.Process, started: float, ports: Ports, token: str, log_path: Path) -> None:
        self.process = process
        self.started = started
        self.ports = ports
        self.token = token
        self.log_path = log_path

    async def status(self) -> str:
        """Return the status."""
        answer = await in_thread(partial(fetch, self.ports.external, "GET", "/status", token=self.token))
        return str(msgspec.json.decode(answer.body)["status"])

    async def reach(self, wanted: str) -> float:
        """Wait for a status, polling seldom, and return when it was seen; raise HostError if it cannot come."""
        with trio.move_on_after(PATIENCE_SECONDS):
            while self.process.returncode is None:
                try:
                    status = await self.status()
                except ConnectionError:
                    status = ""
                if status == wanted:
                    return time.monotonic()
                if status == "failed":
                    break
                await trio.sleep(STATUS_POLL_SECONDS)
        raise HostError(f"the compute did not become {wanted}; its log ends:\n{self.log_tail()}")

    async def settle(self) -> None:
        """Wait until the compute does nothing any more: whatever it loads or warms up late is done then."""
        with trio.fail_after(PATIENCE_SECONDS):
            used = cpu_seconds(self.process.pid)
            while True:
                await trio.sleep(IDLE_WINDOW_SECONDS)
                before, used = used, cpu_seconds(self.process.pid)
                if used - before < IDLE_WINDOW_SECONDS * IDLE_SHARE:
                    return

    async def post(self, path: str, body: object = None) -> tuple[float, Any]:
        """Post, and return how many seconds the answer took and what it says; raise HostError unless it is 2xx."""
        data = b"" if body is None else msgspec.json.encode(body)
        began = time.monotonic()
        answer = await in_thread(partial(fetch, self.ports.external, "POST", path, token=self.token, body=data))
        seconds = time.monotonic() - began
        if answer.status // 100 != 2:
            raise HostError(f"POST {path} answered {answer.status}: {answer.body.decode()}; log:\n{self.log_tail()}")
        return seconds, msgspec.json.decode(answer.body)

    async def spans(self) -> list[SpanView]:
        """Return the spans that are finished."""
        answer = await in_thread(fetch, self.ports.internal, "GET", "/spans")
        spans = msgspec.json.decode(answer.body, type=list[SpanView])
        return [span for span in spans if span.duration_seconds is not None]

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]


class Rig:
    """Hold one embedded world whose data directories can be put on several filesystems."""

    def __init__(self, world: World, addresses: Addresses) -> None:
        self.world = world
        self.ports = Ports(free_port(), free_port(), free_port())
        config = world.config(addresses, base_settings(self.ports.postgres))
        # Neither does the floor apply a catalog.
        config["spec"]["skip_pg_catalog_updates"] = True
        self.config: dict[str, Any] = config
        self.backup = world.snapshots.at(None)
        self._conf = ""

    @asynccontextmanager
    async def on(self, place: Place) -> AsyncIterator[None]:
        """Put data directories on a filesystem; everything is gone from there afterwards."""
        directory = Path(tempfile.mkdtemp(prefix="trio-compute-bench-", dir=place.directory))
        directory.chmod(0o755)
        self.world.pgdata = directory / "pgdata"
        try:
            await self._warm_up()
            yield
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    async def _warm_up(self) -> None:
        """Fill the caches, let the safekeepers learn where the backup ends, and take the rendered configuration."""
        async with self.compute(with_spec=True) as compute:
            await compute.reach("running")
            self._conf = (self.world.pgdata / "postgresql.conf").read_text(encoding="utf-8")
            await compute.post("/terminate?mode=immediate")

    @asynccontextmanager
    async def compute(self, *, with_spec: bool) -> AsyncIterator[Compute]:
        """Run a compute on a fresh data directory, as a child with the production command line."""
        world = self.world
        world.write_config(self.config if with_spec else {**self.config, "spec": None})
        await self._clear()
        log_path = world.directory / "compute.log"
        with log_path.open("wb") as log_file:
            started = time.monotonic()
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "trio_compute", "run", *compute_arguments(world, self.ports)],
                stdin=subprocess.DEVNULL,
                stdout=log_file.fileno(),
                stderr=log_file.fileno(),
                env={**os.environ, "OTEL_SDK_DISABLED": "true"},
                process_group=0,
            )
        try:
            yield Compute(process, started, self.ports, world.api_token(), log_path)
        finally:
            await _stop(process, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL)
            _kill_left_over_server(world.pgdata)

    async def _clear(self) -> None:
        """Remove the data directory, and let the disk finish what is left of earlier runs."""

        def clear() -> None:
            shutil.rmtree(self.world.pgdata, ignore_errors=True)
            os.sync()

        await trio.to_thread.run_sync(clear)

    async def unpack_floor(self) -> float:
        """Unpack the backup with gunzip and tar into a fresh data directory and return the seconds it took."""
        await self._clear()
        pgdata, user = self.world.pgdata, self.world.run_as
        pgdata.mkdir(mode=0o700)
        (pgdata / "postgresql.conf").write_text(self._conf, encoding="utf-8")
        for path in (pgdata, pgdata / "postgresql.conf"):
            user.own(path)
        command = ["/bin/sh", "-c", 'gunzip | tar x -C "$0"', str(pgdata)]
        # Shielded: a killed shell would leave its pipeline behind, writing into a directory that is being removed.
        began = time.monotonic()
        with self.backup.open("rb") as file, trio.CancelScope(shield=True):
            await trio.run_process(command, stdin=file, cwd="/", **user.process_options())
        return time.monotonic() - began

    @asynccontextmanager
    async def bare_postgres(self) -> AsyncIterator[Ready]:
        """Run Postgres itself on the unpacked data directory, as the user that a compute would take."""
        world = self.world
        log_path = world.directory / "floor.log"
        with log_path.open("wb") as log_file:
            began = time.monotonic()
            process = await trio.lowlevel.open_process(
                [str(world.real_bin / "postgres"), "-D", str(world.pgdata)],
                stdin=subprocess.DEVNULL,
                stdout=log_file.fileno(),
                stderr=log_file.fileno(),
                cwd="/",
                process_group=0,
                **world.run_as.process_options(),
            )
        try:
            if not await _becomes_ready(process, world.pgdata / "postmaster.pid"):
                raise HostError(f"Postgres does not start: {log_path.read_text(encoding='utf-8', errors='replace')}")
            yield Ready(process, time.monotonic() - began)
        finally:
            await _stop(process, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    """Make an embedded world in a temporary directory and serve it; all of it is gone afterwards."""
    # As the install does; without bytecode every start would compile anew what was edited since.
    compileall.compile_dir(Path(trio_compute.__file__).parent, quiet=1)
    tree = await trio.to_thread.run_sync(lambda: binaries.ensure(MAJOR, say))
    user = binaries.ordinary_user()
    run_as = RunAs() if user is None else RunAs(user.pw_uid, user.pw_gid, user.pw_dir)
    directory = Path(tempfile.mkdtemp(prefix="trio-compute-bench-", dir=DISK))
    try:
        world = World(directory, tree, MAJOR, run_as)
        await trio.to_thread.run_sync(world.seed)
        world.pageserver = PreparedPageserver(world)
        async with open_services(world) as addresses:
            yield Rig(world, addresses)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def places() -> list[Place]:
    """Return the filesystems that are measured: the disk, and memory where there is room in it."""
    found = [Place("disk" if filesystem(DISK) != "tmpfs" else "/var/tmp on tmpfs", DISK)]
    if MEMORY.is_dir() and filesystem(MEMORY) == "tmpfs" and shutil.disk_usage(MEMORY).free > NEEDED_BYTES:
        found.append(Place("tmpfs", MEMORY))
    return found


def waterfall(spans: Sequence[SpanView], *, origin_seconds: float) -> list[Stretch]:
    """Return the spans that began at or after an origin."""
    return [
        Stretch(
            name=span.name,
            parent=span.parent,
            start_ms=(span.start_seconds - origin_seconds) * 1000,
            duration_ms=(span.duration_seconds or 0.0) * 1000,
        )
        for span in spans
        if span.start_seconds >= origin_seconds - 1e-4
    ]


async def _becomes_ready(process: trio.Process, pid_file: Path) -> bool:
    with trio.move_on_after(PATIENCE_SECONDS):
        while process.returncode is None:
            if is_ready(pid_file, process.pid):
                return True
            await trio.sleep(READY_POLL_SECONDS)
    return False


def say(text: str) -> None:
    """Tell progress on stderr."""
    print(text, file=sys.stderr, flush=True)


async def _stop(process: trio.Process, *signals: signal.Signals) -> None:
    """End a child, in stages, whether or not we are being cancelled."""
    with trio.CancelScope(shield=True):
        for number in signals:
            if process.returncode is not None:
                break
            process.send_signal(number)
            with trio.move_on_after(STOP_SECONDS if number is not signal.SIGKILL else float("inf")):
                await process.wait()


def _kill_left_over_server(pgdata: Path) -> None:
    """Kill a Postgres that outlived a compute which had to be killed itself."""
    try:
        pid = int((pgdata / "postmaster.pid").read_text(encoding="ascii").split()[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return
    if os.fsencode(pgdata) in command:
        os.kill(pid, signal.SIGQUIT)
