"""Connections that idle, end, break or misbehave: each costs its own client only, and leaves nothing."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.component.http.logs import LogLines
from tests.component.http.raw import Answer, RawClient, connect, open_sockets, request_text
from tests.component.http.world import JSON, configure_body, open_app, open_world, stands
from trio_compute.http.exchange import Message, Receive, Send
from trio_compute.http.table import EXTERNAL
from trio_compute.lifecycle.status import Status


def running_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def say_ok(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok", "more_body": False})


async def terminate_answer(client: RawClient) -> Answer:
    """Ask Quart for something that it refuses."""
    await client.send(request_text("POST", "/terminate?mode=x", headers={"connection": "close"}))
    return await client.answer(to="POST")


class TestEnd:
    @pytest.mark.parametrize("path", ["/status", "/nowhere", "/terminate?mode=x", "/configure"])
    @pytest.mark.parametrize("token", [True, False])
    async def test_connection_close_gets_an_end_of_file(self, path: str, token: bool) -> None:
        """Design §9, first defect: the answer's last send was cancelled, so the socket stayed open."""
        method = "POST" if path.startswith(("/t", "/c")) else "GET"
        async with open_world() as world, connect(world.port) as client:
            await client.send(request_text(method, path, token=token, headers={"connection": "close"}))
            answer = await client.answer(to=method)
            assert answer.headers["connection"] == "close"
            assert await client.ends(timeout_seconds=2)

    async def test_http_1_0_gets_an_end_of_file(self) -> None:
        async with open_world() as world, connect(world.port) as client:
            await client.send(request_text("GET", "/status", version="1.0"))
            assert (await client.answer()).status == 200
            assert await client.ends(timeout_seconds=2)

    @pytest.mark.parametrize("requests", [0, 1])
    async def test_an_idle_connection_is_closed(self, requests: int) -> None:
        """Design §9: keep-alive timeouts never fired."""
        async with open_app(say_ok, keep_alive_seconds=0.1) as served, connect(served.port) as client:
            for _ in range(requests):
                await client.send(request_text("GET", "/"))
                assert (await client.answer()).body == b"ok"
            assert await client.ends(timeout_seconds=5)

    async def test_quart_answers_do_not_keep_a_connection_from_idling_out(self) -> None:
        """Design §9, with the application that had the defect."""
        from trio_compute.http.app import make_app
        from trio_compute.http.exchange import exchange
        from trio_compute.http.front import has_body

        async with open_world() as world:
            quart = make_app(EXTERNAL, world.life)

            async def app(scope: Message, receive: Receive, send: Send) -> None:
                assert not has_body(scope)
                await exchange(quart, scope, receive, send)

            async with open_app(app, keep_alive_seconds=0.1) as served, connect(served.port) as client:
                await client.send(request_text("POST", "/configure"))
                assert (await client.answer(to="POST")).status == 415
                assert await client.ends(timeout_seconds=5)

    async def test_two_hundred_finished_and_idle_clients_leave_nothing(self) -> None:
        """Design §9: 200 of 200 sockets were held."""
        async with open_world() as world:
            async with connect(world.port) as client:
                assert (await terminate_answer(client)).status == 400
            await trio.testing.wait_all_tasks_blocked()
            sockets, tasks = open_sockets(), running_tasks()
            clients: list[RawClient] = []
            async with trio.open_nursery() as nursery:

                async def one(number: int) -> None:
                    async with connect(world.port) as client:
                        if number % 2:
                            assert (await terminate_answer(client)).status == 400
                        clients.append(client)

                for number in range(200):
                    nursery.start_soon(one, number)
            assert len(clients) == 200
            await stands(lambda: open_sockets() <= sockets and running_tasks() <= tasks)

    async def test_two_hundred_idle_clients_do_not_keep_the_servers_from_ending(self) -> None:
        """Design §9: they are let go when the servers drain, at once."""
        before = open_sockets()
        async with trio.open_nursery() as nursery:
            async with open_world(drain_seconds=5) as world:
                connected = [await nursery.start(hold, world.port, number % 2 == 0) for number in range(200)]
                assert len(connected) == 200
                began = trio.current_time()
            assert trio.current_time() - began < 3
        await stands(lambda: open_sockets() == before)


async def hold(port: int, talk: bool, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Keep a connection until the server ends it."""
    async with connect(port) as client:
        if talk:
            await client.send(request_text("POST", "/terminate?mode=x"))
            assert (await client.answer(to="POST")).status == 400
        task_status.started()
        assert await client.ends()


class TestClientsThatLeave:
    async def test_a_half_closed_client_reads_a_cheap_answer(self) -> None:
        async with open_world() as world, connect(world.port) as client:
            await client.send(request_text("GET", "/status"))
            await client.stream.send_eof()
            assert (await client.answer()).status == 200
            assert await client.ends(timeout_seconds=2)

    async def test_a_half_closed_client_of_quart_is_not_kept(self) -> None:
        """Design §9: half-closing cancels the handler; the connection must go with it."""
        async with open_world() as world:
            before = open_sockets()
            async with connect(world.port) as client:
                await client.send(request_text("POST", "/terminate"))
                await world.compute.reach(Status.TERMINATION_PENDING_FAST)
                await client.stream.send_eof()
                await client.ends(timeout_seconds=2)
            await stands(lambda: open_sockets() == before)

    @pytest.mark.parametrize("sent", [b"", b"GET /sta", request_text("GET", "/status"), request_text("POST", "/x")])
    async def test_a_client_that_resets_is_forgotten(self, sent: bytes, log_lines: LogLines) -> None:
        async with open_world() as world:
            before = open_sockets()
            async with connect(world.port) as client:
                await client.send(sent)
                client.reset()
            await stands(lambda: open_sockets() == before)
        assert not log_lines.with_text("ERROR")

    async def test_a_client_that_resets_while_quart_works_is_forgotten(self, log_lines: LogLines) -> None:
        async with open_world() as world:
            before, body = open_sockets(), configure_body()
            async with connect(world.port) as client:
                length = {**JSON, "content-length": str(len(body))}
                await client.send(request_text("POST", "/configure", headers=length), body)
                await world.compute.reach(Status.CONFIGURATION_PENDING)
                client.reset()
            await stands(lambda: open_sockets() == before)
        assert not log_lines.with_text("ERROR")
        assert log_lines.with_text("code=none")


class TestOddClients:
    async def test_a_client_with_slow_headers_blocks_nobody_and_is_closed_in_time(self) -> None:
        async with open_app(say_ok, keep_alive_seconds=0.3) as served, connect(served.port) as slow:
            await slow.send(b"GET / HTTP/1.1\r\nhost: x\r\n")
            async with connect(served.port) as client:
                await client.send(request_text("GET", "/"))
                assert (await client.answer()).body == b"ok"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trickle, slow)
                # In time, or TooSlowError is raised; a byte that comes at that very moment turns the end into a reset.
                await slow.ends(timeout_seconds=5)
                nursery.cancel_scope.cancel()

    async def test_pipelined_requests_are_answered_in_order(self) -> None:
        paths = ["/status", "/nowhere", "/metrics.json", "/terminate?mode=x", "/status", "/configure"] * 5
        methods = {"/terminate?mode=x": "POST", "/configure": "POST"}
        async with open_world() as world, connect(world.port) as client:
            await client.send(b"".join(request_text(methods.get(path, "GET"), path) for path in paths))
            statuses = [(await client.answer(to=methods.get(path, "GET"))).status for path in paths]
            assert statuses == [200, 404, 200, 400, 200, 415] * 5

    async def test_pipelined_bodies_are_told_apart(self) -> None:
        async with open_world(Status.INIT) as world, connect(world.port) as client:
            body = configure_body()
            request = request_text("POST", "/configure", headers={**JSON, "content-length": str(len(body))}) + body
            await client.send(request * 3)
            assert [(await client.answer(to="POST")).status for _ in range(3)] == [412] * 3

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
            b"hello\r\n\r\n",
            b"GET /status\r\n\r\n",
            b"GET /status HTTP/1.1\r\n\r\n",
            b"GET /status HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
            b"POST /configure HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
            b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
            b"\r\n" * 1000,
            b"\x00" * 100_000,
        ],
        ids=lambda garbage: repr(garbage[:16]),
    )
    async def test_garbage_ends_its_own_connection_only(self, garbage: bytes, log_lines: LogLines) -> None:
        async with open_world() as world:
            before = open_sockets()
            async with connect(world.port) as client:
                await client.send(garbage)
                await client.stream.send_eof()
                with trio.fail_after(5):
                    received = b"".join([piece async for piece in pieces(client)])
            assert received == b"" or received.startswith((b"HTTP/1.1 4",))
            await stands(lambda: open_sockets() == before)
            async with world.client() as good:
                assert (await good.get("/status")).status_code == 200
        assert not log_lines.with_text("ERROR")


class TestOtherProtocols:
    """Contract 03 §1: HTTP/1.1 only; an offer to upgrade is an offer that we do not take."""

    @pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
    async def test_an_upgrade_is_not_taken(self, upgrade: str) -> None:
        async with open_world() as world, connect(world.port) as client:
            headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": upgrade, "http2-settings": "AAMAAABkAAQ"}
            await client.send(request_text("GET", "/status", headers=headers))
            answer = await client.answer()
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
            await client.send(request_text("GET", "/status"))
            assert (await client.answer()).status == 200

    async def test_http_2_is_not_spoken(self) -> None:
        async with open_world() as world, connect(world.port) as client:
            await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            with trio.fail_after(5):
                assert (await client.stream.receive_some(65536)).startswith(b"HTTP/1.1 505")


async def pieces(client: RawClient):  # type: ignore[no-untyped-def]
    while True:
        try:
            data = await client.stream.receive_some(65536)
        except trio.BrokenResourceError:
            return
        if not data:
            return
        yield data


async def trickle(client: RawClient) -> None:
    """Send one more header now and then, as a slow-header attack does."""
    for number in range(10_000):
        await client.send_what_it_takes(b"x-%d: 1\r\n" % number)
        await trio.sleep(0.02)
