"""When a compute was last used, and for how long its Postgres was down (contract 06 §2.2, §2.3)."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from trio_compute.plan.activity import (
    Exclusions,
    Observation,
    Statistics,
    Uptime,
    answered,
    last_activity,
    silent,
)

NOW = dt.datetime(2026, 3, 4, 12, 0, tzinfo=dt.UTC)
EARLIER = NOW - dt.timedelta(minutes=5)
LONG_AGO = NOW - dt.timedelta(hours=5)
SOME = Statistics(active_time=10.0, sessions=3)


def seen(**changes: Any) -> Observation:
    return Observation(now=NOW, **changes)


def test_nobody_there_is_no_activity() -> None:
    assert last_activity(seen(), None, None) is None
    assert last_activity(seen(), LONG_AGO, None) == LONG_AGO


@pytest.mark.parametrize("other", [Statistics(10.5, 3), Statistics(10.0, 4), Statistics(9.0, 3), Statistics(10.0, 0)])
def test_statistics_that_changed_in_any_way_are_activity(other: Statistics) -> None:
    assert last_activity(seen(statistics=other), LONG_AGO, SOME) == NOW


def test_the_first_statistics_are_only_recorded() -> None:
    assert last_activity(seen(statistics=SOME), LONG_AGO, None) == LONG_AGO


def test_equal_statistics_leave_the_decision_to_the_other_rules() -> None:
    assert last_activity(seen(statistics=SOME), LONG_AGO, SOME) == LONG_AGO
    assert last_activity(seen(statistics=SOME, idle_since=EARLIER), LONG_AGO, SOME) == EARLIER


def test_statistics_that_could_not_be_read_leave_the_other_rules_working() -> None:
    """R-01: without step 1, steps 2 to 5 still run."""
    assert last_activity(seen(statistics=None, busy_sessions=1), LONG_AGO, SOME) == NOW
    assert last_activity(seen(statistics=None), LONG_AGO, SOME) == LONG_AGO


def test_a_busy_session_is_activity_now_whatever_the_idle_ones_did() -> None:
    assert last_activity(seen(busy_sessions=1, idle_since=EARLIER), LONG_AGO, None) == NOW


def test_an_idle_session_counts_from_its_last_change() -> None:
    assert last_activity(seen(idle_since=EARLIER), None, None) == EARLIER
    assert last_activity(seen(idle_since=EARLIER), LONG_AGO, None) == EARLIER


def test_activity_never_goes_back() -> None:
    assert last_activity(seen(idle_since=LONG_AGO), EARLIER, None) == EARLIER


def test_a_session_that_became_idle_in_the_future_counts_as_now() -> None:
    """R-02, D-39: no value may lie in the future."""
    assert last_activity(seen(idle_since=NOW + dt.timedelta(hours=3)), LONG_AGO, None) == NOW


@pytest.mark.parametrize("what", ["wal_senders", "subscriptions", "autovacuum_workers"])
def test_background_work_is_activity_now(what: str) -> None:
    assert last_activity(seen(**{what: 1}), LONG_AGO, None) == NOW


def test_an_idle_session_that_is_newer_ends_the_check_before_background_work() -> None:
    """06 §2.2: step 2 takes its candidate and the steps after it do not run."""
    assert last_activity(seen(idle_since=EARLIER, wal_senders=1), LONG_AGO, None) == EARLIER
    assert last_activity(seen(idle_since=EARLIER, wal_senders=1), EARLIER, None) == NOW


def test_an_operators_exclusions_come_on_top_of_the_defaults() -> None:
    """R-07."""
    exclusions = Exclusions.of(("exporter",), ("pg_receivewal",))
    assert exclusions.users == ("cloud_admin", "exporter")
    assert exclusions.applications == ("pg_receivewal",)
    assert exclusions.sender_applications == ("walproposer", "pg_receivewal")
    assert Exclusions.of((), ()) == Exclusions()


def test_a_postgres_that_answers_has_no_downtime() -> None:
    uptime = answered(answered(Uptime.since(100.0), 100.5), 101.0)
    assert (uptime.is_down, uptime.current_ms, uptime.total_ms) == (False, 0.0, 0)


def test_downtime_counts_from_the_last_answer_and_in_all_from_round_to_round() -> None:
    uptime = answered(Uptime.since(100.0), 110.0)
    uptime = silent(silent(uptime, 110.5), 112.0)
    assert uptime.is_down
    assert uptime.current_ms == pytest.approx(2000)
    assert uptime.total_ms == 2000
    uptime = answered(uptime, 113.0)
    assert (uptime.current_ms, uptime.total_ms) == (0.0, 2000)
    uptime = silent(uptime, 113.25)
    assert uptime.current_ms == pytest.approx(250)
    assert uptime.total_ms == 2250


def test_time_before_monitoring_is_no_downtime() -> None:
    """R-04: the reference is the moment when monitoring begins."""
    uptime = silent(Uptime.since(5000.0), 5000.5)
    assert uptime.current_ms == pytest.approx(500)
    assert uptime.total_ms == 500


def test_a_clock_that_goes_back_never_makes_downtime_negative() -> None:
    """R-04: neither value wraps or shrinks."""
    uptime = silent(Uptime.since(100.0), 90.0)
    assert (uptime.current_ms, uptime.total_ms) == (0.0, 0)
    assert silent(answered(uptime, 95.0), 96.0).total_ms >= 0


def test_the_total_keeps_what_is_less_than_a_millisecond() -> None:
    uptime = Uptime.since(0.0)
    for number in range(1, 1001):
        uptime = silent(uptime, number * 0.0005)
    assert uptime.total_ms in (499, 500)
