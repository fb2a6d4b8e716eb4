"""POST /promote: contract 08 §6, 03 §5.3."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
import trio

from tests.component.http.world import JSON, World, open_world
from tests.fakes import specs
from trio_compute.lifecycle.status import Status
from trio_compute.model.promotion import PromoteCompleted, PromoteFailed
from trio_compute.services.apply_queue import PromotionJob

DONE = PromoteCompleted(lsn_wait_time_ms=1, pg_promote_time_ms=120, reconfigure_time_ms=40)
REPLICA = {"mode": "Replica"}


def body(lsn: Any = "0/16ABCDE", **changes: Any) -> bytes:
    spec = {name: value for name, value in specs.spec_dict(**changes).items() if value is not ...}
    return msgspec.json.encode({"spec": spec, "wal_flush_lsn": lsn})


async def post(client: httpx.AsyncClient, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    return await client.post("/promote", content=content, headers=JSON if headers is None else headers)


async def next_promotion(world: World) -> PromotionJob:
    job = await world.queue.next()
    assert isinstance(job, PromotionJob)
    return job


@pytest.mark.parametrize(
    ("outcome", "status", "text"),
    [
        (
            DONE,
            200,
            b'{"status":"completed","lsn_wait_time_ms":1,"pg_promote_time_ms":120,"reconfigure_time_ms":40}',
        ),
        (
            PromoteFailed("pg_promote() failed"),
            500,
            b'{"status":"failed","error":"pg_promote() failed"}',
        ),
    ],
)
async def test_the_answer_is_the_state_of_the_promotion(outcome: Any, status: int, text: bytes) -> None:
    """§6.1: the body of a failure is the state, not `{"error"}` alone."""
    async with open_world(spec_changes=REPLICA) as world, world.client() as client, trio.open_nursery() as nursery:

        async def carry_out() -> None:
            job = await next_promotion(world)
            assert str(job.wal_flush_lsn) == "0/16ABCDE"
            assert job.spec.is_primary
            assert world.status is Status.RUNNING
            job.settle(outcome)

        nursery.start_soon(carry_out)
        response = await post(client, body())
        assert (response.status_code, response.content) == (status, text)
        assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.RUNNING])
async def test_only_a_running_compute_is_promoted(status: Status) -> None:
    """L-01, P-06."""
    async with open_world(status, spec_changes=REPLICA) as world, world.client() as client:
        response = await post(client, body())
        assert (response.status_code, response.json()) == (412, {"error": f"invalid compute status: {status.kebab}"})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"mode": "Replica"}, 'compute mode "replica" of the new spec is not primary'),
        ({"mode": {"Static": "0/1"}}, 'compute mode "static" of the new spec is not primary'),
        ({"safekeeper_connstrings": ["a:1", "a:1"]}, "duplicate entry in safekeeper_connstrings: a:1!"),
        ({"tenant_id": "f" * 32}, "cannot change tenant_id of a running compute"),
        ({"timeline_id": "f" * 32}, "cannot change timeline_id of a running compute"),
        ({"tenant_id": ...}, "tenant id should be provided"),
    ],
)
async def test_a_spec_that_is_not_acceptable_is_400(changes: dict[str, Any], error: str) -> None:
    """P-05, P-14, P-13."""
    async with open_world(spec_changes=REPLICA) as world, world.client() as client:
        response = await post(client, body(**changes))
        assert (response.status_code, response.json()) == (400, {"error": error})


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"{}", JSON, 422),
        (body(lsn="no LSN"), JSON, 422),
        (body(lsn=5), JSON, 422),
        (body(), {"content-type": "text/plain"}, 415),
        (b" " * (33 * 1024 * 1024), JSON, 413),
    ],
    ids=["no JSON", "no members", "no LSN", "a number", "another type", "too long"],
)
async def test_a_body_that_cannot_be_read_is_told_as_json(content: bytes, headers: dict[str, str], status: int) -> None:
    """P-13, A-11."""
    async with open_world(spec_changes=REPLICA) as world, world.client() as client:
        response = await post(client, content, headers)
        assert response.status_code == status
        assert list(response.json()) == ["error"]


async def test_calls_at_the_same_time_and_after_a_success_get_one_result() -> None:
    """D-29, §6.3."""
    answers: list[httpx.Response] = []
    async with open_world(spec_changes=REPLICA) as world, world.client() as client:

        async def call(**changes: Any) -> None:
            answers.append(await post(client, body(**changes)))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                job = await next_promotion(world)
                async with trio.open_nursery() as others:
                    for number in range(3):
                        others.start_soon(lambda number=number: call(endpoint_id=f"ep-{number}"))
                    await trio.sleep(0.1)
                    job.settle(DONE)
                    world.life.promotions._completed = True
        answers.append(await post(client, body("F/F", endpoint_id="ep-late")))
        assert [answer.status_code for answer in answers] == [200] * 5
        assert len({answer.content for answer in answers}) == 1
        # What is not acceptable is refused all the same.
        assert (await post(client, body(mode="Replica"))).status_code == 400


async def test_a_failure_does_not_stick() -> None:
    """P-01, A-21: the next call has a run of its own, with its own body."""
    async with open_world(spec_changes=REPLICA) as world, world.client() as client:
        for outcome in (PromoteFailed("no"), PromoteFailed("still no"), DONE):
            async with trio.open_nursery() as nursery:

                async def carry_out(outcome: Any = outcome) -> None:
                    (await next_promotion(world)).settle(outcome)

                nursery.start_soon(carry_out)
                response = await post(client, body())
                assert response.json()["status"] == ("completed" if outcome is DONE else "failed")


async def test_a_client_that_leaves_does_not_take_the_promotion_along() -> None:
    async with open_world(spec_changes=REPLICA) as world, world.client() as client:
        with pytest.raises(httpx.TimeoutException):
            await client.post("/promote", content=body(), headers=JSON, timeout=0.5)
        job = await next_promotion(world)
        assert not job.settled
        async with trio.open_nursery() as nursery:

            async def settle() -> None:
                await trio.sleep(0.05)
                job.settle(DONE)

            nursery.start_soon(settle)
            assert (await post(client, body())).status_code == 200


async def test_the_end_of_the_compute_is_503() -> None:
    async with open_world(spec_changes=REPLICA) as world, world.client() as client, trio.open_nursery() as nursery:

        async def end() -> None:
            await next_promotion(world)
            world.queue.close()

        nursery.start_soon(end)
        response = await post(client, body())
        assert (response.status_code, response.json()) == (503, {"error": "compute is terminating"})
