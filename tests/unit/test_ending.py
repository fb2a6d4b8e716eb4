"""What an ending means: exit code, linger, final sync, neighbours (contract 01 §3, 02 §6 and §10)."""

from __future__ import annotations

from itertools import product

import pytest

from trio_compute.deadlines import Deadlines
from trio_compute.lifecycle.ending import Ending, Exit, Urgency, asked_for, exit_code, linger_seconds, needs_final_sync

E = Ending
ORDERLY, SEVEN, KILLED = Exit(0), Exit(7), Exit(-9)
FORCED_OUT = Exit(0, forced=True)


@pytest.mark.parametrize(
    ("ending", "postgres", "sync_error", "code"),
    [
        (E.TERMINATE_FAST, ORDERLY, None, 0),
        (E.TERMINATE_FAST, SEVEN, None, 7),
        (E.TERMINATE_FAST, KILLED, None, 1),
        (E.TERMINATE_FAST, None, None, 0),  # terminated while empty, D-01
        (E.TERMINATE_IMMEDIATE, ORDERLY, None, 0),
        (E.TERMINATE_IMMEDIATE, SEVEN, None, 7),
        (E.TERMINATE_IMMEDIATE, None, None, 0),
        (E.POSTGRES_EXITED, ORDERLY, None, 0),
        (E.POSTGRES_EXITED, Exit(1), None, 1),
        (E.POSTGRES_EXITED, SEVEN, None, 7),
        (E.POSTGRES_EXITED, Exit(-6), None, 1),
        (E.SIGNAL, ORDERLY, None, 0),
        (E.SIGNAL, FORCED_OUT, None, 1),
        (E.SIGNAL, Exit(-9, forced=True), None, 1),
        (E.SIGNAL, None, None, 0),
        (E.START_FAILED, None, None, 1),
        (E.CRASHED, ORDERLY, None, 1),
        (E.EMPTY_CONFIG, ORDERLY, None, 1),  # D-19
    ],
)
def test_the_exit_code(ending: Ending, postgres: Exit | None, sync_error: str | None, code: int) -> None:
    assert exit_code(ending, postgres, sync_error) == code


def test_a_start_that_failed_after_postgres_was_up_does_not_exit_with_its_0() -> None:
    """D-15."""
    assert exit_code(E.START_FAILED, ORDERLY, None) == 1


@pytest.mark.parametrize("ending", Ending)
def test_a_failed_final_sync_exits_with_1(ending: Ending) -> None:
    """D-16."""
    assert exit_code(ending, ORDERLY, "sync failed") == 1


@pytest.mark.parametrize(("ending", "returncode"), list(product(Ending, [0, 1, 2, 255, -6, -9, -15])))
def test_an_exit_code_is_one_that_a_process_can_have(ending: Ending, returncode: int) -> None:
    for forced in (False, True):
        assert 0 <= exit_code(ending, Exit(returncode, forced), None) <= 255


@pytest.mark.parametrize(
    ("ending", "had_spec", "seconds"),
    [
        (E.START_FAILED, True, 30.0),
        (E.START_FAILED, False, 30.0),
        (E.CRASHED, True, 30.0),
        (E.TERMINATE_FAST, True, 30.0),
        (E.TERMINATE_FAST, False, 0.3),  # D-01: exit once the answer is out
        (E.TERMINATE_IMMEDIATE, True, 0.3),
        (E.TERMINATE_IMMEDIATE, False, 0.3),
        (E.POSTGRES_EXITED, True, 0.3),
        (E.SIGNAL, True, 0.0),
        (E.SIGNAL, False, 0.0),
        (E.EMPTY_CONFIG, True, 0.0),
    ],
)
def test_how_long_to_linger(ending: Ending, had_spec: bool, seconds: float) -> None:
    assert linger_seconds(ending, Deadlines(), had_spec=had_spec) == seconds
    doubled = Deadlines(linger=60, brief_linger=0.6)
    assert linger_seconds(ending, doubled, had_spec=had_spec) == 2 * seconds


@pytest.mark.parametrize(
    "ending", [E.TERMINATE_FAST, E.TERMINATE_IMMEDIATE, E.POSTGRES_EXITED, E.START_FAILED, E.CRASHED]
)
@pytest.mark.parametrize("urgency", [Urgency.CALM, Urgency.START_FAILED])
def test_a_primary_whose_postgres_ran_is_synced(ending: Ending, urgency: Urgency) -> None:
    assert needs_final_sync(ending, urgency, postgres_ran=True, is_primary=True)


@pytest.mark.parametrize(("ending", "urgency"), list(product(Ending, Urgency)))
def test_nothing_is_synced_that_never_ran_or_is_no_primary(ending: Ending, urgency: Urgency) -> None:
    """S-11: the sync is skipped when Postgres never ran."""
    assert not needs_final_sync(ending, urgency, postgres_ran=False, is_primary=True)
    assert not needs_final_sync(ending, urgency, postgres_ran=True, is_primary=False)


@pytest.mark.parametrize("ending", Ending)
@pytest.mark.parametrize("urgency", [Urgency.PRESSED, Urgency.FORCED])
def test_a_signal_leaves_no_time_to_sync(ending: Ending, urgency: Urgency) -> None:
    """02 §10.2: no final sync on the signal path."""
    assert not needs_final_sync(ending, urgency, postgres_ran=True, is_primary=True)


def test_an_empty_configuration_stops_like_a_signal() -> None:
    """D-19."""
    assert not needs_final_sync(E.EMPTY_CONFIG, Urgency.CALM, postgres_ran=True, is_primary=True)


def test_the_neighbours_stop_only_when_somebody_asked_for_the_end() -> None:
    asked = {ending for ending in Ending if asked_for(ending)}
    assert asked == {E.TERMINATE_FAST, E.TERMINATE_IMMEDIATE, E.SIGNAL, E.EMPTY_CONFIG}
    assert not asked_for(None)


def test_urgencies_are_ordered() -> None:
    assert Urgency.CALM < Urgency.START_FAILED < Urgency.PRESSED < Urgency.FORCED
