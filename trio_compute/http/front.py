"""The first to see a request: finds its route, checks who asks, answers what needs no body, passes the rest to Quart.

Quart takes 400 ms and 10 MB to import, so a thread loads it while a pooled compute waits, or the first request does
that needs it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from urllib.parse import urlsplit

import trio

from trio_compute.http.authorize import Authorizer
from trio_compute.http.context import Context
from trio_compute.http.exchange import App, Message, Receive, Send, exchange, has_body
from trio_compute.http.operation import Answer, Operation, Request, Streamed
from trio_compute.http.problems import Problem, body_too_large, problem_of
from trio_compute.http.queries import parse_query
from trio_compute.services.supervise import run_unless
from trio_compute.telemetry.logging import bound_ids, get_logger
from trio_compute.telemetry.trace_context import TraceContext, parse_trace_context

MAX_REQUEST_ID_CHARACTERS = 128
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"})

log = get_logger("http")


class Routes:
    """Find the operation of a path and method."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._exact: dict[str, dict[str, Operation]] = {}
        self._prefixes: dict[str, dict[str, Operation]] = {}
        for operation in operations:
            table = self._prefixes if operation.has_rest else self._exact
            table.setdefault(operation.path, {})[operation.method] = operation

    def find(self, path: str) -> tuple[dict[str, Operation], str]:
        """Return the operations of a path by method, none if it is unknown, and what follows a prefix."""
        methods = self._exact.get(path)
        if methods is not None:
            return methods, ""
        for prefix, methods in self._prefixes.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                return methods, path[len(prefix) :]
        return {}, ""


class _Reply:
    """Send the one answer of a request, marked with its id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status: int | None = None
        self.operation: Operation | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kept = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
            message = {**message, "headers": [*kept, (b"x-request-id", self.request_id.encode())]}
        await self._send(message)


class Front:
    """Be the ASGI application of one server."""

    def __init__(
        self,
        operations: Iterable[Operation],
        context: Context,
        *,
        authorizer: Authorizer | None,
        load: Callable[[], Awaitable[App]],
    ) -> None:
        self._routes = Routes(operations)
        self._context = context
        self._authorizer = authorizer
        self._load = load

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; every answer carries its request id."""
        if scope["type"] != "http":
            raise RuntimeError(f"no support for ASGI {scope['type']}")
        headers = {name.lower(): value for name, value in scope["headers"]}
        reply = _Reply(send, _request_id(headers.get(b"x-request-id")))
        caller = _caller_of(scope) if self._context.compute.spans.is_traced else None
        trace_ids = {} if caller is None else {"trace_id": caller.trace_id.hex()}
        started = time.monotonic()
        token = bound_ids.set({"request_id": reply.request_id, **trace_ids})
        try:
            await self._answer_traced(scope, headers, reply, receive, caller)
        finally:
            milliseconds = round((time.monotonic() - started) * 1000, 1)
            # Test suites of control planes look for the text up to the path.
            request = f"request{{method={scope['method']} uri={_uri(scope)} request_id={reply.request_id}}}"
            bound_ids.reset(token)
            log.info(request, code=reply.status or "none", latency_ms=milliseconds, **trace_ids)

    async def _answer_traced(
        self,
        scope: Message,
        headers: Mapping[bytes, bytes],
        reply: _Reply,
        receive: Receive,
        caller: TraceContext | None,
    ) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        with self._context.compute.spans.trace("HTTP", above=caller) as span:
            try:
                await self._answer_exchanged(scope, headers, reply, receive)
            finally:
                # Of the path only what our own table says: what a client writes there is anybody's text.
                route = {} if reply.operation is None else {"http.route": reply.operation.path}
                status = {} if reply.status is None else {"http.response.status_code": reply.status}
                span.name = f"{method} {route['http.route']}" if route else "HTTP"
                span.attributes = {"http.request.method": method, **route, **status}
                span.failed = reply.status is not None and reply.status >= 500

    async def _answer_exchanged(
        self, scope: Message, headers: Mapping[bytes, bytes], reply: _Reply, receive: Receive
    ) -> None:
        if has_body(scope):
            await exchange(
                lambda _scope, read, write: self._answer_whatever_happens(scope, headers, reply, read, write),
                scope,
                receive,
                reply.send,
            )
        else:
            await self._answer_whatever_happens(scope, headers, reply, receive, reply.send)

    async def _answer_whatever_happens(
        self, scope: Message, headers: Mapping[bytes, bytes], reply: _Reply, receive: Receive, send: Send
    ) -> None:
        try:
            await self._answer(scope, headers, reply, receive, send)
        except Exception as error:  # noqa: BLE001  (a defect must not drop the connection without an answer)
            problem = problem_of(error, scope["path"])
            if reply.status is None:
                await _send_problem(send, problem)
            else:
                log.error("answer broken off", path=scope["path"], error=problem)

    async def _answer(
        self, scope: Message, headers: Mapping[bytes, bytes], reply: _Reply, receive: Receive, send: Send
    ) -> None:
        methods, rest = self._routes.find(_path(scope))
        if not methods:
            await _send(send, Answer(404))
            return
        operation = methods.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if operation is None:
            await _send(send, Answer(405, headers={"allow": ",".join(_allowed(methods))}))
            return
        reply.operation = operation
        self._authorize(operation, headers)
        if operation.body is not None:
            await self._pass_on(operation, scope, headers, receive, send)
            return
        query = parse_query(scope["query_string"], operation.query)
        request = Request(query=query, headers=_text(headers), rest=rest)
        handle = partial(operation.handler, self._context, request)
        if operation.waits(query):
            # Whoever leaves is no longer waited for.
            await run_unless(partial(_disconnected, receive), partial(_answer_with, handle, scope["method"], send))
        else:
            await _answer_with(handle, scope["method"], send)

    async def _pass_on(
        self, operation: Operation, scope: Message, headers: Mapping[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > operation.max_body_bytes:
            raise body_too_large()
        app = await self._load()
        if has_body(scope):
            await app(scope, receive, send)
        else:
            await exchange(app, scope, receive, send)

    def _authorize(self, operation: Operation, headers: Mapping[bytes, bytes]) -> None:
        if self._authorizer is None or not operation.needs_token:
            return
        value = headers.get(b"authorization")
        self._authorizer.check(None if value is None else value.decode("latin-1"))


async def _answer_with(handle: Callable[[], Awaitable[Answer | Streamed]], method: str, send: Send) -> None:
    answer = await handle()
    if isinstance(answer, Answer):
        await _send(send, answer)
        return
    async with aclosing(answer.chunks) as chunks:
        headers = [(b"content-type", answer.content_type.encode())]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if method != "HEAD":
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _allowed(methods: Iterable[str]) -> list[str]:
    return [name for method in methods for name in (("GET", "HEAD") if method == "GET" else (method,))]


def _text(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def _caller_of(scope: Message) -> TraceContext | None:
    def values(wanted: bytes) -> list[str]:
        return [value.decode("latin-1").strip(" \t") for name, value in scope["headers"] if name.lower() == wanted]

    return parse_trace_context(values(b"traceparent"), values(b"tracestate"))


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


def _path(scope: Message) -> str:
    path: str = scope["path"]
    # A client may name the whole URL, as it does to a proxy (RFC 9112 §3.2.2).
    return path if path.startswith("/") else urlsplit(path).path


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_problem(send: Send, problem: Problem) -> None:
    await _send(send, Answer(problem.status, problem.log_and_encode()))


async def _send(send: Send, answer: Answer) -> None:
    headers = [(b"content-length", str(len(answer.body)).encode())]
    headers += [(name.encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    if answer.body:
        headers.append((b"content-type", answer.content_type.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


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
