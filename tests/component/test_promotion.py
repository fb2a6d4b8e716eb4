"""Promotion over a fake replica and a fake clock (contract 08 §6)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from msgspec import to_builtins

from tests.component.test_run import Stage, terminate
from tests.fakes.host import COMMIT_LSN
from tests.fakes.specs import parsed
from trio_compute.errors import HostError, PostgresError
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status
from trio_compute.model.ids import Lsn
from trio_compute.model.lfc import NotPrewarmed, PrewarmCancelled, PrewarmFailed, Prewarming, PrewarmSkipped
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.promotion import PromoteCompleted, PromoteFailed
from trio_compute.services.apply_queue import Aborted, Rejected, Succeeded
from trio_compute.telemetry.failpoints import failpoints
from trio_compute.telemetry.metrics import metrics

FLUSHED = Lsn.parse("0/5000028")
STANDBY = {"name": "synchronous_standby_names", "value": "walproposer", "vartype": "string"}
PRIMARY = {
    "mode": "Primary",
    "endpoint_id": "ep-primary",
    "safekeeper_connstrings": ["a:1", "b:2"],
    "safekeepers_generation": 7,
    "skip_pg_catalog_updates": True,
    "cluster": {"roles": [], "databases": [], "postgresql_conf": "port=9999\nfsync=off", "settings": [STANDBY]},
}
STEPS = [
    *("connect", "replayed", "set neon.safekeepers", "set synchronous_standby_names", "reload", "promote"),
    *("is_read_only", "connect", "reset"),
]


def wanted(**changes: Any) -> ParsedSpec:
    return parsed(**{**PRIMARY, **changes})


def counts() -> list[float]:
    return [metrics.value(f"compute_ctl_promotion{name}_total") for name in ("s", "_errors")]


@pytest.fixture(autouse=True)
def began() -> list[float]:
    return counts()


@pytest.fixture(autouse=True)
def _no_failpoints() -> Any:
    yield
    failpoints.configure({"compute-promotion": "off"})


def grown(began: list[float]) -> list[float]:
    return [now - then for now, then in zip(counts(), began, strict=True)]


async def play(script: Callable[[Stage], Awaitable[None]], **spec_changes: Any) -> Stage:
    """Run a replica whose cache was seen to, and end it when the script is over."""
    stage = Stage(**{"mode": "Replica", "endpoint_id": "ep-replica", **spec_changes})

    async def whole(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.servers.life.lfc.prewarm_state = PrewarmSkipped()
        await trio.testing.wait_all_tasks_blocked()
        await script(stage)
        if stage.compute.ending.value is None:
            await terminate(stage.compute, immediate=True)

    await stage.play(whole)
    return stage


async def promote(stage: Stage, spec: ParsedSpec | None = None, lsn: Lsn = FLUSHED) -> Any:
    return await stage.servers.life.promotions.ask(spec or wanted(), lsn).outcome()


async def test_a_replica_becomes_the_primary_that_the_spec_describes(autojump_clock: Any, began: list[float]) -> None:
    async def script(stage: Stage) -> None:
        history = len(stage.compute.history)
        outcome = await promote(stage)
        assert isinstance(outcome, PromoteCompleted)
        assert list(to_builtins(outcome)) == [
            *("status", "lsn_wait_time_ms", "pg_promote_time_ms", "reconfigure_time_ms"),
        ]
        assert stage.host.replica.calls == STEPS
        assert len(stage.compute.history) == history, "the status is running throughout"
        current = stage.compute.state.spec
        assert current is not None
        assert current.is_primary
        assert current.spec.endpoint_id == "ep-primary"
        assert stage.host.written[-1] == current
        assert grown(began) == [1, 0]

    stage = await play(script)
    assert stage.compute.state.flush_lsn == COMMIT_LSN, "a promoted compute syncs its safekeepers at the end"


async def test_an_unpromoted_replica_ends_without_an_lsn(autojump_clock: Any) -> None:
    async def script(_stage: Stage) -> None:
        pass

    stage = await play(script)
    assert stage.compute.state.flush_lsn is None
    assert "sync_safekeepers" not in stage.host.calls


async def test_the_port_stays_that_of_this_node(autojump_clock: Any) -> None:
    """P-15."""

    async def script(stage: Stage) -> None:
        port = {"name": "port", "value": "7777", "vartype": "integer"}
        cluster = {**PRIMARY["cluster"], "settings": [port, STANDBY]}  # type: ignore[dict-item]
        await promote(stage, wanted(cluster=cluster))
        text = stage.host.render_postgresql_conf(stage.host.written[-1])
        assert [line for line in text.splitlines() if line.startswith("port")][-1] == "port=5432"

    await play(script)


async def test_safekeepers_are_set_as_postgresql_conf_will_have_them(autojump_clock: Any) -> None:
    """P-03: with the generation."""

    async def script(stage: Stage) -> None:
        stage.host.replica.slow["promote"] = 10
        stage.servers.life.promotions.ask(wanted(), FLUSHED)
        await stage.host.replica.wait_reached("promote")
        assert stage.host.replica.overrides == {
            "neon.safekeepers": "g#7:a:1,b:2",
            "synchronous_standby_names": "walproposer",
        }

    await play(script)


async def test_safekeepers_may_be_a_setting(autojump_clock: Any) -> None:
    """P-03: the original sets an empty list."""

    async def script(stage: Stage) -> None:
        stage.host.replica.slow["promote"] = 10
        setting = {"name": "neon.safekeepers", "value": "g#9:c:3,d'4:4", "vartype": "string"}
        cluster = {**PRIMARY["cluster"], "settings": [setting]}  # type: ignore[dict-item]
        spec = wanted(safekeeper_connstrings=[], safekeepers_generation=None, cluster=cluster)
        stage.servers.life.promotions.ask(spec, FLUSHED)
        await stage.host.replica.wait_reached("promote")
        assert stage.host.replica.overrides["neon.safekeepers"] == "g#9:c:3,d'4:4"

    await play(script)


async def test_overrides_are_dropped_once_postgresql_conf_has_the_settings(autojump_clock: Any) -> None:
    """P-04."""

    async def script(stage: Stage) -> None:
        await promote(stage)
        assert stage.host.replica.overrides == {}
        opened = stage.host.replica.calls.count("connect")
        stage.compute.apply(ev.ApplyQueued())
        await stage.servers.queue.submit(wanted(operation_uuid="later")).outcome()
        assert stage.host.replica.calls.count("connect") == opened

    await play(script)


async def test_an_override_stays_as_long_as_the_spec_lacks_the_setting(autojump_clock: Any) -> None:
    """P-04: without synchronous_standby_names commits would not wait for the safekeepers."""

    async def script(stage: Stage) -> None:
        cluster = {"roles": [], "databases": []}
        await promote(stage, wanted(cluster=cluster))
        assert stage.host.replica.overrides == {"synchronous_standby_names": "walproposer"}
        stage.compute.apply(ev.ApplyQueued())
        assert await stage.servers.queue.submit(wanted()).outcome() == Succeeded()
        assert stage.host.replica.overrides == {}

    await play(script)


async def test_the_catalog_is_applied_and_the_quota_put_back(autojump_clock: Any) -> None:
    """P-02, D-28."""

    async def script(stage: Stage) -> None:
        stage.host.calls.clear()
        assert isinstance(await promote(stage, wanted(skip_pg_catalog_updates=False)), PromoteCompleted)
        assert stage.host.calls == [
            *("write_postgresql_conf", "reload", "lift_quota", "apply_catalog", "enable_subscribers", "restore_quota"),
        ]

    await play(script)


# Preconditions


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("Primary", 'compute mode "primary" is not replica'),
        ({"Static": "0/169AD58"}, 'compute mode "static" is not replica'),
    ],
)
async def test_only_a_replica_can_be_promoted(mode: Any, text: str, autojump_clock: Any, began: list[float]) -> None:
    async def script(stage: Stage) -> None:
        assert await promote(stage) == PromoteFailed(text)
        assert stage.host.replica.calls == []
        assert grown(began) == [1, 1]

    await play(script, mode=mode)


@pytest.mark.parametrize(
    ("prewarm", "text"),
    [(NotPrewarmed(), "compute NotPrewarmed"), (Prewarming(), "compute Prewarming")],
)
async def test_the_cache_must_have_been_seen_to_but_may_be_so_later(
    prewarm: Any, text: str, autojump_clock: Any, began: list[float]
) -> None:
    """P-01, D-29: one call that came too early does not make the compute unpromotable."""

    async def script(stage: Stage) -> None:
        stage.servers.life.lfc.prewarm_state = prewarm
        assert await promote(stage) == PromoteFailed(text)
        assert stage.host.replica.calls == []
        stage.servers.life.lfc.prewarm_state = PrewarmCancelled()
        assert isinstance(await promote(stage), PromoteCompleted)
        assert grown(began) == [2, 1]

    await play(script)


@pytest.mark.parametrize("prewarm", [PrewarmFailed("no"), PrewarmSkipped(), PrewarmCancelled()])
async def test_a_prewarm_that_ended_somehow_is_enough(prewarm: Any, autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.servers.life.lfc.prewarm_state = prewarm
        assert isinstance(await promote(stage), PromoteCompleted)

    await play(script)


# Catching up


async def test_an_lsn_that_is_never_reached_is_looked_for_21_times_within_20_seconds(autojump_clock: Any) -> None:
    """P-09: no sleep after the last look."""

    async def script(stage: Stage) -> None:
        asked_at = trio.current_time()
        outcome = await promote(stage, lsn=Lsn.parse("0/6000000"))
        assert outcome == PromoteFailed("didn't catch up with primary in 20 retries")
        times = [at - asked_at for at in stage.host.replica.checked_at]
        assert times == pytest.approx(list(range(21)))
        assert trio.current_time() - asked_at == pytest.approx(20)
        assert stage.host.replica.overrides == {}
        assert isinstance(await promote(stage), PromoteCompleted)

    await play(script)


async def test_an_lsn_that_is_reached_later_is_waited_for(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.compute.spans._clock = trio.current_time
        stage.host.replica.replayed = None
        job = stage.servers.life.promotions.ask(wanted(), FLUSHED)
        await trio.sleep(2.5)
        stage.host.replica.replayed = Lsn(FLUSHED + 8)
        outcome = await job.outcome()
        assert isinstance(outcome, PromoteCompleted)
        assert outcome.lsn_wait_time_ms == 3000

    await play(script)


async def test_a_server_that_is_not_in_recovery_cannot_be_promoted(autojump_clock: Any) -> None:
    """P-08."""

    async def script(stage: Stage) -> None:
        stage.host.replica.in_recovery = False
        assert await promote(stage) == PromoteFailed("not in recovery")

    await play(script)


# Failing steps


@pytest.mark.parametrize(
    ("step", "text", "undone"),
    [
        ("connect", "connecting to postgres: refused", False),
        ("replayed", "querying the replay LSN: refused", False),
        ("set neon.safekeepers", "setting safekeepers: refused", True),
        ("set synchronous_standby_names", "setting synchronous_standby_names: refused", True),
        ("reload", "reloading postgres config: refused", True),
        ("promote", "pg_promote: refused", False),
    ],
)
async def test_each_failing_step_is_named_and_the_next_call_works(
    step: str, text: str, undone: bool, autojump_clock: Any, began: list[float]
) -> None:
    """P-01, P-10, P-11: settings are taken back as long as pg_promote was not called."""

    async def script(stage: Stage) -> None:
        replica = stage.host.replica
        replica.failures[step] = [PostgresError("refused")]
        assert await promote(stage) == PromoteFailed(text)
        assert ("reset" in replica.calls) is undone
        assert ("neon.safekeepers" in replica.overrides) is (step == "promote")
        assert stage.compute.state.status is Status.RUNNING
        assert stage.compute.state.spec == parsed(mode="Replica", endpoint_id="ep-replica")
        assert grown(began) == [1, 1]
        assert isinstance(await promote(stage), PromoteCompleted)
        assert grown(began) == [2, 1]
        assert replica.overrides == {}

    await play(script)


async def test_the_failpoint_fails_it_with_changed_settings_which_are_taken_back(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        failpoints.configure({"compute-promotion": "return(0)"})
        assert await promote(stage) == PromoteFailed("compute-promotion failpoint")
        assert stage.host.replica.calls[-2:] == ["connect", "reset"]
        assert stage.host.replica.overrides == {}
        failpoints.configure({"compute-promotion": "off"})
        assert isinstance(await promote(stage), PromoteCompleted)

    await play(script)


async def test_settings_that_cannot_be_taken_back_do_not_hide_the_failure(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        failpoints.configure({"compute-promotion": "return(0)"})
        stage.host.replica.failures["reset"] = [PostgresError("gone")]
        assert await promote(stage) == PromoteFailed("compute-promotion failpoint")
        failpoints.configure({"compute-promotion": "off"})
        assert isinstance(await promote(stage), PromoteCompleted)

    await play(script)


async def test_pg_promote_that_says_no_fails_and_can_be_called_again(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.host.replica.promotes = False
        assert await promote(stage) == PromoteFailed("pg_promote() failed")
        stage.host.replica.promotes = True
        assert isinstance(await promote(stage), PromoteCompleted)
        assert stage.host.replica.calls.count("promote") == 2

    await play(script)


async def test_a_server_that_was_promoted_although_we_did_not_hear_of_it_is_taken_over(autojump_clock: Any) -> None:
    """P-01: the connection was lost in pg_promote, or 60 s were not enough for it."""

    async def script(stage: Stage) -> None:
        replica = stage.host.replica
        replica.failures["promote"] = [PostgresError("connection lost")]
        assert await promote(stage) == PromoteFailed("pg_promote: connection lost")
        replica.in_recovery = False
        assert isinstance(await promote(stage), PromoteCompleted)
        assert replica.calls.count("promote") == 1

    await play(script)


async def test_a_promoted_server_that_is_read_only_is_no_primary(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.host.replica.read_only = True
        assert await promote(stage) == PromoteFailed("replica in read only mode after promotion")
        assert stage.compute.state.spec is not None
        assert not stage.compute.state.spec.is_primary
        stage.host.replica.read_only = False
        stage.host.replica.calls.clear()
        assert isinstance(await promote(stage), PromoteCompleted)
        assert stage.host.replica.calls == ["connect", "is_read_only", "connect", "reset"]

    await play(script)


async def test_after_pg_promote_another_call_goes_on_where_the_first_one_failed(
    autojump_clock: Any, began: list[float]
) -> None:
    """P-01: with the body of the second call; the server is a primary from the first one on."""

    async def script(stage: Stage) -> None:
        stage.compute.spans._clock = trio.current_time
        stage.host.replica.slow.update(replayed=1, promote=2)
        stage.host.failures["write_postgresql_conf"] = [HostError("disk full")]
        assert await promote(stage) == PromoteFailed("disk full")
        assert stage.compute.state.status is Status.RUNNING
        assert stage.compute.state.spec is not None
        assert stage.compute.state.spec.is_primary
        assert stage.host.replica.overrides["synchronous_standby_names"] == "walproposer"
        outcome = await promote(stage, wanted(endpoint_id="ep-second-call"), Lsn.parse("9/9"))
        assert isinstance(outcome, PromoteCompleted)
        assert (outcome.lsn_wait_time_ms, outcome.pg_promote_time_ms) == (1000, 2000)
        assert stage.host.replica.calls.count("promote") == 1
        assert stage.compute.state.spec.spec.endpoint_id == "ep-second-call"
        assert grown(began) == [2, 1]

    await play(script)


async def test_after_a_failure_behind_pg_promote_termination_syncs_the_safekeepers(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.host.failures["write_postgresql_conf"] = [HostError("disk full")]
        await promote(stage)

    stage = await play(script)
    assert stage.compute.state.flush_lsn == COMMIT_LSN


# Concurrency


async def test_calls_during_a_promotion_share_its_result_and_success_sticks(
    autojump_clock: Any, began: list[float]
) -> None:
    """D-29, P-01; the bodies of later calls have no effect."""
    outcomes: list[Any] = []

    async def script(stage: Stage) -> None:
        stage.host.replica.slow["promote"] = 5

        async def call(endpoint_id: str) -> None:
            outcomes.append(await promote(stage, wanted(endpoint_id=endpoint_id)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "ep-first")
            await trio.sleep(1)
            nursery.start_soon(call, "ep-second")
        outcomes.append(await promote(stage, wanted(endpoint_id="ep-third"), Lsn.parse("F/0")))
        assert len(outcomes) == 3
        assert len({id(outcome) for outcome in outcomes}) == 1
        assert isinstance(outcomes[0], PromoteCompleted)
        assert stage.host.replica.calls.count("promote") == 1
        assert stage.compute.state.spec is not None
        assert stage.compute.state.spec.spec.endpoint_id == "ep-first"
        assert grown(began) == [1, 0]

    await play(script)


async def test_a_caller_that_leaves_does_not_stop_it(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.host.replica.slow["promote"] = 5
        with trio.move_on_after(0.001):
            await promote(stage)
        assert isinstance(await promote(stage), PromoteCompleted)
        assert stage.host.replica.calls.count("promote") == 1

    await play(script)


async def test_a_promotion_waits_for_the_reconfiguration_before_it(autojump_clock: Any) -> None:
    """P-06: one queue."""

    async def script(stage: Stage) -> None:
        stage.host.slow["write_postgresql_conf"] = 5
        stage.compute.apply(ev.ApplyQueued())
        replica_spec = parsed(mode="Replica", endpoint_id="ep-replica", operation_uuid="new")
        configured = stage.servers.queue.submit(replica_spec)
        await stage.compute.reach(Status.CONFIGURATION)
        job = stage.servers.life.promotions.ask(wanted(), FLUSHED)
        await trio.sleep(1)
        assert stage.host.replica.calls == []
        assert await configured.outcome() == Succeeded()
        assert isinstance(await job.outcome(), PromoteCompleted)

    await play(script)


async def test_a_replicas_spec_that_was_queued_behind_a_promotion_is_refused(autojump_clock: Any) -> None:
    """P-06, D-47: it was acceptable when it came, but would take the mode back."""

    async def script(stage: Stage) -> None:
        stage.host.replica.slow["promote"] = 5
        job = stage.servers.life.promotions.ask(wanted(), FLUSHED)
        await stage.host.replica.wait_reached("promote")
        stage.compute.apply(ev.ApplyQueued())
        late = stage.servers.queue.submit(parsed(mode="Replica", endpoint_id="ep-replica"))
        assert isinstance(await job.outcome(), PromoteCompleted)
        assert await late.outcome() == Rejected("cannot change mode of a running compute")
        assert stage.compute.state.spec is not None
        assert stage.compute.state.spec.is_primary
        stage.compute.apply(ev.ApplyQueued())
        assert await stage.servers.queue.submit(wanted()).outcome() == Succeeded()
        assert stage.compute.state.status is Status.RUNNING

    await play(script)


async def test_a_refresh_that_was_asked_for_meanwhile_follows_the_promotion(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.host.replica.slow["promote"] = 5
        job = stage.servers.life.promotions.ask(wanted(), FLUSHED)
        await stage.host.replica.wait_reached("promote")
        stage.compute.apply(ev.RefreshRequested())
        stage.servers.queue.want_refresh()
        assert isinstance(await job.outcome(), PromoteCompleted)
        await stage.compute.reach(Status.REFRESH_CONFIGURATION)
        # The control plane still offers the replica's spec, which a primary does not take (D-47).
        state = await stage.compute.reach(Status.REFRESH_CONFIGURATION_PENDING)
        assert state.error == "cannot change mode of a running compute"
        stage.compute.request_stop()

    await play(script)


@pytest.mark.parametrize("step", ["connect", "replayed", "set neon.safekeepers", "reload", "promote"])
async def test_termination_in_the_middle_answers_nobody_with_a_result(step: str, autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.host.replica.slow[step] = 50
        job = stage.servers.life.promotions.ask(wanted(), FLUSHED)
        await stage.host.replica.wait_reached(step)
        asked_at = trio.current_time()
        await terminate(stage.compute, immediate=True)
        assert await job.outcome() == Aborted()
        assert trio.current_time() - asked_at < 1

    stage = await play(script)
    assert stage.code == 0
    assert stage.compute.state.flush_lsn is None


@pytest.mark.parametrize("step", ["is_read_only", "write_postgresql_conf"])
async def test_termination_behind_pg_promote_syncs_the_safekeepers(step: str, autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.host.replica.slow[step] = stage.host.slow[step] = 50
        job = stage.servers.life.promotions.ask(wanted(), FLUSHED)
        await stage.host.replica.wait_reached("is_read_only")
        await trio.sleep(1)
        await terminate(stage.compute, immediate=True)
        assert await job.outcome() == Aborted()

    stage = await play(script)
    assert stage.compute.state.flush_lsn == COMMIT_LSN


async def test_postgres_dying_in_the_middle_answers_nobody_with_success(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.host.replica.slow["promote"] = 50
        job = stage.servers.life.promotions.ask(wanted(), FLUSHED)
        await stage.host.replica.wait_reached("promote")
        stage.host.child.end(2)
        assert await job.outcome() == Aborted()

    await play(script)


async def test_a_promotion_that_is_asked_for_at_the_end_is_aborted(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        await terminate(stage.compute, immediate=True)
        assert await promote(stage) == Aborted()

    await play(script)


# What follows from it


async def test_the_new_spec_can_start_the_periodic_offload(autojump_clock: Any) -> None:
    """L-07: under the new endpoint's id and with its token."""

    async def script(stage: Stage) -> None:
        storage = {"endpoint_storage_addr": "s:1", "endpoint_storage_token": "primary's"}
        await promote(stage, wanted(offload_lfc_interval_seconds=10, **storage))
        await trio.sleep(11)
        (asked,) = stage.host.endpoint_storage.asked
        assert asked.url.endswith("/ep-primary/lfc_state")
        assert asked.token == "primary's"

    await play(script)


async def test_each_step_has_a_span_and_the_fields_are_made_of_them(autojump_clock: Any) -> None:
    """P-12."""

    async def script(stage: Stage) -> None:
        stage.compute.spans._clock = trio.current_time
        stage.host.pace = 0.0
        stage.host.replica.slow.update(
            {
                "connect": 1,
                "replayed": 2,
                "set neon.safekeepers": 4,
                "set synchronous_standby_names": 8,
                "reload": 16,
                "promote": 32,
                "is_read_only": 64,
                "reset": 128,
            }
        )
        stage.host.slow["write_postgresql_conf"] = 256
        outcome = await promote(stage)
        assert to_builtins(outcome) == {
            "status": "completed",
            "lsn_wait_time_ms": 2000,
            "pg_promote_time_ms": 60000,
            "reconfigure_time_ms": 320000,
        }
        steps = {
            "connect": 1,
            "lsn_wait": 2,
            "set_safekeepers": 4,
            "set_standby_names": 8,
            "reload": 16,
            "promote": 32,
            "read_only_check": 64,
            "reset_overrides": 129,
        }
        for name, seconds in steps.items():
            span = stage.compute.spans.last(f"promotion.{name}")
            assert span is not None
            assert span.milliseconds == seconds * 1000, name
        reconfigure = stage.compute.spans.last("reconfigure")
        assert reconfigure is not None
        assert reconfigure.milliseconds == 256000
        whole = stage.compute.spans.last("promotion")
        assert whole is not None
        assert whole.milliseconds == 1000 * (sum(steps.values()) + 256)

    await play(script)


async def test_followers_of_events_see_it(autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        newest = stage.compute.feed.newest
        stage.host.replica.promotes = False
        await promote(stage)
        stage.host.replica.promotes = True
        await promote(stage)
        told = [notice.data for notice in stage.compute.feed.behind(newest) if notice.kind == "promotion"]
        assert [data["status"] for data in told] == ["began", "failed", "began", "completed"]
        assert told[1]["error"] == "pg_promote() failed"
        assert told[3].keys() >= {"lsn_wait_time_ms", "pg_promote_time_ms", "reconfigure_time_ms"}

    await play(script)
