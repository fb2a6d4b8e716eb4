"""Core dumps: allowed at start, looked at after Postgres ended (contract 02 §10.4, 01 B-11)."""

from __future__ import annotations

import resource
from pathlib import Path

import trio

from trio_compute.errors import HostError
from trio_compute.host.process import run_command
from trio_compute.host.run_as import RunAs
from trio_compute.telemetry.logging import get_logger

BACKTRACE_TIMEOUT_SECONDS = 60.0

log = get_logger("core_dumps")


def allow_core_dumps() -> None:
    """Raise the core limit to unlimited, or as far as the hard limit permits."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        log.warning("core dumps stay limited", bytes=hard)


async def log_backtraces(directory: Path, pgbin: Path, environ: dict[str, str]) -> None:
    """Log a backtrace of every core file in a directory; errors are only logged."""
    try:
        cores = sorted(path for path in directory.iterdir() if path.name == "core" or path.name.startswith("core."))
    except OSError:
        return
    for core in cores:
        with trio.move_on_after(BACKTRACE_TIMEOUT_SECONDS) as patience:
            await _log_backtrace(core, pgbin, environ)
        if patience.cancelled_caught:
            log.warning("backtrace took too long", core=core)


async def _log_backtrace(core: Path, pgbin: Path, environ: dict[str, str]) -> None:
    log.warning("core dump found", core=core)
    debuggers = (
        ["gdb", "--batch", "-q", "-ex", "bt", str(pgbin), str(core)],
        ["lldb", "-c", str(core), "--batch", "-o", "bt all", "-o", "quit"],
    )
    for argv in debuggers:
        try:
            output = await run_command(argv, environ=environ, run_as=RunAs())
        except HostError as error:
            log.warning("no backtrace", error=error)
            continue
        log.warning("backtrace", core=core, text=(output.stdout + output.stderr).decode(errors="replace"))
        return
