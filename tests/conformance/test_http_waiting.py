"""What goes beyond the contract: long polls, events, probes, an end only if idle."""

from __future__ import annotations

import signal
from typing import Any

import httpx
import pytest
import trio
from msgspec import structs

from tests.component.http.raw import connect, request_text
from tests.component.http.world import PATIENCE_SECONDS, World, open_world, stands
from trio_compute.errors import PostgresError
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status


class TestLongPoll:
    async def test_it_answers_at_once_when_the_status_is_there(self) -> None:
        async with open_world() as world, world.client() as client:
            body = (await client.get("/status?wait_for=running&timeout=30s")).json()
            assert (body["status"], body["revision"]) == ("running", 2)

    async def test_it_answers_when_the_status_comes(self) -> None:
        async with open_world(Status.INIT) as world, world.client() as client:
            got: list[httpx.Response] = []

            async def ask() -> None:
                got.append(await client.get("/status?wait_for=running,failed&timeout=30s"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await stands(lambda: world.waiting == 1)
                world.compute.apply(ev.Started())
            assert got[0].json()["status"] == "running"

    async def test_since_waits_for_the_next_change(self) -> None:
        async with open_world() as world, world.client() as client:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    body = (await client.get("/status?since=2")).json()
                    assert (body["revision"], body["status"]) == (3, "configuration_pending")
                    assert body["history"][-1]["to"] == "configuration_pending"

                nursery.start_soon(ask)
                await stands(lambda: world.waiting == 1)
                world.compute.apply(ev.ApplyQueued())

    async def test_the_time_ends_it_with_the_present_status(self) -> None:
        async with open_world() as world, world.client() as client:
            response = await client.get("/status?wait_for=failed&timeout=20ms")
            assert (response.status_code, response.json()["status"]) == (200, "running")

    async def test_the_end_of_the_compute_ends_it(self) -> None:
        async with open_world(Status.TERMINATION_PENDING_FAST) as world, world.client() as client:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    assert (await client.get("/status?wait_for=running")).json()["status"] == "terminated"

                nursery.start_soon(ask)
                await stands(lambda: world.waiting == 1)
                world.finish_termination(ev.Terminated())

    @pytest.mark.parametrize(
        ("query", "name"),
        [("wait_for=up", "wait_for"), ("since=x", "since"), ("since=-1", "since"), ("since=1&timeout=1h", "timeout"),
         ("since=1&timeout=301s", "timeout"), ("since=1&timeout=", "timeout"), ("wait_for=", "wait_for"),
         ("timeout=never", "timeout"), ("since=null", "since"), ("wait_for=null", "wait_for")],
    )  # fmt: skip
    async def test_a_bad_parameter_is_named(self, query: str, name: str) -> None:
        async with open_world() as world, world.client() as client:
            response = await client.get(f"/status?{query}")
            assert response.status_code == 400
            assert f"`{name}`" in response.json()["error"]

    async def test_a_client_that_leaves_waits_no_longer(self) -> None:
        """A-10."""
        async with open_world() as world:
            async with world.client() as client, trio.open_nursery() as nursery:
                nursery.start_soon(client.get, "/status?since=99")
                await stands(lambda: world.waiting == 1)
                nursery.cancel_scope.cancel()
            await stands(lambda: world.waiting == 0)


async def read_events(world: World, path: str, count: int, then: Any = None, **headers: str) -> list[dict[str, str]]:
    """Return the first events of a stream, each a mapping of its fields; `then` is called once it has begun."""
    async with connect(world.port) as client:
        await client.send(request_text("GET", path, headers=headers))
        text, begun = "", False
        with trio.fail_after(PATIENCE_SECONDS):
            while text.count("\nevent: ") < count or not text.endswith("\n\n"):
                data = await client.stream.receive_some(65536)
                if not data:
                    break
                text += "".join(line for line in data.decode().splitlines(keepends=True) if not is_framing(line))
                if not begun and ": trio_compute" in text:
                    begun = True
                    if then is not None:
                        then()
    head, _, rest = text.partition(": trio_compute")
    assert head.startswith("HTTP/1.1 200"), head
    assert "content-type: text/event-stream" in head
    return [
        dict(line.split(": ", 1) for line in part.strip().split("\n")) for part in rest.split("\n\n") if part.strip()
    ]


def is_framing(line: str) -> bool:
    """Tell whether a line is the length of a chunk, or the end of one."""
    return line.endswith("\r\n") and all(character in "0123456789abcdef" for character in line.strip())


class TestEvents:
    async def test_transitions_are_told_as_they_happen(self) -> None:
        async with open_world() as world:
            told = await read_events(world, "/events", 2, lambda: bring_through(world))
            assert [event["event"] for event in told] == ["transition", "transition"]
            assert '"from":"running","to":"configuration_pending","event":"ApplyQueued"' in told[0]["data"]
            assert int(told[1]["id"]) == int(told[0]["id"]) + 1

    async def test_a_stream_can_be_resumed(self) -> None:
        async with open_world() as world:
            first = await read_events(world, "/events?after=0", 2)
            again = await read_events(world, "/events", 1, **{"last-event-id": first[0]["id"]})
            assert again[0] == first[1]

    async def test_it_ends_when_the_servers_end(self) -> None:
        async with open_world() as world:
            assert await read_events(world, "/events", 1, world.servers.drain) == []

    async def test_phases_are_told_with_begin_and_end(self) -> None:
        async with open_world() as world:

            def measure() -> None:
                with world.compute.spans.measure("a phase"):
                    pass

            begun, ended = await read_events(world, "/events", 2, measure)
            assert '"duration_seconds":null' in begun["data"]
            assert '"duration_seconds":null' not in ended["data"]

    async def test_it_needs_a_token(self) -> None:
        async with open_world() as world, world.client(None) as client:
            assert (await client.get("/events")).status_code == 400


def bring_through(world: World) -> None:
    world.compute.apply(ev.ApplyQueued())
    world.compute.apply(ev.ApplyBegan())


class TestProbes:
    @pytest.mark.parametrize(
        ("status", "live", "ready", "started"),
        [(Status.EMPTY, 200, 503, 200), (Status.INIT, 200, 503, 503), (Status.RUNNING, 200, 200, 200),
         (Status.CONFIGURATION, 200, 200, 200), (Status.FAILED, 200, 503, 503),
         (Status.TERMINATION_PENDING_FAST, 200, 503, 200)],
    )  # fmt: skip
    async def test_they_need_no_token_and_say_what_they_mean(
        self, status: Status, live: int, ready: int, started: int
    ) -> None:
        async with open_world(status) as world, world.client(None) as client:
            codes = [(await client.get(path)).status_code for path in ("/livez", "/readyz", "/startupz")]
            assert codes == [live, ready, started]

    async def test_a_failed_apply_changes_none_of_them(self) -> None:
        """T-09: Postgres takes connections as before."""
        async with open_world() as world, world.client(None) as client:
            bring_through(world)
            world.compute.apply(ev.ApplyFailed(error="a tenant's doing"))
            codes = [(await client.get(path)).status_code for path in ("/livez", "/readyz", "/startupz")]
            assert codes == [200, 200, 200]


class TestEndIfIdle:
    async def test_an_idle_compute_is_ended_while_the_postmaster_stands_still(self) -> None:
        async with open_world() as world, world.client() as client:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    assert (await client.post("/terminate?if_idle=true")).status_code == 200

                nursery.start_soon(ask)
                await stands(lambda: world.status is Status.TERMINATION_PENDING_FAST)
                sent = [sig for _, sig in world.host.child.signals]
                assert sent == [signal.SIGSTOP, signal.SIGINT, signal.SIGCONT]
                world.finish_termination(ev.Terminated())

    async def test_of_two_who_ask_at_once_both_get_the_answer_and_the_last_lets_the_postmaster_go_on(self) -> None:
        """02 D-23: the second joins the first; and while one still looks, no session may begin."""
        async with open_world() as world, world.client() as client:
            world.host.watch.look_seconds = 0.2
            codes: list[int] = []

            async def ask() -> None:
                codes.append((await client.post("/terminate?if_idle=true")).status_code)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(ask)
                await stands(lambda: world.status is Status.TERMINATION_PENDING_FAST)
                await stands(lambda: signal.SIGCONT in [sig for _, sig in world.host.child.signals])
                world.finish_termination(ev.Terminated())
            assert codes == [200, 200]
            sent = [sig for _, sig in world.host.child.signals]
            assert sent == [signal.SIGSTOP, signal.SIGSTOP, signal.SIGINT, signal.SIGCONT]

    async def test_active_sessions_are_counted_and_nothing_is_ended(self) -> None:
        async with open_world() as world, world.client() as client:
            world.host.watch.seen = {"busy_sessions": 2, "wal_senders": 1}
            response = await client.post("/terminate?if_idle=true&mode=immediate")
            assert response.status_code == 409
            assert response.json() == {"error": "compute is not idle: 3 active sessions"}
            assert world.status is Status.RUNNING
            assert [sig for _, sig in world.host.child.signals] == [signal.SIGSTOP, signal.SIGCONT]

    @pytest.mark.parametrize("step", ["refusal", "failure"])
    async def test_what_cannot_be_known_is_503_and_nothing_is_ended(self, step: str) -> None:
        async with open_world() as world, world.client() as client:
            setattr(world.host.watch, step, PostgresError("Postgres did not answer within 5 s"))
            response = await client.post("/terminate?if_idle=true")
            assert response.status_code == 503
            assert "did not answer" in response.json()["error"]
            assert world.status is Status.RUNNING
            assert [sig for _, sig in world.host.child.signals][1:] in ([], [signal.SIGCONT])

    async def test_a_look_that_never_ends_is_given_up_and_the_postmaster_goes_on(self) -> None:
        """T-13: every wait has a limit, that of connecting and that of looking together."""
        async with open_world() as world, world.client() as client:
            world.life.compute.settings = structs.replace(
                world.life.compute.settings, deadlines=structs.replace(world.host.settings.deadlines, idle_look=0.2)
            )
            world.host.watch.look_seconds = 0.15
            response = await client.post("/terminate?if_idle=true")
            assert response.status_code == 503
            assert response.json()["error"].endswith("no answer within 0.2 s")
            assert world.status is Status.RUNNING
            assert [sig for _, sig in world.host.child.signals] == [signal.SIGSTOP, signal.SIGCONT]

    async def test_a_failed_start_cannot_be_known_to_be_idle(self) -> None:
        async with open_world(Status.FAILED) as world, world.client() as client:
            assert (await client.post("/terminate?if_idle=true")).status_code == 503

    async def test_a_failed_apply_does_not_keep_an_idle_compute_from_ending(self) -> None:
        """T-09: what counts is that Postgres runs and can be asked."""
        async with open_world() as world, world.client() as client:
            bring_through(world)
            world.compute.apply(ev.ApplyFailed(error="a tenant's doing"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.post, "/terminate?if_idle=true")
                await stands(lambda: world.status is Status.TERMINATION_PENDING_FAST)
                assert world.host.watch.looks
                world.finish_termination(ev.Terminated())

    async def test_an_empty_compute_is_idle(self) -> None:
        async with open_world(Status.EMPTY) as world, world.client() as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.post, "/terminate?if_idle=true")
                await stands(lambda: world.status is Status.TERMINATION_PENDING_FAST)
                world.finish_termination(ev.Terminated())

    async def test_the_status_must_allow_it(self) -> None:
        async with open_world(Status.INIT) as world, world.client() as client:
            assert (await client.post("/terminate?if_idle=true")).status_code == 412


class TestFailpoints:
    async def test_they_are_unknown_outside_of_tests(self) -> None:
        """§6: testing builds only, else 404."""
        async with open_world() as world, world.client(internal=True) as client:
            assert (await client.post("/failpoints", json=[])).status_code == 404

    @pytest.mark.parametrize(
        ("key", "action", "code"), [("action", "off", 200), ("actions", "off", 200), ("actions", "explode", 400)]
    )
    async def test_both_spellings_are_taken(self, key: str, action: str, code: int) -> None:
        """§6: the test fixture sends key `action`."""
        async with open_world(testing=True) as world, world.client(internal=True) as client:
            response = await client.post("/failpoints", json=[{"name": "compute-prewarm", key: action}])
            assert response.status_code == code


async def up_series(world: World) -> list[str]:
    async with world.client(None) as client:
        text = (await client.get("/metrics")).text
    return [line for line in text.splitlines() if line.startswith(("compute_ctl_up{", "pg_cctl_attached{"))]


class TestGauges:
    async def test_the_status_is_never_stale(self) -> None:
        """D-36: direct writes left the gauge behind; here it is read off the state."""
        async with open_world(Status.INIT) as world:
            assert await up_series(world) == ['compute_ctl_up{build_tag="latest",status="init"} 1.0']
            for event, name in (
                (ev.Started(), "running"),
                (ev.RefreshRequested(), "refresh-configuration-pending"),
                (ev.RefreshBegan(), "refresh-configuration"),
            ):
                world.compute.apply(event)
                assert await up_series(world) == [f'compute_ctl_up{{build_tag="latest",status="{name}"}} 1.0']

    async def test_who_is_attached_is_told_in_lakebase_mode_with_an_instance(self) -> None:
        """D-36, 03 §7."""
        settings = {"lakebase_mode": True, "instance_id": "i-1"}
        async with open_world(Status.RUNNING, **settings) as world:
            _, attached = await up_series(world)
            assert 'pg_instance_id="i-1"' in attached
            assert f'tenant_id="{world.compute.state.spec.tenant_id}"' in attached  # type: ignore[union-attr]
        async with open_world(Status.EMPTY, **settings) as world:
            assert len(await up_series(world)) == 1
