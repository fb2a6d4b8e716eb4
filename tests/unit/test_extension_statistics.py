"""How installed extensions are counted and how often (contract 06 §7)."""

from __future__ import annotations

import pytest

from tests.unit.builders import parsed_spec
from trio_compute.plan.extension_statistics import (
    InstalledExtension,
    Statistics,
    base_at_start,
    base_seconds,
    interval_seconds,
)


def test_databases_are_counted_by_name_version_and_kind_of_owner() -> None:
    found = [
        InstalledExtension.of("plpgsql", "1.0", 10),
        InstalledExtension.of("plpgsql", "1.0", 10),
        InstalledExtension.of("plpgsql", "1.0", 16384),
        InstalledExtension.of("hstore", "1.8", 16384),
    ]
    assert Statistics.of(found).entries() == [
        {"extname": "hstore", "version": "1.8", "n_databases": 1, "owned_by_superuser": "0"},
        {"extname": "plpgsql", "version": "1.0", "n_databases": 1, "owned_by_superuser": "0"},
        {"extname": "plpgsql", "version": "1.0", "n_databases": 2, "owned_by_superuser": "1"},
    ]


@pytest.mark.parametrize("owner", [2**31 + 10, 2**32 - 1, 11])
def test_only_the_bootstrap_superuser_is_one(owner: int) -> None:
    """R-13: owners are unsigned numbers."""
    assert InstalledExtension.of("x", "1", owner).owned_by_superuser == "0"


@pytest.mark.parametrize("timeout", [0, -1, -2, -(2**63)])
def test_no_timeout_and_nonsense_mean_an_hour(timeout: int) -> None:
    """R-12: a negative number never becomes an astronomically long pause."""
    assert base_seconds(timeout) == 3600


def test_the_interval_is_twice_the_base_and_may_shrink_again() -> None:
    """R-12."""
    assert interval_seconds(base_seconds(300)) == 600
    assert interval_seconds(base_seconds(7200)) == 14400
    assert interval_seconds(base_seconds(60)) == 120


def test_collections_that_fail_come_less_often_but_never_stop() -> None:
    """R-12: back-off."""
    assert [interval_seconds(10, failures) for failures in range(6)] == [20, 40, 80, 160, 160, 160]
    assert interval_seconds(10, 10**9) == 160


def test_the_largest_timeout_is_a_pause_that_a_clock_can_hold() -> None:
    assert interval_seconds(base_seconds(2**63 - 1)) < 2**33


def test_the_command_lines_interval_counts_only_where_no_catalog_was_applied() -> None:
    applied = parsed_spec(suspend_timeout_seconds=300)
    skipped = parsed_spec(suspend_timeout_seconds=300, skip_pg_catalog_updates=True)
    replica = parsed_spec(suspend_timeout_seconds=300, mode="Replica")
    assert base_at_start(applied, 1000) == 300
    assert base_at_start(skipped, 1000) == 1000
    assert base_at_start(replica, 1000) == 1000
    assert base_at_start(skipped, 0) == 3600
