"""POST /extension_server/… on the internal server: the neon library wants an extension (contract 06 §10.3)."""

from __future__ import annotations

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request
from trio_compute.http.problems import Problem
from trio_compute.plan.remote_extensions import UnknownExtension


async def extension_server(context: Context, request: Request) -> Answer:
    """Have an extension installed, or the one that brings a library, and answer once it is (R-26, A-01)."""
    spec = context.compute.state.spec
    if context.compute.settings.remote_ext_base_url is None:
        raise Problem(412, "remote storage is not configured")
    if spec is None or spec.spec.remote_extensions is None:
        raise Problem(409, "information about remote extensions is unavailable")
    try:
        await context.extensions.obtain(spec.spec.remote_extensions, request.rest, is_library=request.query.is_library)
    except UnknownExtension as error:
        raise Problem(404, str(error)) from None
    return Answer(200)
