"""POST /check_writability (contract 03 §5.5, 06 §3)."""

from __future__ import annotations

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import require_postgres
from trio_compute.telemetry.metrics import WRITES_REFUSED_BY_FULL_DISK, metrics


async def check_writability(context: Context, _request: Request) -> Answer:
    """Answer with true if Postgres can write, also if only the disk or a quota is full, which is counted (R-09)."""
    require_postgres(context.compute)
    with context.compute.spans.trace("check_writability"):
        writable = await context.errands.run(context.host.check_writability)
    if not writable:
        metrics.increment(WRITES_REFUSED_BY_FULL_DISK)
    return ok(True)
