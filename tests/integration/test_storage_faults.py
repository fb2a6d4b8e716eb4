"""Peers that hang, drip, flood or answer something else than asked for: pageserver, safekeepers, control plane."""

from __future__ import annotations

import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.component.http.logs import LogLines
from tests.component.test_refresh import offer, play, want_refresh
from tests.component.test_run import Stage, terminate
from tests.fakes.specs import parsed
from tests.integration.compute import Rig
from tests.integration.pageservers import SNAPSHOT_LSN, Leftovers, open_tcp_server
from tests.integration.test_control_plane import ATTACHED, EXHAUSTED, Script, serving
from trio_compute.deadlines import Deadlines
from trio_compute.embedded.wire import Session, WireError, message, serve_session
from trio_compute.errors import RemoteError, StorageError
from trio_compute.host.run_as import RunAs
from trio_compute.lifecycle.status import Status
from trio_compute.model.ids import INVALID_LSN, Lsn
from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.lease import lease_terms
from trio_compute.storage import control_plane
from trio_compute.storage.control_plane import fetch_config
from trio_compute.storage.lsn_lease import request_lease
from trio_compute.storage.pageserver import Received, fetch_basebackup
from trio_compute.storage.safekeepers import check_safekeepers_synced
from trio_compute.telemetry import logging
from trio_compute.telemetry.redaction import learn_spec
from trio_compute.telemetry.spans import Recorder

PING_SECONDS = 0.1
BRIEFLY_SECONDS = 2.5  # far less than any limit that is not meant, far more than a busy machine needs
TOKEN = "token-" + "0123456789abcdef" * 30
HUGE = 10 * 1024 * 1024
LSN_TEXT = str(SNAPSHOT_LSN)
KEY = message(b"K", struct.pack("!II", 4711, 1))
READY = message(b"Z", b"I")
GREETING = message(b"R", struct.pack("!I", 0)) + message(b"S", b"client_encoding\0UTF8\0") + KEY + READY

Handle = Callable[[Session, str], Awaitable[None]]
Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def peer(handle: Handle) -> AsyncIterator[int]:
    """Log in anyone and answer queries; yield the port."""

    async def session(stream: trio.SocketStream) -> None:
        await serve_session(stream, authenticate=None, handle_query=handle)

    async with open_tcp_server(session) as port:
        yield port


async def hang(_session: Session, _query: str) -> None:
    await trio.sleep_forever()


def saying(*parts: bytes) -> Handle:
    """Return a handler that sends messages and then says that it is ready."""

    async def handle(session: Session, _query: str) -> None:
        await session.send(b"".join(parts))

    return handle


def rows(columns: list[str], *values: list[str | None]) -> Handle:
    async def handle(session: Session, _query: str) -> None:
        await session.send_rows(columns, values, "SELECT 1")

    return handle


def status(flush: str | None, commit: str | None) -> Handle:
    return rows(["flush_lsn", "commit_lsn"], [flush, commit])


AGREEING = status(LSN_TEXT, LSN_TEXT)


def failing(text: str, *, closes: bool = False) -> Handle:
    async def handle(_session: Session, _query: str) -> None:
        raise WireError(text, closes=closes)

    return handle


def dripping(data: bytes, *, greeting: bytes = GREETING, every_seconds: float = 0.02) -> Serve:
    """Return a server of TCP streams that sends a greeting at once and the data byte by byte, for ever."""

    async def drip(stream: trio.SocketStream) -> None:
        await stream.send_all(greeting)
        while True:
            for byte in data:
                await trio.sleep(every_seconds)  # the fault itself
                await stream.send_all(bytes([byte]))

    async def serve(stream: trio.SocketStream) -> None:
        async def until_hung_up(cancel: Callable[[], None]) -> None:
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
            cancel()

        async with stream:
            await stream.receive_some()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_hung_up, nursery.cancel_scope.cancel)
                with suppress(trio.BrokenResourceError):
                    await drip(stream)

    return serve


async def ping(*ports: int, token: str | None = None, seconds: float = 5.0) -> Lsn | None:
    spec = parsed(safekeeper_connstrings=[f"127.0.0.1:{port}" for port in ports], storage_auth_token=token)
    return await check_safekeepers_synced(spec, timeout_seconds=seconds)


def spec_of(port: int, **changes: Any) -> ParsedSpec:
    spec = parsed(pageserver_connstring=f"postgresql://u@127.0.0.1:{port}", storage_auth_token=TOKEN, **changes)
    learn_spec(spec)
    return spec


async def fetch(spec: ParsedSpec, target: Path, *, connect: float = 5.0, idle: float = 5.0) -> Received:
    target.mkdir(exist_ok=True)
    deadlines = Deadlines(pageserver_connect=connect, pageserver_idle=idle)
    with trio.fail_after(20):
        return await fetch_basebackup(spec, target, INVALID_LSN, run_as=RunAs(), spans=Recorder(), deadlines=deadlines)


async def lease(spec: ParsedSpec, *, connect: float = 5.0, answer: float = 5.0) -> float | None:
    terms = lease_terms(spec)
    assert terms is not None
    with trio.fail_after(20):
        return await request_lease(terms, connect_seconds=connect, answer_seconds=answer)


def static_spec(port: int) -> ParsedSpec:
    return spec_of(port, mode={"Static": LSN_TEXT})


class PeakMemory:
    """Measure how much more memory than before is resident at most; the kernel forgets the peak when it is told to."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._kib("VmRSS")

    def grown_mib(self) -> float:
        return (self._kib("VmHWM") - self._before) / 1024

    @staticmethod
    def _kib(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    """Return the lines that would go to stderr."""
    lines = LogLines()
    monkeypatch.setattr(logging, "sink", lines)
    return lines


# --------------------------------------------------------------------------------- half of the safekeepers hanging


@pytest.mark.parametrize(("agreeing", "hanging"), [(2, 2), (1, 1), (0, 2)])
async def test_half_of_the_safekeepers_hanging_prove_nothing_within_the_limit(agreeing: int, hanging: int) -> None:
    """Contract 07 §6: neither half is a quorum, so only the 100 ms end the wait."""
    async with AsyncExitStack() as stack:
        handles = [AGREEING] * agreeing + [hang] * hanging
        ports = [await stack.enter_async_context(peer(handle)) for handle in handles]
        began = trio.current_time()
        assert await ping(*ports, seconds=PING_SECONDS) is None
        assert PING_SECONDS * 0.9 < trio.current_time() - began < PING_SECONDS + 1


@pytest.mark.postgres
async def test_a_start_with_half_of_the_safekeepers_hanging_goes_the_slow_way(rig: Rig) -> None:
    async with peer(hang) as port:
        config = rig.config(safekeeper_connstrings=[rig.addresses.safekeepers[0], f"127.0.0.1:{port}"])
        async with rig.compute(config) as child:
            await child.reach("running")
            spans = {span.name: span for span in await child.spans()}
            assert "sync_safekeepers" in spans
            child.process.terminate()
            await child.process.wait()


# ------------------------------------------------------------------------------------------------ huge texts of errors

ERRORS = pytest.mark.parametrize(
    "text",
    ["x" * HUGE, "y" * 1990 + TOKEN + "z" * HUGE, "y" * 7990 + TOKEN + "z" * HUGE, (TOKEN + " ") * (HUGE // 400)],
    ids=["plain", "a token at the cut", "a token where reading ends", "only tokens"],
)
MEMORY_MIB = 120  # libpq holds the 10 MiB twice, psycopg's text once more, and so does the peer, in this process too


def check_brief(error: str, memory: PeakMemory) -> None:
    assert error.endswith(" […]")
    assert len(error) < 3000
    assert "token-0" not in error
    assert memory.grown_mib() < MEMORY_MIB


@ERRORS
async def test_a_huge_error_instead_of_a_basebackup_is_short_and_shows_no_token(text: str, public_tmp: Path) -> None:
    async with peer(failing(text)) as port:
        memory = PeakMemory()
        with pytest.raises(StorageError) as raised:
            await fetch(spec_of(port), public_tmp / "pgdata")
        check_brief(str(raised.value), memory)


async def test_a_huge_error_in_the_middle_of_a_basebackup_is_short(public_tmp: Path) -> None:
    async def handle(session: Session, _query: str) -> None:
        await session.begin_copy()
        raise WireError("y" * 1990 + TOKEN + "z" * HUGE)

    async with peer(handle) as port:
        memory = PeakMemory()
        with pytest.raises(StorageError) as raised:
            await fetch(spec_of(port), public_tmp / "pgdata")
        check_brief(str(raised.value), memory)


@ERRORS
async def test_a_huge_error_instead_of_a_lease_is_short_and_shows_no_token(text: str) -> None:
    async with peer(failing(text)) as port:
        memory = PeakMemory()
        with pytest.raises(StorageError) as raised:
            await lease(static_spec(port))
        check_brief(str(raised.value), memory)


@ERRORS
async def test_a_huge_error_of_a_safekeeper_is_short_in_the_log_and_shows_no_token(
    text: str, log_lines: LogLines
) -> None:
    learn_spec(parsed(storage_auth_token=TOKEN))
    async with peer(failing(text)) as port:
        memory = PeakMemory()
        assert await ping(port, token=TOKEN) is None
        (line,) = log_lines.with_text("did not answer")
        assert " […]" in line
        assert len(line) < 4000
        assert "token-0" not in line
        assert memory.grown_mib() < MEMORY_MIB


async def test_a_huge_error_at_login_is_an_error(public_tmp: Path) -> None:
    def refuse(_session: Session, _password: str) -> None:
        raise WireError(TOKEN + "x" * HUGE, closes=True)

    async def session(stream: trio.SocketStream) -> None:
        await serve_session(stream, authenticate=refuse, handle_query=hang)

    async with open_tcp_server(session) as port:
        memory = PeakMemory()
        for ask in (partial(fetch, spec_of(port), public_tmp / "pgdata"), partial(lease, static_spec(port))):
            with pytest.raises(StorageError, match="cannot connect to pageserver") as raised:
                await ask()
            assert len(str(raised.value)) < 3000
            assert "token-0" not in str(raised.value)
        assert await ping(port, token=TOKEN) is None
        assert memory.grown_mib() < MEMORY_MIB


# ------------------------------------------------------------------------------------------------ peers that drip

ROW = message(b"T", struct.pack("!H", 1) + b"flush_lsn\0" + struct.pack("!IHIhih", 0, 0, 25, -1, -1, 0))
COPY_BEGINS = message(b"H", struct.pack("!bH", 0, 0))
DRIPS = pytest.mark.parametrize(
    ("data", "greeting"),
    [(GREETING, b""), (message(b"E", bytes(30_000)), b""), (ROW * 100, GREETING)],
    ids=["login", "error at login", "answer"],
)


@DRIPS
async def test_a_safekeeper_that_drips_costs_no_more_than_the_limit(data: bytes, greeting: bytes) -> None:
    """Contract 07 §6: 100 ms for connect, login and query, even if the peer would take a cancel request."""
    async with open_tcp_server(dripping(data, greeting=greeting)) as port:
        began = trio.current_time()
        assert await ping(port, seconds=PING_SECONDS) is None
        assert trio.current_time() - began < BRIEFLY_SECONDS


@DRIPS
async def test_a_lease_that_drips_is_given_up(data: bytes, greeting: bytes) -> None:
    """S-10."""
    async with open_tcp_server(dripping(data, greeting=greeting)) as port:
        began = trio.current_time()
        with pytest.raises(StorageError, match="pageserver"):
            await lease(static_spec(port), connect=0.3, answer=0.3)
        assert trio.current_time() - began < BRIEFLY_SECONDS


@pytest.mark.parametrize(
    ("data", "greeting"),
    [
        (GREETING, b""),
        (COPY_BEGINS, GREETING),
        (message(b"d", bytes(100_000)), GREETING + COPY_BEGINS),
        (message(b"S", b"name\0value\0"), GREETING + COPY_BEGINS),
        (message(b"C", bytes(1000)), GREETING + COPY_BEGINS + message(b"d", b"\x1f") + message(b"c", b"")),
    ],
    ids=["login", "before the copy", "inside of copy data", "news between copy data", "after the copy"],
)
async def test_a_pageserver_that_drips_is_given_up(data: bytes, greeting: bytes, public_tmp: Path) -> None:
    """S-10: bytes that bring no copy data forward do not count as life."""
    async with open_tcp_server(dripping(data, greeting=greeting)) as port:
        began = trio.current_time()
        with pytest.raises(StorageError, match=r"sent nothing for 0\.3 s|cannot connect to pageserver"):
            await fetch(spec_of(port), public_tmp / "pgdata", connect=0.3, idle=0.3)
        assert trio.current_time() - began < BRIEFLY_SECONDS


@pytest.mark.parametrize("piece", [bytes(1), b""], ids=["one byte", "nothing"])
async def test_copy_data_that_drip_can_be_cancelled_at_once(piece: bytes, public_tmp: Path) -> None:
    """S-09: such a transfer is alive and has no limit, but never holds up a stop."""
    gzip_begins = b"\x1f\x8b\x08\x08" + bytes(6)  # and then a file name that never ends
    greeting = GREETING + COPY_BEGINS + message(b"d", gzip_begins)
    leftovers = Leftovers()
    async with open_tcp_server(dripping(message(b"d", piece or b"x"), greeting=greeting, every_seconds=0.005)) as port:
        with trio.move_on_after(0.4) as scope:
            await fetch(spec_of(port), public_tmp / "pgdata")
        assert scope.cancelled_caught
        assert trio.current_time() - scope.deadline < 1
    await leftovers.gone()


@asynccontextmanager
async def http_peer(begin: bytes, drip: bytes) -> AsyncIterator[str]:
    """Send the beginning of an HTTP answer, then drip, for ever; yield the URL."""
    async with open_tcp_server(dripping(drip, greeting=begin)) as port:
        yield f"http://127.0.0.1:{port}"


HTTP_DRIPS = pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["head", "body", "chunks"],
)


@HTTP_DRIPS
async def test_a_control_plane_that_drips_is_given_up(
    begin: bytes, drip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-19: the limit is for the whole answer, so that no drop of it starts the time anew."""
    monkeypatch.setattr(control_plane, "REQUEST_TIMEOUT_SECONDS", 0.3)
    async with http_peer(begin, drip) as base:
        began = trio.current_time()
        with pytest.raises(RemoteError, match=EXHAUSTED):
            await fetch_config(base, "compute-1", None)
        assert trio.current_time() - began < 3 * 0.4 + BRIEFLY_SECONDS


@HTTP_DRIPS
async def test_waiting_for_a_control_plane_that_drips_can_be_cancelled(begin: bytes, drip: bytes) -> None:
    async with http_peer(begin, drip) as base:
        with trio.move_on_after(0.3) as scope:
            await fetch_config(base, "compute-1", None)
        assert scope.cancelled_caught
        assert trio.current_time() - scope.deadline < 1


# ------------------------------------------------------------------------------------------- answers of a wrong type


def typed_row(oid: int, text: bytes, *, binary: bool = False) -> Handle:
    """Return a handler that answers two columns of any type."""
    column = b"x\0" + struct.pack("!IHIhih", 0, 0, oid, -1, -1, int(binary))
    value = struct.pack("!i", len(text)) + text
    return saying(
        message(b"T", struct.pack("!H", 2) + column * 2),
        message(b"D", struct.pack("!H", 2) + value * 2),
        message(b"C", b"SELECT 1\0"),
    )


COPY_IN = saying(message(b"G", struct.pack("!bH", 0, 0)))
STRANGE: dict[str, Handle] = {
    "nothing": saying(message(b"I", b"")),
    "a tag": saying(message(b"C", b"SELECT 1\0")),
    "copy in": COPY_IN,
    "copy both": saying(message(b"W", struct.pack("!bH", 0, 0))),
    "bytes that are no text": typed_row(25, b"\xff\xfe"),
    "a number that is none": typed_row(23, b"soon"),
    "a decimal that is none": typed_row(1700, b"soon"),
    "a timestamp that is none": typed_row(1114, b"soon"),
    "json that is none": typed_row(114, b"{"),
    "a uuid that is none": typed_row(2950, b"soon"),
    "a binary number": typed_row(23, b"123", binary=True),
    "noise": saying(b"\0" * 100),
    "an absurd length": saying(b"D" + struct.pack("!I", 2**31)),
}
BAD_STATUS: dict[str, Handle] = {
    "one column": rows(["flush_lsn"], [LSN_TEXT]),
    "three columns": rows(["flush_lsn", "commit_lsn", "more"], [LSN_TEXT] * 3),
    "null": status(LSN_TEXT, None),
    "both null": status(None, None),
    "a malformed LSN": status(LSN_TEXT, "16777216"),
    "an empty LSN": status("", ""),
    "a huge LSN": status("9" * 100_000, LSN_TEXT),
    "two rows": rows(["flush_lsn", "commit_lsn"], [LSN_TEXT] * 2, [LSN_TEXT] * 2),
}


@pytest.mark.parametrize("handle", [*STRANGE.values(), *BAD_STATUS.values()], ids=[*STRANGE, *BAD_STATUS])
async def test_an_unusable_answer_of_a_safekeeper_is_a_failure_and_never_fatal(
    handle: Handle, log_lines: LogLines
) -> None:
    """Contract 07 §6.5: nothing is proven by it, the others still decide."""
    async with peer(handle) as bad, peer(AGREEING) as good, peer(AGREEING) as too, peer(status("0/1", "0/1")) as other:
        assert await ping(bad) is None
        (line,) = log_lines.with_text("did not answer")
        assert len(line) < 4000
        assert await ping(bad, good, too) == SNAPSHOT_LSN
        assert await ping(bad, good, other) is None


async def test_a_safekeeper_without_a_row_answers_that_it_does_not_know_the_timeline() -> None:
    nothing_known = rows(["flush_lsn", "commit_lsn"])
    async with peer(nothing_known) as new, peer(AGREEING) as good:
        assert await ping(new) is None
        assert await ping(new, good) is None


@pytest.mark.parametrize(
    "handle",
    [*STRANGE.values(), rows(["a", "b"], ["1", "2"]), rows([])],
    ids=[*STRANGE, "rows", "rows without columns"],
)
async def test_an_answer_that_is_no_copy_is_an_error_of_the_pageserver(handle: Handle, public_tmp: Path) -> None:
    """S-08."""
    leftovers = Leftovers()
    async with peer(handle) as port:
        with pytest.raises(StorageError, match="pageserver: "):
            await fetch(spec_of(port), public_tmp / "pgdata")
    await leftovers.gone()


@pytest.mark.parametrize(
    "parts",
    [
        [COPY_BEGINS, message(b"c", b""), message(b"C", b"SELECT 1\0")],
        [COPY_BEGINS, message(b"d", b""), message(b"c", b""), message(b"C", b"SELECT 1\0")],
    ],
    ids=["no data", "empty data"],
)
async def test_a_copy_without_content_is_an_error(parts: list[bytes], public_tmp: Path) -> None:
    """S-08."""
    async with peer(saying(*parts)) as port:
        with pytest.raises(StorageError, match="the gzip stream ends early"):
            await fetch(spec_of(port), public_tmp / "pgdata")


async def test_a_broken_archive_is_reported_at_once_though_the_pageserver_goes_on(public_tmp: Path) -> None:
    """The rest of the copy is not waited for: it may be long, or never come."""

    async def handle(session: Session, _query: str) -> None:
        await session.begin_copy()
        await session.send_copy(b"no gzip at all")
        await session.wait_hung_up()

    async with peer(handle) as port:
        began = trio.current_time()
        with pytest.raises(StorageError, match="the gzip stream is corrupt"):
            await fetch(spec_of(port), public_tmp / "pgdata", idle=10)
        assert trio.current_time() - began < BRIEFLY_SECONDS


@pytest.mark.parametrize("handle", STRANGE.values(), ids=STRANGE)
async def test_a_strange_answer_instead_of_a_lease_is_transient(handle: Handle) -> None:
    """Other unusable answers: tests/integration/test_lease.py."""
    async with peer(handle) as port:
        with pytest.raises(StorageError, match="pageserver") as raised:
            await lease(static_spec(port))
        assert len(str(raised.value)) < 3000


async def test_a_lease_in_a_column_of_numbers_is_a_lease() -> None:
    soon = int(time.time() * 1000) + 60_000

    async def handle(session: Session, _query: str) -> None:
        column = b"valid_until\0" + struct.pack("!IHIhih", 0, 0, 20, 8, -1, 0)
        value = str(soon).encode()
        await session.send(message(b"T", struct.pack("!H", 1) + column))
        await session.send(message(b"D", struct.pack("!Hi", 1, len(value)) + value) + message(b"C", b"SELECT 1\0"))

    async with peer(handle) as port:
        assert await lease(static_spec(port)) == soon / 1000


# ------------------------------------------------------------------------------------------------ the control plane


@pytest.mark.parametrize(
    "body",
    ["<html>" + "x" * HUGE, '{"status": "' + "x" * HUGE + '"}', "[" * HUGE, ATTACHED[:-1] + " " * HUGE],
    ids=["HTML", "an unknown status", "brackets", "no end"],
)
async def test_a_huge_unusable_answer_is_tried_again_and_never_shown(body: str, log_lines: LogLines) -> None:
    script = Script((200, body), (200, ATTACHED))
    async with serving(script) as base:
        memory = PeakMemory()
        assert (await fetch_config(base, "compute-1", None)).spec is not None
        assert memory.grown_mib() < 2 * MEMORY_MIB  # httpx and the embedded server each hold pieces and the whole
    assert len(script.requests) == 2
    assert all(len(line) < 4000 for line in log_lines)


async def test_a_huge_answer_that_is_sound_is_taken() -> None:
    script = Script((200, ATTACHED + " " * HUGE))
    async with serving(script) as base:
        assert (await fetch_config(base, "compute-1", None)).spec is not None


async def test_an_answer_above_the_limit_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_plane, "MAX_BODY_BYTES", 1 << 20)
    script = Script((200, ATTACHED + " " * HUGE))
    async with serving(script) as base:
        with pytest.raises(RemoteError, match="larger than 1048576 bytes"):
            await fetch_config(base, "compute-1", None)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_carries_the_token_nowhere(code: int) -> None:
    elsewhere = Script((200, ATTACHED))
    async with serving(elsewhere) as target:
        location = f"location: {target}/compute/api/v2/computes/compute-1/spec\r\n"
        answer = f"HTTP/1.1 {code} Away\r\n{location}content-length: 0\r\n\r\n"
        async with http_peer(answer.encode(), b" ") as base:
            with pytest.raises(RemoteError, match=f"unexpected control plane response status code: {code}"):
                await fetch_config(base, "compute-1", TOKEN)
    assert elsewhere.requests == []


# --------------------------------------------------------------------------- a configuration that changes meanwhile


async def test_a_configuration_that_changes_while_it_is_applied_is_applied_by_the_next_refresh(
    autojump_clock: Any,
) -> None:
    """D-04, D-05: what was fetched is applied whole, and what came later is not lost."""

    async def script(stage: Stage) -> None:
        stage.host.slow["write_postgresql_conf"] = 3
        offer(stage, endpoint_id="first")
        want_refresh(stage)
        await stage.compute.reach(Status.REFRESH_CONFIGURATION)
        await trio.sleep(1)
        assert stage.host.calls[-1] == "write_postgresql_conf"
        offer(stage, endpoint_id="second")
        stage.servers.queue.want_refresh()
        assert (await stage.compute.reach(Status.RUNNING)).spec == parsed(endpoint_id="first")
        await stage.compute.reach(Status.REFRESH_CONFIGURATION)
        assert (await stage.compute.reach(Status.RUNNING)).spec == parsed(endpoint_id="second")
        assert stage.host.written[-2:] == [parsed(endpoint_id="first"), parsed(endpoint_id="second")]
        await terminate(stage.compute, immediate=True)

    with trio.fail_after(600):  # of the fake clock
        await play(Stage(), script)
