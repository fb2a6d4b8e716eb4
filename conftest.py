"""Fixtures shared by all tests; the heavy ones are made once per session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MAJORS = [int(word) for word in os.environ.get("TRIO_COMPUTE_TEST_MAJORS", "17").split()]


@pytest.fixture(autouse=True)
def _forget_secrets() -> Iterator[None]:
    """Keep what one test taught the redactor out of the next."""
    from trio_compute.telemetry.redaction import redact

    known = redact._secrets
    yield
    redact._secrets = known


@pytest.fixture
def public_tmp() -> Iterator[Path]:
    """Return a fresh directory that Postgres' user can pass through, unlike pytest's own; in memory if possible."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/var/tmp"
    directory = Path(tempfile.mkdtemp(prefix="trio-compute-test-", dir=base))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
