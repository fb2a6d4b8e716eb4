"""What is told of core dumps, with debuggers that are scripts (contract 06 §12, R-27, 02 §10.4)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.component.test_run import Stage, terminate
from tests.fakes.programs import install_program
from trio_compute.errors import StorageError
from trio_compute.host.core_dumps import log_backtraces
from trio_compute.host.run_as import RunAs
from trio_compute.lifecycle.status import Status

GDB = """
    echo "gdb $*" >> "${0%/*}/called"
    echo "#0 crash ()"
    echo "password=hunter2secret" >&2
"""
LLDB = """
    echo "lldb $*" >> "${0%/*}/called"
"""


@pytest.fixture
def bin_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    return directory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


def core(data: Path, name: str, *, age_seconds: float = 0) -> Path:
    path = data / name
    path.write_bytes(b"")
    moment = time.time() - age_seconds
    os.utime(path, (moment, moment))
    return path


async def look(data: Path, bin_directory: Path, since: float = 0.0, **limits: float) -> list[str]:
    environ = {"PATH": str(bin_directory)}
    await log_backtraces(data, Path("/x/postgres"), since=since, environ=environ, run_as=RunAs(), **limits)
    called = bin_directory / "called"
    return called.read_text().splitlines() if called.exists() else []


async def test_gdb_is_asked_for_the_backtrace_of_each_core_newest_first(
    data: Path, bin_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install_program(bin_directory, "gdb", GDB)
    old, new = core(data, "core", age_seconds=50), core(data, "core.postgres.17", age_seconds=10)
    for name in ("corex", "x.core", "score.1"):
        core(data, name)
    assert await look(data, bin_directory) == [f"gdb --batch -q -ex bt /x/postgres {path}" for path in (new, old)]


async def test_lldb_is_asked_where_there_is_no_gdb(data: Path, bin_directory: Path) -> None:
    install_program(bin_directory, "lldb", LLDB)
    path = core(data, "core.1")
    assert await look(data, bin_directory) == [f"lldb -c {path} --batch -o bt all -o quit"]


async def test_cores_from_before_the_start_are_left_alone(data: Path, bin_directory: Path) -> None:
    """R-27."""
    install_program(bin_directory, "gdb", GDB)
    core(data, "core.old", age_seconds=100)
    path = core(data, "core.new", age_seconds=10)
    assert await look(data, bin_directory, since=time.time() - 50) == [f"gdb --batch -q -ex bt /x/postgres {path}"]


async def test_a_debugger_that_hangs_is_killed_and_the_next_core_looked_at(data: Path, bin_directory: Path) -> None:
    """R-27, I-23."""
    install_program(bin_directory, "gdb", GDB + 'case "$*" in *core.hang) exec /bin/sleep 1000;; esac\n')
    core(data, "core.hang", age_seconds=10)
    core(data, "core.next", age_seconds=20)
    calls = await look(data, bin_directory, core_seconds=0.3)
    assert [call.rpartition("/")[2] for call in calls] == ["core.hang", "core.next"]


async def test_all_of_them_have_a_limit_too(data: Path, bin_directory: Path) -> None:
    """R-27."""
    install_program(bin_directory, "gdb", GDB + "exec /bin/sleep 1000\n")
    for number in range(10):
        core(data, f"core.{number}", age_seconds=number)
    calls = await look(data, bin_directory, core_seconds=0.2, total_seconds=0.5)
    assert 1 <= len(calls) <= 3


async def test_a_cancellation_ends_the_debugger(data: Path, bin_directory: Path) -> None:
    install_program(bin_directory, "gdb", GDB + 'echo $$ > "${0%/*}/pid"; exec /bin/sleep 1000\n')
    core(data, "core")
    pid_file = bin_directory / "pid"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look, data, bin_directory)
        while not pid_file.exists() or not pid_file.read_text():
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.mark.parametrize("what", ["nothing", "no directory"])
async def test_without_cores_nothing_is_started(data: Path, bin_directory: Path, what: str) -> None:
    install_program(bin_directory, "gdb", GDB)
    assert await look(data if what == "nothing" else data / "missing", bin_directory) == []


async def test_they_are_looked_at_though_the_final_sync_failed(autojump_clock: trio.testing.MockClock) -> None:
    """R-27."""
    stage = Stage()

    async def script(stage: Stage) -> None:
        await stage.compute.reach(Status.RUNNING)
        stage.host.failures["sync_safekeepers"] = [StorageError("no")] * 6
        await terminate(stage.compute, immediate=True)

    await stage.play(script)
    assert stage.compute.state.termination_error == "final safekeeper sync failed: failed to sync safekeepers: no"
    assert stage.host.calls[-1] == "log_backtraces"
