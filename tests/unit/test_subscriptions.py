"""When inherited subscriptions must stand still (contract 04 §6)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.builders import parsed_spec
from trio_compute.plan.subscriptions import SUBSCRIBERS_ENABLED, subscriptions_pending, with_subscribers_enabled

STOPPED = "neon.disable_logical_replication_subscribers=true"
DROP: dict[str, Any] = {"drop_subscriptions_before_start": True}


@pytest.mark.parametrize(
    ("changes", "dropped", "pending"),
    [
        (DROP, None, True),
        (DROP, False, True),
        (DROP, True, False),
        ({}, None, False),
        ({}, False, False),
        ({**DROP, "skip_pg_catalog_updates": True}, None, False),
        ({**DROP, "skip_pg_catalog_updates": True}, False, False),
        ({**DROP, "mode": "Replica"}, None, False),
        ({**DROP, "mode": {"Static": "0/1"}}, False, False),
    ],
)
def test_subscribers_stop_only_while_a_drop_is_pending(
    changes: dict[str, Any], dropped: bool | None, pending: bool
) -> None:
    """F-09: not when the marker says it is done. F-10: not when the catalog pass that would end it is skipped."""
    assert subscriptions_pending(parsed_spec(**changes), dropped=dropped) is pending


def test_the_combination_with_a_skipped_catalog_is_warned_about() -> None:
    """F-10."""
    assert any("neither dropped" in text for text in parsed_spec(**DROP, skip_pg_catalog_updates=True).warnings)
    assert parsed_spec(**DROP).warnings == ()


@pytest.mark.parametrize(
    ("text", "after"),
    [
        (f"{STOPPED}\n", f"{STOPPED}\n{SUBSCRIBERS_ENABLED}\n"),
        (STOPPED, f"{STOPPED}\n{SUBSCRIBERS_ENABLED}\n"),
        (f"{SUBSCRIBERS_ENABLED}\n{STOPPED}\n", f"{SUBSCRIBERS_ENABLED}\n{STOPPED}\n{SUBSCRIBERS_ENABLED}\n"),
        ("", f"{SUBSCRIBERS_ENABLED}\n"),
        (f"{STOPPED}\n{SUBSCRIBERS_ENABLED}\n", None),
        (f"{STOPPED}\nNEON.disable_logical_replication_subscribers = 'false'\n", None),
    ],
)
def test_every_pass_ends_with_an_effective_false(text: str, after: str | None) -> None:
    """F-09: an earlier line that says so, but is overridden, does not count."""
    assert with_subscribers_enabled(text) == after
    if after is not None:
        assert with_subscribers_enabled(after) is None
