"""`python -m bench.http_peers plain|quart SOCKET_FD`: the least that answers JSON on the same stack."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

BODY = b'{"status":"running"}'

Message = MutableMapping[str, Any]


async def plain(
    scope: Message, _receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Answer every request with the same few bytes, as an ASGI application without any framework."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")  # hypercorn takes it for what it is
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def quart() -> Any:
    """Return a Quart application that does the same."""
    from quart import Response
    from quart_trio import QuartTrio

    app = QuartTrio("peer", static_folder=None)

    @app.get("/status")
    async def status() -> Response:
        return Response(BODY, content_type="application/json")

    return app


def main(argv: list[str]) -> None:
    """Serve one of the two on a listening socket that we inherited."""
    kind, fd = argv
    config = Config()
    config.bind = [f"fd://{fd}"]
    config.accesslog = config.errorlog = None
    trio.run(lambda: serve(plain if kind == "plain" else quart(), config))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])
