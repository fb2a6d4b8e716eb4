"""Bodies that nobody wants: the client gets its answer, nothing hangs, nothing is left behind."""

from __future__ import annotations

import json

import pytest
import trio

from tests.component.http.raw import RawClient, connect, open_sockets, request_text
from tests.component.http.world import JSON, World, configure_body, open_world, stands
from trio_compute.lifecycle.status import Status

LARGE = 8 * 1024 * 1024


UNWANTED = (
    ("POST", "/nowhere", True, 404),
    ("PUT", "/configure", True, 405),
    ("POST", "/configure", False, 400),
    ("POST", "/status", True, 405),
    ("GET", "/status", True, 200),
    ("POST", "/terminate?mode=x", True, 400),
)


def large_request(method: str, path: str, token: bool, *, length: int = LARGE) -> bytes:
    return request_text(method, path, token=token, headers={**JSON, "content-length": str(length)})


@pytest.mark.parametrize(("method", "path", "token", "status"), UNWANTED)
async def test_a_client_that_sends_first_and_reads_then_gets_its_answer(
    method: str, path: str, token: bool, status: int
) -> None:
    """RFC 9112 §9.6: a server that closes over unread bytes resets the connection under the client's write."""
    async with open_world() as world:
        before = open_sockets()
        async with connect(world.port) as client:
            await client.send(large_request(method, path, token))
            await client.send(b"x" * LARGE)
            assert (await client.answer(to=method)).status == status
        await stands(lambda: open_sockets() == before)


@pytest.mark.parametrize(("method", "path", "token", "status"), UNWANTED)
async def test_a_small_body_that_comes_late_does_not_cost_the_answer(
    method: str, path: str, token: bool, status: int
) -> None:
    """Libraries send head and body in two writes; a reset in between would hide a 401 behind an I/O error."""
    async with open_world() as world, connect(world.port) as client:
        await client.send(large_request(method, path, token, length=3))
        first = await client.answer(to=method)
        await client.send(b"abc")
        assert first.status == status
        if first.headers.get("connection") == "close":
            assert await client.ends()


@pytest.mark.parametrize(("method", "path", "token", "status"), UNWANTED)
async def test_a_body_that_never_comes_holds_nothing(method: str, path: str, token: bool, status: int) -> None:
    async with open_world() as world:
        before = open_sockets()
        async with connect(world.port) as client:
            await client.send(large_request(method, path, token))
            assert (await client.answer(to=method)).status == status
            assert await client.ends()
        await stands(lambda: open_sockets() == before)


async def test_a_body_that_never_ends_is_cut_off() -> None:
    """The answer is out at once; afterwards the server listens politely for a while, not for ever."""
    async with open_world() as world, connect(world.port) as client:
        await client.send(request_text("POST", "/nowhere", headers={"transfer-encoding": "chunked"}))
        assert (await client.answer(to="POST")).status == 404
        with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
            await send_for_ever(client, b"1000\r\n" + b"x" * 0x1000 + b"\r\n")


async def test_many_unwanted_uploads_at_once_leave_nothing() -> None:
    async with open_world() as world:
        before = open_sockets()

        async def upload() -> None:
            async with connect(world.port) as client:
                await client.send(large_request("POST", "/nowhere", token=False))
                await client.send_what_it_takes(b"x" * 1024 * 1024)
                assert (await client.answer(to="POST")).status == 404

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(upload)
        await stands(lambda: open_sockets() == before)


async def test_after_a_small_unwanted_body_the_connection_serves_on() -> None:
    async with open_world() as world, connect(world.port) as client:
        for _ in range(3):
            await client.send(large_request("POST", "/nowhere", token=False, length=3) + b"abc")
            assert (await client.answer(to="POST")).status == 404


async def test_a_client_that_expects_to_be_asked_for_its_body_is_asked() -> None:
    """RFC 9110 §10.1.1; curl does so for large bodies."""
    async with open_world(Status.INIT) as world, connect(world.port) as client:
        body = configure_body()
        headers = {**JSON, "content-length": str(len(body)), "expect": "100-continue"}
        await client.send(request_text("POST", "/configure", headers=headers))
        with trio.fail_after(5):
            assert (await client.stream.receive_some(65536)).startswith(b"HTTP/1.1 100")
        await client.send(body)
        assert (await client.answer(to="POST")).status == 412


@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(how: str) -> None:
    async with open_world() as world:
        before = open_sockets()
        async with connect(world.port) as client:
            await client.send(large_request("POST", "/configure", token=True), b"{" * 100_000)
            if how == "resets":
                client.reset()
        await stands(lambda: open_sockets() == before)
        await still_serves(world)
        assert world.status is Status.RUNNING


async def test_a_body_in_tiny_chunks_arrives_whole() -> None:
    async with open_world(Status.INIT) as world, connect(world.port) as client:
        body = configure_body()
        await client.send(request_text("POST", "/configure", headers={**JSON, "transfer-encoding": "chunked"}))
        await client.send(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        answer = await client.answer(to="POST")
        assert (answer.status, json.loads(answer.body)["error"]) == (412, "invalid compute status: init")


async def send_for_ever(client: RawClient, piece: bytes) -> None:
    while True:
        await client.send(piece)


async def still_serves(world: World) -> None:
    async with world.client() as client:
        assert (await client.get("/status")).status_code == 200
