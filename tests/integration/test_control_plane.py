"""The control-plane client against a scripted server: the whole retry table of contract 01 §8."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from tests.fakes.specs import spec_dict
from trio_compute.errors import ComputeError, RemoteError
from trio_compute.http.exchange import Message, Receive, Send
from trio_compute.http.serve import serve_app
from trio_compute.storage.control_plane import fetch_config
from trio_compute.telemetry.metrics import CONTROL_PLANE_REQUESTS, metrics

CONFIG = {"jwks": {"keys": []}}
ATTACHED = json.dumps({"status": "attached", "spec": spec_dict(), "compute_ctl_config": CONFIG})
EMPTY = json.dumps({"status": "empty", "spec": None, "compute_ctl_config": CONFIG})
EXHAUSTED = "Exhausted all attempts to retrieve the config from the control plane"


class Script:
    """Answer each request with the next of the scripted answers, and remember what was asked."""

    def __init__(self, *answers: tuple[int, str]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str | None]] = []

    async def app(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        authorization = headers.get(b"authorization")
        self.requests.append((scope["raw_path"].decode(), authorization and authorization.decode()))
        status, body = self.answers.pop(0)
        if status == 0:
            await trio.sleep_forever()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body.encode(), "more_body": False})


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_app, script.app, [sock], draining=trio.sleep_forever, drain_seconds=0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("transient", [(502, ""), (503, ""), (200, "<html>"), (200, "{}"), (200, "[]"), (200, "")])
async def test_transient_answers_are_tried_again(transient: tuple[int, str]) -> None:
    script = Script(transient, transient, (200, ATTACHED))
    async with serving(script) as base:
        config = await fetch_config(base, "compute-1", None)
    assert config.spec is not None
    assert len(script.requests) == 3


async def test_each_attempt_is_counted_by_status() -> None:
    def count(status: str) -> int:
        return metrics.value(CONTROL_PLANE_REQUESTS, rpc="GetConfig", http_status=status)

    before = {status: count(status) for status in ("200 OK", "503 Service Unavailable", "unknown")}
    script = Script((503, ""), (200, "<html>"), (200, ATTACHED))
    async with serving(script) as base:
        await fetch_config(base, "compute-1", None)
    with pytest.raises(RemoteError):
        await fetch_config("http://127.0.0.1:1", "compute-1", None)
    added = {status: count(status) - number for status, number in before.items()}
    assert added == {"200 OK": 2, "503 Service Unavailable": 1, "unknown": 3}


@pytest.mark.parametrize("transient", [(502, ""), (503, ""), (200, "<html>")])
async def test_three_transient_answers_are_the_end(transient: tuple[int, str]) -> None:
    script = Script(*[transient] * 3)
    async with serving(script) as base:
        with pytest.raises(RemoteError) as raised:
            await fetch_config(base, "compute-1", None)
    assert str(raised.value) == EXHAUSTED


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ((404, ""), "unexpected control plane response status code: 404"),
        ((401, "secret"), "unexpected control plane response status code: 401"),
        ((500, ""), "unexpected control plane response status code: 500"),
        ((302, ""), "unexpected control plane response status code: 302"),
        ((200, ATTACHED.replace(json.dumps(spec_dict()), "null")), "compute is attached, but spec is empty"),
    ],
)
async def test_other_answers_fail_at_once(answer: tuple[int, str], text: str) -> None:
    script = Script(answer)
    async with serving(script) as base:
        with pytest.raises(RemoteError) as raised:
            await fetch_config(base, "compute-1", None)
    assert text in str(raised.value)
    assert "secret" not in str(raised.value)


async def test_empty_means_the_pool() -> None:
    script = Script((200, EMPTY))
    async with serving(script) as base:
        assert (await fetch_config(base, "compute-1", None)).spec is None


@pytest.mark.parametrize(
    ("compute_id", "path"),
    [("a b", "a%20b"), ("0b7c/0", "0b7c/0"), ("x?y#z", "x%3Fy%23z"), ("ü", "%C3%BC")],
)
async def test_the_id_is_escaped_and_the_base_loses_its_slash(compute_id: str, path: str) -> None:
    script = Script((200, EMPTY))
    async with serving(script) as base:
        await fetch_config(base + "//", compute_id, None)
    assert script.requests[0][0] == f"/compute/api/v2/computes/{path}/spec"


@pytest.mark.parametrize(("token", "header"), [("s3cret", "Bearer s3cret"), (None, None), ("", None)])
async def test_the_token_is_sent_only_when_there_is_one(token: str | None, header: str | None) -> None:
    """B-05."""
    script = Script((200, EMPTY))
    async with serving(script) as base:
        await fetch_config(base, "compute-1", token)
    assert script.requests[0][1] == header


async def test_nobody_listening_is_transient() -> None:
    with pytest.raises(RemoteError, match=EXHAUSTED):
        await fetch_config("http://127.0.0.1:1", "compute-1", None)


async def test_waiting_for_an_answer_can_be_cancelled() -> None:
    script = Script((0, ""))
    async with serving(script) as base:
        with trio.move_on_after(0.2) as scope:
            await fetch_config(base, "compute-1", None)
    assert scope.cancelled_caught


@pytest.mark.parametrize("base", ["not a url", "ftp://h", "http://[::1"])
async def test_an_unusable_address_is_a_clear_error(base: str) -> None:
    with pytest.raises(ComputeError):
        await fetch_config(base, "compute-1", None)
