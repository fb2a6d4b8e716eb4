"""Reap the orphans that PID 1 inherits, and only those: our own children belong to whoever waits for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from trio_compute.telemetry.logging import get_logger

RETRY_SECONDS = 0.5

log = get_logger("reaper")


class OwnChildren:
    """Know the pids that somebody in this process waits for."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._spawning = 0

    @contextmanager
    def spawning(self) -> Iterator[None]:
        """Hold the reaper off while a child exists whose pid is not known yet."""
        self._spawning += 1
        try:
            yield
        finally:
            self._spawning -= 1

    @property
    def settled(self) -> bool:
        """Tell whether every child that we started is known."""
        return self._spawning == 0

    def add(self, pid: int) -> None:
        """Claim a child."""
        self._pids.add(pid)

    def discard(self, pid: int) -> None:
        """Give up the claim on a child that was reaped."""
        self._pids.discard(pid)

    def __contains__(self, pid: int) -> bool:
        return pid in self._pids

    def __len__(self) -> int:
        return len(self._pids)


own_children = OwnChildren()


async def reap_orphans() -> None:
    """Reap adopted zombies for ever; wake at each SIGCHLD, and soon again while one of our own is in the way."""
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        while True:
            delay = float("inf") if reap_foreign_zombies(own_children) else RETRY_SECONDS
            with trio.move_on_after(delay):
                await anext(aiter(signals))


def reap_foreign_zombies(own: OwnChildren) -> bool:
    """Reap zombies that nobody here waits for; return False when it must be tried again later."""
    while own.settled:
        try:
            # WNOWAIT only looks: a status that belongs to one of our own waiters must stay where it is.
            waitable = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        if waitable is None:
            return True
        if waitable.si_pid in own:
            return False
        os.waitpid(waitable.si_pid, os.WNOHANG)
        log.debug("reaped an orphan", pid=waitable.si_pid, status=waitable.si_status)
    return False
