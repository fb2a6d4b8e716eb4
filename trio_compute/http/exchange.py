"""The cure for what goes wrong between hypercorn and an ASGI application once an answer is on its way (design §9).

hypercorn hands out `http.disconnect` inside the very send that completes an answer, through a queue of ten messages.
An application that listens for it, as quart-trio does, cancels itself in the middle of that send; one that answers
before it has read a large body blocks for ever. So the queue is always emptied here, and nothing reaches the
application any more once it has begun its last send.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import trio

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


async def exchange(app: App, scope: Message, receive: Receive, send: Send) -> None:
    """Run an ASGI application for one request, its last send undisturbed."""
    to_app, for_app = trio.open_memory_channel[Message](0)
    open_to_app = trio.CancelScope()

    async def pump() -> None:
        with open_to_app:
            while True:
                await to_app.send(await receive())
        while True:
            await receive()

    async def send_undisturbed(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            open_to_app.cancel()
        await send(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump)
        await app(scope, for_app.receive, send_undisturbed)
        nursery.cancel_scope.cancel()


def has_body(scope: Message) -> bool:
    """Tell whether a request announces a body."""
    return any(name in {b"content-length", b"transfer-encoding"} for name, _ in scope["headers"])
