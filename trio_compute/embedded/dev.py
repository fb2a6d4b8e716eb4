"""`trio-compute dev`: a whole world on this machine, one compute in it, until Ctrl-C."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from trio_compute.embedded import binaries
from trio_compute.embedded.compute_child import POLL_SECONDS, ComputeChild, Ports, open_compute
from trio_compute.embedded.progress import Progress
from trio_compute.embedded.world import (
    COMPUTE_ID,
    SUPERUSER,
    World,
    base_settings,
    default_data_directory,
    free_port,
    open_services,
)
from trio_compute.errors import ComputeError, HostError, cause_chain
from trio_compute.host.run_as import RunAs

DEFAULT_POSTGRES_PORT = 55432


def run_dev(argv: Sequence[str]) -> int:
    """Run the sub-command and return its exit code."""
    options = _parser().parse_args(list(argv))
    progress = Progress()
    try:
        return trio.run(_dev, options, progress, restrict_keyboard_interrupt_to_checkpoints=True)
    except* ComputeError as failures:
        progress.say(f"error: {cause_chain(failures)}")
    except* KeyboardInterrupt:
        progress.say("interrupted")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trio-compute dev",
        description="Run a compute on an embedded stand-in for Neon's storage. Data survive a clean end.",
    )
    add = parser.add_argument
    add("--data", metavar="DIR", type=Path, help=f"state of this world (default {default_data_directory()})")
    add("--port", type=int, help=f"Postgres (default {DEFAULT_POSTGRES_PORT}; any free one with --exit-when-ready)")
    add("--external-http-port", type=int, help="default 3080; any free one with --exit-when-ready")
    add("--internal-http-port", type=int, help="default 3081; any free one with --exit-when-ready")
    add(
        "--postgres",
        type=int,
        choices=binaries.MAJORS,
        default=binaries.DEFAULT_MAJOR,
        help="major version (default 17)",
    )
    add("--exit-when-ready", action="store_true", help="take everything down once it runs")
    add("--json", action="store_true", help="with --exit-when-ready: print one JSON object")
    return parser


async def _dev(options: argparse.Namespace, progress: Progress) -> int:
    directory = (options.data or default_data_directory()).absolute()
    tree = await trio.to_thread.run_sync(lambda: binaries.ensure(options.postgres, progress.say))
    with _locked(directory):
        world = await _open_world(directory, tree, options.postgres, progress)
        ports = _ports(options)
        report: dict[str, Any]
        try:
            async with _open_dev_compute(world, ports) as child:
                report = await _start(child, world, progress)
                if not options.exit_when_ready:
                    _introduce(report, progress)
                    await _wait_for_the_end(child)
                report["terminate"] = await _end(child, progress)
        finally:
            lsn = await trio.to_thread.run_sync(world.recover)
            if lsn is not None:
                progress.say(f"saved at {lsn}: the next start continues from here")
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return 0


async def _open_world(directory: Path, tree: Path, major: int, progress: Progress) -> World:
    user = binaries.ordinary_user()
    run_as = RunAs() if user is None else RunAs(user.pw_uid, user.pw_gid, user.pw_dir)
    world = World(directory, tree, major, run_as)
    if world.snapshots.newest() is None:
        progress.say("making a new cluster (once)")
    await trio.to_thread.run_sync(world.seed)
    if await trio.to_thread.run_sync(world.recover) is not None:
        progress.say("took in what the last run left")
    return world


@asynccontextmanager
async def _open_dev_compute(world: World, ports: Ports) -> AsyncIterator[ComputeChild]:
    async with open_services(world) as addresses:
        world.write_config(world.config(addresses, base_settings(ports.postgres)))
        async with open_compute(
            compute_arguments(world, ports),
            ports,
            token=world.api_token(),
            log_path=world.directory / "compute.log",
            environ={**os.environ, "OTEL_SDK_DISABLED": "true"},
        ) as child:
            yield child


def compute_arguments(world: World, ports: Ports) -> list[str]:
    """Return the command line of a compute in a world."""
    user = binaries.ordinary_user()
    return [
        *("--pgbin", str(world.pgbin), "--pgdata", str(world.pgdata), "--compute-id", COMPUTE_ID, "--dev"),
        *("--connstr", connstr(ports, "postgres"), "--config", str(world.config_path)),
        *("--external-http-port", str(ports.external), "--internal-http-port", str(ports.internal)),
        *(("--run-as", user.pw_name) if user is not None else ()),
    ]


def connstr(ports: Ports, database: str) -> str:
    """Return the superuser's connection URL of a compute in a world."""
    return f"postgresql://{SUPERUSER}@127.0.0.1:{ports.postgres}/{database}"


async def _start(child: ComputeChild, world: World, progress: Progress) -> dict[str, Any]:
    progress.say("starting the compute")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_show_progress, child, progress)
        status = await child.reach("running")
        nursery.cancel_scope.cancel()
    spans = await child.spans()
    progress.show(spans)
    return {
        "status": status,
        "metrics": await child.metrics(),
        "spans": spans,
        "connstr": connstr(child.ports, "neondb"),
        "external_url": child.external_url,
        "token": world.api_token(),
    }


async def _show_progress(child: ComputeChild, progress: Progress) -> None:
    await child.reach("init", "running", "empty")
    while True:
        progress.show(await child.spans())
        await trio.sleep(POLL_SECONDS)


def _introduce(report: dict[str, Any], progress: Progress) -> None:
    progress.say(
        "\n".join(
            [
                "",
                f"  psql '{report['connstr']}'",
                f"  curl -H 'Authorization: Bearer {report['token']}' {report['external_url']}/status",
                "",
                "Ctrl-C ends it; the data stay.",
            ]
        )
    )


async def _wait_for_the_end(child: ComputeChild) -> None:
    async with trio.open_nursery() as nursery:

        async def wait_for_signal() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as arrivals:
                await anext(aiter(arrivals))
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_for_signal)
        code = await child.process.wait()
        nursery.cancel_scope.cancel()
    if child.process.returncode is not None:
        raise HostError(f"the compute ended by itself with code {code}; its log ends:\n{child.log_tail()}")


async def _end(child: ComputeChild, progress: Progress) -> dict[str, Any]:
    progress.say("terminating")
    answer = await child.terminate("immediate")
    code = await child.process.wait()
    progress.say(f"terminated at LSN {answer['lsn']}, exit code {code}")
    return {"lsn": answer["lsn"], "exit_code": code}


def _ports(options: argparse.Namespace) -> Ports:
    defaults = (DEFAULT_POSTGRES_PORT, 3080, 3081)
    given = (options.port, options.external_http_port, options.internal_http_port)
    chosen = [
        port or (free_port() if options.exit_when_ready else default)
        for port, default in zip(given, defaults, strict=True)
    ]
    return Ports(*chosen)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep a second `dev` away from the same directory."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot use {directory}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise HostError(f"{directory} is in use by another trio-compute dev") from None
    finally:
        os.close(fd)
