"""`trio-compute dev`: a whole world on this machine, a primary in it and what reads from it, until Ctrl-C."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from trio_compute.embedded import binaries
from trio_compute.embedded.branches import MAIN, Identity, known_identity
from trio_compute.embedded.compute_child import POLL_SECONDS, ComputeChild, Ports, open_compute
from trio_compute.embedded.dev_branch import run_branch
from trio_compute.embedded.dev_faults import HELP as FAULTS_HELP
from trio_compute.embedded.dev_faults import pageserver_faults, parse_fault, spoils_token
from trio_compute.embedded.endpoints import Addresses, Endpoint, reach_moment, static_mode
from trio_compute.embedded.free_ports import free_port
from trio_compute.embedded.leftover import end_left_over
from trio_compute.embedded.progress import Progress
from trio_compute.embedded.services import open_services
from trio_compute.embedded.world import World, base_settings, default_data_directory
from trio_compute.errors import ComputeError, HostError, cause_chain
from trio_compute.host.run_as import RunAs
from trio_compute.model.catalog_rules import SUPERUSER
from trio_compute.model.ids import Lsn

DEFAULT_POSTGRES_PORT = 25432  # below the range from which the kernel gives ports to clients
MAX_SHARDS = 255
OTHER_TENANT = "0" * 32


def run_dev(argv: Sequence[str]) -> int:
    """Run the sub-command and return its exit code."""
    progress = Progress()
    if argv[:1] == ["branch"]:
        return run_branch(argv[1:], progress)
    if argv[:1] == ["failover"]:
        from trio_compute.embedded.dev_failover import run_failover

        return run_failover(argv[1:], progress)
    options = _parser().parse_args(list(argv))
    # Who was started in the background of a script has this signal ignored, and would miss it while it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
        description="Run a compute on an embedded stand-in for Neon's storage. What was committed is there at the next "
        "start, however this one ended. `trio-compute dev branch --help` tells about branches, "
        "`trio-compute dev failover --help` about a switch to a secondary.",
    )
    add = parser.add_argument
    add("--data", metavar="DIR", type=Path, help=f"state of this world (default {default_data_directory()})")
    add("--branch", metavar="NAME", default=MAIN, help=f"run on this branch (default {MAIN})")
    add("--replica", action="store_true", help="run a second compute beside the primary, which streams from it")
    add(
        "--read-only-at",
        metavar="LSN",
        type=_lsn,
        action="append",
        default=[],
        help="run one more compute beside it, which shows the state at an LSN; may be repeated",
    )
    add("--port", type=int, help=f"Postgres (default {DEFAULT_POSTGRES_PORT}; any free one with --exit-when-ready)")
    add("--external-http-port", type=int, help="default 3080; any free one with --exit-when-ready")
    add("--internal-http-port", type=int, help="default 3081; any free one with --exit-when-ready")
    add("--postgres", type=int, choices=binaries.MAJORS, help="major version (default the world's, 17 for a new one)")
    add(
        "--shards",
        type=_shards,
        default=0,
        metavar="N",
        help="let N pageservers share the tenant (default not sharded)",
    )
    add("--pageserver-protocol", choices=("libpq", "grpc"), default="libpq", help="what they speak (default libpq)")
    add(
        "--fault",
        type=parse_fault,
        action="append",
        default=[],
        metavar="FAULT",
        help=f"may be repeated: {FAULTS_HELP}",
    )
    add("--exit-when-ready", action="store_true", help="take everything down once it runs")
    add("--json", action="store_true", help="with --exit-when-ready: print one JSON object")
    return parser


def _lsn(text: str) -> Lsn:
    try:
        return Lsn.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _shards(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= MAX_SHARDS:
        raise argparse.ArgumentTypeError(f"a tenant has 1 to {MAX_SHARDS} shards")
    return number


async def _dev(options: argparse.Namespace, progress: Progress) -> int:
    directory = (options.data or default_data_directory()).absolute()
    known = known_identity(directory)
    major = options.postgres or (known.postgres_major if known is not None else binaries.DEFAULT_MAJOR)
    tree = await trio.to_thread.run_sync(lambda: binaries.ensure(major, progress.say))
    with _locked(directory, options.branch, known):
        world = await _open_world(directory, tree, major, options.branch, progress)
        world.pageserver.faults = pageserver_faults(options.fault)
        ports = _ports(options)
        try:
            report = await _run_computes(world, ports, options, progress)
        finally:
            # A Postgres whose compute was killed still writes.
            await end_left_over(world.data_directories())
            lsn = await trio.to_thread.run_sync(world.recover)
            if lsn is not None:
                progress.say(f"saved at {lsn}: the next start continues from here")
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return 0


async def _open_world(directory: Path, tree: Path, major: int, branch: str, progress: Progress) -> World:
    user = binaries.ordinary_user()
    run_as = RunAs() if user is None else RunAs(user.pw_uid, user.pw_gid, user.pw_dir)
    world = World(directory, tree, major, run_as, branch=branch)
    if world.snapshots.newest() is None:
        progress.say("making a new cluster (once)")
    await trio.to_thread.run_sync(world.seed)
    if await end_left_over(world.data_directories()):
        progress.say("ended what the last run left running")
    lsn = await trio.to_thread.run_sync(world.recover)
    if lsn is not None:
        progress.say(f"took in what the last run left, up to {lsn}")
    return world


async def _run_computes(world: World, ports: Ports, options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Run the primary and what was asked for beside it; return the report."""
    readers = [(endpoint, Ports(free_port(), free_port(), free_port())) for endpoint in _readers(world, options)]
    candidates = [ports.postgres, *(its.postgres for endpoint, its in readers if endpoint.mode == "Replica")]
    async with (
        open_services(world, shards=options.shards, protocol=options.pageserver_protocol) as addresses,
        world.open_receiver(*candidates, say=progress.say),
        AsyncExitStack() as stack,
    ):
        token = world.storage_token(OTHER_TENANT if spoils_token(options.fault) else None)
        run = partial(_run_compute, stack, world, addresses, token=token, progress=progress)
        primary, report = await run(world.primary, ports)
        others = [await run(endpoint, its, primary_port=ports.postgres) for endpoint, its in readers]
        if not options.exit_when_ready:
            _introduce([report, *(told for _, told in others)], progress)
            await _wait_for_the_end([primary, *(child for child, _ in others)])
        # A primary that stops waits for its replicas; they go first.
        for child, told in reversed(others):
            told["terminate"] = await _end(child, progress)
        return {**report, "terminate": await _end(primary, progress), "readers": [told for _, told in others]}


def _readers(world: World, options: argparse.Namespace) -> list[Endpoint]:
    replica = [world.endpoint("replica", "Replica")] if options.replica else []
    for lsn in options.read_only_at:
        world.timeline.require_readable(lsn)
    return [
        *replica,
        *(
            world.endpoint("static" if number == 1 else f"static-{number}", static_mode(lsn))
            for number, lsn in enumerate(options.read_only_at, 1)
        ),
    ]


async def _run_compute(
    stack: AsyncExitStack,
    world: World,
    addresses: Addresses,
    endpoint: Endpoint,
    ports: Ports,
    *,
    token: str,
    progress: Progress,
    primary_port: int | None = None,
) -> tuple[ComputeChild, dict[str, Any]]:
    config = world.config(
        addresses,
        base_settings(ports.postgres),
        endpoint=endpoint,
        durable=endpoint.is_primary,
        primary_port=primary_port,
    )
    config["spec"]["storage_auth_token"] = token
    child = await stack.enter_async_context(open_endpoint(world, config, endpoint, ports))
    return child, await _start(child, world, endpoint, progress)


@asynccontextmanager
async def open_endpoint(
    world: World, config: dict[str, Any], endpoint: Endpoint, ports: Ports
) -> AsyncIterator[ComputeChild]:
    """Run a compute of a world for as long as the block runs, with the production command line."""
    world.write_config(config, endpoint)
    async with open_compute(
        compute_arguments(world, ports, endpoint),
        ports,
        token=world.api_token(endpoint),
        log_path=endpoint.log_path,
        environ={**os.environ, "OTEL_SDK_DISABLED": "true"},
    ) as child:
        yield child


def compute_arguments(world: World, ports: Ports, endpoint: Endpoint | None = None) -> list[str]:
    """Return the command line of a compute in a world, the primary unless told otherwise."""
    user = binaries.ordinary_user()
    compute_id = (endpoint or world.primary).compute_id
    pgdata = world.pgdata if endpoint is None else endpoint.pgdata
    config_path = world.config_path if endpoint is None else endpoint.config_path
    return [
        *("--pgbin", str(world.pgbin), "--pgdata", str(pgdata), "--compute-id", compute_id, "--dev"),
        *("--connstr", connstr(ports, "postgres"), "--config", str(config_path)),
        *("--external-http-port", str(ports.external), "--internal-http-port", str(ports.internal)),
        *(("--run-as", user.pw_name) if user is not None else ()),
    ]


def connstr(ports: Ports, database: str) -> str:
    """Return the superuser's connection URL of a compute in a world."""
    return f"postgresql://{SUPERUSER}@127.0.0.1:{ports.postgres}/{database}"


async def _start(child: ComputeChild, world: World, endpoint: Endpoint, progress: Progress) -> dict[str, Any]:
    progress.say("starting the compute" if endpoint.is_primary else f"starting the {endpoint.name}")
    phases = progress.again()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_show_progress, child, phases)
        status = await child.reach("running")
        nursery.cancel_scope.cancel()
    if endpoint.pinned_lsn is not None:
        await reach_moment(connstr(child.ports, "postgres"), endpoint.pinned_lsn)
    spans = await child.spans()
    phases.show(spans)
    return {
        "name": endpoint.name,
        "mode": endpoint.mode,
        "status": status,
        "metrics": await child.metrics(),
        "spans": spans,
        "connstr": connstr(child.ports, "neondb"),
        "external_url": child.external_url,
        "token": world.api_token(endpoint),
    }


async def _show_progress(child: ComputeChild, progress: Progress) -> None:
    await child.reach("init", "running", "empty")
    while True:
        progress.show(await child.spans())
        await trio.sleep(POLL_SECONDS)


def _introduce(reports: Sequence[dict[str, Any]], progress: Progress) -> None:
    lines = []
    for report in reports:
        lines += [
            *(["", f"the {report['name']}"] if len(reports) > 1 else [""]),
            f"  psql '{report['connstr']}'",
            f"  curl -H 'Authorization: Bearer {report['token']}' {report['external_url']}/status",
            f"  {report['external_url']}/ in a browser shows it, with the same token",
        ]
    progress.say("\n".join([*lines, "", "Ctrl-C ends it; the data stay."]))


async def _wait_for_the_end(children: Sequence[ComputeChild]) -> None:
    """Wait for a stop signal; raise HostError if a compute ends before."""
    async with trio.open_nursery() as nursery:

        async def wait_for_signal() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as arrivals:
                await anext(aiter(arrivals))
            nursery.cancel_scope.cancel()

        async def wait_for(child: ComputeChild) -> None:
            await child.process.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_for_signal)
        for child in children:
            nursery.start_soon(wait_for, child)
    for child in children:
        code = child.process.returncode
        if code is not None:
            raise HostError(f"a compute ended by itself with code {code}; its log ends:\n{child.log_tail()}")


async def _end(child: ComputeChild, progress: Progress) -> dict[str, Any]:
    progress.say("terminating")
    answer = await child.terminate("immediate")
    code = await child.process.wait()
    where = "" if answer["lsn"] is None else f" at LSN {answer['lsn']}"
    progress.say(f"terminated{where}, exit code {code}")
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
def _locked(directory: Path, branch: str, known: Identity | None) -> Iterator[None]:
    """Keep a second `dev` away from the same branch."""
    if branch == MAIN:
        path = directory / "lock"
    elif known is None:
        raise HostError(f"there is no branch {branch!r}: {directory} holds no world yet")
    else:
        path = directory / "timelines" / known.timeline_of(branch) / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot use {directory}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        what = f"{directory}" if branch == MAIN else f"branch {branch} of {directory}"
        raise HostError(f"{what} is in use by another trio-compute dev") from None
    try:
        yield
    finally:
        os.close(fd)
