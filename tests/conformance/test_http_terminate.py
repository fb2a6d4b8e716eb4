"""POST /terminate: contract 03 §5.2, 02 §10.1."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import trio

from tests.component.http.raw import connect, request_text
from tests.component.http.world import FLUSH_LSN, World, open_world, stands
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.ending import Ending
from trio_compute.lifecycle.status import Status

DONE = ev.Terminated(flush_lsn=FLUSH_LSN)
PENDING = [Status.TERMINATION_PENDING_FAST, Status.TERMINATION_PENDING_IMMEDIATE]
TERMINABLE = [Status.EMPTY, Status.RUNNING, Status.FAILED]
REFUSING = [
    Status.CONFIGURATION_PENDING,
    Status.INIT,
    Status.CONFIGURATION,
    Status.REFRESH_CONFIGURATION_PENDING,
    Status.REFRESH_CONFIGURATION,
]


async def terminate(world: World, query: str = "") -> httpx.Response:
    async with world.client() as client:
        return await client.post(f"/terminate{query}")


async def terminate_while(world: World, outcome: ev.Terminated, query: str = "", *, count: int = 1) -> list[Any]:
    """Ask, and wind down once all requests wait for it."""
    responses: list[httpx.Response] = []
    await stands(lambda: world.waiting == 0)

    async def ask() -> None:
        responses.append(await terminate(world, query))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(ask)
        await stands(lambda: world.waiting == count)
        assert world.status in PENDING
        assert responses == []
        world.finish_termination(outcome)
    return responses


class TestAccepted:
    @pytest.mark.parametrize(
        ("query", "status", "ending"),
        [
            ("", PENDING[0], Ending.TERMINATE_FAST),
            ("?mode=fast", PENDING[0], Ending.TERMINATE_FAST),
            ("?mode=immediate", PENDING[1], Ending.TERMINATE_IMMEDIATE),
        ],
    )
    async def test_a_running_compute_ends_and_tells_its_lsn(self, query: str, status: Status, ending: Ending) -> None:
        """§5.2: 200 `{"lsn"}` when Postgres is gone and the final sync is done; `mode` default fast."""
        async with open_world() as world:
            (response,) = await terminate_while(world, DONE, query)
            assert (response.status_code, response.content) == (200, b'{"lsn":"0/169AD58"}')
            assert response.headers["content-type"] == "application/json"
            assert world.compute.history[-1].source is status
            assert world.compute.ending.value is ending

    @pytest.mark.parametrize("settings", [{}, {"lakebase_mode": True}])
    async def test_an_empty_compute_ends_without_an_lsn(self, settings: dict[str, bool]) -> None:
        """§5.2, D-01, D-02: 200 `{"lsn":null}`, lakebase or not."""
        async with open_world(Status.EMPTY, **settings) as world:
            (response,) = await terminate_while(world, ev.Terminated())
            assert (response.status_code, response.content) == (200, b'{"lsn":null}')

    @pytest.mark.parametrize("postgres_running", [True, False])
    async def test_a_failed_compute_ends_too(self, postgres_running: bool) -> None:
        """§5.2, D-22: accepted from failed."""
        async with open_world(Status.FAILED) as world:
            world.compute.postgres_running = postgres_running
            (response,) = await terminate_while(world, ev.Terminated())
            assert (response.status_code, response.content) == (200, b'{"lsn":null}')

    async def test_the_answer_does_not_wait_for_the_linger(self) -> None:
        """§5.2: the response is not delayed in fast mode, only the exit of the process is."""
        async with open_world() as world:
            with trio.fail_after(5):
                await terminate_while(world, DONE, "?mode=fast")
            assert world.status is Status.TERMINATED
            async with world.client() as client:
                assert (await client.get("/status")).json()["status"] == "terminated"

    @pytest.mark.parametrize("query", ["?", "?x=1", "?mode=fast&x=1", "?x"])
    async def test_foreign_query_keys_and_a_bare_question_mark_are_ignored(self, query: str) -> None:
        """§2.1, A-12: a query string without the parameter means "not given"."""
        async with open_world() as world:
            (response,) = await terminate_while(world, DONE, query)
            assert response.status_code == 200


class TestJoined:
    @pytest.mark.parametrize("status", PENDING)
    @pytest.mark.parametrize("query", ["", "?mode=immediate"])
    async def test_a_second_request_waits_for_the_same_answer(self, status: Status, query: str) -> None:
        """D-23: join the first, same 200."""
        async with open_world(status) as world:
            (response,) = await terminate_while(world, DONE, query)
            assert (response.status_code, response.content) == (200, b'{"lsn":"0/169AD58"}')

    async def test_many_at_once_get_one_answer(self) -> None:
        """D-23."""
        async with open_world() as world:
            responses = await terminate_while(world, DONE, count=10)
            assert [(one.status_code, one.content) for one in responses] == [(200, b'{"lsn":"0/169AD58"}')] * 10

    async def test_a_stop_by_signal_is_joined(self) -> None:
        """D-23, 02 T24: the status is the same as after a request."""
        async with open_world() as world:
            world.compute.request_stop()
            (response,) = await terminate_while(world, ev.Terminated())
            assert response.status_code == 200

    async def test_after_the_end_the_answer_is_201(self) -> None:
        """§5.2, 02 §10.1 step 1: 201 with the stored LSN."""
        async with open_world(Status.TERMINATED) as world:
            for query in ("", "?mode=immediate", "?mode=fast"):
                response = await terminate(world, query)
                assert (response.status_code, response.content) == (201, b'{"lsn":"0/169AD58"}')

    @pytest.mark.parametrize("how", ["close", "half-close", "reset"])
    async def test_the_first_caller_may_leave(self, how: str) -> None:
        """§2: a client's disconnect does not stop what it began."""
        async with open_world() as world:
            async with connect(world.port) as client:
                await client.send(request_text("POST", "/terminate"))
                await world.compute.reach(PENDING[0])
                if how == "half-close":
                    await client.stream.send_eof()
                    await client.ends()
                elif how == "reset":
                    client.reset()
            async with world.client() as other:
                assert (await other.get("/status")).json()["status"] == "termination_pending_fast"
            (response,) = await terminate_while(world, DONE)
            assert (response.status_code, response.content) == (200, b'{"lsn":"0/169AD58"}')


class TestRefused:
    @pytest.mark.parametrize("status", REFUSING)
    @pytest.mark.parametrize("query", ["", "?mode=immediate"])
    async def test_another_status_is_412_with_its_kebab_name(self, status: Status, query: str) -> None:
        """§5.2, §4: init, configuration*, refresh*."""
        async with open_world(status) as world:
            response = await terminate(world, query)
            kebab = status.value.replace("_", "-")
            assert (response.status_code, response.json()) == (412, {"error": f"invalid compute status: {kebab}"})
            assert world.status is status
            assert world.compute.ending.value is None

    @pytest.mark.parametrize("mode", ["Fast", "IMMEDIATE", "slow", "", "fast,immediate", "%00", "%ff"])
    @pytest.mark.parametrize("status", [Status.RUNNING, Status.TERMINATED])
    async def test_a_bad_mode_is_400_in_json(self, mode: str, status: Status) -> None:
        """§2.1, A-11: same status, but JSON; whatever the compute is doing."""
        async with open_world(status) as world:
            response = await terminate(world, f"?mode={mode}")
            assert response.status_code == 400
            assert response.headers["content-type"] == "application/json"
            assert response.json()["error"].startswith("failed to deserialize query string: ")
            assert world.status is status


class TestSyncFailed:
    FAILED = ev.Terminated(error="final safekeeper sync failed: no quorum")

    async def test_the_caller_is_told_with_500(self) -> None:
        """§5.2, D-16: status terminated, 500 with the text."""
        async with open_world() as world:
            (response,) = await terminate_while(world, self.FAILED)
            assert response.status_code == 500
            assert json.loads(response.content) == {"error": "final safekeeper sync failed: no quorum"}
            assert world.status is Status.TERMINATED

    async def test_so_is_who_asks_later(self) -> None:
        """D-16: the LSN is not known, so no success may be claimed."""
        async with open_world() as world:
            await terminate_while(world, self.FAILED)
            assert (await terminate(world)).status_code == 500
