"""The external and the internal server of one compute."""

from __future__ import annotations

from functools import partial
from typing import Any

import trio

from trio_compute.http.authorize import Authorizer
from trio_compute.http.context import Context
from trio_compute.http.front import Front, LazyApp, Route, read
from trio_compute.http.routes.refresh_configuration import refresh_configuration
from trio_compute.http.routes.status import status_body
from trio_compute.http.routes.terminate import terminate
from trio_compute.http.serve import serve_app
from trio_compute.http.sockets import BoundSockets
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.status import Status
from trio_compute.model.decode import encode
from trio_compute.model.spec import ComputeConfig
from trio_compute.ports import Host
from trio_compute.services.apply_queue import ApplyQueue


class HttpServers:
    """Serve both APIs from the time they are started until they are drained."""

    def __init__(
        self, sockets: BoundSockets, compute: Compute, queue: ApplyQueue, host: Host, config: ComputeConfig
    ) -> None:
        self._sockets = sockets
        self._compute = compute
        self._draining = trio.Event()
        context = Context(compute, queue, host)
        settings = compute.settings
        jwks = config.compute_ctl_config.jwks.keys
        authorizer = Authorizer(jwks, settings.compute_id, bypassed=settings.auth_bypassed)
        self._load_quart = LazyApp(lambda: _make_external_app(context))
        self._external = Front(external_routes(context), authorizer=authorizer, load=self._load_quart)
        self._internal = Front(internal_routes(context), authorizer=None, load=self._load_quart)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained; started once both servers accept."""
        async with trio.open_nursery() as nursery:
            for app, sockets in ((self._external, self._sockets.external), (self._internal, self._sockets.internal)):
                await nursery.start(self._serve_one, app, sockets)
            task_status.started()
            async with trio.open_nursery() as loading:
                loading.start_soon(self._load_in_the_pool)
                await self._draining.wait()
                loading.cancel_scope.cancel()

    async def _serve_one(
        self, app: Front, sockets: list[Any], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await serve_app(
            app,
            sockets,
            draining=self._draining.wait,
            drain_seconds=self._compute.settings.deadlines.drain,
            task_status=task_status,
        )

    async def _load_in_the_pool(self) -> None:
        # A pooled compute has the time, and its first /configure must not wait. One that has its spec may never need
        # Quart, and during its start every millisecond of the interpreter belongs to that.
        if self._compute.state.status is Status.EMPTY:
            await self._load_quart()

    def drain(self) -> None:
        """Accept nothing more, finish what is in flight, end."""
        self._draining.set()


def external_routes(context: Context) -> dict[str, Route]:
    """Return the paths of the external server."""
    compute = context.compute
    return {
        "/status": Route("GET", answer=read(lambda: status_body(compute))),
        "/metrics.json": Route("GET", answer=read(lambda: encode(compute.spans.metrics()))),
        "/configure": Route("POST"),
        "/terminate": Route("POST", answer=partial(terminate, context), waits=True),
    }


def internal_routes(context: Context) -> dict[str, Route]:
    """Return the paths of the internal server; `/spans` is ours, for people who look at a start-up."""
    spans = context.compute.spans
    return {
        "/refresh_configuration": Route("POST", needs_token=False, answer=partial(refresh_configuration, context)),
        "/spans": Route("GET", needs_token=False, answer=read(lambda: encode([*spans.spans]))),
    }


def _make_external_app(context: Context) -> Any:
    from trio_compute.http.app import make_external_app

    return make_external_app(context)
