"""GET /: the status page, which holds no data and therefore needs no token."""

from __future__ import annotations

import trio

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request

CONTENT_TYPE = "text/html; charset=utf-8"
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


async def page(_context: Context, _request: Request) -> Answer:
    """Answer with the page; whatever it shows it fetches with the caller's token."""
    from trio_compute.http.page.document import document

    await trio.lowlevel.checkpoint()
    made = document()
    return Answer(200, made.body, CONTENT_TYPE, {**HEADERS, "content-security-policy": made.policy})
