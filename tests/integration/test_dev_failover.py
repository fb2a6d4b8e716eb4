"""`trio-compute dev failover`: a prewarmed secondary takes over under load, and no acknowledged row is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

COMMAND = [sys.executable, "-m", "trio_compute", "dev", "failover"]


def test_a_switch_under_load_loses_nothing_and_is_told(major: int, tmp_path: Path) -> None:
    svg = tmp_path / "switch.svg"
    command = [*COMMAND, "--postgres", str(major), "--settle", "0.3", "--json", "--svg", str(svg)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rows_written"] > 0
    assert report["rows_lost"] == 0
    assert 0 < report["write_gap_ms"] < 60_000
    assert report["promote"]["status"] == report["prewarm"]["status"] == report["offload"]["status"] == "completed"
    spans = {name for part in ("promote", "prewarm", "offload") for name in report[part] if name.endswith("_time_ms")}
    assert spans == {
        "lsn_wait_time_ms", "pg_promote_time_ms", "reconfigure_time_ms", "state_download_time_ms", "uncompress_time_ms",
        "prewarm_time_ms", "state_query_time_ms", "compress_time_ms", "state_upload_time_ms",
    }  # fmt: skip
    assert {stretch["lane"] for stretch in report["timeline"]} == {"primary", "secondary", "writes"}
    assert "no commit acknowledged" in done.stderr
    ElementTree.parse(svg)


def test_a_file_that_cannot_be_written_is_named(major: int, tmp_path: Path) -> None:
    svg = tmp_path / "nowhere" / "switch.svg"
    command = [*COMMAND, "--postgres", str(major), "--settle", "0", "--svg", str(svg)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 1
    assert f"cannot write {svg}" in done.stderr
