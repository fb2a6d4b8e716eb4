"""GET /livez, /readyz and /startupz, for Kubernetes; they need no token and tell nothing that is worth one."""

from __future__ import annotations

import trio

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.status import Status
from trio_compute.model.responses import HealthResponse


async def livez(_context: Context, _request: Request) -> Answer:
    """Say that this process works; a failed compute does too, since its verdict is still to be collected."""
    await trio.lowlevel.checkpoint()
    return ok(HealthResponse("ok"))


async def readyz(context: Context, _request: Request) -> Answer:
    """Say whether Postgres takes connections: its start succeeded and nobody is ending it, whatever a change did."""
    await trio.lowlevel.checkpoint()
    compute = context.compute
    return _answer(compute, is_fine=compute.postgres_running and compute.ending.value is None)


async def startupz(context: Context, _request: Request) -> Answer:
    """Say whether the start is over; while there is no spec to start with there is nothing to wait for."""
    await trio.lowlevel.checkpoint()
    compute = context.compute
    return _answer(compute, is_fine=compute.postgres_running or compute.state.status is Status.EMPTY)


def _answer(compute: Compute, *, is_fine: bool) -> Answer:
    if is_fine:
        return ok(HealthResponse("ok"))
    return ok(HealthResponse("unavailable", f"compute is {compute.state.status.kebab}"), 503)
