"""The end of serving: answers in flight get out within the limit, nobody can stretch it."""

from __future__ import annotations

import socket

import pytest
import trio

from tests.component.http.logs import LogLines
from tests.component.http.raw import connect, open_sockets, request_text
from tests.component.http.world import FLUSH_LSN, JSON, configure_body, open_app, open_world, stands
from trio_compute.http.exchange import Message, Receive, Send
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status

LARGE = 64 * 1024 * 1024
SMALL_BUFFER = 8192


async def answer_large(scope: Message, receive: Receive, send: Send) -> None:
    headers = [(b"content-length", str(LARGE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(LARGE), "more_body": False})


class TestClientsThatDoNotRead:
    async def test_one_does_not_delay_the_end(self) -> None:
        """Design §9, second defect: hypercorn shields its sends, so the end waited for the client."""
        before = open_sockets()
        async with open_app(answer_large, drain_seconds=0.2) as served:
            async with connect(served.port, receive_buffer_bytes=SMALL_BUFFER) as client:
                await client.send(request_text("GET", "/"))
                assert await client.stream.receive_some(1) == b"H"
                served.drain.set()
                with trio.fail_after(2):
                    await served.ended.wait()
        await stands(lambda: open_sockets() == before)

    async def test_one_that_stalls_is_dropped_while_others_are_served(self, log_lines: LogLines) -> None:
        async with open_app(answer_large, send_piece_seconds=0.2) as served:
            before = open_sockets()
            async with connect(served.port, receive_buffer_bytes=SMALL_BUFFER) as client:
                await client.send(request_text("GET", "/"))
                await stands(lambda: bool(log_lines.with_text("does not read its answer")))
                await stands(lambda: open_sockets() == before + 1)
            async with connect(served.port) as client:
                await client.send(request_text("GET", "/", headers={"connection": "close"}))
                assert len((await client.answer()).body) == LARGE

    async def test_one_that_leaves_in_the_middle_is_forgotten(self) -> None:
        async with open_app(answer_large) as served:
            before = open_sockets()
            async with connect(served.port, receive_buffer_bytes=SMALL_BUFFER) as client:
                await client.send(request_text("GET", "/"))
                await client.stream.receive_some(1)
                client.reset()
            await stands(lambda: open_sockets() == before)

    async def test_one_that_reads_slowly_gets_everything(self) -> None:
        async with open_app(answer_large) as served, connect(served.port) as client:
            await client.send(request_text("GET", "/"))
            total = 0
            with trio.fail_after(20):
                while total < LARGE:
                    total += len(await client.stream.receive_some(1024 * 1024))


class TestDrain:
    async def test_an_answer_in_flight_gets_out_and_then_the_servers_end(self) -> None:
        """A-26: flush in-flight responses (≤ 1 s)."""
        async with open_world() as world, connect(world.port) as client:
            await client.send(request_text("POST", "/terminate"))
            await world.compute.reach(Status.TERMINATION_PENDING_FAST)
            world.servers.drain()
            await stands(lambda: not accepts(world.port))
            world.finish_termination(ev.Terminated(flush_lsn=FLUSH_LSN))
            answer = await client.answer(to="POST")
            assert (answer.status, answer.body) == (200, b'{"lsn":"0/169AD58"}')
            assert await client.ends(timeout_seconds=1)

    async def test_an_answer_that_never_comes_is_cut_off(self) -> None:
        """A-26: the limit holds."""
        async with trio.open_nursery() as nursery:
            async with open_world(drain_seconds=0.2) as world:

                async def wait_in_vain() -> None:
                    async with connect(world.port) as client:
                        await client.send(request_text("POST", "/terminate"))
                        with pytest.raises((EOFError, trio.BrokenResourceError)):
                            await client.answer(to="POST")

                nursery.start_soon(wait_in_vain)
                await world.compute.reach(Status.TERMINATION_PENDING_FAST)
                began = trio.current_time()
            assert 0.15 < trio.current_time() - began < 2

    async def test_without_requests_the_end_is_at_once(self) -> None:
        async with open_world(drain_seconds=30) as world, world.client() as client:
            assert (await client.get("/status")).status_code == 200
            began = trio.current_time()
            world.servers.drain()
            await stands(lambda: not accepts(world.port))
        assert trio.current_time() - began < 5

    async def test_a_drain_before_anything_was_asked_ends_too(self) -> None:
        async with open_world(Status.INIT) as world:
            world.servers.drain()
            world.servers.drain()

    async def test_a_client_whose_body_is_unread_does_not_stretch_the_end(self) -> None:
        async with trio.open_nursery() as nursery:
            async with open_world(drain_seconds=0.2) as world:
                unread = {**JSON, "content-length": "1000"}
                began = await nursery.start(stay, world.port, request_text("POST", "/nowhere", headers=unread))
            assert trio.current_time() - began < 2
            nursery.cancel_scope.cancel()

    async def test_cancelling_the_servers_leaves_nothing(self) -> None:
        before = open_sockets()
        with trio.CancelScope() as scope:
            async with open_world() as world, connect(world.port) as client:
                body = configure_body()
                await client.send(
                    request_text("POST", "/configure", headers={**JSON, "content-length": str(len(body))})
                )
                await client.send(body)
                await world.compute.reach(Status.CONFIGURATION_PENDING)
                scope.cancel()
                await trio.sleep_forever()
        await stands(lambda: open_sockets() == before)


async def stay(port: int, request: bytes, *, task_status: trio.TaskStatus[float]) -> None:
    """Send a request, read the answer, and never leave."""
    async with connect(port) as client:
        await client.send(request)
        await client.answer(to="POST")
        task_status.started(trio.current_time())
        await trio.sleep_forever()


def accepts(port: int) -> bool:
    """Tell whether somebody listens; loopback answers at once either way."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
