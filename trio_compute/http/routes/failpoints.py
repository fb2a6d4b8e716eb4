"""POST /failpoints on the internal server: only with --testing (contract 03 §6)."""

from __future__ import annotations

import trio

from trio_compute.errors import UsageError
from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request
from trio_compute.http.problems import Problem
from trio_compute.telemetry.failpoints import failpoints as points


async def failpoints(_context: Context, request: Request) -> Answer:
    """Set what shall happen at some failpoints."""
    await trio.lowlevel.checkpoint()
    try:
        points.configure({item.name: item.actions or item.action or "" for item in request.body})
    except UsageError as error:
        raise Problem(400, f"failed to configure failpoints: {error}") from None
    return Answer(200)
