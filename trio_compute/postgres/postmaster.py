"""The Postgres server process: start, readiness, logs, staged stop (contract 04 §9)."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.host.process import Child, spawn
from trio_compute.host.reaper import own_children
from trio_compute.host.run_as import RunAs
from trio_compute.lifecycle.cell import Cell
from trio_compute.lifecycle.ending import Exit, Urgency
from trio_compute.postgres.logs import collect_logs
from trio_compute.postgres.stop import stop_child
from trio_compute.telemetry.logging import get_logger

FIRST_POLL_SECONDS = 0.002
LONGEST_POLL_SECONDS = 0.05

log = get_logger("postmaster")


class Postmaster:
    """Hold one server process; `exit` is set once it is gone."""

    def __init__(self, child: Child, pgdata: Path) -> None:
        self.child = child
        self.pgdata = pgdata
        self.exit: Exit | None = None
        self._holds = 0

    def reload(self) -> None:
        """Ask the server to read its configuration again, as `pg_ctl reload` does."""
        self.child.send_signal(signal.SIGHUP)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the postmaster stand still: no session begins while the body runs; those that exist go on.

        Of several who hold it, the last to leave lets it go on.
        """
        self._holds += 1
        self.child.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._holds -= 1
            if self._holds == 0:
                self.child.send_signal(signal.SIGCONT)

    async def wait(self) -> int:
        """Wait for the server to end by itself."""
        return await self.child.wait()


@asynccontextmanager
async def open_postmaster(
    argv: list[str],
    pgdata: Path,
    *,
    environ: Mapping[str, str],
    run_as: RunAs,
    urgency: Cell[Urgency],
    deadlines: Deadlines,
) -> AsyncIterator[Postmaster]:
    """Run a server while the body runs; afterwards it is stopped, its log drained, its process reaped."""
    process = await spawn(argv, environ=environ, run_as=run_as)
    assert process.stderr is not None
    postmaster = Postmaster(process, pgdata)
    log.info("Postgres spawned", pid=process.pid)
    async with trio.open_nursery() as nursery:
        drain = trio.CancelScope(shield=True)
        drained = trio.Event()

        async def drain_logs(stream: trio.abc.ReceiveStream) -> None:
            # Shielded: while the server lives its stderr must be read, or its backends block and it cannot stop.
            with drain:
                await collect_logs(stream)
            drained.set()

        nursery.start_soon(drain_logs, process.stderr)
        try:
            yield postmaster
        finally:
            with trio.CancelScope(shield=True):
                postmaster.exit = await stop_child(process, urgency, deadlines)
                own_children.discard(process.pid)
                with trio.move_on_after(deadlines.log_drain):
                    await drained.wait()
                drain.cancel()
                await drained.wait()
                await process.stderr.aclose()
                log.info("Postgres ended", code=postmaster.exit.returncode, forced=postmaster.exit.forced)


async def wait_ready(postmaster: Postmaster, timeout_seconds: float) -> None:
    """Wait until the server accepts connections; raise PostgresError if it ends first or takes too long."""
    exit_code: list[int] = []
    with trio.move_on_after(timeout_seconds) as patience:
        async with trio.open_nursery() as nursery:

            async def watch_for_early_exit() -> None:
                exit_code.append(await postmaster.wait())
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch_for_early_exit)
            await _poll_pid_file(postmaster)
            nursery.cancel_scope.cancel()
    if exit_code:
        raise PostgresError(f"Postgres exited unexpectedly with code {max(exit_code[0], -1)}")
    if patience.cancelled_caught:
        raise PostgresError("timed out while waiting for Postgres to start")


async def _poll_pid_file(postmaster: Postmaster) -> None:
    path = postmaster.pgdata / "postmaster.pid"
    delay = FIRST_POLL_SECONDS
    while not is_ready(path, postmaster.child.pid):
        await trio.sleep(delay)
        delay = min(delay * 1.1, LONGEST_POLL_SECONDS)


def is_ready(path: Path, pid: int) -> bool:
    """Tell whether a postmaster.pid is of this process and says `ready` in its last line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return len(lines) > 1 and lines[0].strip() == str(pid) and lines[-1].strip() == "ready"
