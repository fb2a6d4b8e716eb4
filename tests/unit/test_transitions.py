"""The state machine (contract 02 §1, §2): every status and event, what is remembered, and the drawing of it."""

from __future__ import annotations

import datetime as dt
from itertools import product
from typing import Any

import pytest
from msgspec import structs

from tests.unit.builders import NOON, parsed_spec
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.diagram import mermaid
from trio_compute.lifecycle.events import Event
from trio_compute.lifecycle.status import TERMINATION_PENDING, Status
from trio_compute.lifecycle.transitions import TABLE, IllegalTransition, State, transition
from trio_compute.model.ids import Lsn

S = Status
OLD_SPEC, NEW_SPEC = parsed_spec(), parsed_spec(safekeeper_connstrings=["new:1"])
LATER = NOON + dt.timedelta(minutes=5)
CONTENT: dict[str, Any] = {
    "spec": NEW_SPEC,
    "at": LATER,
    "error": "text",
    "flush_lsn": Lsn(7),
    "restart_required": ("features",),
}
EVENTS = Event.__subclasses__()


def make(event: type[Event], **changes: Any) -> Event:
    """Return an event of this kind with all its fields filled."""
    return event(**{name: (CONTENT | changes)[name] for name in event.__struct_fields__})


def state_in(status: Status, **changes: Any) -> State:
    return State(status=status, start_time=NOON, spec=OLD_SPEC, **({"error": "old"} | changes))


# Contract 02 §2, row by row, with the D-rules. A refresh from failed re-applies (D-07), failed can be configured and
# terminated (D-22), a signal or a crash is possible as long as the compute is not terminating.
ALIVE = [status for status in S if status not in TERMINATION_PENDING and status is not S.TERMINATED]
EXPECTED: dict[tuple[Status, type[Event]], Status] = {
    (S.EMPTY, ev.SpecKnown): S.INIT,  # T2, D-03
    (S.EMPTY, ev.ApplyQueued): S.CONFIGURATION_PENDING,  # T3
    (S.CONFIGURATION_PENDING, ev.StartBegan): S.INIT,  # T4
    (S.INIT, ev.Started): S.RUNNING,  # T5
    (S.INIT, ev.StartFailed): S.FAILED,  # T6
    (S.RUNNING, ev.ApplyQueued): S.CONFIGURATION_PENDING,  # T7, T8
    (S.FAILED, ev.ApplyQueued): S.CONFIGURATION_PENDING,  # D-22
    (S.CONFIGURATION_PENDING, ev.ApplyBegan): S.CONFIGURATION,  # T9
    (S.CONFIGURATION, ev.Applied): S.RUNNING,  # T10
    (S.CONFIGURATION, ev.ApplyFailed): S.FAILED,  # T11
    (S.EMPTY, ev.TerminateFast): S.TERMINATION_PENDING_FAST,  # T13, D-01
    (S.RUNNING, ev.TerminateFast): S.TERMINATION_PENDING_FAST,  # T12
    (S.FAILED, ev.TerminateFast): S.TERMINATION_PENDING_FAST,  # D-22
    (S.EMPTY, ev.TerminateImmediate): S.TERMINATION_PENDING_IMMEDIATE,
    (S.RUNNING, ev.TerminateImmediate): S.TERMINATION_PENDING_IMMEDIATE,
    (S.FAILED, ev.TerminateImmediate): S.TERMINATION_PENDING_IMMEDIATE,
    (S.TERMINATION_PENDING_FAST, ev.Terminated): S.TERMINATED,  # T14
    (S.TERMINATION_PENDING_IMMEDIATE, ev.Terminated): S.TERMINATED,
    (S.RUNNING, ev.RefreshRequested): S.REFRESH_CONFIGURATION_PENDING,  # T16
    (S.FAILED, ev.RefreshRequested): S.REFRESH_CONFIGURATION_PENDING,  # T17
    (S.REFRESH_CONFIGURATION_PENDING, ev.RefreshRequested): S.REFRESH_CONFIGURATION_PENDING,  # T18
    (S.INIT, ev.RefreshRequested): S.INIT,  # T23
    (S.REFRESH_CONFIGURATION_PENDING, ev.RefreshBegan): S.REFRESH_CONFIGURATION,  # T19
    (S.REFRESH_CONFIGURATION, ev.RefreshUnchanged): S.RUNNING,  # T20a
    (S.REFRESH_CONFIGURATION, ev.Refreshed): S.RUNNING,  # T20b
    (S.REFRESH_CONFIGURATION, ev.RefreshFailed): S.REFRESH_CONFIGURATION_PENDING,  # T21
    **{(status, ev.Signalled): S.TERMINATION_PENDING_IMMEDIATE for status in ALIVE},  # T24
    **{(status, ev.Crashed): S.FAILED for status in ALIVE},  # §12.1 rule 4
    # A promotion keeps the status that it began in, or that came while it ran (08 P-06).
    **{
        (status, ev.Promoted): status
        for status in (
            S.RUNNING,
            S.CONFIGURATION_PENDING,
            S.REFRESH_CONFIGURATION_PENDING,
            S.TERMINATION_PENDING_FAST,
            S.TERMINATION_PENDING_IMMEDIATE,
        )
    },
    # A client can be seen in every status in which Postgres may run; the monitor never stops (D-24).
    **{
        (status, ev.Active): status
        for status in (
            S.RUNNING,
            S.CONFIGURATION_PENDING,
            S.CONFIGURATION,
            S.FAILED,
            S.REFRESH_CONFIGURATION_PENDING,
            S.REFRESH_CONFIGURATION,
        )
    },
}


def test_the_table_is_the_table_of_the_contract() -> None:
    assert dict(TABLE) == EXPECTED


@pytest.mark.parametrize(
    ("status", "event"),
    list(product(Status, EVENTS)),
    ids=lambda value: value.value if isinstance(value, Status) else value.__name__,
)
def test_each_event_in_each_status_follows_the_table_or_is_illegal(status: Status, event: type[Event]) -> None:
    before = state_in(status)
    if (status, event) in EXPECTED:
        assert transition(before, make(event)).status is EXPECTED[status, event]
        assert before == state_in(status)
        return
    with pytest.raises(IllegalTransition, match=f"{event.__name__} is not allowed in status {status.kebab}") as caught:
        transition(before, make(event))
    assert caught.value.status is status
    assert before == state_in(status)


REMEMBERED: dict[type[Event], dict[str, Any]] = {
    ev.SpecKnown: {"spec": NEW_SPEC, "start_time": LATER},
    ev.StartBegan: {"spec": NEW_SPEC, "start_time": LATER},
    ev.Started: {"error": None},
    ev.StartFailed: {"error": "text"},
    ev.ApplyQueued: {},
    ev.ApplyBegan: {},
    ev.Applied: {"spec": NEW_SPEC, "restart_required": ("features",), "error": None},
    ev.ApplyFailed: {"error": "text"},
    ev.Promoted: {"spec": NEW_SPEC, "restart_required": ("features",)},
    ev.RefreshRequested: {},
    ev.RefreshBegan: {},
    ev.RefreshUnchanged: {"error": None},
    ev.Refreshed: {"spec": NEW_SPEC, "restart_required": ("features",), "error": None},
    ev.RefreshFailed: {"error": "text"},
    ev.TerminateFast: {},
    ev.TerminateImmediate: {},
    ev.Signalled: {},
    ev.Crashed: {"error": "text"},
    ev.Terminated: {"flush_lsn": Lsn(7), "termination_error": "text"},
    ev.Active: {"last_active": LATER},
}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_each_event_leaves_exactly_what_it_must_in_the_state(event: type[Event]) -> None:
    for (source, kind), target in TABLE.items():
        if kind is event:
            before = state_in(source)
            revision = before.revision + (1 if target is not source else 0)
            after = structs.replace(before, status=target, revision=revision, **REMEMBERED[event])
            assert transition(before, make(event)) == after


def test_every_way_to_running_clears_the_error() -> None:
    """D-21: the original never clears it."""
    ways = [
        (source, event) for (source, event), target in TABLE.items() if target is S.RUNNING and source is not target
    ]
    assert len(ways) == 4
    for source, event in ways:
        assert transition(state_in(source), make(event)).error is None


@pytest.mark.parametrize(
    ("status", "event"), [(S.CONFIGURATION, ev.ApplyFailed), (S.REFRESH_CONFIGURATION, ev.RefreshFailed)]
)
def test_a_failed_change_keeps_the_old_spec_and_tells_why(status: Status, event: type[Event]) -> None:
    """D-05, D-20: the spec is replaced when it is in force, and the text of the failure is kept."""
    after = transition(state_in(status, error=None), make(event))
    assert after.spec is OLD_SPEC
    assert after.error == "text"


def test_queueing_a_change_does_not_touch_the_spec() -> None:
    """D-05: until the change is applied the old spec is current."""
    for source in (S.RUNNING, S.FAILED):
        assert transition(state_in(source), make(ev.ApplyQueued)).spec is OLD_SPEC


def test_a_failed_final_sync_still_terminates_and_is_remembered() -> None:
    """D-16."""
    after = transition(state_in(S.TERMINATION_PENDING_FAST), ev.Terminated(error="sync failed"))
    assert (after.status, after.flush_lsn, after.termination_error) == (S.TERMINATED, None, "sync failed")


def test_nothing_happens_after_terminated() -> None:
    assert not [source for source, _ in TABLE if source is S.TERMINATED]


def test_every_status_can_be_reached_and_every_event_is_used() -> None:
    reached = {S.EMPTY}
    for _ in Status:
        reached |= {target for (source, _), target in TABLE.items() if source in reached}
    assert reached == set(Status)
    assert {event for _, event in TABLE} == set(EVENTS)


def test_statuses_have_their_json_and_display_forms() -> None:
    assert [status.value for status in Status] == [
        "empty", "configuration_pending", "init", "running", "configuration", "failed", "refresh_configuration_pending",
        "refresh_configuration", "termination_pending_fast", "termination_pending_immediate", "terminated",
    ]  # fmt: skip
    assert S.REFRESH_CONFIGURATION_PENDING.kebab == "refresh-configuration-pending"
    assert S.TERMINATION_PENDING_FAST.kebab == "termination-pending-fast"
    assert S.INIT.kebab == "init"


def test_a_new_state_is_empty() -> None:
    state = State(start_time=NOON)
    assert state.status is S.EMPTY
    assert (state.error, state.spec, state.last_active, state.flush_lsn, state.termination_error) == (None,) * 5


def test_the_diagram_shows_each_change_of_status_with_its_events() -> None:
    lines = mermaid().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert "    [*] --> empty" in lines
    assert "    terminated --> [*]" in lines
    edges = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
    expected: dict[str, set[str]] = {}
    for (source, event), target in TABLE.items():
        if source is not target:
            expected.setdefault(f"{source.value} --> {target.value}", set()).add(event.__name__)
    assert {edge: set(names.split(", ")) for edge, names in edges.items()} == expected
    assert mermaid().endswith("\n")


@pytest.mark.parametrize("seen_before", [LATER, LATER + dt.timedelta(microseconds=1)])
def test_activity_only_moves_forward(seen_before: dt.datetime) -> None:
    """Contract 06 §2.2: taken only if it is later than the present one, and any value beats none."""
    state = transition(state_in(S.RUNNING), ev.Active(at=seen_before))
    assert state.last_active == seen_before
    assert transition(state, ev.Active(at=LATER)).last_active == seen_before
    later = seen_before + dt.timedelta(seconds=1)
    assert transition(state, ev.Active(at=later)).last_active == later
