"""The external and the internal server of one compute."""

from __future__ import annotations

from typing import Any

import trio

from trio_compute.http.authorize import Authorizer
from trio_compute.http.front import Front, LazyApp
from trio_compute.http.serve import serve_app
from trio_compute.http.sockets import BoundSockets
from trio_compute.http.table import EXTERNAL, internal_operations
from trio_compute.lifecycle.status import Status
from trio_compute.model.spec import ComputeConfig
from trio_compute.services.life import Life


class HttpServers:
    """Serve both APIs from the time they are started until they are drained."""

    def __init__(self, sockets: BoundSockets, life: Life, config: ComputeConfig) -> None:
        self._sockets = sockets
        self._compute = life.compute
        self._draining = trio.Event()
        settings = self._compute.settings
        jwks = config.compute_ctl_config.jwks.keys
        authorizer = Authorizer(jwks, settings.compute_id, bypassed=settings.auth_bypassed)
        internal = internal_operations(testing=settings.testing)
        self._load_quart = LazyApp(lambda: _make_app(life))
        self._external = Front(EXTERNAL, life, authorizer=authorizer, load=self._load_quart)
        self._internal = Front(internal, life, authorizer=None, load=self._load_quart)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained; started once both servers accept."""
        async with trio.open_nursery() as nursery:
            for app, sockets in ((self._external, self._sockets.external), (self._internal, self._sockets.internal)):
                await nursery.start(self._serve_one, app, sockets)
            task_status.started()
            async with trio.open_nursery() as loading:
                loading.start_soon(self._load_ahead)
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

    async def _load_ahead(self) -> None:
        # A pooled compute has the time, and its first /configure must not wait; nor must the /promote of a replica,
        # while nobody can write. A primary that has its spec may never need Quart, and during a start every millisecond
        # of the interpreter belongs to that.
        state = self._compute.state
        if state.spec is not None and state.spec.mode == "replica":
            await self._compute.reach(Status.RUNNING)
        elif state.status is not Status.EMPTY:
            return
        await self._load_quart()

    def drain(self) -> None:
        """Accept nothing more, finish what is in flight, end."""
        self._compute.feed.close()
        self._draining.set()


def _make_app(life: Life) -> Any:
    from trio_compute.http.app import make_app

    return make_app((*EXTERNAL, *internal_operations(testing=True)), life)
