"""Touch the memory of a pooled VM with a throw-away Postgres before the first spec arrives (contract 02 §5)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import trio

from trio_compute.deadlines import Deadlines
from trio_compute.errors import HostError, PostgresError
from trio_compute.host.files import write_atomically
from trio_compute.host.process import run_command
from trio_compute.host.run_as import RunAs
from trio_compute.lifecycle.cell import Cell
from trio_compute.lifecycle.ending import Urgency
from trio_compute.postgres.pgdata import recreate
from trio_compute.postgres.postmaster import open_postmaster, wait_ready
from trio_compute.telemetry.logging import get_logger

CONFIGURATION = "shared_buffers=65536\nport=51055\nshared_preload_libraries = 'neon'\n"

log = get_logger("warm_up")


async def warm_vm_memory(
    pgbin: Path,
    pgdata: Path,
    *,
    wrapper: list[str],
    environ: Mapping[str, str],
    run_as: RunAs,
    deadlines: Deadlines,
) -> None:
    """Run initdb and Postgres once in `{pgdata}.warmup` and remove it; a failure is logged and does not matter."""
    initdb = pgbin.with_name("initdb")
    if not os.access(initdb, os.X_OK):
        log.info("no initdb beside the server: memory is not warmed")
        return
    directory = pgdata.with_name(f"{pgdata.name}.warmup")
    try:
        await trio.to_thread.run_sync(recreate, directory, run_as)
        await run_command([str(initdb), "--pgdata", str(directory)], environ=environ, run_as=run_as)
        write_atomically(directory / "postgresql.conf", CONFIGURATION, run_as)
        async with open_postmaster(
            [*wrapper, str(pgbin), "-D", str(directory)],
            directory,
            environ=environ,
            run_as=run_as,
            # Nothing in it is worth a checkpoint: the stages of a failed start begin with SIGQUIT.
            urgency=Cell(Urgency.START_FAILED),
            deadlines=deadlines,
        ) as postmaster:
            await wait_ready(postmaster, deadlines.postgres_ready)
    except* (HostError, PostgresError) as failures:
        log.warning("memory is not warmed", error=failures.exceptions[0])
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(directory, ignore_errors=True))
