"""Both HTTP servers on loopback ports of their own, and a compute whose other tasks are played by the test."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio

from tests.component.http.tokens import COMPUTE_ID, ED25519_JWK, bearer
from tests.fakes import specs
from tests.fakes.host import FakeHost
from trio_compute.deadlines import Deadlines
from trio_compute.http.exchange import App
from trio_compute.http.serve import serve_app
from trio_compute.http.servers import HttpServers
from trio_compute.http.sockets import bind_sockets
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.status import Status
from trio_compute.model.ids import Lsn
from trio_compute.postgres.postmaster import Postmaster
from trio_compute.services.apply_queue import Job
from trio_compute.services.life import Life
from trio_compute.telemetry.spans import Recorder

STARTED_AT = dt.datetime(2026, 3, 4, 5, 6, 7, tzinfo=dt.UTC)
FLUSH_LSN = Lsn.parse("0/169AD58")
PATIENCE_SECONDS = 10.0
JSON = {"content-type": "application/json"}
_GOOD: Any = object()


def configure_body(**changes: Any) -> bytes:
    """Return a body for `/configure`, another than the spec of a running world; `...` leaves a member out."""
    changes = {"operation_uuid": "a-new-operation", **changes}
    spec = {name: value for name, value in specs.spec_dict(**changes).items() if value is not ...}
    return msgspec.json.encode({"spec": spec, "compute_ctl_config": {"jwks": {"keys": []}}})


def bring_to(compute: Compute, status: Status, **spec_changes: Any) -> None:
    """Lead a fresh compute to a status along the table."""
    known = ev.SpecKnown(spec=specs.parsed(**spec_changes), at=STARTED_AT)
    running = [known, ev.Started()]
    paths: dict[Status, list[ev.Event]] = {
        Status.EMPTY: [],
        Status.CONFIGURATION_PENDING: [*running, ev.ApplyQueued()],
        Status.INIT: [known],
        Status.CONFIGURATION: [*running, ev.ApplyQueued(), ev.ApplyBegan()],
        Status.FAILED: [known, ev.StartFailed(error="could not start")],
        Status.REFRESH_CONFIGURATION_PENDING: [*running, ev.RefreshRequested()],
        Status.REFRESH_CONFIGURATION: [*running, ev.RefreshRequested(), ev.RefreshBegan()],
    }
    for event in paths.get(status, running):
        compute.apply(event)
    compute.postgres_running = status not in {Status.EMPTY, Status.INIT, Status.FAILED, Status.TERMINATED}
    if status is Status.TERMINATION_PENDING_IMMEDIATE:
        compute.request_termination(immediate=True)
    elif status in {Status.TERMINATION_PENDING_FAST, Status.TERMINATED}:
        compute.request_termination(immediate=False)
    if status is Status.TERMINATED:
        compute.finish(ev.Terminated(flush_lsn=FLUSH_LSN))
    assert compute.state.status is status


class World:
    """Hold the servers of one compute and play the rest of the program."""

    def __init__(self, life: Life, servers: HttpServers, ports: tuple[int, int], host: FakeHost) -> None:
        self.life = life
        self.compute = life.compute
        self.queue = life.queue
        self.servers = servers
        self.host = host
        self.errands: trio.CancelScope | None = None
        self.port, self.internal_port = ports

    @property
    def status(self) -> Status:
        return self.compute.state.status

    def client(self, token: str | None = _GOOD, *, internal: bool = False) -> httpx.AsyncClient:
        """Return a client whose requests carry a good token, another one, or none."""
        headers = {} if token is None else bearer() if token is _GOOD else bearer(token)
        return http_client(self.internal_port if internal else self.port, headers)

    @property
    def waiting(self) -> int:
        """Return how many tasks wait for a change of status."""
        return len(self.compute._cell._waiters)

    async def take_job(self) -> Job:
        """Take the next job as the applying task does."""
        job = await self.queue.next()
        assert job is not None
        self.compute.apply(ev.ApplyBegan())
        return job

    def end_errands(self) -> None:
        """Cancel what is being done for requests, as the end of the life of the compute does."""
        assert self.errands is not None
        self.errands.cancel()

    def finish_termination(self, terminated: ev.Terminated) -> None:
        """Say that Postgres is gone, as winding down does."""
        self.compute.postgres_running = False
        self.queue.close()
        self.compute.finish(terminated)


def http_client(port: int, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=PATIENCE_SECONDS, trust_env=False
    )


async def _serve_errands(
    life: Life, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(life.errands.serve)
            task_status.started(scope)


@asynccontextmanager
async def open_world(
    status: Status = Status.RUNNING,
    *,
    keys: Iterable[dict[str, Any]] = (ED25519_JWK,),
    drain_seconds: float = 1.0,
    spec_changes: dict[str, Any] | None = None,
    host: FakeHost | None = None,
    **settings_changes: Any,
) -> AsyncIterator[World]:
    """Serve a compute that has a status; at the end both servers must drain within their limit."""
    changes = {"compute_id": COMPUTE_ID, "external_http_port": 0, "internal_http_port": 0, **settings_changes}
    settings = specs.settings(deadlines=Deadlines(drain=drain_seconds), **changes)
    config = specs.config(compute_ctl_config={"jwks": {"keys": [*keys]}})
    host = host or FakeHost(settings, config)
    life = Life(settings, host, Recorder())
    bring_to(life.compute, status, **(spec_changes or {}))
    if life.compute.postgres_running:
        life.postmaster = Postmaster(host.child, Path("/nowhere"))
    sockets = bind_sockets(settings)
    servers = HttpServers(sockets, life, config)
    ports = (sockets.external_port, sockets.internal_port)
    async with trio.open_nursery() as nursery:
        await nursery.start(servers.serve)
        world = World(life, servers, ports, host)
        world.errands = await nursery.start(_serve_errands, life)
        yield world
        world.end_errands()
        servers.drain()
        nursery.cancel_scope.deadline = trio.current_time() + drain_seconds + PATIENCE_SECONDS
    assert not nursery.cancel_scope.cancelled_caught, "the servers did not end"


class ServedApp:
    """Hold one application that is served alone."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.drain = trio.Event()
        self.ended = trio.Event()


@asynccontextmanager
async def open_app(app: App, *, drain_seconds: float = 1.0, **limits: float) -> AsyncIterator[ServedApp]:
    """Serve any ASGI application as the compute's are served; drained at the end, or earlier by `drain`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        served = ServedApp(listening.getsockname()[1])
        serve = partial(serve_app, app, [listening], draining=served.drain.wait, drain_seconds=drain_seconds, **limits)

        async def serve_to_the_end(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            await serve(task_status=task_status)
            served.ended.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(serve_to_the_end)
            yield served
            served.drain.set()
            nursery.cancel_scope.deadline = trio.current_time() + drain_seconds + PATIENCE_SECONDS
        assert not nursery.cancel_scope.cancelled_caught, "the server did not end"


async def stands(condition: Callable[[], bool]) -> None:
    """Wait for something that announces itself to nobody, such as the kernel's list of our sockets."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():
            await trio.sleep(0.005)
