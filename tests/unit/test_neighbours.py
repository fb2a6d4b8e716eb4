"""Stopping pgbouncer and local_proxy, and nobody else (contract 02 §10.5, D-43, D-44)."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.builders import make_settings
from trio_compute.host.neighbours import stop_neighbours
from trio_compute.settings import Settings

Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(
        pgbouncer_pid_file=tmp_path / "pgbouncer.pid", local_proxy_pid_file=tmp_path / "local_proxy.pid"
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process of any name that does nothing."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(name: str) -> subprocess.Popen[bytes]:
        program = tmp_path / name
        shutil.copy(shutil.which("sleep") or "sleep", program)
        process = subprocess.Popen([str(program), "1000"])
        processes.append(process)
        # Popen returns a moment before the kernel has given the process its new name.
        while Path(f"/proc/{process.pid}/comm").read_text().strip() != name:
            os.sched_yield()
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def lock() -> Iterator[Callable[[Path], None]]:
    """Hold a file locked as local_proxy does."""
    descriptors: list[int] = []

    def hold(path: Path) -> None:
        descriptors.append(os.open(path, os.O_RDWR))
        fcntl.flock(descriptors[-1], fcntl.LOCK_EX)

    yield hold
    for fd in descriptors:
        os.close(fd)


def is_untouched(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether no signal reached the process: a deadly one would have ended it by now."""
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    return True


@pytest.mark.parametrize("text", ["{}", "{}\n", "  {} \n\n"])
def test_pgbouncer_is_killed_whatever_blanks_surround_its_pid(settings: Settings, start: Start, text: str) -> None:
    """D-43: a trailing newline must not make the pid unreadable."""
    process = start("pgbouncer")
    settings.pgbouncer_pid_file.write_text(text.format(process.pid))
    stop_neighbours(settings)
    assert process.wait(2) == -signal.SIGKILL
    assert settings.pgbouncer_pid_file.exists()


def test_a_pgbouncer_that_locks_its_pid_file_is_killed_too(
    settings: Settings, start: Start, lock: Callable[[Path], None]
) -> None:
    process = start("pgbouncer")
    settings.pgbouncer_pid_file.write_text(f"{process.pid}\n")
    lock(settings.pgbouncer_pid_file)
    stop_neighbours(settings)
    assert process.wait(2) == -signal.SIGKILL


def test_a_stale_pid_that_belongs_to_another_program_is_left_alone(settings: Settings, start: Start) -> None:
    """D-43."""
    stranger = start("stranger")
    settings.pgbouncer_pid_file.write_text(str(stranger.pid))
    stop_neighbours(settings)
    assert is_untouched(stranger)


def test_local_proxy_gets_sigterm_while_it_holds_its_lock(
    settings: Settings, start: Start, lock: Callable[[Path], None]
) -> None:
    process = start("local_proxy")
    settings.local_proxy_pid_file.write_text(f"{process.pid}\n")
    lock(settings.local_proxy_pid_file)
    stop_neighbours(settings)
    assert process.wait(2) == -signal.SIGTERM
    assert settings.local_proxy_pid_file.exists()


def test_a_pid_file_without_its_lock_is_stale(settings: Settings, start: Start) -> None:
    """02 §10.5: unlocked means not running."""
    process = start("local_proxy")
    settings.local_proxy_pid_file.write_text(str(process.pid))
    stop_neighbours(settings)
    assert is_untouched(process)


def test_dev_mode_leaves_both_alone(
    settings: Settings, start: Start, lock: Callable[[Path], None], tmp_path: Path
) -> None:
    """D-44."""
    pgbouncer, local_proxy = start("pgbouncer"), start("local_proxy")
    settings.pgbouncer_pid_file.write_text(str(pgbouncer.pid))
    settings.local_proxy_pid_file.write_text(str(local_proxy.pid))
    lock(settings.local_proxy_pid_file)
    stop_neighbours(
        make_settings(
            dev=True,
            pgbouncer_pid_file=settings.pgbouncer_pid_file,
            local_proxy_pid_file=settings.local_proxy_pid_file,
        )
    )
    assert is_untouched(pgbouncer)
    assert is_untouched(local_proxy)


@pytest.mark.parametrize(
    "text", ["", "\n", "0", "1", "-1", "-5", "abc", "12 34", "²", "9" * 12, "9" * 30, "9" * 5000, "\0", "é"]
)
def test_a_pid_file_without_a_usable_pid_signals_nobody(
    settings: Settings, lock: Callable[[Path], None], text: str
) -> None:
    for path in (settings.pgbouncer_pid_file, settings.local_proxy_pid_file):
        path.write_text(text)
    lock(settings.local_proxy_pid_file)
    stop_neighbours(settings)


def test_missing_files_and_processes_are_no_error(
    settings: Settings, start: Start, lock: Callable[[Path], None]
) -> None:
    stop_neighbours(settings)
    gone = start("pgbouncer")
    gone.kill()
    gone.wait()
    for path in (settings.pgbouncer_pid_file, settings.local_proxy_pid_file):
        path.write_text(str(gone.pid))
    lock(settings.local_proxy_pid_file)
    stop_neighbours(settings)


def test_a_directory_in_place_of_a_pid_file_is_no_error(settings: Settings) -> None:
    settings.pgbouncer_pid_file.mkdir()
    settings.local_proxy_pid_file.mkdir()
    stop_neighbours(settings)
