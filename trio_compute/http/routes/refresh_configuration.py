"""POST /refresh_configuration on the internal server (contract 03 §6, 02 §8)."""

from __future__ import annotations

import trio

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request
from trio_compute.http.problems import Problem
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.transitions import IllegalTransition
from trio_compute.telemetry.metrics import PAGESTREAM_REQUEST_ERRORS, metrics


async def refresh_configuration(context: Context, _request: Request) -> Answer:
    """Ask for the configuration to be fetched again and answer at once; during the start it is remembered (D-50)."""
    await trio.lowlevel.checkpoint()
    metrics.increment(PAGESTREAM_REQUEST_ERRORS)
    try:
        context.compute.apply(ev.RefreshRequested())
    except IllegalTransition as error:
        raise Problem(500, f"Cannot refresh compute configuration in state {error.status.kebab}") from None
    context.queue.want_refresh()
    return Answer(200)
