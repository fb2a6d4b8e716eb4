"""GET /insights (contract 03 §5.5, 06 §4, R-06)."""

from __future__ import annotations

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import require_postgres
from trio_compute.model.responses import InsightsResponse


async def insights(context: Context, _request: Request) -> Answer:
    """Answer with the slowest statements of users as one JSON object."""
    require_postgres(context.compute)
    return ok(InsightsResponse(await context.errands.run(context.host.collect_insights)))
