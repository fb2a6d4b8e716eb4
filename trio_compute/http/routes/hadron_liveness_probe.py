"""GET /hadron_liveness_probe: what pg_isready says (contract 03 §5.5)."""

from __future__ import annotations

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok


async def hadron_liveness_probe(context: Context, _request: Request) -> Answer:
    """Answer whether Postgres accepts connections (A-16)."""
    await context.host.check_accepting()
    return ok("ok")
