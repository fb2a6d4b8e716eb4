"""A sample of the cancellation sweep on real processes: a stop at every stage of a real start (D-13, D-49)."""

from __future__ import annotations

import pytest
import trio

from tests.integration.compute import Rig
from trio_compute.embedded.pageserver import Faults

pytestmark = pytest.mark.postgres

# Earlier than the first of these the interpreter itself is still starting and has no handlers.
DELAYS = [0.08, 0.12, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8]


@pytest.mark.parametrize("delay_seconds", DELAYS)
async def test_a_stop_at_any_moment_of_a_start_ends_it_cleanly(rig: Rig, delay_seconds: float) -> None:
    """The rig looks for processes that are left over."""
    async with rig.compute(rig.config(skip_pg_catalog_updates=False)) as child:
        await trio.sleep(delay_seconds)  # the moment itself is what varies here
        child.process.terminate()
        with trio.fail_after(12):
            assert await child.process.wait() == 0
    assert "Traceback" not in rig.log()


async def test_a_stop_while_the_pageserver_stalls_does_not_wait_for_it(rig: Rig) -> None:
    """S-09."""
    rig.world.pageserver.faults = Faults(stall_at_byte=100_000)
    async with rig.compute() as child:
        await child.reach("init")
        with trio.fail_after(10):
            while not rig.world.pageserver.commands:
                await trio.sleep(0.01)
            child.process.terminate()
            assert await child.process.wait() == 0


async def test_termination_over_http_is_refused_during_the_start(rig: Rig) -> None:
    rig.world.pageserver.faults = Faults(stall_at_byte=100_000)
    async with rig.compute() as child:
        await child.reach("init")
        with pytest.raises(Exception, match="invalid compute status: init"):
            await child.terminate("immediate")


async def test_a_refusing_pageserver_is_tried_again_and_the_start_succeeds(rig: Rig) -> None:
    rig.world.pageserver.faults = Faults(fail_commands=1, fail_connections=1)
    async with rig.compute() as child:
        await child.reach("running")
        await child.terminate("immediate")
    assert rig.log().count("basebackup failed") == 2


async def test_a_killed_sync_is_reaped(rig: Rig) -> None:
    """D-49, S-12: a stop while --sync-safekeepers hangs ends that child too."""
    path = rig.world.directory / "bin" / "hanging"
    path.write_text(f'#!/bin/sh\n[ "$1" = --sync-safekeepers ] || exec {rig.world.pgbin} "$@"\nexec sleep 1000\n')
    path.chmod(0o755)
    async with rig.compute(flags={"--pgbin": str(path)}) as child:
        await child.reach("init")
        with trio.fail_after(10):
            while "synced_at=None" not in rig.log():
                await trio.sleep(0.02)
            await trio.sleep(0.2)  # let the child be spawned; any moment is fine
            child.process.terminate()
            assert await child.process.wait() == 0
