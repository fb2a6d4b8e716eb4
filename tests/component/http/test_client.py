"""Both clients against real servers: the same answers, the same errors, nothing left behind."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from tests.component.http.raw import open_sockets
from tests.component.http.tokens import bearer, mint
from tests.component.http.world import FLUSH_LSN, World, configure_body, open_app, open_world, stands
from trio_compute.client import ApiError, ComputeClient, Event, TrioComputeClient, UnexpectedAnswer, Unreachable
from trio_compute.errors import PostgresError
from trio_compute.http.exchange import Message, Receive, Send
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status
from trio_compute.model.lfc import NotOffloaded, NotPrewarmed
from trio_compute.model.responses import HealthResponse, MetricsResponse, StatusResponse, TerminateResponse
from trio_compute.plan.catalog.failures import Failure
from trio_compute.plan.preview import Preview
from trio_compute.services.apply_queue import Rejected, Succeeded

GOOD = bearer()["authorization"].removeprefix("Bearer ")

Ask = Callable[..., Awaitable[Any]]


async def blocking(port: int, internal_port: int, name: str, *args: Any, token: Any = GOOD, **more: Any) -> Any:
    def ask() -> Any:
        url, internal = (f"http://127.0.0.1:{number}" for number in (port, internal_port))
        with ComputeClient(url, token=token, internal_url=internal) as client:
            return getattr(client, name)(*args, **more)

    return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)


async def awaited(port: int, internal_port: int, name: str, *args: Any, token: Any = GOOD, **more: Any) -> Any:
    url, internal = (f"http://127.0.0.1:{number}" for number in (port, internal_port))
    async with TrioComputeClient(url, token=token, internal_url=internal) as client:
        return await getattr(client, name)(*args, **more)


pytestmark = pytest.mark.parametrize("kind", [blocking, awaited], ids=["blocking", "trio"])


def asker(kind: Ask, world: World) -> Ask:
    return partial(kind, world.port, world.internal_port)


async def test_reads_are_typed(kind: Ask) -> None:
    async with open_world() as world:
        ask = asker(kind, world)
        status = await ask("status")
        assert isinstance(status, StatusResponse)
        assert (status.status, status.revision, status.history[-1].target) == ("running", 2, "running")
        assert isinstance(await ask("metrics_json"), MetricsResponse)
        assert "compute_ctl_up{" in await ask("metrics")
        assert await ask("spans") == []
        assert (await ask("openapi"))["openapi"] == "3.1.0"
        assert (await ask("dbs_and_roles")).roles[0].name == "cloud_admin"
        assert (await ask("insights")).pg_stat_statements == []
        assert isinstance(await ask("lfc_prewarm_state"), NotPrewarmed)
        assert isinstance(await ask("lfc_offload_state"), NotOffloaded)
        assert await ask("check_writability") is True
        assert await ask("database_schema", "postgres") == "-- a dump\n"
        assert await ask("hadron_liveness_probe") == "ok"
        assert (await ask("extensions", "x", database="postgres", version="1")).version == "1"
        granted = await ask("grants", "r", database="postgres", schema="s", privileges=["USAGE"])
        assert granted.privileges == ["USAGE"]
        assert await ask("refresh_configuration") is None
        assert msgspec.json.decode(await ask("request", "GET", "/status"))["revision"] == 3


async def test_a_probe_says_no_without_an_error(kind: Ask) -> None:
    async with open_world(Status.INIT) as world:
        ask = asker(kind, world)
        assert await ask("livez", token=None) == HealthResponse("ok")
        assert await ask("readyz", token=None) == HealthResponse("unavailable", "compute is init")
        assert (await ask("startupz", token=None)).status == "unavailable"


async def test_a_long_poll_returns_with_the_change(kind: Ask) -> None:
    async with open_world(Status.INIT) as world, trio.open_nursery() as nursery:

        async def poll() -> None:
            status = await asker(kind, world)("status", wait_for=["running"], since=1, timeout_seconds=20)
            assert status.status == "running"

        nursery.start_soon(poll)
        await stands(lambda: world.waiting == 1)
        world.compute.apply(ev.Started())


async def test_a_configuration_is_applied_once_for_one_key(kind: Ask) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        ask = partial(asker(kind, world), "configure", configure_body(), idempotency_key="k")

        async def apply() -> None:
            job = await world.take_job()
            world.compute.apply(ev.Applied(spec=job.spec))
            job.settle(Succeeded())

        nursery.start_soon(apply)
        assert (await ask()).status == "running"
        assert (await ask()).status == "running"


async def test_a_configuration_that_fails_names_the_objects_at_fault(kind: Ask) -> None:
    failure = Failure(phase="p", database="d", object="role x", operation="create", sqlstate="42501", message="no")
    async with open_world() as world, trio.open_nursery() as nursery:

        async def reject() -> None:
            job = await world.take_job()
            world.compute.apply(ev.ApplyFailed(error="no"))
            job.settle(Rejected("no", (failure,)))

        nursery.start_soon(reject)
        with pytest.raises(ApiError) as raised:
            await asker(kind, world)("configure", msgspec.json.decode(configure_body()))
        assert (raised.value.status, raised.value.failures[0]["object"]) == (500, "role x")
        assert raised.value.request_id


async def test_a_dry_run_tells_what_would_be_done(kind: Ask) -> None:
    async with open_world() as world:
        preview = await asker(kind, world)("configure_dry_run", configure_body())
        assert isinstance(preview, Preview)
        assert preview.is_empty
        assert world.status is Status.RUNNING


async def test_an_end_tells_the_lsn(kind: Ask) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:

        async def finish() -> None:
            await world.compute.reach(Status.TERMINATION_PENDING_IMMEDIATE)
            world.finish_termination(ev.Terminated(flush_lsn=FLUSH_LSN))

        nursery.start_soon(finish)
        ask = asker(kind, world)
        assert await ask("terminate", mode="immediate") == TerminateResponse(str(FLUSH_LSN))
        assert await ask("terminate") == TerminateResponse(str(FLUSH_LSN))


@pytest.mark.parametrize(("sessions", "failure", "code"), [(2, None, 409), (0, PostgresError("hung"), 503)])
async def test_an_end_only_if_idle_says_why_not(kind: Ask, sessions: int, failure: Exception | None, code: int) -> None:
    async with open_world() as world:
        world.host.watch.seen = {"busy_sessions": sessions}
        world.host.watch.failure = failure
        with pytest.raises(ApiError) as raised:
            await asker(kind, world)("terminate", if_idle=True)
        assert raised.value.status == code


@pytest.mark.parametrize(
    ("token", "status", "text"),
    [(None, 400, "invalid authorization token"), ("x.y.z", 401, "failed to verify authorization token"),
     (mint({}), 403, "missing compute_id in authorization token claims")],
)  # fmt: skip
async def test_a_refusal_is_told_in_the_compute_s_words(kind: Ask, token: str | None, status: int, text: str) -> None:
    async with open_world() as world:
        with pytest.raises(ApiError) as raised:
            await asker(kind, world)("status", token=token)
        assert (raised.value.status, raised.value.text) == (status, text)
        assert "x.y.z" not in str(raised.value)


async def test_nobody_there_is_told_apart_from_a_refusal(kind: Ask) -> None:
    async with open_world() as world:
        ask = asker(kind, world)
    with pytest.raises(Unreachable, match="/status: "):
        await ask("status")


async def test_an_answer_that_never_comes_is_not_awaited_for_ever(kind: Ask) -> None:
    async def say_nothing(scope: Message, receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    from trio_compute.client.core import Call

    async with open_app(say_nothing, drain_seconds=0.01) as served:
        call = Call(method="GET", path="/x", read=bytes, patience_seconds=0.05)
        with pytest.raises(Unreachable, match=r"/x: no answer within 0\.05 s"):
            await kind(served.port, served.port, "ask", call)


async def test_a_stranger_s_answer_is_seen_to_be_one(kind: Ask) -> None:
    async def say_hello(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello", "more_body": False})

    async with open_app(say_hello) as served:
        with pytest.raises(UnexpectedAnswer):
            await kind(served.port, served.port, "status")


async def follow(kind: Ask, world: World, count: int, **options: Any) -> list[Event]:
    """Return the first events that a client is told of."""
    url = f"http://127.0.0.1:{world.port}"
    if kind is blocking:

        def read() -> list[Event]:
            with ComputeClient(url, token=GOOD) as client, client.events(**options) as events:
                return [event for _, event in zip(range(count), events, strict=False)]

        return await trio.to_thread.run_sync(read)
    found: list[Event] = []
    async with TrioComputeClient(url, token=GOOD) as client, client.events(**options) as events:
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


async def test_events_are_followed_and_left_without_a_trace(kind: Ask) -> None:
    async with open_world() as world:
        before = open_sockets()
        first, second = await follow(kind, world, 2, after=0)
        assert (first.kind, first.data["to"], second.data["to"]) == ("transition", "init", "running")
        assert second.number == first.number + 1
        assert await follow(kind, world, 1, after=first.number) == [second]
        await stands(lambda: open_sockets() == before)


async def test_events_end_when_the_compute_does(kind: Ask) -> None:
    async with open_world() as world:
        world.compute.feed.close()
        assert len(await follow(kind, world, 99, after=0)) == 2


async def test_events_that_break_off_are_an_error(kind: Ask) -> None:
    async def break_off(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b": x\n\n", "more_body": True})
        raise RuntimeError

    async with open_world() as world, open_app(break_off) as served:
        world.port = served.port
        with pytest.raises(Unreachable, match="/events: "):
            await follow(kind, world, 1)


async def test_events_need_a_token(kind: Ask) -> None:
    async with open_world(keys=[]) as world:
        with pytest.raises(ApiError, match="HTTP 401"):
            await follow(kind, world, 1)


async def test_an_error_of_the_follower_comes_out_as_it_is(kind: Ask) -> None:
    async with open_world() as world:
        url = f"http://127.0.0.1:{world.port}"

        def fail() -> None:
            with ComputeClient(url, token=GOOD) as client, client.events():
                raise KeyError("mine")

        async def fail_on_trio() -> None:
            async with TrioComputeClient(url, token=GOOD) as client, client.events():
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await (trio.to_thread.run_sync(fail) if kind is blocking else fail_on_trio())


async def test_a_cancelled_caller_leaves_at_once(kind: Ask) -> None:
    if kind is blocking:
        assert not inspect.iscoroutinefunction(ComputeClient.status)
        return
    async with open_world() as world:
        before = open_sockets()
        with trio.move_on_after(0.05) as scope:
            await asker(kind, world)("status", since=99)
        assert scope.cancelled_caught
        await stands(lambda: open_sockets() == before and world.waiting == 0)
