"""Refreshing the configuration, over a fake world and clock (contract 02 §8)."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.component.test_run import Stage, terminate
from tests.fakes.specs import config, parsed, spec_dict
from trio_compute.errors import HostError, RemoteError
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status
from trio_compute.services.apply_queue import Rejected, Succeeded


def want_refresh(stage: Stage) -> None:
    stage.compute.apply(ev.RefreshRequested())
    stage.servers.queue.want_refresh()


def offer(stage: Stage, **changes: Any) -> None:
    stage.host.config = config(spec_dict(**changes))


async def play(stage: Stage, script: Callable[[Stage], Awaitable[None]]) -> None:
    async def whole(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        await trio.testing.wait_all_tasks_blocked()
        await script(stage)

    await stage.play(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint_id": "another"},
        {"safekeepers_generation": 7},
        {"storage_auth_token": "another-token"},
        {"safekeeper_connstrings": ["127.0.0.1:9999"]},
    ],
)
async def test_any_difference_is_applied(changes: dict[str, Any], autojump_clock: Any) -> None:
    """D-09: safekeepers, generation, settings and tokens count, not only the pageservers."""

    async def script(stage: Stage) -> None:
        offer(stage, **changes)
        want_refresh(stage)
        await stage.compute.reach(Status.RUNNING)
        assert stage.compute.state.spec == parsed(**changes)
        assert stage.host.written[-1] == parsed(**changes)
        await terminate(stage.compute, immediate=True)

    await play(Stage(), script)


async def test_the_same_configuration_changes_nothing_and_holds_the_next_refresh_for_five_seconds(
    autojump_clock: Any,
) -> None:
    async def script(stage: Stage) -> None:
        writes = len(stage.host.written)
        want_refresh(stage)
        await stage.compute.reach(Status.RUNNING)
        assert len(stage.host.written) == writes
        first = trio.current_time()
        want_refresh(stage)
        await stage.compute.reach(Status.REFRESH_CONFIGURATION)
        assert trio.current_time() - first == pytest.approx(5)
        await stage.compute.reach(Status.RUNNING)
        await terminate(stage.compute, immediate=True)

    await play(Stage(), script)


async def test_a_failed_refresh_is_retried_with_growing_pauses_until_it_succeeds(autojump_clock: Any) -> None:
    """D-04, D-05, D-06: pauses of 5, 10, 20, 40, 60 s; the old spec stays; success needs a real application."""
    began: list[float] = []

    async def script(stage: Stage) -> None:
        old = stage.compute.state.spec
        stage.host.pace = 0.0
        stage.host.failures["obtain_config"] = [RemoteError("down")] * 3
        stage.host.failures["write_postgresql_conf"] = [HostError("full")] * 3
        offer(stage, endpoint_id="new")
        want_refresh(stage)
        for _ in range(7):
            await stage.compute.reach(Status.REFRESH_CONFIGURATION)
            began.append(trio.current_time())
            state = await stage.compute.reach(Status.REFRESH_CONFIGURATION_PENDING, Status.RUNNING)
            if state.status is not Status.RUNNING:
                assert state.spec == old
                assert state.error in {"down", "full"}
        assert stage.compute.state.status is Status.RUNNING
        assert stage.compute.state.error is None
        assert stage.compute.state.spec == parsed(endpoint_id="new")
        await terminate(stage.compute, immediate=True)

    await play(Stage(), script)
    pauses = [round(after - before, 3) for before, after in itertools.pairwise(began)]
    assert pauses == [5, 10, 20, 40, 60, 60]


async def test_a_refresh_from_failed_applies_even_what_is_unchanged(autojump_clock: Any) -> None:
    """D-07, D-08: the task is still there after a failure, and failed does not turn into running by itself."""

    async def script(stage: Stage) -> None:
        stage.host.failures["apply_catalog"] = [HostError("lost")]
        stage.compute.apply(ev.ApplyQueued())
        job = stage.servers.queue.submit(parsed(endpoint_id="bad"))
        assert await job.outcome() == Rejected("lost")
        writes = len(stage.host.written)
        want_refresh(stage)
        await stage.compute.reach(Status.RUNNING)
        assert len(stage.host.written) == writes + 1
        assert stage.compute.state.error is None
        await terminate(stage.compute, immediate=True)

    await play(Stage(), script)


async def test_a_request_during_a_refresh_is_not_lost(autojump_clock: Any) -> None:
    """D-04: level-triggered."""

    async def script(stage: Stage) -> None:
        stage.host.slow["obtain_config"] = 3
        want_refresh(stage)
        await stage.compute.reach(Status.REFRESH_CONFIGURATION)
        stage.servers.queue.want_refresh()
        fetched = stage.host.calls.count("obtain_config")
        await trio.sleep(30)
        assert stage.host.calls.count("obtain_config") == fetched + 1
        await terminate(stage.compute, immediate=True)

    await play(Stage(), script)


async def test_a_request_during_the_start_is_remembered(autojump_clock: Any) -> None:
    """D-50."""
    stage = Stage()

    async def script(stage: Stage) -> None:
        assert stage.compute.state.status is Status.INIT
        stage.compute.apply(ev.RefreshRequested())
        stage.servers.queue.want_refresh()
        assert stage.compute.state.status is Status.INIT
        offer(stage, endpoint_id="new")
        await stage.compute.reach(Status.REFRESH_CONFIGURATION)
        await stage.compute.reach(Status.RUNNING)
        assert stage.compute.state.spec == parsed(endpoint_id="new")
        await terminate(stage.compute, immediate=True)

    await stage.play(script)


async def test_an_empty_answer_stops_the_compute_like_a_signal_and_exits_with_one(autojump_clock: Any) -> None:
    """D-19: Postgres is not orphaned, nothing is synced."""
    stage = Stage()

    async def script(stage: Stage) -> None:
        stage.host.config = config(None)
        want_refresh(stage)

    await play(stage, script)
    assert stage.code == 1
    assert stage.host.child.returncode == 0
    assert "sync_safekeepers" not in stage.host.calls


async def test_a_refresh_cannot_make_it_another_compute(autojump_clock: Any) -> None:
    """D-47."""

    async def script(stage: Stage) -> None:
        offer(stage, tenant_id="f" * 32)
        want_refresh(stage)
        await stage.compute.reach(Status.REFRESH_CONFIGURATION)
        state = await stage.compute.reach(Status.REFRESH_CONFIGURATION_PENDING)
        assert state.error == "cannot change tenant_id of a running compute"
        stage.compute.request_stop()

    await play(Stage(), script)


async def test_a_spec_is_applied_while_refreshes_are_held(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        want_refresh(stage)
        await stage.compute.reach(Status.RUNNING)
        began = trio.current_time()
        stage.compute.apply(ev.ApplyQueued())
        assert isinstance(await stage.servers.queue.submit(parsed(endpoint_id="new")).outcome(), Succeeded)
        assert trio.current_time() - began < 1
        await terminate(stage.compute, immediate=True)

    await play(Stage(), script)


async def test_fields_that_wait_for_a_restart_are_named(autojump_clock: Any) -> None:
    """D-48: compared with what Postgres was started with, so a change back is no longer named."""

    async def script(stage: Stage) -> None:
        for changes, fields in (
            ({"storage_auth_token": "new-token", "autoprewarm": True}, ("storage_auth_token", "autoprewarm")),
            ({"autoprewarm": True}, ("autoprewarm",)),
            ({}, ()),
        ):
            stage.compute.apply(ev.ApplyQueued())
            assert await stage.servers.queue.submit(parsed(**changes)).outcome() == Succeeded()
            assert stage.compute.state.restart_required == fields
        await terminate(stage.compute, immediate=True)

    await play(Stage(), script)
