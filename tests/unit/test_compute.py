"""The owner of the state: what it records, how it ends, and who may ask for it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.unit.builders import NOON, make_settings, parsed_spec
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import HISTORY_LENGTH, Compute
from trio_compute.lifecycle.ending import Ending, Urgency
from trio_compute.lifecycle.events import Event
from trio_compute.lifecycle.status import Status
from trio_compute.lifecycle.transitions import IllegalTransition
from trio_compute.model.ids import Lsn

S = Status
SPEC = parsed_spec()
WAY_TO: dict[Status, list[Event]] = {
    S.EMPTY: [],
    S.CONFIGURATION_PENDING: [ev.ApplyQueued()],
    S.INIT: [ev.SpecKnown(spec=SPEC, at=NOON)],
    S.RUNNING: [ev.SpecKnown(spec=SPEC, at=NOON), ev.Started()],
    S.CONFIGURATION: [ev.SpecKnown(spec=SPEC, at=NOON), ev.Started(), ev.ApplyQueued(), ev.ApplyBegan()],
    S.FAILED: [ev.SpecKnown(spec=SPEC, at=NOON), ev.StartFailed(error="no")],
    S.REFRESH_CONFIGURATION_PENDING: [ev.SpecKnown(spec=SPEC, at=NOON), ev.Started(), ev.RefreshRequested()],
    S.REFRESH_CONFIGURATION: [
        ev.SpecKnown(spec=SPEC, at=NOON),
        ev.Started(),
        ev.RefreshRequested(),
        ev.RefreshBegan(),
    ],
    S.TERMINATION_PENDING_FAST: [ev.TerminateFast()],
    S.TERMINATION_PENDING_IMMEDIATE: [ev.TerminateImmediate()],
    S.TERMINATED: [ev.TerminateFast(), ev.Terminated()],
}
FINAL = (S.TERMINATION_PENDING_FAST, S.TERMINATION_PENDING_IMMEDIATE, S.TERMINATED)


def compute_in(status: Status) -> Compute:
    compute = Compute(make_settings())
    for event in WAY_TO[status]:
        compute.apply(event)
    assert compute.state.status is status
    return compute


async def test_a_new_compute_is_empty_alive_and_calm() -> None:
    compute = Compute(make_settings())
    assert compute.state.status is S.EMPTY
    assert compute.ending.value is None
    assert compute.urgency.value is Urgency.CALM
    assert not compute.life.cancel_called
    assert not compute.history


def test_each_change_of_status_is_recorded() -> None:
    history = compute_in(S.CONFIGURATION).history
    assert [(p.source, p.target, p.event) for p in history] == [
        (S.EMPTY, S.INIT, "SpecKnown"),
        (S.INIT, S.RUNNING, "Started"),
        (S.RUNNING, S.CONFIGURATION_PENDING, "ApplyQueued"),
        (S.CONFIGURATION_PENDING, S.CONFIGURATION, "ApplyBegan"),
    ]
    assert all(p.at.tzinfo is not None for p in history)


def test_an_event_that_changes_no_status_is_remembered_but_not_recorded() -> None:
    compute = compute_in(S.RUNNING)
    before = len(compute.history)
    compute.apply(ev.Active(at=NOON))
    assert compute.state.last_active == NOON
    assert len(compute.history) == before


def test_the_history_is_bounded() -> None:
    compute = compute_in(S.RUNNING)
    for _ in range(HISTORY_LENGTH):
        for event in (ev.ApplyQueued(), ev.ApplyBegan(), ev.Applied(spec=SPEC)):
            compute.apply(event)
    assert len(compute.history) == HISTORY_LENGTH
    assert compute.history[-1].event == "Applied"


def test_an_illegal_event_changes_nothing() -> None:
    compute = compute_in(S.RUNNING)
    state, history = compute.state, list(compute.history)
    with pytest.raises(IllegalTransition):
        compute.apply(ev.Started())
    assert compute.state is state
    assert list(compute.history) == history


def test_allows_tells_what_the_table_has() -> None:
    compute = compute_in(S.RUNNING)
    assert compute.allows(ev.ApplyQueued)
    assert not compute.allows(ev.Started)


async def test_reach_returns_the_state_that_matched_even_if_it_moved_on() -> None:
    """D-11: a waiter cannot miss a status that lasts an instant."""
    compute, seen = compute_in(S.INIT), list[Status]()

    async def wait() -> None:
        seen.append((await compute.reach(S.RUNNING, S.FAILED)).status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        compute.apply(ev.Started())
        compute.apply(ev.TerminateFast())
    assert seen == [S.RUNNING]


async def test_the_first_ending_stays() -> None:
    compute = Compute(make_settings())
    compute.end(Ending.TERMINATE_FAST)
    compute.end(Ending.CRASHED)
    assert compute.ending.value is Ending.TERMINATE_FAST
    assert compute.life.cancel_called


def test_the_urgency_only_rises() -> None:
    compute = Compute(make_settings())
    seen = []
    for urgency in (
        Urgency.START_FAILED,
        Urgency.CALM,
        Urgency.PRESSED,
        Urgency.START_FAILED,
        Urgency.FORCED,
        Urgency.CALM,
    ):
        compute.end(Ending.SIGNAL, urgency)
        seen.append(compute.urgency.value)
    assert seen == [1, 1, 2, 2, 3, 3]


async def test_ending_before_the_life_began_ends_it_at_its_first_checkpoint() -> None:
    compute = Compute(make_settings())
    compute.end(Ending.SIGNAL)
    with compute.life:
        await trio.sleep_forever()
    assert compute.life.cancelled_caught


@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize("status", Status)
async def test_termination_is_accepted_when_empty_running_or_failed(status: Status, immediate: bool) -> None:
    """D-01 and D-22: empty and failed can be terminated; everything else is refused and nothing changes."""
    compute = compute_in(status)
    if status in (S.EMPTY, S.RUNNING, S.FAILED):
        compute.request_termination(immediate=immediate)
        pending = S.TERMINATION_PENDING_IMMEDIATE if immediate else S.TERMINATION_PENDING_FAST
        ending = Ending.TERMINATE_IMMEDIATE if immediate else Ending.TERMINATE_FAST
        assert (compute.state.status, compute.ending.value) == (pending, ending)
        assert compute.life.cancel_called
        assert compute.linger_cut.is_set() is immediate
        assert compute.urgency.value is Urgency.CALM
        return
    with pytest.raises(IllegalTransition):
        compute.request_termination(immediate=immediate)
    assert compute.state.status is status
    assert compute.ending.value is None
    assert not compute.life.cancel_called
    assert not compute.linger_cut.is_set()


@pytest.mark.parametrize("status", Status)
async def test_a_signal_ends_the_compute_in_every_status(status: Status) -> None:
    compute = compute_in(status)
    compute.request_stop()
    assert compute.state.status is (status if status in FINAL else S.TERMINATION_PENDING_IMMEDIATE)
    assert compute.ending.value is Ending.SIGNAL
    assert compute.urgency.value is Urgency.PRESSED
    assert compute.life.cancel_called
    assert compute.linger_cut.is_set()


def test_a_second_signal_forces_the_end() -> None:
    """02 §10.2: a second signal exits at once."""
    compute = compute_in(S.RUNNING)
    compute.request_stop()
    compute.request_stop()
    assert compute.urgency.value is Urgency.FORCED
    compute.request_stop()
    assert compute.urgency.value is Urgency.FORCED


def test_a_first_signal_during_a_termination_presses_without_forcing() -> None:
    compute = compute_in(S.RUNNING)
    compute.request_termination(immediate=False)
    compute.request_stop()
    assert compute.ending.value is Ending.TERMINATE_FAST
    assert compute.urgency.value is Urgency.PRESSED


@pytest.mark.parametrize("status", Status)
def test_a_crash_fails_what_is_alive_and_ends_it(status: Status) -> None:
    """02 §12.1 rule 4."""
    compute = compute_in(status)
    compute.crash("boom")
    assert compute.state.status is (status if status in FINAL else S.FAILED)
    assert compute.ending.value is Ending.CRASHED
    if status not in FINAL:
        assert compute.state.error == "boom"


@pytest.mark.parametrize("status", Status)
def test_only_a_compute_that_was_asked_to_terminate_becomes_terminated(status: Status) -> None:
    """T26: a Postgres that exits by itself leaves the status as it was."""
    compute = compute_in(status)
    outcome: dict[str, Any] = {"flush_lsn": Lsn(5)}
    compute.finish(ev.Terminated(**outcome))
    if status in FINAL[:2]:
        assert compute.state.status is S.TERMINATED
        assert compute.state.flush_lsn == 5
    else:
        assert compute.state.status is status


def test_finishing_twice_keeps_the_first_outcome() -> None:
    compute = compute_in(S.TERMINATION_PENDING_FAST)
    compute.finish(ev.Terminated(flush_lsn=Lsn(5)))
    compute.finish(ev.Terminated(error="late"))
    assert (compute.state.flush_lsn, compute.state.termination_error) == (5, None)
