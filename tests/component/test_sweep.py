"""Start, reconfiguration and termination, disturbed at every single step in every way (D-11, D-13, design §7)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.component.sweep import play_disturbed, steps_of
from tests.fakes.host import FakeHost, FakeServers
from tests.fakes.specs import config, parsed, settings, spec_dict
from trio_compute.errors import HostError
from trio_compute.host.reaper import own_children
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.ending import Ending
from trio_compute.lifecycle.status import Status
from trio_compute.lifecycle.transitions import IllegalTransition
from trio_compute.run import run
from trio_compute.services.apply_queue import Job

TERMINAL = {Status.TERMINATED, Status.FAILED}


class Act:
    """One scenario with what must hold after it, however it was disturbed."""

    def __init__(self, *, pooled: bool, safekeepers_synced: bool) -> None:
        self.settings = settings()
        self.host = FakeHost(self.settings, config(None if pooled else spec_dict()))
        if not safekeepers_synced:
            self.host.synced_at = None
        self.servers = FakeServers()
        self.jobs: list[Job] = []
        self.scope = trio.CancelScope()
        self.code: int | None = None
        self.pooled = pooled

    async def play(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._act, nursery.cancel_scope)
            with self.scope:
                try:
                    self.code = await run(self.settings, self.host, self.servers)
                except HostError:
                    # Without a configuration there is nothing to run; the command line exits with 1.
                    assert self.host.calls == ["obtain_config"]
            nursery.cancel_scope.cancel()

    async def _act(self, scope: trio.CancelScope) -> None:
        await self.servers.ready.wait()
        compute = self.servers.compute
        if self.pooled:
            self._submit()
        await compute.reach(Status.RUNNING)
        self._submit()
        await compute.reach(Status.CONFIGURATION)
        await compute.reach(Status.RUNNING, Status.FAILED)
        self.terminate()

    def _submit(self) -> None:
        try:
            self.servers.compute.apply(ev.ApplyQueued())
        except IllegalTransition:
            return
        self.jobs.append(self.servers.queue.submit(parsed()))

    def terminate(self) -> None:
        if hasattr(self.servers, "compute"):
            try:
                self.servers.compute.request_termination(immediate=False)
            except IllegalTransition:
                return

    def stop(self) -> None:
        if hasattr(self.servers, "compute"):
            self.servers.compute.request_stop()

    def fail(self) -> None:
        self.host.fail_next = HostError("disturbed")

    def die(self) -> None:
        self.host.child.end(2)

    def cancel(self) -> None:
        self.scope.cancel()

    def check(self) -> None:
        assert self.host.open_children == 0, "a child outlived the tree"
        assert self.host.child.returncode is not None or not self.host.child.signals
        assert not self.host.pgdata_in_use, "PGDATA is still being written"
        assert len(own_children) == 0
        if self.code is None:
            return
        compute = self.servers.compute if hasattr(self.servers, "compute") else None
        if compute is None:
            return
        exited = compute.ending.value is Ending.POSTGRES_EXITED
        assert compute.state.status in TERMINAL or exited, compute.state.status
        assert compute.ending.value is not None
        for job in self.jobs:
            assert job.settled, "a caller of /configure was left without an answer"
        failed = compute.state.status is Status.FAILED and compute.ending.value is not Ending.POSTGRES_EXITED
        assert self.code == 1 if failed else self.code in {0, 1, 2}
        lifted = self.host.calls.count("lift_quota")
        assert self.host.calls.count("restore_quota") <= lifted


def undisturbed(pooled: bool, safekeepers_synced: bool) -> int:
    def scenario() -> Awaitable[None]:
        return Act(pooled=pooled, safekeepers_synced=safekeepers_synced).play()

    return steps_of(scenario)


DISTURBANCES: dict[str, Callable[[Act], None]] = {
    "signal": Act.stop,
    "terminate": Act.terminate,
    "a port fails": Act.fail,
    "postgres dies": Act.die,
    "cancelled from outside": Act.cancel,
}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
@pytest.mark.parametrize(("pooled", "synced"), [(False, True), (True, False)])
def test_every_step_of_a_life_can_be_disturbed(disturbance: str, pooled: bool, synced: bool) -> None:
    total = undisturbed(pooled, synced)
    assert total > 50
    for at in range(1, total + 1):
        act = Act(pooled=pooled, safekeepers_synced=synced)
        counter = play_disturbed(act.play, at, lambda act=act: DISTURBANCES[disturbance](act))
        assert counter.disturbed or counter.steps < at
        try:
            act.check()
        except AssertionError as error:
            raise AssertionError(f"disturbed at step {at} of {total}: {error}") from error


@pytest.mark.parametrize("first", ["terminate", "a port fails", "signal"])
def test_a_signal_may_follow_any_other_disturbance_at_any_step(first: str) -> None:
    total = undisturbed(pooled=False, safekeepers_synced=True)
    for at in range(1, total, 3):
        act = Act(pooled=False, safekeepers_synced=True)

        def disturb(act: Act = act) -> None:
            DISTURBANCES[first](act)
            act.stop()

        play_disturbed(act.play, at, disturb)
        try:
            act.check()
        except AssertionError as error:
            raise AssertionError(f"disturbed at step {at} of {total}: {error}") from error
