"""`trio-compute dev` as a child process that can be killed with all that it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trio_compute.embedded.free_ports import free_port

COMMAND = [sys.executable, "-m", "trio_compute", "dev"]
IPC_RMID = 0
READY = "Ctrl-C ends it"


class DevProcess:
    """Hold a running `dev`, what it said so far, and the port of its Postgres."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.said = ""

    def connstr(self, database: str = "postgres") -> str:
        return f"postgresql://cloud_admin@127.0.0.1:{self.port}/{database}"

    def read_until(self, text: str) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if text in line:
                return
        raise AssertionError(f"dev ended without {text!r}; it said:\n{self.said}")

    def interrupt(self) -> int:
        """End it as Ctrl-C does and return its exit code."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stderr is not None
        self.said += self.process.stderr.read()
        return self.process.wait(timeout=60)

    def kill_everything(self) -> None:
        """Kill it, the compute, Postgres and every backend with SIGKILL, in any order."""
        pids = kill_tree(self.process.pid)
        self.process.wait(timeout=60)
        wait_gone(pids)


@contextmanager
def running_dev(data: Path, *arguments: str) -> Iterator[DevProcess]:
    """Run `dev` on ports of its own until the block ends; then it is killed if it still runs."""
    port = free_port()
    ports = ["--port", str(port), "--external-http-port", str(free_port()), "--internal-http-port", str(free_port())]
    process = subprocess.Popen(
        [*COMMAND, "--data", str(data), *ports, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    dev = DevProcess(process, port)
    try:
        dev.read_until(READY)
        yield dev
    finally:
        if process.poll() is None:
            dev.kill_everything()
        if process.stderr is not None:
            process.stderr.close()


def start_and_kill(data: Path, *, after_seconds: float) -> None:
    """Kill `dev` and all that it started in the middle of its start."""
    command = [*COMMAND, "--exit-when-ready", "--data", str(data)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(after_seconds)  # the moment itself is what varies here
    pids = kill_tree(process.pid)
    process.wait()
    wait_gone(pids)


def run_dev(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `dev` to its end."""
    return subprocess.run([*COMMAND, *arguments, "--data", str(data)], capture_output=True, text=True, timeout=120)


def kill_tree(pid: int) -> list[int]:
    """Kill a process and all that it started with SIGKILL, in any order; return which ones.

    The shared memory that a killed Postgres cannot remove any more is removed once they are gone.
    """
    pids = descendants(pid)
    files, segments = shared_memory(pids)
    random.shuffle(pids)
    for each in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    wait_gone(each for each in pids if each != pid)
    for file in files:
        file.unlink(missing_ok=True)
    for segment in segments:
        ctypes.CDLL(None).shmctl(segment, IPC_RMID, None)
    return pids


def shared_memory(pids: Iterable[int]) -> tuple[set[Path], set[int]]:
    """Return the POSIX and the System V shared memory of Postgres that some processes have mapped."""
    files: set[Path] = set()
    segments: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (Path("/proc") / str(pid) / "maps").read_text().splitlines():
                inode, name = [*line.split(maxsplit=5), ""][4:6]
                if name.startswith("/dev/shm/PostgreSQL."):
                    files.add(Path(name))
                elif name.startswith("/SYSV"):
                    segments.add(int(inode))  # its number is the identifier
    return files, segments


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, unseen = [], [pid]
    while unseen:
        found.append(unseen.pop())
        unseen += children.get(found[-1], [])
    return found


def wait_gone(pids: Iterable[int]) -> None:
    """Wait until none of some processes runs."""
    for pid in pids:
        while alive(pid):
            time.sleep(0.005)  # nobody can wait for a process that is not a child


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
