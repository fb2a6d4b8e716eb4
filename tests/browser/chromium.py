"""Debian's Chromium without a screen, asked by selenium; nothing is fetched and nothing stays."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [name for name, path in (("chromium", BROWSER), ("chromedriver", DRIVER)) if path is None]
WHY_SKIPPED = (
    f"the status page needs a browser, and there is no {' and no '.join(MISSING)} on the PATH: "
    "as root, scripts/browser (or make test) installs Debian's chromium and chromium-driver"
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # as root there is no other way
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--lang=en-GB",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@contextmanager
def open_chromium() -> Iterator[Chrome]:
    """Start Chromium with a profile and a home that vanish with it."""
    home = Path(tempfile.mkdtemp(prefix="trio-compute-chromium-"))
    try:
        options = ChromeOptions()
        options.binary_location = BROWSER or ""
        for flag in (*FLAGS, f"--user-data-dir={home / 'profile'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # Its proxies are none of ours, and what it writes into a home goes with the profile.
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        service = Service(executable_path=DRIVER, env={**kept, "HOME": str(home), "SE_OFFLINE": "true"})
        with Chrome(options=options, service=service) as driver:
            yield driver
    finally:
        shutil.rmtree(home, ignore_errors=True)
