"""Core dumps: allowed at start, looked at after Postgres ended (contract 02 §10.4, 01 B-11, 06 R-27, 10 I-23)."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

import trio

from trio_compute.errors import HostError
from trio_compute.host.process import run_command
from trio_compute.host.run_as import RunAs
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.redaction import redact

CORE_SECONDS = 60.0
TOTAL_SECONDS = 180.0
LAKEBASE_DIRECTORY = Path("/databricks/logs/brickstore")

log = get_logger("core_dumps")


def allow_core_dumps() -> None:
    """Raise the core limit to unlimited, or as far as the hard limit permits."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        log.warning("core dumps stay limited", bytes=hard)


async def log_backtraces(
    directory: Path,
    pgbin: Path,
    *,
    since: float,
    environ: Mapping[str, str],
    run_as: RunAs,
    core_seconds: float = CORE_SECONDS,
    total_seconds: float = TOTAL_SECONDS,
) -> None:
    """Log a backtrace of every core file younger than `since`, Unix seconds, newest first; errors are only logged."""
    cores = _cores(directory, since)
    with trio.move_on_after(total_seconds) as total:
        for core in cores:
            with trio.move_on_after(core_seconds) as patience:
                await _log_backtrace(core, pgbin, environ, run_as)
            if patience.cancelled_caught:
                log.warning("backtrace took too long", core=core, seconds=core_seconds)
    if total.cancelled_caught:
        log.warning("no time for all core dumps", found=len(cores), seconds=total_seconds)


def _cores(directory: Path, since: float) -> list[Path]:
    try:
        paths = [path for path in directory.iterdir() if path.name == "core" or path.name.startswith("core.")]
        found = [(path.stat(follow_symlinks=False).st_mtime, path) for path in paths]
    except OSError as error:
        log.info("cannot look for core dumps", directory=directory, error=error.strerror)
        return []
    return [path for written, path in sorted(found, reverse=True) if written >= since]


async def _log_backtrace(core: Path, pgbin: Path, environ: Mapping[str, str], run_as: RunAs) -> None:
    log.warning("core dump found", core=core)
    debuggers = (
        ["gdb", "--batch", "-q", "-ex", "bt", str(pgbin), str(core)],
        ["lldb", "-c", str(core), "--batch", "-o", "bt all", "-o", "quit"],
    )
    for argv in debuggers:
        try:
            # As the user whose core it is: a debugger that root runs believes too much of what it reads.
            output = await run_command(argv, environ=environ, run_as=run_as)
        except HostError as error:
            log.warning("no backtrace", error=error)
            continue
        text = (output.stdout + output.stderr).decode(errors="replace")
        log.warning("backtrace", core=core, text=redact(text))
        return
