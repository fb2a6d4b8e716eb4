"""Endpoint storage: small objects of an endpoint, here the state of its file cache (contract 07 §9, 08 §3, §4)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import trio
from msgspec import Struct

from trio_compute.errors import RemoteError, SpecError
from trio_compute.model.parsed import ParsedSpec
from trio_compute.storage.lfc_state import MAX_STATE_BYTES, compress, decompress
from trio_compute.storage.texts import brief

if TYPE_CHECKING:
    import httpx

KEY = "lfc_state"
_PIECE_BYTES = 256 * 1024


class StateLocation(Struct, frozen=True):
    """Say where a state is kept, and with which token."""

    url: str
    token: str


class Download(Protocol):
    """Be an answer whose headers have arrived."""

    async def body(self) -> bytes:
        """Return the body; raise RemoteError if it does not arrive."""
        ...


def valid_endpoint_id(endpoint_id: str) -> bool:
    """Tell whether an id can be a segment of a path (07 S-18)."""
    return endpoint_id not in {"", ".", ".."}


def locate_state(parsed: ParsedSpec, from_endpoint: str | None = None) -> StateLocation:
    """Return where the state of an endpoint is, this compute's own unless told otherwise; raise SpecError (08 §3)."""
    endpoint_id = from_endpoint or parsed.spec.endpoint_id
    if not endpoint_id:
        raise SpecError("pspec.endpoint_id missing, other endpoint_id not provided")
    if not parsed.endpoint_storage_addr:
        raise SpecError("pspec.endpoint_storage_addr missing")
    if not parsed.endpoint_storage_token:
        raise SpecError("pspec.endpoint_storage_token missing")
    if not valid_endpoint_id(endpoint_id):
        raise SpecError(f"endpoint_id {endpoint_id!r} cannot be part of a URL")
    segments = (parsed.tenant_id, parsed.timeline_id, endpoint_id, KEY)
    path = "/".join(quote(segment, safe="") for segment in segments)
    return StateLocation(f"http://{parsed.endpoint_storage_addr}/{path}", parsed.endpoint_storage_token)


class EndpointStorage:
    """Read and write states over HTTP; a peer that says nothing for `idle_seconds` is given up (08 L-05)."""

    def __init__(self, *, connect_seconds: float, idle_seconds: float, max_bytes: int = MAX_STATE_BYTES) -> None:
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self._max_bytes = max_bytes

    def open_state(self, location: StateLocation) -> AbstractAsyncContextManager[Download | None]:
        """Ask for a state; the block begins when the headers have arrived, with None where nothing is stored.

        Raises RemoteError.
        """
        return self._open_state(location)

    @asynccontextmanager
    async def _open_state(self, location: StateLocation) -> AsyncIterator[Download | None]:
        what = "querying endpoint storage"
        async with self._client() as client:
            # What is stored is compressed already; nobody on the way shall do it again.
            response = await self._send(client, "GET", location, what, {"accept-encoding": "identity"})
            try:
                if response.status_code not in {200, 404}:
                    raise RemoteError(f"{_status(response)} {what}")
                found = response.status_code == 200
                yield _Body(response, self._max_bytes, self._explain) if found else None
            finally:
                with trio.move_on_after(1, shield=True):
                    await response.aclose()

    async def put_state(self, location: StateLocation, frame: bytes) -> None:
        """Store a state in place of an earlier one; raise RemoteError."""
        headers = {"content-type": "application/octet-stream"}
        async with self._client() as client:
            response = await self._send(client, "PUT", location, "writing to endpoint storage", headers, frame)
            with trio.move_on_after(1, shield=True):
                await response.aclose()
        if response.status_code != 200:
            raise RemoteError(f"request to endpoint storage failed: {_status(response)}")

    async def unpack(self, frame: bytes) -> bytes:
        """Return the state in a stored frame; raise StorageError."""
        return await decompress(frame, max_bytes=self._max_bytes)

    async def pack(self, state: bytes) -> bytes:
        """Return a state as it is stored."""
        return await compress(state)

    def _client(self) -> httpx.AsyncClient:
        import httpx

        limits = httpx.Timeout(self._idle_seconds, connect=self._connect_seconds)
        # trust_env: a proxy variable of the host must not see the token.
        return httpx.AsyncClient(timeout=limits, trust_env=False, follow_redirects=False)

    async def _send(
        self,
        client: httpx.AsyncClient,
        method: str,
        location: StateLocation,
        what: str,
        headers: dict[str, str],
        content: bytes | None = None,
    ) -> httpx.Response:
        """Send a request and return the response with its headers; the body is not read."""
        import httpx

        headers = {"authorization": f"Bearer {location.token}", **headers}
        try:
            request = client.build_request(method, location.url, headers=headers)
            if content is not None:
                request.stream = _stream_of(content)
                request.headers["content-length"] = str(len(content))
            return await client.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise RemoteError(what) from RemoteError(self._explain(error))

    def _explain(self, error: Exception) -> str:
        import httpx

        match error:
            case httpx.ConnectTimeout():
                return f"no connection within {self._connect_seconds:g} s"
            case httpx.TimeoutException():
                return f"nothing happened for {self._idle_seconds:g} s"
            case UnicodeError():  # its text may quote the token
                return "the token cannot be sent"
            case _:
                return brief(error) or type(error).__name__


class _Body:
    def __init__(self, response: httpx.Response, max_bytes: int, explain: Callable[[Exception], str]) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self._explain = explain

    async def body(self) -> bytes:
        import httpx

        received = bytearray()
        what = "getting request body from endpoint storage"
        try:
            with trio.CancelScope() as reading:
                async for chunk in self._response.aiter_raw():
                    received += chunk
                    if len(received) > self._max_bytes:
                        # Whoever leaves this loop leaves httpx's generators open; a cancellation unwinds them.
                        reading.cancel()
        except httpx.HTTPError as error:
            raise RemoteError(what) from RemoteError(self._explain(error))
        if len(received) > self._max_bytes:
            raise RemoteError(what) from RemoteError(f"it is larger than {self._max_bytes} bytes")
        return bytes(received)


def _stream_of(content: bytes) -> httpx.AsyncByteStream:
    """Return a body that leaves nothing behind when its request fails, as the generators of httpx do."""
    import httpx

    class Pieces(httpx.AsyncByteStream):
        def __init__(self) -> None:
            self._at = 0

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            if self._at >= len(content):
                raise StopAsyncIteration
            piece = content[self._at : self._at + _PIECE_BYTES]
            self._at += len(piece)
            return piece

    return Pieces()


def _status(response: httpx.Response) -> str:
    import httpx

    return f"{response.status_code} {httpx.codes.get_reason_phrase(response.status_code)}".rstrip()
