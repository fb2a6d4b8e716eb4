"""Endpoint storage over real sockets, spoken to by servers that misbehave (contract 07 §9, 08 L-05, L-10)."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from trio_compute.errors import RemoteError, cause_chain
from trio_compute.storage.endpoint_storage import EndpointStorage, StateLocation

TOKEN = "the.secret.token"
Talk = Callable[[trio.SocketStream], Awaitable[None]]


class Peer:
    """Hold what a server was asked, byte by byte."""

    def __init__(self, port: int) -> None:
        self.location = StateLocation(f"http://127.0.0.1:{port}/t/l/e/lfc_state", TOKEN)
        self.received = bytearray()


@asynccontextmanager
async def open_peer(answer: bytes, *, then: str = "close") -> AsyncIterator[Peer]:
    """Answer every connection with these bytes once a request has begun; then `close` or `stay`."""
    async with trio.open_nursery() as nursery:

        async def talk(stream: trio.SocketStream) -> None:
            while not peer.received.endswith(b"\r\n\r\n"):
                data = await stream.receive_some()
                if not data:
                    return
                peer.received += data
                if b"PUT" in peer.received and b"\r\n\r\n" in peer.received:
                    break
            await stream.send_all(answer)
            if then == "stay":
                await trio.sleep_forever()

        listeners = await nursery.start(trio.serve_tcp, talk, 0)
        peer = Peer(listeners[0].socket.getsockname()[1])
        yield peer
        nursery.cancel_scope.cancel()


def response(status: str, body: bytes = b"", headers: str = "", *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\ncontent-length: {size}\r\n{headers}\r\n".encode() + body


def storage(**limits: float) -> EndpointStorage:
    options = {"connect_seconds": 2.0, "idle_seconds": 2.0, **limits}
    return EndpointStorage(**options)  # type: ignore[arg-type]


async def fetch(peer: Peer, **limits: float) -> bytes | None:
    async with storage(**limits).open_state(peer.location) as download:
        return None if download is None else await download.body()


async def failure(peer: Peer, **limits: float) -> str:
    with pytest.raises(RemoteError) as caught, trio.fail_after(10):
        await fetch(peer, **limits)
    return cause_chain(caught.value)


async def test_a_state_is_asked_for_with_its_token_and_no_encoding() -> None:
    async with open_peer(response("200 OK", b"the frame")) as peer:
        assert await fetch(peer) == b"the frame"
    head = bytes(peer.received).decode().lower()
    assert head.startswith("get /t/l/e/lfc_state http/1.1\r\n")
    assert f"authorization: bearer {TOKEN}" in head
    assert "accept-encoding: identity" in head


async def test_an_absent_state_is_none() -> None:
    async with open_peer(response("404 Not Found", b"t/l/e/lfc_state")) as peer:
        assert await fetch(peer) is None


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("401 Whatever", "401 Unauthorized querying endpoint storage"),
        ("500 Oh", "500 Internal Server Error querying endpoint storage"),
        ("204 No Content", "204 No Content querying endpoint storage"),
        ("307 Temporary Redirect", "307 Temporary Redirect querying endpoint storage"),
        ("599 Odd", "599 querying endpoint storage"),
    ],
)
async def test_any_other_status_is_an_error_and_redirects_are_not_followed(status: str, text: str) -> None:
    async with open_peer(response(status, headers="location: http://127.0.0.1:1/\r\n")) as peer:
        assert await failure(peer) == text


async def test_nobody_there_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        peer = Peer(free.getsockname()[1])
    assert (await failure(peer)).startswith("querying endpoint storage: ")


async def test_a_peer_that_is_silent_is_given_up() -> None:
    """L-05."""
    async with open_peer(b"", then="stay") as peer:
        assert await failure(peer, idle_seconds=0.2) == "querying endpoint storage: nothing happened for 0.2 s"


async def test_a_peer_that_falls_silent_in_the_body_is_given_up() -> None:
    """L-05."""
    async with open_peer(response("200 OK", b"half", length=8), then="stay") as peer:
        expected = "getting request body from endpoint storage: nothing happened for 0.2 s"
        assert await failure(peer, idle_seconds=0.2) == expected


async def test_a_body_that_breaks_off_is_an_error() -> None:
    async with open_peer(response("200 OK", b"half", length=8)) as peer:
        assert (await failure(peer)).startswith("getting request body from endpoint storage: peer closed connection")


async def test_an_answer_that_is_no_http_is_an_error() -> None:
    async with open_peer(b"\0\1\2 what?\r\n\r\n") as peer:
        assert (await failure(peer)).startswith("querying endpoint storage: ")


async def test_a_body_beyond_the_limit_is_refused() -> None:
    """L-10: and not read to its end."""
    async with open_peer(response("200 OK", b"x" * 100_000, length=10**12), then="stay") as peer:
        expected = "getting request body from endpoint storage: it is larger than 1000 bytes"
        assert await failure(peer, max_bytes=1000) == expected


async def test_a_body_at_the_limit_is_taken() -> None:
    async with open_peer(response("200 OK", b"x" * 1000)) as peer:
        assert await fetch(peer, max_bytes=1000) == b"x" * 1000


@pytest.mark.parametrize("url", ["http://host:port/x", "http://[::1/x", "http://a b/x", "http://\0/x"])
async def test_an_address_that_is_none_is_an_error(url: str) -> None:
    peer = Peer(1)
    peer.location = StateLocation(url, TOKEN)
    assert (await failure(peer)).startswith("querying endpoint storage: ")


@pytest.mark.parametrize("token", ["töken", "to\nken", "\N{SNOWMAN}"])
async def test_a_token_that_cannot_be_sent_is_an_error_that_does_not_tell_it(token: str) -> None:
    async with open_peer(response("200 OK")) as peer:
        peer.location = StateLocation(peer.location.url, token)
        if token.isascii() or max(map(ord, token)) > 255:
            text = await failure(peer)
            assert text.startswith("querying endpoint storage: ")
            assert token not in text


async def test_a_state_is_stored_as_raw_bytes() -> None:
    async with open_peer(response("200 OK")) as peer:
        await storage().put_state(peer.location, b"\0frame")
    head, _, body = bytes(peer.received).partition(b"\r\n\r\n")
    assert head.lower().startswith(b"put /t/l/e/lfc_state http/1.1\r\n")
    assert b"content-length: 6" in head.lower()
    assert body in {b"", b"\0frame"}  # the peer answers as soon as it has the head


@pytest.mark.parametrize(
    ("answer", "then", "text"),
    [
        (response("413 Payload Too Large"), "close", "request to endpoint storage failed: 413 "),
        (response("201 Created"), "close", "request to endpoint storage failed: 201 Created"),
        (b"", "stay", "writing to endpoint storage: nothing happened for 0.2 s"),
        (b"", "close", "writing to endpoint storage: "),
    ],
)
async def test_a_state_that_is_not_taken_is_an_error(answer: bytes, then: str, text: str) -> None:
    async with open_peer(answer, then=then) as peer:
        with pytest.raises(RemoteError) as caught, trio.fail_after(10):
            await storage(idle_seconds=0.2).put_state(peer.location, b"frame")
        assert cause_chain(caught.value).startswith(text)


async def test_a_peer_that_does_not_read_is_given_up() -> None:
    """L-05: an upload has the same limit."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        peer = Peer(silent.getsockname()[1])
        with pytest.raises(RemoteError) as caught, trio.fail_after(10):
            await storage(idle_seconds=0.3).put_state(peer.location, bytes(64 * 1024 * 1024))
        assert cause_chain(caught.value) == "writing to endpoint storage: nothing happened for 0.3 s"


@pytest.mark.parametrize("where", ["headers", "body"])
async def test_a_cancellation_leaves_at_once(where: str) -> None:
    answer = b"" if where == "headers" else response("200 OK", b"half", length=8)
    async with open_peer(answer, then="stay") as peer:
        began = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await fetch(peer, idle_seconds=100)
        assert scope.cancelled_caught
        assert trio.current_time() - began < 2
