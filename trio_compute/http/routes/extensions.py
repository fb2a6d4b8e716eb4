"""POST /extensions on the internal server (contract 03 §6, 06 §8, R-14)."""

from __future__ import annotations

from functools import partial

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import explained, require_names, require_postgres
from trio_compute.model.requests import ExtensionRequest
from trio_compute.model.responses import ExtensionResponse


async def extensions(context: Context, request: Request) -> Answer:
    """Bring an extension of a database to a version, and answer when that is done."""
    wanted: ExtensionRequest = request.body
    require_postgres(context.compute)
    require_names(extension=wanted.extension, database=wanted.database, version=wanted.version)
    install = partial(context.host.install_extension, wanted.database, wanted.extension, wanted.version)
    with explained("failed to install extension"):
        await context.errands.run(install)
    return ok(ExtensionResponse(wanted.extension, wanted.version), 201)
