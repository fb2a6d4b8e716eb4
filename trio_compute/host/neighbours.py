"""Stop pgbouncer and local_proxy, who share our container but are not our children (contract 02 §10.5, 10 §11)."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from pathlib import Path

from trio_compute.settings import Settings
from trio_compute.telemetry.logging import get_logger

_PID = re.compile(r"\A[0-9]{1,10}\Z")
_HIGHEST_PID = 2**22  # of Linux; kill() takes no number beyond 31 bits

log = get_logger("neighbours")


def stop_neighbours(settings: Settings) -> None:
    """Send SIGKILL to pgbouncer, then SIGTERM to local_proxy; with --dev leave both alone (D-44)."""
    if settings.dev:
        return
    pgbouncer = _pid_in(settings.pgbouncer_pid_file)
    # pgbouncer does not lock its pid file, so a stale pid may belong to a stranger by now (D-43).
    if pgbouncer is not None and _command_name(pgbouncer) == "pgbouncer":
        _signal("pgbouncer", pgbouncer, signal.SIGKILL)
    if _is_locked(settings.local_proxy_pid_file):
        local_proxy = _pid_in(settings.local_proxy_pid_file)
        if local_proxy is not None:
            _signal("local_proxy", local_proxy, signal.SIGTERM)


def _pid_in(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    if _PID.match(text) is None or not 2 <= int(text) <= _HIGHEST_PID:
        log.warning("pid file holds no pid", path=path)
        return None
    return int(text)


def _command_name(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _signal(name: str, pid: int, sig: signal.Signals) -> None:
    try:
        os.kill(pid, sig)
    except OSError as error:
        log.warning("cannot signal a neighbour", name=name, pid=pid, error=error.strerror)
    else:
        log.info("signalled a neighbour", name=name, pid=pid, signal=sig.name)
