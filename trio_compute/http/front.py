"""The first to see a request: finds its route, checks who asks, answers what needs no body, passes the rest to Quart.

Quart takes 400 ms and 10 MB to import, so a thread loads it while a pooled compute waits, or the first request does
that needs it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from urllib.parse import parse_qsl, urlsplit

import trio
from msgspec import Struct

from trio_compute.errors import cause_chain
from trio_compute.http.authorize import Authorizer
from trio_compute.http.exchange import App, Message, Receive, Send, exchange, has_body
from trio_compute.http.problems import CONTENT_TYPE, Problem
from trio_compute.services.supervise import run_unless
from trio_compute.telemetry.logging import bound_ids, get_logger

MAX_REQUEST_ID_CHARACTERS = 128

log = get_logger("http")


Query = Mapping[str, str]


class Answer(Struct, frozen=True):
    """Hold status and JSON body of an answer."""

    status: int
    body: bytes


class Route(Struct, frozen=True):
    """Describe a path: its method, whether a token is needed, who answers (None: Quart), whether that may take long."""

    method: str
    needs_token: bool = True
    answer: Callable[[Query], Awaitable[Answer]] | None = None
    waits: bool = False


def read(body: Callable[[], bytes]) -> Callable[[Query], Awaitable[Answer]]:
    """Return the handler of a cheap read."""

    async def answer(_query: Query) -> Answer:
        await trio.lowlevel.checkpoint()
        return Answer(200, body())

    return answer


class _Reply:
    """Send the one answer of a request, marked with its id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kept = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
            message = {**message, "headers": [*kept, (b"x-request-id", self.request_id.encode())]}
        await self._send(message)


class Front:
    """Be the ASGI application of one server."""

    def __init__(
        self, routes: Mapping[str, Route], *, authorizer: Authorizer | None, load: Callable[[], Awaitable[App]]
    ) -> None:
        self._routes = routes
        self._authorizer = authorizer
        self._load = load

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; every answer carries its request id."""
        if scope["type"] != "http":
            raise RuntimeError(f"no support for ASGI {scope['type']}")
        headers = {name.lower(): value for name, value in scope["headers"]}
        reply = _Reply(send, _request_id(headers.get(b"x-request-id")))
        started = time.monotonic()
        token = bound_ids.set({"request_id": reply.request_id})
        try:
            await self._answer_whatever_happens(scope, headers, receive, reply)
        finally:
            milliseconds = round((time.monotonic() - started) * 1000, 1)
            # Test suites of control planes look for the text up to the path.
            request = f"request{{method={scope['method']} uri={_uri(scope)} request_id={reply.request_id}}}"
            bound_ids.reset(token)
            log.info(request, code=reply.status or "none", latency_ms=milliseconds)

    async def _answer_whatever_happens(
        self, scope: Message, headers: Mapping[bytes, bytes], receive: Receive, reply: _Reply
    ) -> None:
        try:
            if has_body(scope):
                await exchange(lambda s, r, w: self._answer(s, headers, r, w), scope, receive, reply.send)
            else:
                await self._answer(scope, headers, receive, reply.send)
        except Exception as error:  # noqa: BLE001  (a defect must not drop the connection without an answer)
            log.error("handler failed", path=scope["path"], error=cause_chain(error))
            if reply.status is None:
                await _send_problem(reply.send, Problem(500, "internal error"))

    async def _answer(self, scope: Message, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        route = self._routes.get(_path(scope))
        if route is None:
            await _send(send, 404, b"")
            return
        if scope["method"] not in _methods(route):
            await _send(send, 405, b"", [(b"allow", ",".join(_methods(route)).encode())])
            return
        try:
            self._authorize(route, headers)
            if route.answer is not None:
                ask = partial(route.answer, _query(scope))
                # Whoever leaves is no longer waited for.
                answer = await (run_unless(partial(_disconnected, receive), ask) if route.waits else ask())
                if answer is not None:
                    await _send(send, answer.status, answer.body)
                return
        except Problem as problem:
            await _send_problem(send, problem)
            return
        app = await self._load()
        if has_body(scope):
            await app(scope, receive, send)
        else:
            await exchange(app, scope, receive, send)

    def _authorize(self, route: Route, headers: Mapping[bytes, bytes]) -> None:
        if self._authorizer is None or not route.needs_token:
            return
        value = headers.get(b"authorization")
        self._authorizer.check(None if value is None else value.decode("latin-1"))


def _methods(route: Route) -> tuple[str, ...]:
    return ("GET", "HEAD") if route.method == "GET" else (route.method,)


def _request_id(value: bytes | None) -> str:
    if value is not None and len(value) <= MAX_REQUEST_ID_CHARACTERS:
        text = value.decode("latin-1").strip()
        if text and text.isascii() and text.isprintable():
            return text
    return str(uuid.uuid4())


def _uri(scope: Message) -> str:
    path = scope["raw_path"].decode("latin-1")
    query = scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def _query(scope: Message) -> Query:
    return dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))


def _path(scope: Message) -> str:
    path: str = scope["path"]
    # A client may name the whole URL, as it does to a proxy (RFC 9112 §3.2.2).
    return path if path.startswith("/") else urlsplit(path).path


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_problem(send: Send, problem: Problem) -> None:
    await _send(send, problem.status, problem.log_and_encode())


async def _send(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    all_headers = [(b"content-length", str(len(body)).encode()), *(headers or [])]
    if body:
        all_headers.append((b"content-type", CONTENT_TYPE.encode()))
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class LazyApp:
    """Load an application once, in a worker thread, for whoever asks first."""

    def __init__(self, make: Callable[[], App]) -> None:
        self._make = make
        self._lock = trio.Lock()
        self._app: App | None = None

    async def __call__(self) -> App:
        """Return the application, loading it if nobody has yet."""
        async with self._lock:
            if self._app is None:
                self._app = await trio.to_thread.run_sync(self._make)
            return self._app
