"""GET /database_schema: a database's definitions as SQL (contract 06 §6, 03 §5.5)."""

from __future__ import annotations

from trio_compute.http.context import Context
from trio_compute.http.operation import Request, Streamed
from trio_compute.http.problems import require_names, require_postgres
from trio_compute.services.schema_dumps import begin_schema_dump

CONTENT_TYPE = "text/plain; charset=utf-8"


async def database_schema(context: Context, request: Request) -> Streamed:
    """Stream what pg_dump writes; a dump that fails in its middle breaks the answer off (R-11, A-17)."""
    require_names(database=request.query.database)
    require_postgres(context.compute)
    dump = await begin_schema_dump(context, request.query.database)
    return Streamed(200, CONTENT_TYPE if dump.is_utf8 else CONTENT_TYPE.partition(";")[0], dump)
