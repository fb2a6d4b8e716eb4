"""GET /autoscaling_metrics: what Postgres serves on a socket in PGDATA (contract 03 §5.5)."""

from __future__ import annotations

from trio_compute.http.context import Context
from trio_compute.http.operation import Request, Streamed


async def autoscaling_metrics(context: Context, _request: Request) -> Streamed:
    """Pass on status, content type and body of Postgres' own answer (A-24)."""
    metrics = await context.host.fetch_postgres_metrics()
    return Streamed(metrics.status, metrics.content_type, metrics)
