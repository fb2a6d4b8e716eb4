"""POST /grants on the internal server (contract 03 §6, 06 §9, R-15)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import Problem, explained, require_names, require_postgres
from trio_compute.model.requests import GrantsRequest, Privilege
from trio_compute.model.responses import GrantsResponse

ON_SCHEMAS = frozenset({"USAGE", "CREATE"})


async def grants(context: Context, request: Request) -> Answer:
    """Grant what a role lacks on a schema, and answer when that is done."""
    wanted: GrantsRequest = request.body
    require_postgres(context.compute)
    require_names(database=wanted.database, schema=wanted.schema, role=wanted.role)
    _require_meaning(wanted.privileges)
    grant = partial(context.host.grant_on_schema, wanted.database, wanted.schema, wanted.role, wanted.privileges)
    with explained("failed to grant role privileges to the schema"):
        await context.errands.run(grant)
    return ok(GrantsResponse(wanted.database, wanted.schema, [*wanted.privileges], wanted.role), 201)


def _require_meaning(privileges: Sequence[Privilege]) -> None:
    unfit = [name for name in privileges if name not in ON_SCHEMAS]
    if unfit or not privileges:
        said = f"{', '.join(unfit)} cannot be granted" if unfit else "no privileges are named"
        raise Problem(400, f"{said}; on a schema there are USAGE and CREATE")
