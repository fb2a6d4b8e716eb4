"""GET /openapi.json: what this API is, for programs."""

from __future__ import annotations

import trio

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request


async def openapi(_context: Context, _request: Request) -> Answer:
    """Answer with the OpenAPI description of both servers."""
    return Answer(200, await trio.to_thread.run_sync(_description))


def _description() -> bytes:
    from trio_compute.http.openapi import openapi_json

    return openapi_json()
