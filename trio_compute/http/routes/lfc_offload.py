"""GET and POST /lfc/offload (contract 08 §1, 03 §5.4)."""

from __future__ import annotations

import trio

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import Problem, require_postgres


async def offload_state(context: Context, _request: Request) -> Answer:
    """Tell the state of the latest offload."""
    await trio.lowlevel.checkpoint()
    return ok(context.lfc.offload_state)


async def begin_offload(context: Context, _request: Request) -> Answer:
    """Begin to store the list of cached pages; the state tells what becomes of it."""
    await trio.lowlevel.checkpoint()
    require_postgres(context.compute)
    if not context.lfc.begin_offload():
        raise Problem(429, "Multiple requests for prewarm offload are not allowed")
    return Answer(202)
