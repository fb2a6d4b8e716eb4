"""The client without a compute: routes, what is sent, what errors say, events in pieces."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_compute.client import ApiError, ComputeClient, Event, TrioComputeClient, UnexpectedAnswer, calls
from trio_compute.client.core import Call, Peer, Reply
from trio_compute.client.events import EventParser
from trio_compute.errors import UsageError
from trio_compute.http.table import EXTERNAL, INTERNAL_ONLY, internal_operations
from trio_compute.model.responses import StatusResponse

# Made for browsers.
NOT_FOR_PROGRAMS = {("GET", "/")}

ARGUMENTS: dict[str, Any] = {
    "method": "GET",
    "path": "/",
    "config": {},
    "database": "a",
    "spec": {},
    "wal_flush_lsn": "0/0",
    "actions": {},
    "extension": "x",
    "version": "1",
    "role": "r",
    "schema": "s",
    "privileges": ["USAGE"],
    "name": "x",
}


def makers() -> dict[str, Any]:
    """Return the functions of all routes by name."""
    public = inspect.getmembers(calls, inspect.isfunction)
    return {name: make for name, make in public if make.__module__ == calls.__name__ and not name.startswith("_")}


def made(make: Any) -> Call[Any]:
    parameters = inspect.signature(make).parameters.values()
    call: Call[Any] = make(**{p.name: ARGUMENTS[p.name] for p in parameters if p.default is p.empty})
    return call


def path_of(call: Call[Any]) -> str:
    return "/extension_server/" if call.path.startswith("/extension_server/") else call.path


def test_every_route_of_the_table_has_its_call() -> None:
    """To mend it: one function in client/calls.py, one line in each client."""
    known = {(call.method, path_of(call)) for call in map(made, makers().values())}
    table = {(operation.method, operation.path) for operation in (*EXTERNAL, *internal_operations(testing=True))}
    assert table - NOT_FOR_PROGRAMS - known == set()


@pytest.mark.parametrize("client", [ComputeClient, TrioComputeClient])
def test_every_call_is_a_method_of_both_clients(client: type) -> None:
    assert {name for name in makers() if not hasattr(client, name)} == set()


def test_a_call_goes_to_the_server_that_has_the_route() -> None:
    internal = {(operation.method, operation.path) for operation in INTERNAL_ONLY}
    external = {(operation.method, operation.path) for operation in EXTERNAL}
    for call in map(made, makers().values()):
        route = (call.method, path_of(call))
        if route in internal | external:
            assert call.internal is (route not in external)


@pytest.mark.parametrize("name", ["wait_for", "since", "timeout_seconds"])
def test_methods_keep_names_and_documentation(name: str) -> None:
    assert name in inspect.signature(ComputeClient.status).parameters
    assert (ComputeClient.status.__doc__ or "").startswith("Tell the status")


@pytest.mark.parametrize(
    "url", ["", "localhost:3080", "ftp://x", "http://", "http://x?y=1", "http://u:p@x", "http://x:y"]
)
def test_a_url_that_is_none_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(UsageError, match="http://localhost:3080"):
        Peer(url)


@pytest.mark.parametrize("token", ["", " ", "a b", "a\nb", "ö", "a\x00"])
def test_a_token_that_is_none_is_refused_and_not_repeated(token: str) -> None:
    """A-07: a library would repeat the header in its error."""
    with pytest.raises(UsageError) as raised:
        Peer(token=token + "secret" if token.strip() else token)
    assert "secret" not in str(raised.value)


def test_a_token_goes_to_the_external_server_only() -> None:
    peer = Peer("http://x:1/", token="t\n", internal_url="http://x:2")
    assert peer.request(calls.status())["headers"]["authorization"] == "Bearer t"
    assert peer.request(calls.status())["url"] == "http://x:1/status"
    assert peer.request(calls.refresh_configuration())["headers"] == {}
    assert peer.request(calls.refresh_configuration())["url"] == "http://x:2/refresh_configuration"


def test_a_path_may_hold_any_text() -> None:
    assert calls.extension_server("a/b c?.so").path == "/extension_server/a/b%20c%3F.so"


def test_a_long_poll_waits_longer_than_the_compute() -> None:
    call = calls.status(wait_for=["running", "failed"], since=3, timeout_seconds=60)
    assert call.query == {"wait_for": "running,failed", "since": "3", "timeout": "60.000s"}
    assert call.patience_seconds > 60


def test_the_compute_s_error_is_told_with_its_failures() -> None:
    failure = {"phase": "p", "message": "m", "sqlstate": None}
    body = msgspec.json.encode({"error": "no", "failures": [failure]})
    with pytest.raises(ApiError) as raised:
        calls.status().result(Reply(500, {"x-request-id": "abc"}, body))
    assert (raised.value.status, raised.value.text) == (500, "no")
    assert (raised.value.failures, raised.value.request_id) == ((failure,), "abc")


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [(404, b"", "not found"), (502, b"<html>", "bad gateway: <html>"), (499, b"\xff", "unknown status: \ufffd"),
     (302, b"", "found"), (400, b'{"error": 1}', 'bad request: {"error": 1}')],
)  # fmt: skip
def test_a_stranger_s_error_is_told_too(status: int, body: bytes, text: str) -> None:
    with pytest.raises(ApiError) as raised:
        calls.status().result(Reply(status, {}, body))
    assert raised.value.text == text


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"<html>", b"\xff", b'{"status": 1}'])
def test_a_stranger_s_answer_is_not_taken_for_a_compute_s(body: bytes) -> None:
    with pytest.raises(UnexpectedAnswer, match="GET /status"):
        calls.status().result(Reply(200, {}, body))


def test_a_newer_compute_s_answer_is_understood() -> None:
    body = b'{"start_time":"x","tenant":null,"timeline":null,"status":"running","last_active":null,"error":null,'
    body += b'"revision":2,"history":[],"something_new":{}}'
    assert isinstance(calls.status().result(Reply(200, {}, body)), StatusResponse)


STREAM = (
    b': trio_compute\n\nid: 7\nevent: transition\ndata: {"to":"running"}\n\n: alive\n\nid: 8\nevent: x\ndata: {}\n\n'
)
EVENTS = [Event(7, "transition", {"to": "running"}), Event(8, "x", {})]


@given(st.lists(st.integers(0, len(STREAM)), max_size=10).map(sorted))
def test_events_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    parser, found = EventParser(), []
    for begin, end in zip([0, *cuts], [*cuts, len(STREAM)], strict=True):
        found += parser.feed(STREAM[begin:end])
    assert found == EVENTS


@pytest.mark.parametrize("block", [b"x\n\n", b"id: x\nevent: y\ndata: {}\n\n", b"id: 1\nevent: y\ndata: []\n\n"])
def test_what_is_no_event_is_not_taken_for_one(block: bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        EventParser().feed(block)


def test_the_client_is_light() -> None:
    """Heavy modules are loaded by the first request, servers never."""
    program = "import sys, trio_compute.client as _; print({'httpx', 'trio', 'hypercorn', 'psycopg'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
