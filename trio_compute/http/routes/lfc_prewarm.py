"""GET, POST and DELETE /lfc/prewarm (contract 08 §1, 03 §5.4)."""

from __future__ import annotations

import trio

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import Problem, require_postgres
from trio_compute.storage.endpoint_storage import valid_endpoint_id


async def prewarm_state(context: Context, _request: Request) -> Answer:
    """Tell the state of the latest prewarm, and how far it is while it runs."""
    await trio.lowlevel.checkpoint()
    return ok(context.lfc.prewarm_state)


async def begin_prewarm(context: Context, request: Request) -> Answer:
    """Begin to fill the local file cache; the state tells what becomes of it."""
    await trio.lowlevel.checkpoint()
    from_endpoint = request.query.from_endpoint
    if from_endpoint is not None and not valid_endpoint_id(from_endpoint):
        raise Problem(400, "failed to deserialize query string: `from_endpoint` is not an endpoint id")
    require_postgres(context.compute)
    if not context.lfc.begin_prewarm(from_endpoint):
        raise Problem(429, "Multiple requests for prewarm are not allowed")
    return Answer(202)


async def cancel_prewarm(context: Context, _request: Request) -> Answer:
    """Cancel the prewarm that runs, if one does; it is over when its state says so."""
    await trio.lowlevel.checkpoint()
    context.lfc.cancel_prewarm()
    return Answer(202)
