"""What both clients share, without I/O: what is sent, how an answer is read, what an error says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import UNSET, Struct

from trio_compute.errors import RemoteError, UsageError
from trio_compute.model.responses import ErrorResponse

T = TypeVar("T")

DEFAULT_URL = "http://localhost:3080"
DEFAULT_INTERNAL_URL = "http://localhost:3081"
PATIENCE_SECONDS = 60.0
# What changes the compute takes as long as the compute's own time limits allow.
CHANGE_PATIENCE_SECONDS = 3600.0
_LONGEST_FOREIGN_TEXT = 200
_ERROR_NUMBER = re.compile(r"^\[Errno -?[0-9]+\] ")


class ApiError(RemoteError):
    """Report that the compute refused or failed; `failures` names the objects of the catalog at fault, if any."""

    def __init__(
        self, status: int, text: str, failures: tuple[Mapping[str, str | None], ...] = (), *, request_id: str = ""
    ) -> None:
        super().__init__(f"{text} (HTTP {status})")
        self.status = status
        self.text = text
        self.failures = failures
        self.request_id = request_id


class Unreachable(RemoteError):
    """Report that there was no answer: no connection, a broken one, or none in time."""


class UnexpectedAnswer(RemoteError):
    """Report an answer that a compute does not give; somebody else may be listening there."""


class Reply(Struct, frozen=True):
    """Hold an answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Call(Struct, Generic[T], frozen=True, kw_only=True):
    """Describe one request, and how its answer is read.

    `taken`: statuses besides 2xx that are an answer and no error. `internal`: it goes to the internal server.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    internal: bool = False
    taken: frozenset[int] = frozenset()
    patience_seconds: float = PATIENCE_SECONDS

    def result(self, reply: Reply) -> T:
        """Return what the answer says; raise ApiError or UnexpectedAnswer."""
        if reply.status not in self.taken and not HTTPStatus.OK <= reply.status < HTTPStatus.MULTIPLE_CHOICES:
            raise api_error(reply)
        try:
            return self.read(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnexpectedAnswer(f"{self.method} {self.path}: not the answer of a compute: {error}") from None


class Peer:
    """Hold where a compute is and the token for it; both are checked before anything is sent."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, internal_url: str | None = None) -> None:
        self.url = _checked_url(url)
        self.internal_url = DEFAULT_INTERNAL_URL if internal_url is None else _checked_url(internal_url)
        self._token = None if token is None else _checked_token(token)

    def url_of(self, call: Call[Any]) -> str:
        """Return where a request goes, without its parameters."""
        return (self.internal_url if call.internal else self.url) + call.path

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """Return the arguments of a request as httpx takes them."""
        headers = dict(call.headers)
        if self._token is not None and not call.internal:
            headers["authorization"] = f"Bearer {self._token}"
        if call.body is not None:
            headers["content-type"] = "application/json"
        return {
            "method": call.method,
            "url": self.url_of(call),
            "params": dict(call.query) or None,
            "headers": headers,
            "content": call.body,
            "timeout": call.patience_seconds,
        }


@contextmanager
def translated(call: Call[Any], peer: Peer) -> Iterator[None]:
    """Raise Unreachable for whatever httpx says of a request that got no answer."""
    import httpx

    try:
        yield
    except httpx.TimeoutException:
        raise Unreachable(f"{peer.url_of(call)}: no answer within {call.patience_seconds:g} s") from None
    except httpx.RequestError as error:
        reason = _ERROR_NUMBER.sub("", str(error)) or type(error).__name__
        raise Unreachable(f"{peer.url_of(call)}: {reason}") from None
    except httpx.InvalidURL as error:
        raise UsageError(f"{peer.url_of(call)}: {error}") from None


def reply_of(response: Any) -> Reply:
    """Return an answer of httpx that was read to its end."""
    return Reply(response.status_code, dict(response.headers), response.content)


def api_error(reply: Reply) -> ApiError:
    """Return the error that an answer tells of; one without a text of ours is told by its status."""
    try:
        told = msgspec.json.decode(reply.body, type=ErrorResponse)
    except (msgspec.DecodeError, UnicodeDecodeError):
        told = ErrorResponse(error=_foreign_text(reply))
    failures = () if told.failures is UNSET else tuple(told.failures)
    return ApiError(reply.status, told.error, failures, request_id=reply.headers.get("x-request-id", ""))


def _foreign_text(reply: Reply) -> str:
    try:
        phrase = HTTPStatus(reply.status).phrase.lower()
    except ValueError:
        phrase = "unknown status"
    said = reply.body[:_LONGEST_FOREIGN_TEXT].decode(errors="replace").strip()
    return f"{phrase}: {said}" if said else phrase


def path_with(prefix: str, rest: str) -> str:
    """Return a path whose end may be any text."""
    return prefix + quote(rest, safe="/")


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username is not None:
        raise UsageError("the URL of a compute looks like http://localhost:3080")
    return url.rstrip("/")


def _checked_token(token: str) -> str:
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        # Its text is not repeated: libraries would do so in their errors.
        raise UsageError("the token is not one: it is empty, or holds blanks or characters that no header can hold")
    return token
