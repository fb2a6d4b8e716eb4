"""Offload, prewarm and promotion, disturbed at every single step in every way (08 L-02, P-01, design §7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.component.sweep import play_disturbed, steps_of
from tests.fakes.host import COMMIT_LSN, FakeHost, FakeServers
from tests.fakes.specs import TENANT, TIMELINE, config, parsed, settings, spec_dict
from trio_compute.errors import PostgresError
from trio_compute.lifecycle.ending import Ending, Urgency
from trio_compute.lifecycle.status import Status
from trio_compute.lifecycle.transitions import IllegalTransition
from trio_compute.model.ids import Lsn
from trio_compute.model.lfc import NotOffloaded, NotPrewarmed, Offloading, Prewarming
from trio_compute.model.promotion import PromoteCompleted, PromoteFailed
from trio_compute.run import run
from trio_compute.services.apply_queue import Aborted, PromotionJob
from trio_compute.services.errands import Ended
from trio_compute.services.life import Life

STORAGE = {"endpoint_id": "ep-own", "endpoint_storage_addr": "storage:1", "endpoint_storage_token": "a-token"}


class Switch:
    """One life of a replica that stores its cache, is prewarmed and becomes the primary."""

    def __init__(self) -> None:
        self.settings = settings()
        self.host = FakeHost(self.settings, config(spec_dict(mode="Replica", **STORAGE)), pace=0.0)
        url = f"http://storage:1/{TENANT}/{TIMELINE}/ep-own/lfc_state"
        self.host.endpoint_storage.frames[url] = b"packed state"
        self.host.cache.load_seconds = 1.0
        self.servers = FakeServers()
        self.jobs: list[PromotionJob] = []
        self.outcomes: list[Any] = []
        self.refused = 0

    @property
    def life(self) -> Life:
        return self.servers.life

    async def play(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._act)
            await run(self.settings, self.host, self.servers)
            nursery.cancel_scope.cancel()

    async def _act(self) -> None:
        await self.servers.ready.wait()
        await self.servers.compute.reach(Status.RUNNING)
        try:
            self.life.lfc.begin_offload()
            while self.life.lfc.offloading:
                await trio.sleep(0.1)
            self.life.lfc.begin_prewarm()
            while self.life.lfc.prewarming:
                await trio.sleep(0.1)
        except Ended:
            self.refused += 1
        wanted = parsed(mode="Primary", **STORAGE)
        for _ in range(2):
            self.jobs.append(self.life.promotions.ask(wanted, Lsn(1)))
            self.outcomes.append(await self.jobs[-1].outcome())
        self.terminate()

    def terminate(self) -> None:
        if hasattr(self.servers, "life"):
            try:
                self.servers.compute.request_termination(immediate=True)
            except IllegalTransition:
                return

    def stop(self) -> None:
        if hasattr(self.servers, "life"):
            self.servers.compute.request_stop()

    def die(self) -> None:
        self.host.cache.gone.set()
        self.host.child.end(2)

    def cancel_prewarm(self) -> None:
        if hasattr(self.servers, "life"):
            self.life.lfc.cancel_prewarm()

    def fail(self) -> None:
        """Let whatever comes next in Postgres or the storage fail, once."""
        error = PostgresError("disturbed")
        self.host.replica.fail_next = error
        self.host.endpoint_storage.fail_next = error
        self.host.cache.fail_next = error

    def check(self) -> None:
        lfc, compute = self.life.lfc, self.servers.compute
        assert self.host.open_children == 0, "a child outlived the tree"
        assert self.host.cache.sessions == 0, "a session outlived its work"
        assert not lfc.prewarming
        assert not isinstance(lfc.prewarm_state, Prewarming), "a prewarm without an end"
        assert not isinstance(lfc.offload_state, Offloading), "an offload without an end"
        assert all(job.settled for job in self.jobs), "a caller of /promote was left without an answer"
        exited = compute.ending.value is Ending.POSTGRES_EXITED
        assert compute.state.status in {Status.TERMINATED, Status.FAILED} or exited
        spec = compute.state.spec
        assert spec is not None
        if any(isinstance(outcome, PromoteCompleted) for outcome in self.outcomes):
            assert spec.is_primary
            assert self.host.replica.overrides.keys() <= {"neon.safekeepers", "synchronous_standby_names"}
        if "is_read_only" in self.host.replica.calls and not exited and self.host.replica.fail_next is None:
            assert spec.is_primary, "a primary whose end would not sync its safekeepers"
        promoted_and_asked = spec.is_primary and compute.state.status is Status.TERMINATED
        if promoted_and_asked and compute.urgency.value < Urgency.PRESSED:
            assert compute.state.flush_lsn == COMMIT_LSN


DISTURBANCES: dict[str, Callable[[Switch], None]] = {
    "terminate": Switch.terminate,
    "signal": Switch.stop,
    "postgres dies": Switch.die,
    "prewarm is cancelled": Switch.cancel_prewarm,
    "a step fails": Switch.fail,
}


def test_undisturbed_it_works() -> None:
    switch = Switch()
    play_disturbed(switch.play, None, lambda: None)
    switch.check()
    assert not isinstance(switch.life.lfc.prewarm_state, NotPrewarmed)
    assert not isinstance(switch.life.lfc.offload_state, NotOffloaded)
    assert [type(outcome) for outcome in switch.outcomes] == [PromoteCompleted, PromoteCompleted]


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTURBANCES)
def test_whatever_happens_at_whichever_step_there_is_a_final_state_and_an_answer(name: str) -> None:
    steps = steps_of(lambda: Switch().play())
    assert steps > 100
    seen = set()
    for at in range(1, steps + 1):
        switch = Switch()
        play_disturbed(switch.play, at, lambda switch=switch: DISTURBANCES[name](switch))
        switch.check()
        seen |= {type(outcome) for outcome in switch.outcomes}
        if name == "prewarm is cancelled" and switch.outcomes:
            assert isinstance(switch.outcomes[-1], PromoteCompleted)
        if name == "a step fails" and len(switch.outcomes) == 2:
            # Whatever failed did so once, and the second call made up for it.
            assert isinstance(switch.outcomes[-1], PromoteCompleted), at
    expected = {
        "prewarm is cancelled": {PromoteCompleted},
        "a step fails": {PromoteCompleted, PromoteFailed},
        "postgres dies": {Aborted},
    }
    assert seen >= expected.get(name, {PromoteCompleted, Aborted})
