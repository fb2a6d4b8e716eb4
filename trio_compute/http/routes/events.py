"""GET /events: what happens, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import trio

from trio_compute.http.context import Context
from trio_compute.http.operation import Request, Streamed
from trio_compute.lifecycle.feed import Feed, Notice
from trio_compute.model.decode import encode
from trio_compute.model.responses import start_time_text

CONTENT_TYPE = "text/event-stream"
KEEP_ALIVE_SECONDS = 15.0


async def events(context: Context, request: Request) -> Streamed:
    """Answer with transitions, phases and progress as they happen; `after=N` or `Last-Event-ID` resumes."""
    await trio.lowlevel.checkpoint()
    feed = context.compute.feed
    last = request.headers.get("last-event-id", "")
    after = int(last) if last.isdecimal() and len(last) < 16 else request.query.after
    return Streamed(200, CONTENT_TYPE, _stream(feed, feed.newest if after is None else after))


async def _stream(feed: Feed, after: int) -> AsyncGenerator[bytes, None]:
    yield b": trio_compute\n\n"
    seen = min(after, feed.newest)
    while True:
        for notice in feed.behind(seen):
            yield _encoded(notice)
            seen = notice.number
        if feed.closed:
            return
        with trio.move_on_after(KEEP_ALIVE_SECONDS) as pause:
            await feed.more_than(seen)
        if pause.cancelled_caught:
            # Finds out about clients that left without a word.
            yield b": alive\n\n"


def _encoded(notice: Notice) -> bytes:
    data = encode({"at": start_time_text(notice.at), **notice.data})
    return f"id: {notice.number}\nevent: {notice.kind}\ndata: ".encode() + data + b"\n\n"
