"""Failpoints: set by text or by name, and only what they know (contract 01 §2, 03 §5)."""

from __future__ import annotations

import pytest

from trio_compute.errors import UsageError
from trio_compute.telemetry.failpoints import Failpoints


def test_a_failpoint_returns_what_it_was_told_until_it_is_switched_off() -> None:
    points = Failpoints()
    assert points.returns("compute-migration") is None
    points.configure_text("compute-migration=return(3); compute-promotion = return")
    assert points.returns("compute-migration") == "3"
    assert points.returns("compute-promotion") == ""
    points.configure({"compute-migration": "off"})
    assert points.returns("compute-migration") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense=return", "unknown failpoint 'nonsense'"),
        ("compute-migration=sleep(3)", "cannot do 'sleep"),
        ("compute-migration", "cannot do ''"),
    ],
)
def test_what_it_does_not_know_is_refused_as_a_whole(text: str, reason: str) -> None:
    points = Failpoints()
    with pytest.raises(UsageError, match=reason):
        points.configure_text(f"compute-promotion=return;{text}")
    assert points.returns("compute-promotion") is None
