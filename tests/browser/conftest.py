"""One Chromium for all tests of the page; each test gets it empty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from tests.browser.chromium import MISSING, WHY_SKIPPED, open_chromium
from tests.browser.looks import Page
from tests.component.http.logs import LogLines
from trio_compute.telemetry import logging as telemetry
from trio_compute.telemetry.metrics import metrics


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chrome]:
    """Return the browser of this session."""
    if MISSING:
        pytest.skip(WHY_SKIPPED)
    with open_chromium() as driver:
        yield driver


@pytest.fixture
def page(chromium: Chrome) -> Iterator[Page]:
    """Return a browser that shows nothing, 1200 pixels wide; it must not have met an error of the page's own."""
    page = Page(chromium)
    page.resize(1200)
    chromium.get_log("browser")
    yield page
    complaints = [entry["message"] for entry in chromium.get_log("browser")]
    chromium.get("about:blank")
    own = [line for line in complaints if "Failed to load resource" not in line and "ERR_" not in line]
    assert not own


@pytest.fixture(autouse=True)
def log_lines(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    """Return the lines that would go to stderr."""
    lines = LogLines()
    monkeypatch.setattr(telemetry, "sink", lines)
    return lines


@pytest.fixture(autouse=True)
def _forget_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with metrics that nobody has touched."""
    monkeypatch.setattr(metrics, "_values", {name: {} for name in metrics._values})
    monkeypatch.setattr(metrics, "_distributions", {name: {} for name in metrics._distributions})
