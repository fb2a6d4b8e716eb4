"""The data directory: recreated at every start, completed after the basebackup (contract 04 §2)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from trio_compute.errors import HostError
from trio_compute.host.files import append_line_once, write_atomically
from trio_compute.host.run_as import RunAs
from trio_compute.model.spec import DatabricksSettings
from trio_compute.postgres.databricks import install_databricks_files

HBA_LINE = "host\tall\t\tall\t\tall\t\tmd5"
SHARED_MEMORY_DIRECTORY = "/dev/shm/"  # noqa: S108  (POSIX shared memory of Linux, contract 04 §2)
OVERRIDE_FILE = "compute_ctl_temp_override.conf"


def recreate(pgdata: Path, run_as: RunAs) -> None:
    """Make PGDATA an empty directory of mode 0700 (04 F-18); blocking.

    An existing directory is emptied in place, since it may be a mount point; a link to one is followed.
    Raises HostError naming the path when something cannot be removed or created.
    """
    try:
        if pgdata.is_dir():
            empty(pgdata)
        else:
            pgdata.unlink(missing_ok=True)
            pgdata.mkdir(mode=0o700)
        pgdata.chmod(0o700)
        if run_as.owner is not None:
            os.chown(pgdata, *run_as.owner)
    except OSError as error:
        raise HostError(f"cannot recreate {pgdata}: {error.strerror} ({error.filename or pgdata})") from error


def empty(pgdata: Path, *, keep: Iterable[str] = ()) -> None:
    """Remove everything in a directory but the names to keep; blocking, raises OSError."""
    kept = frozenset(keep)
    with os.scandir(pgdata) as entries:
        for entry in entries:
            if entry.name in kept:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                Path(entry.path).unlink()


def complete_after_basebackup(
    pgdata: Path, run_as: RunAs, *, is_primary: bool, databricks: DatabricksSettings | None = None
) -> None:
    """Add what a basebackup lacks: neon.signal, access files, pg_dynshmem, standby.signal; blocking.

    Raises HostError naming the path, also for Databricks settings with a Postgres older than 16.
    """
    try:
        _copy_signal_file(pgdata, run_as)
        _empty_override(pgdata, run_as)
        if databricks is not None:
            install_databricks_files(pgdata, run_as, databricks)
        append_line_once(pgdata / "pg_hba.conf", HBA_LINE, run_as)
        _link_dynshmem(pgdata, run_as)
        if not is_primary:
            standby = pgdata / "standby.signal"
            standby.touch(mode=0o600)
            run_as.own(standby)
    except OSError as error:
        raise HostError(f"cannot complete {pgdata}: {error.strerror} ({error.filename})") from error


def _copy_signal_file(pgdata: Path, run_as: RunAs) -> None:
    neon, zenith = pgdata / "neon.signal", pgdata / "zenith.signal"
    if not neon.is_file() and zenith.is_file():
        write_atomically(neon, zenith.read_text(encoding="utf-8", errors="replace"), run_as)


def _empty_override(pgdata: Path, run_as: RunAs) -> None:
    # F-12: whatever a backup brings, the size quota is in force when Postgres starts.
    override = pgdata / OVERRIDE_FILE
    if override.exists() or override.is_symlink():
        write_atomically(override, "", run_as)


def _link_dynshmem(pgdata: Path, run_as: RunAs) -> None:
    path = pgdata / "pg_dynshmem"
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    path.symlink_to(SHARED_MEMORY_DIRECTORY)
    run_as.own(path)
