"""The real servers in a thread, beside a test that waits for a browser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import trio

from tests.component.http.tokens import COMPUTE_ID, ED25519_JWK, bearer
from tests.component.http.world import PATIENCE_SECONDS, World, open_app, open_world
from trio_compute.http.authorize import Authorizer
from trio_compute.http.exchange import App, Message, Receive, Send
from trio_compute.http.front import Front
from trio_compute.http.table import EXTERNAL
from trio_compute.lifecycle.status import Status
from trio_compute.services.supervise import run_unless
from trio_compute.telemetry.spans import Span

T = TypeVar("T")
Phase = tuple[str, float, float | None, str | None]
START: tuple[Phase, ...] = (
    ("prepare_pgdata", 0.1, 0.5, None),
    ("get_basebackup", 0.2, 0.3, "prepare_pgdata"),
    ("start_postgres", 0.6, 0.25, None),
)


class Served:
    """Be a world that a synchronous test can look at and act upon."""

    def __init__(self, world: World, port: int, token: trio.lowlevel.TrioToken, over: trio.Event) -> None:
        self.world = world
        self.port = port
        self._token = token
        self._over = over
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def good_token(self) -> str:
        return bearer()["authorization"].removeprefix("Bearer ")

    def do(self, action: Callable[[], T]) -> T:
        """Do something where the world lives."""
        return trio.from_thread.run_sync(action, trio_token=self._token)

    def apply(self, *events: Any) -> None:
        """Let things happen to the compute, one after another."""
        for event in events:
            self.do(lambda event=event: self.world.compute.apply(event))

    def publish(self, kind: str, data: dict[str, Any]) -> None:
        """Tell the followers of the compute something."""
        self.do(lambda: self.world.compute.feed.publish(kind, data))

    def measure(self, *phases: Phase, failed: Sequence[str] = ()) -> None:
        """Record phases as if they had been measured, and tell of the last one."""

        def record() -> None:
            recorder = self.world.compute.spans
            for name, start, duration, parent in phases:
                is_failed = name in failed
                recorder.spans.append(
                    Span(name=name, start_seconds=start, duration_seconds=duration, parent=parent, failed=is_failed)
                )
            recorder._tell(recorder.spans[-1])

        self.do(record)

    def stop(self) -> None:
        """End the servers, as the end of the process does; a second time is nothing."""
        if self._thread is not None and self._thread.is_alive():
            self.do(self._over.set)
            # Longer than the world itself takes before it says what did not end.
            self._thread.join(2 * PATIENCE_SECONDS)
            assert not self._thread.is_alive(), "the servers did not end"


class Interference:
    """Stand between page and servers: note how events are asked for, break that off, refuse or answer instead."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str]] = []
        self.cut = trio.Event()
        self.refusal: int | None = None
        self.answers: dict[str, tuple[int, bytes]] = {}

    def break_off(self) -> None:
        """End the streams of events that are open, in the middle."""
        self.cut.set()
        self.cut = trio.Event()

    def around(self, app: App) -> App:
        """Return an application that does so to another one."""

        async def meddle(scope: Message, receive: Receive, send: Send) -> None:
            is_events = scope["path"] == "/events"
            if is_events:
                self.asked.append((trio.current_time(), scope["query_string"].decode()))
            if self.refusal is not None and scope["path"] != "/":
                await _answer(self.refusal, b'{"error":"for a reason"}', send)
            elif scope["path"] in self.answers:
                await _answer(*self.answers[scope["path"]], send)
            elif is_events:
                await run_unless(self.cut.wait, partial(app, scope, receive, send))
            else:
                await app(scope, receive, send)

        return meddle


async def _answer(status: int, body: bytes, send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@contextmanager
def serve(
    status: Status = Status.RUNNING,
    *,
    without: frozenset[str] = frozenset(),
    interference: Interference | None = None,
    **changes: Any,
) -> Iterator[Served]:
    """Serve a world in a thread of its own; `without` serves a table that lacks these paths."""
    ready = threading.Event()
    served: list[Served] = []
    failures: list[BaseException] = []

    async def live() -> None:
        over = trio.Event()
        async with open_world(status, drain_seconds=0.2, **changes) as world, AsyncExitStack() as stack:
            port = world.port
            if without or interference is not None:
                app = _lacking(world, without)
                app = app if interference is None else interference.around(app)
                port = (await stack.enter_async_context(open_app(app, drain_seconds=0.2))).port
            served.append(Served(world, port, trio.lowlevel.current_trio_token(), over))
            ready.set()
            await over.wait()
            world.compute.feed.close()

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:  # noqa: BLE001  (handed to the test)
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="served world", daemon=True)
    thread.start()
    assert ready.wait(PATIENCE_SECONDS)
    if failures:
        raise failures[0]
    (one,) = served
    one._thread = thread
    try:
        yield one
    finally:
        one.stop()
    if failures:
        raise failures[0]


def _lacking(world: World, paths: frozenset[str]) -> App:
    async def load() -> App:
        raise AssertionError("the page sends no bodies")

    kept = [operation for operation in EXTERNAL if operation.path not in paths]
    return Front(kept, world.life, authorizer=Authorizer([ED25519_JWK], COMPUTE_ID), load=load)
