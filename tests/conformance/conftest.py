"""Catch the log of every test here."""

from __future__ import annotations

import pytest

from tests.component.http.logs import LogLines
from trio_compute.telemetry import logging as telemetry


@pytest.fixture(autouse=True)
def log_lines(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    """Return the lines that would go to stderr."""
    lines = LogLines()
    monkeypatch.setattr(telemetry, "sink", lines)
    return lines
