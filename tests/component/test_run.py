"""The whole program over a fake world and a fake clock: every kind of ending, to the tenth of a second."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes.host import COMMIT_LSN, FakeChild, FakeHost, FakeServers
from tests.fakes.specs import config, parsed, settings, spec_dict
from trio_compute.db.reload import ReloadReport
from trio_compute.errors import HostError, PostgresError, RemoteError, SpecError, StorageError
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.ending import Ending
from trio_compute.lifecycle.status import Status
from trio_compute.plan.catalog.failures import CatalogFailed, Failure
from trio_compute.run import run
from trio_compute.services import configure
from trio_compute.services.apply_queue import Aborted, Rejected, Succeeded


class Stage:
    """One run of the program with everything a test wants to look at."""

    def __init__(self, *, with_spec: bool = True, **spec_changes: Any) -> None:
        self.settings = settings()
        document = spec_dict(**spec_changes) if with_spec else None
        self.host = FakeHost(self.settings, config(document))
        self.servers = FakeServers()
        self.code: int | None = None
        self.ended_at: float | None = None

    @property
    def compute(self) -> Compute:
        return self.servers.compute

    async def play(self, script: Callable[[Stage], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:

            async def perform() -> None:
                await self.servers.ready.wait()
                await script(self)

            nursery.start_soon(perform)
            self.code = await run(self.settings, self.host, self.servers)
            self.ended_at = trio.current_time()
        assert self.host.open_children == 0


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def terminate(compute: Compute, *, immediate: bool) -> None:
    compute.request_termination(immediate=immediate)
    await compute.reach(Status.TERMINATED)


async def test_a_fast_termination_answers_at_once_and_lingers_thirty_seconds(stage: Stage, autojump_clock: Any) -> None:
    answered_at = 0.0

    async def script(stage: Stage) -> None:
        nonlocal answered_at
        await stage.compute.reach(Status.RUNNING)
        await terminate(stage.compute, immediate=False)
        answered_at = trio.current_time()

    await stage.play(script)
    assert stage.code == 0
    assert stage.compute.state.flush_lsn == COMMIT_LSN
    assert stage.servers.drained_at is not None
    lingered = stage.servers.drained_at - answered_at
    # The look at core dumps takes one pace after the answer.
    assert lingered == pytest.approx(30 + stage.host.pace)


async def test_an_immediate_termination_ends_after_300_ms(stage: Stage, autojump_clock: Any) -> None:
    answered_at = 0.0

    async def script(stage: Stage) -> None:
        nonlocal answered_at
        await stage.compute.reach(Status.RUNNING)
        await terminate(stage.compute, immediate=True)
        answered_at = trio.current_time()

    await stage.play(script)
    assert stage.servers.drained_at == pytest.approx(answered_at + stage.host.pace + 0.3)
    assert stage.compute.state.flush_lsn == COMMIT_LSN


async def test_termination_stops_neighbours_then_postgres_then_syncs_once(stage: Stage, autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        await trio.sleep(1)  # on the fake clock: until the rest of the start is done
        stage.host.calls.clear()
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert stage.host.calls == ["stop_neighbours", "sync_safekeepers", "log_backtraces"]
    assert [sig for _, sig in stage.host.child.signals] == [signal.SIGINT]


async def test_a_second_termination_joins_the_first(stage: Stage, autojump_clock: Any) -> None:
    """D-23: both callers see the same end."""
    answers: list[object] = []

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.compute.request_termination(immediate=False)
        async with trio.open_nursery() as nursery:

            async def join() -> None:
                answers.append((await stage.compute.reach(Status.TERMINATED)).flush_lsn)

            nursery.start_soon(join)
            nursery.start_soon(join)

    await stage.play(script)
    assert answers == [COMMIT_LSN, COMMIT_LSN]


async def test_terminating_an_empty_compute_ends_it_with_code_zero(autojump_clock: Any) -> None:
    """D-01, D-02: no hang, status terminated, no LSN, exit 0 within five seconds."""
    stage = Stage(with_spec=False)

    async def script(stage: Stage) -> None:
        await terminate(stage.compute, immediate=False)

    await stage.play(script)
    assert stage.code == 0
    assert stage.compute.state.flush_lsn is None
    assert stage.ended_at is not None
    assert stage.ended_at < 5


async def test_a_known_spec_is_never_shown_as_empty(stage: Stage, autojump_clock: Any) -> None:
    """D-03: the status is init before anybody can ask."""
    first: list[Status] = []

    async def script(stage: Stage) -> None:
        first.append(stage.compute.state.status)
        await stage.compute.reach(Status.RUNNING)
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert first == [Status.INIT]


@pytest.mark.parametrize(
    ("port", "text"),
    [
        ("recreate_pgdata", "disk is full"),
        ("write_postgresql_conf", "disk is full"),
        ("complete_pgdata", "disk is full"),
        ("open_postmaster", "disk is full"),
        ("wait_ready", "disk is full"),
        ("apply_catalog", "disk is full"),
        ("lift_quota", "disk is full"),
        ("restore_quota", "disk is full"),
    ],
)
async def test_a_failed_start_is_failed_lingers_and_exits_with_one(port: str, text: str, autojump_clock: Any) -> None:
    """D-15: a start that fails after Postgres was up exits with 1, not with Postgres' 0."""
    stage = Stage()
    stage.host.failures[port] = [HostError(text)]
    failed_at = 0.0

    async def script(stage: Stage) -> None:
        nonlocal failed_at
        state = await stage.compute.reach(Status.FAILED)
        failed_at = trio.current_time()
        assert state.error == text

    await stage.play(script)
    assert stage.code == 1
    assert stage.servers.drained_at is not None
    assert 30 <= stage.servers.drained_at - failed_at < 32
    assert stage.compute.state.status is Status.FAILED


async def test_a_failed_start_syncs_only_if_postgres_ran(autojump_clock: Any) -> None:
    before, after = Stage(), Stage()
    before.host.failures["recreate_pgdata"] = [HostError("no")]
    after.host.failures["wait_ready"] = [PostgresError("no")]

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.FAILED)

    await before.play(script)
    await after.play(script)
    assert "sync_safekeepers" not in before.host.calls
    assert after.host.calls.count("sync_safekeepers") == 1
    assert [sig for _, sig in after.host.child.signals] == [signal.SIGQUIT]


async def test_a_failing_final_sync_does_not_shorten_the_linger_of_a_failed_start(autojump_clock: Any) -> None:
    stage = Stage()
    stage.host.failures["wait_ready"] = [PostgresError("no")]
    stage.host.failures["sync_safekeepers"] = [StorageError("gone")] * 6
    failed_at = 0.0

    async def script(stage: Stage) -> None:
        nonlocal failed_at
        await stage.compute.reach(Status.FAILED)
        failed_at = trio.current_time()

    await stage.play(script)
    assert stage.code == 1
    assert stage.servers.drained_at is not None
    assert stage.servers.drained_at - failed_at >= 30


async def test_the_startup_error_keeps_its_cause_chain(autojump_clock: Any) -> None:
    stage = Stage()
    stage.host.failures["fetch_basebackup"] = [StorageError("pageserver: not found")] * 11
    errors: list[str | None] = []

    async def script(stage: Stage) -> None:
        errors.append((await stage.compute.reach(Status.FAILED)).error)

    await stage.play(script)
    assert errors == [f"failed to get basebackup@{COMMIT_LSN}: pageserver: not found"]
    assert stage.host.calls.count("fetch_basebackup") == 11
    assert stage.host.calls.count("clean_pgdata") == 10


async def test_basebackup_retries_follow_the_schedule_and_clean_in_between(autojump_clock: Any) -> None:
    """D-45, S-06: PGDATA is cleaned between attempts; pauses are 0.5, 0.75 and 1.125 s."""
    stage = Stage()
    stage.host.pace = 0.0
    stage.host.failures["fetch_basebackup"] = [StorageError("no")] * 3

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        assert trio.current_time() == pytest.approx(0.5 + 0.75 + 1.125)
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    interesting = [call for call in stage.host.calls if call in {"fetch_basebackup", "clean_pgdata"}]
    assert interesting == ["fetch_basebackup", "clean_pgdata"] * 3 + ["fetch_basebackup"]


async def test_a_basebackup_that_the_spec_forbids_is_not_tried_again(autojump_clock: Any) -> None:
    """C-02: what cannot change fails at once."""
    stage = Stage()
    stage.host.failures["fetch_basebackup"] = [SpecError("pageserver connection: no")] * 20

    async def script(stage: Stage) -> None:
        error = (await stage.compute.reach(Status.FAILED)).error
        assert error == "pageserver connection: no"

    await stage.play(script)
    assert stage.host.calls.count("fetch_basebackup") == 1


async def test_unproven_safekeepers_are_synced_with_retries(autojump_clock: Any) -> None:
    stage = Stage()
    stage.host.synced_at = None
    stage.host.pace = 0.0
    stage.host.failures["sync_safekeepers"] = [StorageError("no")] * 5

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        assert trio.current_time() == pytest.approx(0 + 1.1 + 1.21 + 1.331 + 1.4641)
        await terminate(stage.compute, immediate=True)

    await stage.play(script)


async def test_a_failed_sync_at_start_names_itself(autojump_clock: Any) -> None:
    stage = Stage()
    stage.host.synced_at = None
    stage.host.failures["sync_safekeepers"] = [StorageError("no quorum")] * 6

    async def script(stage: Stage) -> None:
        state = await stage.compute.reach(Status.FAILED)
        assert state.error == "failed to sync safekeepers: no quorum"

    await stage.play(script)
    assert stage.code == 1


async def test_a_static_compute_neither_syncs_nor_answers_an_lsn(autojump_clock: Any) -> None:
    stage = Stage(mode={"Static": "0/1234"})

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert not {"check_safekeepers", "sync_safekeepers", "apply_catalog", "upgrade_neon_extension"} & {
        *stage.host.calls
    }
    assert stage.compute.state.flush_lsn is None


async def test_skipping_the_catalog_leaves_only_the_step_after_it(autojump_clock: Any) -> None:
    stage = Stage(skip_pg_catalog_updates=True)

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        await trio.testing.wait_all_tasks_blocked()
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert not {"apply_catalog", "lift_quota"} & {*stage.host.calls}
    assert "upgrade_neon_extension" in stage.host.calls


async def test_a_failing_final_sync_is_reported_and_exits_with_one(stage: Stage, autojump_clock: Any) -> None:
    """D-16, S-11: status terminated, an error for the caller, the normal delay, exit 1."""
    stage.host.failures["sync_safekeepers"] = [StorageError("no quorum")] * 6

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert stage.code == 1
    assert (
        stage.compute.state.termination_error == "final safekeeper sync failed: failed to sync safekeepers: no quorum"
    )


async def test_a_hanging_final_sync_ends_at_its_deadline(stage: Stage, autojump_clock: Any) -> None:
    """D-17: 120 s in all."""
    stage.host.slow["sync_safekeepers"] = 10_000

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        began = trio.current_time()
        await terminate(stage.compute, immediate=True)
        assert trio.current_time() - began == pytest.approx(120.5)

    await stage.play(script)
    assert stage.compute.state.termination_error == "final safekeeper sync took longer than 120 s"
    assert stage.code == 1


async def test_a_signal_cuts_the_final_sync(stage: Stage, autojump_clock: Any) -> None:
    """D-17: cancellable by signal."""
    stage.host.slow["sync_safekeepers"] = 10_000

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.compute.request_termination(immediate=False)
        await trio.sleep(5)
        stage.compute.request_stop()
        await stage.compute.reach(Status.TERMINATED)

    await stage.play(script)
    assert stage.ended_at is not None
    assert stage.ended_at < 6
    assert stage.compute.state.termination_error is not None


async def test_an_orderly_stop_on_a_signal_exits_zero_without_a_sync(stage: Stage, autojump_clock: Any) -> None:
    """D-18: Postgres is waited for; no final sync, no linger."""

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.compute.request_stop()

    await stage.play(script)
    assert stage.code == 0
    assert "sync_safekeepers" not in stage.host.calls
    assert stage.host.child.returncode == 0
    assert stage.compute.state.status is Status.TERMINATED


async def test_postgres_that_ignores_sigint_is_forced_after_eight_seconds_of_a_signal(autojump_clock: Any) -> None:
    stage = Stage()
    stage.host.child = FakeChild({})

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.compute.request_stop()

    await stage.play(script)
    assert stage.code == 1
    (first, _), *rest = stage.host.child.signals
    assert stage.host.child.signals[0][1] is signal.SIGINT
    assert [(round(at - first, 6), sig) for at, sig in rest] == [(8.0, signal.SIGQUIT), (9.0, signal.SIGKILL)]


async def test_a_second_signal_does_not_wait(autojump_clock: Any) -> None:
    stage = Stage()
    stage.host.child = FakeChild({})

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.compute.request_stop()
        await trio.sleep(1)
        stage.compute.request_stop()

    await stage.play(script)
    assert stage.code == 1
    times = [(round(at - stage.host.child.signals[0][0], 6), sig) for at, sig in stage.host.child.signals]
    assert times == [(0.0, signal.SIGINT), (1.0, signal.SIGQUIT), (2.0, signal.SIGKILL)]


async def test_a_real_signal_reaches_the_compute(stage: Stage, autojump_clock: Any) -> None:
    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        signal.raise_signal(signal.SIGTERM)

    await stage.play(script)
    assert stage.code == 0
    assert stage.compute.ending.value is Ending.SIGNAL


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (3, 3), (-9, 1)])
async def test_postgres_ending_by_itself_ends_the_compute_with_its_code(
    code: int, expected: int, stage: Stage, autojump_clock: Any
) -> None:
    """Contract 02 §10.3: final sync, status left as it was, 300 ms, Postgres' code; 1 when a signal killed it."""

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.host.child.end(code)

    await stage.play(script)
    assert stage.code == expected
    assert stage.compute.state.status is Status.RUNNING
    assert stage.host.calls.count("sync_safekeepers") == 1
    assert "stop_neighbours" not in stage.host.calls


async def test_a_termination_during_the_sync_after_postgres_died_is_answered(stage: Stage, autojump_clock: Any) -> None:
    """D-11: whoever waits learns the end."""
    stage.host.slow["sync_safekeepers"] = 5

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.host.child.end(0)
        await trio.sleep(1)
        await terminate(stage.compute, immediate=False)
        assert stage.compute.state.flush_lsn == COMMIT_LSN

    await stage.play(script)


async def test_a_late_termination_of_a_failed_start_is_answered_and_immediate_cuts_the_linger(
    autojump_clock: Any,
) -> None:
    """D-22: terminate is allowed from failed."""
    stage = Stage()
    stage.host.failures["wait_ready"] = [PostgresError("no")]

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.FAILED)
        await trio.sleep(5)
        began = trio.current_time()
        await terminate(stage.compute, immediate=True)
        assert trio.current_time() == began

    await stage.play(script)
    assert stage.code == 1
    assert stage.ended_at is not None
    assert stage.ended_at < 7


async def test_a_pooled_compute_starts_with_the_first_spec_and_answers_its_job(autojump_clock: Any) -> None:
    stage = Stage(with_spec=False)

    async def script(stage: Stage) -> None:
        await trio.sleep(100)
        stage.compute.apply(ev.ApplyQueued())
        job = stage.servers.queue.submit(parsed())
        assert isinstance(await job.outcome(), Succeeded)
        assert stage.compute.state.status is Status.RUNNING
        assert stage.compute.spans.metrics().wait_for_spec_ms >= 0
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert stage.code == 0
    assert stage.host.calls.index("warm_vm_memory") < stage.host.calls.index("recreate_pgdata")


async def test_a_failed_first_spec_rejects_its_job(autojump_clock: Any) -> None:
    stage = Stage(with_spec=False)
    stage.host.failures["complete_pgdata"] = [HostError("disk is full")]

    async def script(stage: Stage) -> None:
        stage.compute.apply(ev.ApplyQueued())
        job = stage.servers.queue.submit(parsed())
        assert await job.outcome() == Rejected("disk is full")

    await stage.play(script)
    assert stage.code == 1


async def test_a_reconfiguration_makes_the_new_spec_current(stage: Stage, autojump_clock: Any) -> None:
    new = parsed(endpoint_id="ep-new")

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.compute.apply(ev.ApplyQueued())
        assert isinstance(await stage.servers.queue.submit(new).outcome(), Succeeded)
        assert stage.compute.state.spec == new
        # Begin and end of each lifted quota: start, migrations, now. The checked reload is not counted here.
        assert stage.host.child.reloads == 6
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert stage.host.written[-1] == new


@pytest.mark.parametrize("failure", [PostgresError("role is gone"), TypeError("a defect")])
async def test_a_failed_reconfiguration_keeps_the_old_spec_and_can_be_repeated(
    failure: Exception, stage: Stage, autojump_clock: Any
) -> None:
    """D-05, D-20, D-21, D-22, D-26: text stored, old spec current, configure and terminate allowed from failed."""

    async def script(stage: Stage) -> None:
        old = (await stage.compute.reach(Status.RUNNING)).spec
        stage.host.failures["apply_catalog"] = [failure]
        stage.compute.apply(ev.ApplyQueued())
        outcome = await stage.servers.queue.submit(parsed(endpoint_id="ep-new")).outcome()
        assert outcome == Rejected(str(failure))
        assert (stage.compute.state.status, stage.compute.state.error) == (Status.FAILED, str(failure))
        assert stage.compute.state.spec == old
        stage.compute.apply(ev.ApplyQueued())
        assert isinstance(await stage.servers.queue.submit(parsed(endpoint_id="ep-new")).outcome(), Succeeded)
        assert stage.compute.state.error is None
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert stage.code == 0
    lifted, restored = stage.host.calls.count("lift_quota"), stage.host.calls.count("restore_quota")
    assert lifted == restored == 4


async def test_migrations_follow_the_start_under_the_lifted_quota_and_nobody_waits_for_them(
    stage: Stage, autojump_clock: Any
) -> None:
    """05 §14, K-14: after the catalog, before the extension and any later change, and inside the override."""
    stage.host.slow["run_migrations"] = 5

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        assert "run_migrations" not in stage.host.calls
        stage.compute.apply(ev.ApplyQueued())
        assert isinstance(await stage.servers.queue.submit(parsed(endpoint_id="ep-new")).outcome(), Succeeded)
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    calls = stage.host.calls[stage.host.calls.index("apply_catalog") :]
    catalog = ["apply_catalog", "enable_subscribers", "restore_quota"]
    finish = ["lift_quota", "run_migrations", "restore_quota", "upgrade_neon_extension"]
    later = ["write_postgresql_conf", "reload", "lift_quota", *catalog]
    assert calls[: len(catalog + finish + later)] == catalog + finish + later


async def test_failed_migrations_are_told_and_leave_the_compute_running(stage: Stage, autojump_clock: Any) -> None:
    """05 §14, K-30: logged, counted, exposed; never fatal."""
    stage.host.failures["run_migrations"] = [PostgresError("migration 3 failed")]

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        await trio.sleep(1)
        assert stage.compute.state.status is Status.RUNNING
        assert stage.compute.notices.migration_error == "migration 3 failed"
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert "upgrade_neon_extension" in stage.host.calls


async def test_a_quota_that_cannot_be_put_back_is_told_beside_the_first_error(
    stage: Stage, autojump_clock: Any
) -> None:
    """04 F-12: both errors are reported, neither hides the other."""

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        await trio.sleep(1)  # on the fake clock: until the migrations are done with the override
        failure = Failure(phase="P", database="d", object="role r", operation="o", sqlstate="42704", message="gone")
        stage.host.failures["apply_catalog"] = [CatalogFailed([failure])]
        stage.host.failures["restore_quota"] = [HostError("disk is full")]
        stage.compute.apply(ev.ApplyQueued())
        outcome = await stage.servers.queue.submit(parsed(endpoint_id="ep-new")).outcome()
        told = f"{failure}; and the size quota is still lifted: disk is full"
        assert outcome == Rejected(told, (failure,))
        await terminate(stage.compute, immediate=True)

    await stage.play(script)


async def test_what_a_later_spec_has_that_is_passed_over_is_told(
    stage: Stage, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """05 K-02, K-17: not only for the first spec."""
    told: list[object] = []

    def note(_event: str, /, **values: object) -> None:
        told.append(values.get("about"))

    monkeypatch.setattr(configure, "log", SimpleNamespace(warning=note, info=note, error=note))

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.compute.apply(ev.ApplyQueued())
        later = parsed(delta_operations=[{"action": "explode", "name": "x"}])
        assert isinstance(await stage.servers.queue.submit(later).outcome(), Succeeded)
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert "unknown delta operation 'explode' is ignored" in told


async def test_settings_that_wait_for_a_restart_are_told(stage: Stage, autojump_clock: Any) -> None:
    """04 F-13, F-27: what Postgres itself says after the reload."""
    stage.host.reload_report = ReloadReport(("shared_buffers",), ("line 3: syntax error",))

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.compute.apply(ev.ApplyQueued())
        assert isinstance(await stage.servers.queue.submit(parsed(endpoint_id="ep-new")).outcome(), Succeeded)
        assert stage.compute.notices.pending_restart == ("shared_buffers",)
        await terminate(stage.compute, immediate=True)

    await stage.play(script)


async def test_a_job_that_waits_when_the_compute_ends_is_aborted_at_once(stage: Stage, autojump_clock: Any) -> None:
    stage.host.slow["apply_catalog"] = 1000

    async def script(stage: Stage) -> None:
        stage.host.slow["apply_catalog"] = 0.01
        await stage.compute.reach(Status.RUNNING)
        stage.host.slow["apply_catalog"] = 1000
        stage.compute.apply(ev.ApplyQueued())
        job = stage.servers.queue.submit(parsed())
        await stage.compute.reach(Status.CONFIGURATION)
        began = trio.current_time()
        stage.compute.request_stop()
        assert isinstance(await job.outcome(), Aborted)
        assert trio.current_time() - began < 0.1

    stage.host.slow.clear()
    await stage.play(script)


@pytest.mark.parametrize("failure", [RemoteError("Exhausted all attempts"), SpecError("no", path="$.spec")])
async def test_without_a_configuration_nothing_starts(failure: Exception, stage: Stage, autojump_clock: Any) -> None:
    stage.host.failures["obtain_config"] = [failure]
    with pytest.raises(type(failure)):
        await run(stage.settings, stage.host, stage.servers)
    assert not stage.servers.ready.is_set()


async def test_a_signal_while_the_configuration_is_fetched_ends_with_zero(stage: Stage, autojump_clock: Any) -> None:
    stage.host.slow["obtain_config"] = 100
    async with trio.open_nursery() as nursery:

        async def interrupt() -> None:
            await trio.sleep(1)
            signal.raise_signal(signal.SIGTERM)

        nursery.start_soon(interrupt)
        assert await run(stage.settings, stage.host, stage.servers) == 0
    assert stage.host.calls == ["obtain_config"]


async def test_servers_that_die_take_the_compute_down(stage: Stage, autojump_clock: Any) -> None:
    """Contract 02 §12.1: the crash of a critical task leads to failed and an orderly exit 1."""

    class DyingServers(FakeServers):
        async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()
            self.ready.set()
            await self.compute.reach(Status.RUNNING)
            raise OSError("socket is gone")

    stage.servers = DyingServers()

    async def script(stage: Stage) -> None:
        state = await stage.compute.reach(Status.FAILED)
        assert state.error == "http servers failed: socket is gone"

    await stage.play(script)
    assert stage.code == 1
