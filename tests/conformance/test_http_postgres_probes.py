"""GET /hadron_liveness_probe and /autoscaling_metrics (contract 03 §5.5, A-16, A-24, 10 §7)."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.component.http.world import World, open_world, stands
from tests.fakes import specs
from tests.fakes.host import FakeHost
from tests.fakes.programs import install_program
from trio_compute.errors import PostgresError
from trio_compute.host.run_as import RunAs
from trio_compute.lifecycle.status import Status
from trio_compute.postgres.communicator import SOCKET_NAME, PostgresMetrics, fetch_metrics
from trio_compute.postgres.liveness import check_accepting
from trio_compute.postgres.tools import PostgresTools

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\n"


class ToolHost(FakeHost):
    """Ask scripts in place of Postgres' programs, and the socket in a directory."""

    check_accepting = PostgresTools.check_accepting
    fetch_postgres_metrics = PostgresTools.fetch_postgres_metrics

    def __init__(self, directory: Path, connstr: str = "postgresql://cloud_admin@127.0.0.1:55433/postgres") -> None:
        super().__init__(specs.settings(pgdata=directory, connstr=connstr), specs.config())
        self.pgbin = directory / "postgres"
        self.run_as = RunAs()

    def _environ(self, parsed: object) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin"}


# pg_isready


@pytest.mark.parametrize("status", [Status.RUNNING, Status.EMPTY, Status.INIT, Status.TERMINATION_PENDING_FAST])
async def test_a_postgres_that_accepts_connections_is_ok_in_any_status(tmp_path: Path, status: Status) -> None:
    install_program(tmp_path, "pg_isready", 'echo "$PGHOST $*" > "${0%/*}/called"')
    async with open_world(status, host=ToolHost(tmp_path)) as world, world.client() as client:
        response = await client.get("/hadron_liveness_probe")
    assert (response.status_code, response.json()) == (200, "ok")
    assert (tmp_path / "called").read_text() == "127.0.0.1 -p 55433\n"


@pytest.mark.parametrize("code", [1, 2, 3])
async def test_one_that_does_not_is_500(tmp_path: Path, code: int) -> None:
    install_program(tmp_path, "pg_isready", f"echo no response; exit {code}")
    async with open_world(host=ToolHost(tmp_path)) as world, world.client() as client:
        response = await client.get("/hadron_liveness_probe")
    assert (response.status_code, response.json()) == (
        500,
        {"error": f"pg_isready failed with code {code}: no response"},
    )


async def test_a_probe_that_hangs_is_killed(tmp_path: Path) -> None:
    """A-16."""
    install_program(tmp_path, "pg_isready", 'echo $$ > "${0%/*}/pid"; exec sleep 1000')
    url = "postgresql://cloud_admin@127.0.0.1:1/postgres"
    with pytest.raises(PostgresError, match=r"took longer than 0\.3 s"):
        await check_accepting(tmp_path / "postgres", url, environ=os.environ, run_as=RunAs(), patience_seconds=0.3)
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()


async def test_a_url_without_a_port_is_500(tmp_path: Path) -> None:
    install_program(tmp_path, "pg_isready", "exit 0")
    host = ToolHost(tmp_path, "postgresql://cloud_admin@127.0.0.1/postgres")
    async with open_world(host=host) as world, world.client() as client:
        response = await client.get("/hadron_liveness_probe")
    text = "Failed to get the port from the connection string"
    assert (response.status_code, response.json()) == (500, {"error": text})


async def test_the_probe_needs_a_token(tmp_path: Path) -> None:
    async with open_world(host=ToolHost(tmp_path)) as world, world.client(token=None) as client:
        assert (await client.get("/hadron_liveness_probe")).status_code in {400, 401}


async def test_a_probe_whose_client_leaves_is_killed(tmp_path: Path) -> None:
    """A-16."""
    install_program(
        tmp_path, "pg_isready", 'echo $$ > "${0%/*}/pid.new"; mv "${0%/*}/pid.new" "${0%/*}/pid"; exec sleep 1000'
    )
    async with open_world(host=ToolHost(tmp_path)) as world, world.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.get, "/hadron_liveness_probe")
            await stands((tmp_path / "pid").exists)
            nursery.cancel_scope.cancel()
        pid = int((tmp_path / "pid").read_text())
        await stands(lambda: not Path(f"/proc/{pid}").exists())


# The communicator's socket

Talk = Callable[[trio.SocketStream], Awaitable[object]]


@asynccontextmanager
async def communicator(directory: Path, talk: Talk) -> AsyncIterator[None]:
    """Listen on the socket of a data directory, however long its name is."""
    listening = socket.socket(socket.AF_UNIX)
    here = os.open(directory, os.O_DIRECTORY)
    try:
        listening.bind(f"/proc/self/fd/{here}/{SOCKET_NAME}")
    finally:
        os.close(here)
    listening.listen()
    async with trio.open_nursery() as nursery:

        async def answer(stream: trio.SocketStream) -> None:
            async with stream:
                await talk(stream)

        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        yield
        nursery.cancel_scope.cancel()


def saying(*pieces: bytes, heard: list[bytes] | None = None) -> Talk:
    async def talk(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        if heard is not None:
            heard.append(request)
        for piece in pieces:
            await stream.send_all(piece)

    return talk


@asynccontextmanager
async def asked(directory: Path, talk: Talk) -> AsyncIterator[World]:
    async with communicator(directory, talk), open_world(host=ToolHost(directory)) as world:
        yield world


async def test_status_content_type_and_body_are_passed_on_without_a_token(tmp_path: Path) -> None:
    heard: list[bytes] = []
    async with asked(tmp_path, saying(OK + b"content-length: 6\r\n\r\n", b"a 1\n", b"b\n", heard=heard)) as world:
        async with world.client(token=None) as client:
            response = await client.get("/autoscaling_metrics")
    assert (response.status_code, response.text) == (200, "a 1\nb\n")
    assert response.headers["content-type"] == "text/plain; version=0.0.4"
    assert heard[0].splitlines()[:2] == [b"GET /autoscaling_metrics HTTP/1.1", b"Host: localhost"]


async def test_an_error_of_the_service_is_passed_on_too(tmp_path: Path) -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/html\r\ntransfer-encoding: chunked\r\n\r\n"
    async with asked(tmp_path, saying(head, b"3\r\nno!\r\n0\r\n\r\n")) as world, world.client() as client:
        response = await client.get("/autoscaling_metrics")
    assert (response.status_code, response.text, response.headers["content-type"]) == (503, "no!", "text/html")


async def test_a_long_path_goes_through_a_link_that_is_removed_at_once(tmp_path: Path) -> None:
    directory = tmp_path / ("long-" * 40)
    directory.mkdir()
    links: list[Path] = []

    async def talk(stream: trio.SocketStream) -> None:
        links.extend(Path(tempfile.gettempdir()).glob(f"compute_ctl.short-socket.{os.getpid()}.*"))
        await saying(OK + b"content-length: 2\r\n\r\nok")(stream)

    async with asked(directory, talk) as world, world.client() as client:
        # Twice: what the first connection left would be seen by the second.
        for _ in range(2):
            response = await client.get("/autoscaling_metrics")
            assert (response.status_code, response.text) == (200, "ok")
    assert links == []


async def test_a_large_body_is_streamed(tmp_path: Path) -> None:
    """A-24: the limit ends with the headers."""
    piece = b"x" * 100_000
    async with asked(tmp_path, saying(OK + b"content-length: 5000000\r\n\r\n", *[piece] * 50)) as world:
        async with world.client() as client:
            response = await client.get("/autoscaling_metrics")
    assert response.content == piece * 50


async def test_no_socket_is_500_with_the_cause(tmp_path: Path) -> None:
    async with open_world(host=ToolHost(tmp_path)) as world, world.client() as client:
        response = await client.get("/autoscaling_metrics")
    text = "connecting to communicator control socket: No such file or directory"
    assert (response.status_code, response.json()) == (500, {"error": text})


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"what?\r\n\r\n"])
async def test_no_answer_or_a_wrong_one_is_500(tmp_path: Path, answer: bytes) -> None:
    async with asked(tmp_path, saying(answer)) as world, world.client() as client:
        response = await client.get("/autoscaling_metrics")
    assert response.status_code == 500
    assert response.json()["error"].startswith("fetching metrics from Postgres metrics service")


async def test_a_body_that_breaks_off_breaks_off_the_answer(tmp_path: Path) -> None:
    import httpx

    async with asked(tmp_path, saying(OK + b"content-length: 10\r\n\r\nhalf")) as world, world.client() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/autoscaling_metrics")


async def test_a_service_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    """A-24."""

    async def silence(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with communicator(tmp_path, silence):
        with pytest.raises(PostgresError, match=r"no answer within 0\.2 s"):
            await fetch_metrics(tmp_path, patience_seconds=0.2)


async def test_a_client_that_leaves_hangs_up_on_the_service(tmp_path: Path) -> None:
    asked_for, left = trio.Event(), trio.Event()

    async def talk(stream: trio.SocketStream) -> None:
        await saying(OK + b"content-length: 10\r\n\r\nhalf")(stream)
        asked_for.set()
        assert await stream.receive_some() == b""
        left.set()

    async with asked(tmp_path, talk) as world, world.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.get, "/autoscaling_metrics")
            await asked_for.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await left.wait()


async def test_metrics_can_be_read_piece_by_piece(tmp_path: Path) -> None:
    async with communicator(tmp_path, saying(OK + b"content-length: 4\r\n\r\nbody")):
        metrics: PostgresMetrics = await fetch_metrics(tmp_path)
        assert b"".join([piece async for piece in metrics]) == b"body"
        await metrics.aclose()
