"""What one route is: who answers it, what it takes, what it gives. Routing, checks and openapi.json come from here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from msgspec import Struct, json

from trio_compute.http.context import Context

JSON = "application/json"
MEBIBYTE = 1024 * 1024


class Request(Struct, frozen=True, kw_only=True):
    """Hold what a handler may see of a request: query and body are validated, header names are in lower case."""

    query: Any = None
    body: Any = None
    headers: Mapping[str, str] = {}
    rest: str = ""


class Answer(Struct, frozen=True):
    """Hold a whole answer."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = {}


class Chunks(Protocol):
    """Be the body of an answer piece by piece; `aclose` is always awaited, whether or not a piece was asked for."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the iterator, itself."""
        ...

    async def aclose(self) -> None:
        """Release whatever the body comes from."""
        ...


class Streamed(Struct, frozen=True):
    """Hold an answer that is made while it is sent; an exception in its middle breaks it off, visibly so."""

    status: int
    content_type: str
    chunks: Chunks


Handler = Callable[[Context, Request], Awaitable[Answer | Streamed]]


class Reply(Struct, frozen=True):
    """Describe one possible answer: the type of its body (None: empty), what it is, its media type."""

    body: Any = None
    description: str = ""
    content_type: str = JSON


def _never(_query: object) -> bool:
    return False


def always(_query: object) -> bool:
    """Tell that an operation may take long, whatever its parameters."""
    return True


class Operation(Struct, frozen=True, kw_only=True):
    """Describe one method of one path.

    `has_rest`: the path is a prefix and what follows it is a parameter. `waits`: with this query it may take long, so
    a client that leaves must be noticed. An operation with a `body` is read and decoded by Quart. `headers`: what it
    looks at besides the token, with its meaning.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    query: type[Struct] | None = None
    headers: Mapping[str, str] = {}
    body: Any = None
    replies: Mapping[int, Reply] = {}
    needs_token: bool = True
    has_rest: bool = False
    waits: Callable[[Any], bool] = _never
    max_body_bytes: int = MEBIBYTE


def ok(value: object, status: int = HTTPStatus.OK) -> Answer:
    """Return an answer with a value as JSON."""
    return Answer(int(status), json.encode(value))
