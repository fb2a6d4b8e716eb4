"""One bad database is that database's problem, not the compute's (contract 11 T-08)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.component.test_run import Stage, terminate
from tests.fakes.specs import parsed
from trio_compute.http.routes.status import status_response
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import DatabaseFailure
from trio_compute.lifecycle.status import Status
from trio_compute.plan.catalog.failures import CatalogFailed, Failure
from trio_compute.services.apply_queue import Rejected, Succeeded
from trio_compute.telemetry.metrics import DATABASES_FAILED, metrics


def failure(phase: str, database: str) -> Failure:
    return Failure(
        phase=phase, database=database, object=f"database {database}", operation="o", sqlstate="55P03", message="locked"
    )


SHUT, ODD = failure("ChangeSchemaPerms", "shut"), failure("ChangeSchemaPerms", "odd")
INHERITED = failure("DropLogicalSubscriptions", "shut")


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_a_start_goes_on_and_tells_where_it_failed_until_an_apply_comes_through(
    stage: Stage, autojump_clock: Any
) -> None:
    """T-08: running, `databases_failed` in /status, the metric by phase; the next apply tries again and clears both."""
    stage.host.failures["apply_catalog"] = [CatalogFailed([SHUT, ODD])]

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        shown = status_response(stage.compute).databases_failed
        assert shown
        assert [(each.database, each.phase) for each in shown] == [
            ("shut", "ChangeSchemaPerms"),
            ("odd", "ChangeSchemaPerms"),
        ]
        assert all("locked (SQLSTATE 55P03)" in each.error for each in shown)
        assert metrics.series(DATABASES_FAILED) == {("ChangeSchemaPerms",): 2}
        stage.compute.apply(ev.ApplyQueued())
        assert isinstance(await stage.servers.queue.submit(parsed(endpoint_id="ep-new")).outcome(), Succeeded)
        assert not status_response(stage.compute).databases_failed
        assert metrics.series(DATABASES_FAILED) == {}
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert stage.code == 0
    assert stage.host.calls.count("enable_subscribers") == 2


async def test_a_configure_fails_with_all_of_it_and_says_where(stage: Stage, autojump_clock: Any) -> None:
    """T-08: still an answer with every failure, and the status tells the databases too."""

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.host.failures["apply_catalog"] = [CatalogFailed([SHUT, ODD])]
        stage.compute.apply(ev.ApplyQueued())
        outcome = await stage.servers.queue.submit(parsed(endpoint_id="ep-new")).outcome()
        assert isinstance(outcome, Rejected)
        assert outcome.failures == (SHUT, ODD)
        told = stage.compute.notices.databases_failed
        assert told == tuple(DatabaseFailure(each.database, each.phase, str(each)) for each in (SHUT, ODD))
        await terminate(stage.compute, immediate=True)

    await stage.play(script)


async def test_what_concerns_the_cluster_fails_the_start(stage: Stage, autojump_clock: Any) -> None:
    """T-08: roles are everybody's."""
    stage.host.failures["apply_catalog"] = [CatalogFailed([SHUT, failure("CreateAndAlterRoles", "postgres")])]

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.FAILED)

    await stage.play(script)
    assert stage.code == 1


async def test_inherited_subscriptions_that_could_not_be_dropped_stay_disabled(
    stage: Stage, autojump_clock: Any
) -> None:
    """T-11, 04 F-09: their workers must not begin; the next apply that comes through lets subscribers run."""
    stage.host.failures["apply_catalog"] = [CatalogFailed([INHERITED])]

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        assert "enable_subscribers" not in stage.host.calls
        stage.compute.apply(ev.ApplyQueued())
        assert isinstance(await stage.servers.queue.submit(parsed(endpoint_id="ep-new")).outcome(), Succeeded)
        assert "enable_subscribers" in stage.host.calls
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
