"""Processes that an earlier `trio-compute dev` left running because it was killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import trio

PATIENCE_SECONDS = 10.0


async def end_left_over(data_directories: Iterable[Path]) -> bool:
    """End whatever still runs on data directories that nobody else may use now; tell whether there was anything.

    A compute goes first, lest it notices that its Postgres ends; a Postgres ends by an immediate shutdown.
    """
    wanted = {os.fsencode(path) for path in data_directories}
    computes, servers = _using(wanted)
    for pid in computes:
        await _end(pid, signal.SIGKILL)
    for pid in servers:
        await _end(pid, signal.SIGQUIT)
    return bool(computes or servers)


def _using(directories: set[bytes]) -> tuple[list[int], list[int]]:
    """Return the computes and the postmasters whose command line names one of the directories."""
    computes: list[int] = []
    servers: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if directories.intersection(words):
                (computes if b"--pgdata" in words else servers).append(int(entry.name))
    return computes, servers


async def _end(pid: int, sig: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, sig)
            with trio.move_on_after(PATIENCE_SECONDS) as patience:
                await trio.lowlevel.wait_readable(fd)
            if patience.cancelled_caught:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)
