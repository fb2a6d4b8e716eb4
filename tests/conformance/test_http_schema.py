"""Schemathesis asks both servers for everything that openapi.json allows, and for more; it must be told no lies."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import schemathesis
import trio
from schemathesis.engine import events, from_schema

from tests.component.http.tokens import compute_claims, mint
from tests.component.http.world import STARTED_AT, World, configure_body, open_world
from trio_compute.http.openapi import openapi_document
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import TERMINATION_PENDING, Status
from trio_compute.services.apply_queue import Succeeded

# What the schema allows and forbids, systematically, is asked of a running compute; the others get a sample.
THOROUGH_EXAMPLES, FEW_EXAMPLES = 10, 5
SHORTEST_WAIT = "1ms"

Asked = Counter[tuple[str, str, int]]


def document() -> dict[str, Any]:
    """Return our description, changed where Schemathesis reads more out of it than it says, or has less to go by."""
    changed = copy.deepcopy(openapi_document())
    body = msgspec.json.decode(configure_body())
    changed["components"]["schemas"]["ConfigureRequest"]["examples"] = [body]
    # It takes the schema of a stream for that of each event (OpenAPI 3.2); the client's tests look at the events.
    del changed["paths"]["/events"]["get"]["responses"]["200"]["content"]
    return changed


def config(port: int, *, is_thorough: bool) -> schemathesis.Config:
    return schemathesis.Config.from_dict(
        {
            "base-url": f"http://127.0.0.1:{port}",
            "auth": {"openapi": {"token": {"bearer": mint(compute_claims())}}},
            "request-timeout": 10,
            "continue-on-failure": True,
            "generation": {
                "deterministic": True,
                "max-examples": THOROUGH_EXAMPLES if is_thorough else FEW_EXAMPLES,
                "database": "none",
                "no-shrink": True,
            },
            "phases": {"stateful": {"enabled": False}, "coverage": {"enabled": is_thorough}},
            "checks": {
                # A compute that is not running says so with 412; 500 and 503 are answers that are documented.
                "positive_data_acceptance": {"enabled": False},
                "not_a_server_error": {"enabled": False},
                # The contract has 400 for a request without a token (03 §3); test_http_auth.py holds it.
                "ignored_auth": {"enabled": False},
                "missing_required_header": {"enabled": False},
            },
        }
    )


@contextmanager
def short_waits() -> Iterator[None]:
    """Let no long poll be long."""

    def before_call(context: Any, case: Any, kwargs: Any) -> None:
        if isinstance(case.query, dict) and case.query.keys() & {"since", "wait_for"}:
            case.query["timeout"] = SHORTEST_WAIT

    schemathesis.hook(before_call)
    try:
        yield
    finally:
        schemathesis.hooks.unregister(before_call)


def ask_everything(port: int, only: Callable[[Any], Any], *, is_thorough: bool) -> Asked:
    """Let Schemathesis loose on one server; return what was asked and answered, or fail with all that was wrong."""
    schema = only(schemathesis.openapi.from_dict(document(), config=config(port, is_thorough=is_thorough)))
    asked, wrong = Asked(), list[str]()
    with short_waits():
        for event in from_schema(schema).execute():
            if isinstance(event, events.NonFatalError | events.FatalError):
                wrong.append(repr(event))
            elif isinstance(event, events.ScenarioFinished):
                wrong += failures(event.recorder)
                asked.update(exchanges(event.recorder))
    assert not wrong, "\n\n".join(dict.fromkeys(wrong))
    return asked


def failures(recorder: Any) -> Iterator[str]:
    for name, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                yield f"{recorder.cases[name].value.as_curl_command()}\n{check.name}: {check.failure_info.failure}"
    for name, interaction in recorder.interactions.items():
        response = interaction.response
        if response is None:
            yield f"{recorder.cases[name].value.as_curl_command()}\nno answer"
        elif response.status_code >= 500 and b"internal error" in response.content:
            yield f"{recorder.cases[name].value.as_curl_command()}\na defect: {response.content!r}"


def exchanges(recorder: Any) -> Iterator[tuple[str, str, int]]:
    for name, interaction in recorder.interactions.items():
        case = recorder.cases[name].value
        response = interaction.response
        yield case.method, case.path, 0 if response is None else response.status_code


async def apply_and_refresh(world: World) -> None:
    """Play the applying task: whatever is wanted succeeds."""
    while True:
        job = await world.queue.next()
        if job is None:
            world.compute.apply(ev.RefreshBegan())
            world.compute.apply(ev.RefreshUnchanged())
        elif world.status is Status.CONFIGURATION_PENDING and not world.compute.postgres_running:
            world.compute.apply(ev.StartBegan(spec=job.spec, at=STARTED_AT))
            world.compute.postgres_running = True
            world.compute.apply(ev.Started())
            job.settle(Succeeded())
        else:
            world.compute.apply(ev.ApplyBegan())
            world.compute.apply(ev.Applied(spec=job.spec))
            job.settle(Succeeded())


async def finish_ends(world: World) -> None:
    """Play winding down."""
    await world.compute.reach(*TERMINATION_PENDING)
    world.finish_termination(ev.Terminated())


@asynccontextmanager
async def open_played_world(status: Status) -> AsyncIterator[World]:
    async with open_world(status, testing=True) as world, trio.open_nursery() as players:
        # Streams of events end with what there is.
        world.compute.feed.close()
        players.start_soon(apply_and_refresh, world)
        players.start_soon(finish_ends, world)
        yield world
        players.cancel_scope.cancel()


def paths_of(server: str) -> set[tuple[str, str]]:
    return {
        (method.upper(), path)
        for path, methods in openapi_document()["paths"].items()
        for method, operation in methods.items()
        if server in operation["tags"]
    }


STATUSES = (Status.EMPTY, Status.RUNNING, Status.FAILED, Status.TERMINATED)
TERMINATE = "/terminate"


@pytest.mark.slow
@pytest.mark.parametrize("status", STATUSES)
async def test_the_external_server_keeps_its_word(status: Status) -> None:
    """Zero answers that are not documented, zero bodies of another shape, zero defects."""
    ask = partial(
        ask_everything,
        only=lambda schema: schema.include(tag="external").exclude(path=TERMINATE),
        is_thorough=status is Status.RUNNING,
    )
    async with open_played_world(status) as world:
        asked = await trio.to_thread.run_sync(ask, world.port)
    assert {(method, path) for method, path, _ in asked} >= paths_of("external") - {("POST", TERMINATE)}
    assert asked["GET", "/status", 200] > 0
    assert (asked["POST", "/configure", 200] > 0) is (status in {Status.EMPTY, Status.RUNNING})


@pytest.mark.slow
@pytest.mark.parametrize("status", STATUSES)
async def test_the_end_keeps_its_word(status: Status) -> None:
    """The first request that is acceptable ends the compute; the others find it ended."""
    ask = partial(ask_everything, only=lambda schema: schema.include(path=TERMINATE), is_thorough=True)
    async with open_played_world(status) as world:
        asked = await trio.to_thread.run_sync(ask, world.port)
        assert world.status is Status.TERMINATED
    assert asked["POST", TERMINATE, 201] > 0
    assert asked["POST", TERMINATE, 400] > 0


@pytest.mark.slow
@pytest.mark.parametrize("status", STATUSES)
async def test_the_internal_server_keeps_its_word(status: Status) -> None:
    is_thorough = status is Status.RUNNING
    ask = partial(ask_everything, only=lambda schema: schema.include(tag="internal"), is_thorough=is_thorough)
    async with open_played_world(status) as world:
        asked = await trio.to_thread.run_sync(ask, world.internal_port)
    assert {(method, path) for method, path, _ in asked} >= paths_of("internal")


@pytest.mark.parametrize("internal", [False, True])
async def test_both_servers_hand_out_the_description_to_anybody(internal: bool) -> None:
    async with open_world() as world, world.client(None, internal=internal) as client:
        response = await client.get("/openapi.json")
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        assert response.json() == json.loads(msgspec.json.encode(openapi_document()))
