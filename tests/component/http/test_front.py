"""Defects of our own: a handler that raises costs its request only, and says so in answer and log (contract 03 §2)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.component.http.logs import LogLines
from tests.component.http.raw import connect, request_text
from tests.component.http.world import JSON, configure_body, http_client, open_app, open_world
from trio_compute.http.app import make_app
from trio_compute.http.authorize import Authorizer
from trio_compute.http.exchange import App, Message, Receive, Send
from trio_compute.http.front import Front
from trio_compute.http.operation import Answer, Operation, Request
from trio_compute.http.table import EXTERNAL
from trio_compute.lifecycle.status import Status


def boom(*_args: object, **_options: object) -> bytes:
    raise RuntimeError("a defect")


async def load_nothing() -> App:
    return boom()  # type: ignore[return-value]


async def break_off(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    boom()


async def fail(_context: object, _request: Request) -> Answer:
    await trio.lowlevel.checkpoint()
    return boom()  # type: ignore[return-value]


def operation(method: str, **changes: Any) -> Operation:
    return Operation(method=method, path="/", handler=fail, summary="", **changes)


@pytest.mark.parametrize("body", [None, int])
async def test_a_defect_is_500_and_is_logged(body: Any, log_lines: LogLines) -> None:
    """§2, panic in handler: 500 `{"error":"internal error"}` and a log line; the connection lives on."""
    async with open_world() as world:
        front = Front([operation("POST", body=body)], world.life, authorizer=None, load=load_nothing)
        async with open_app(front) as served, http_client(served.port) as client:
            for _ in range(2):
                response = await client.post("/", headers={"x-request-id": "abc"})
                assert (response.status_code, response.json()) == (500, {"error": "internal error"})
                assert response.headers["x-request-id"] == "abc"
    assert len([line for line in log_lines.with_text("ERROR") if "a defect" in line and "abc" in line]) == 2


async def test_a_defect_in_a_quart_handler_is_500_and_is_logged(log_lines: LogLines) -> None:
    """§2, panic in handler."""
    async with open_world(Status.EMPTY) as world, world.client() as client:
        world.queue.submit = boom  # type: ignore[method-assign, assignment]
        response = await client.post("/configure", content=configure_body(), headers=JSON)
        assert (response.status_code, response.json()) == (500, {"error": "internal error"})
        assert log_lines.with_text("a defect")


async def test_an_answer_that_breaks_off_is_seen_to_be_broken(log_lines: LogLines) -> None:
    """No second answer is put into the middle of the first."""

    async def load() -> App:
        return break_off

    async with open_world() as world:
        front = Front([operation("POST", body=int)], world.life, authorizer=None, load=load)
        async with open_app(front) as served, connect(served.port) as client:
            await client.send(request_text("POST", "/"))
            with pytest.raises((EOFError, trio.BrokenResourceError)):
                await client.answer(to="POST")
    assert log_lines.with_text("a defect")


async def test_a_body_that_stops_coming_is_408() -> None:
    """Nobody may hold a handler by sending half a body."""
    async with open_world() as world:
        app = make_app(EXTERNAL, world.life)
        app.config["BODY_TIMEOUT"] = 0.1

        async def load() -> Any:
            return app

        authorizer = Authorizer([], "x", bypassed=True)
        front = Front(EXTERNAL, world.life, authorizer=authorizer, load=load)
        async with open_app(front) as served, connect(served.port) as client:
            headers = {**JSON, "content-length": "1000"}
            await client.send(request_text("POST", "/configure", headers=headers), b"{")
            assert (await client.answer(to="POST")).status == 408
            assert await client.ends()
