"""`trio-compute dev` as a newcomer uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.dev_process import kill_tree
from trio_compute.embedded import binaries

pytestmark = pytest.mark.postgres

COMMAND = [sys.executable, "-m", "trio_compute", "dev"]


@pytest.fixture(autouse=True)
def _fetched() -> None:
    binaries.ensure(binaries.DEFAULT_MAJOR)


def test_exit_when_ready_prints_one_json_object_and_takes_everything_down(public_tmp: Path) -> None:
    command = [*COMMAND, "--exit-when-ready", "--json", "--data", str(public_tmp / "world")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert {"status", "metrics", "spans", "connstr"} <= report.keys()
    assert report["status"]["status"] == "running"
    assert report["terminate"]["exit_code"] == 0
    assert report["metrics"]["total_startup_ms"] > 0
    assert {span["name"] for span in report["spans"]} >= {"prepare_pgdata", "start_postgres", "total_startup"}
    assert "start Postgres" in result.stderr
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert "sync the safekeepers" not in again.stderr


def test_ctrl_c_ends_it_cleanly_and_the_data_stay(public_tmp: Path) -> None:
    from trio_compute.embedded.free_ports import free_port

    data, port = str(public_tmp / "world"), str(free_port())
    ports = ["--port", port, "--external-http-port", str(free_port()), "--internal-http-port", str(free_port())]
    process = subprocess.Popen([*COMMAND, "--data", data, *ports], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "Ctrl-C ends it" in line:
            break
    assert f"psql 'postgresql://cloud_admin@127.0.0.1:{port}/neondb'" in said
    second = subprocess.run([*COMMAND, "--exit-when-ready", "--data", data], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert "is in use by another trio-compute dev" in second.stderr
    process.send_signal(signal.SIGINT)
    said += process.stderr.read()
    assert process.wait(timeout=30) == 0
    assert "terminated at LSN 0/" in said
    assert "saved at 0/" in said
    process.stderr.close()


@pytest.mark.parametrize("launcher", [[], ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]], ids=["alone", "by a script"])
def test_one_interrupt_ends_a_failing_start(launcher: list[str], public_tmp: Path) -> None:
    """Also of one that a script has put into the background, which has the signal ignored at first."""
    data = public_tmp / "world"
    subprocess.run([*COMMAND, "--exit-when-ready", "--data", str(data)], check=True, capture_output=True, timeout=60)
    for snapshot in data.glob("timelines/*/*.tar.gz"):
        snapshot.write_bytes(snapshot.read_bytes()[:100_000])
    environ = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        [*launcher, *COMMAND, "--exit-when-ready", "--data", str(data)],
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )
    assert process.stderr is not None
    # The retries of a basebackup last almost a minute; one Ctrl-C must be enough to leave.
    for line in process.stderr:
        if "failed" in line:
            break
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=20) in {0, 1}
    except subprocess.TimeoutExpired:
        # Tell who hangs, and where.
        process.send_signal(signal.SIGABRT)
        said = process.stderr.read()
        log = (data / "compute.log").read_text(errors="replace")
        pytest.fail(f"one Ctrl-C did not end it; it said:\n{said}\nits compute said:\n{log[-8000:]}")
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait()
        process.stderr.close()


def test_unknown_arguments_are_refused() -> None:
    result = subprocess.run([*COMMAND, "--bogus"], capture_output=True, text=True, timeout=30)
    assert result.returncode == 2
    assert "--bogus" in result.stderr
