"""GET /dbs_and_roles (contract 03 §5.5, 06 §5, R-10)."""

from __future__ import annotations

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import require_postgres


async def dbs_and_roles(context: Context, _request: Request) -> Answer:
    """Answer with all roles and databases."""
    require_postgres(context.compute)
    return ok(await context.errands.run(context.host.list_catalog))
