"""Work that goes on though the one who asked for it leaves (contract 03 §2, client disconnect)."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trio_compute.services.errands import Ended, Errands


async def test_the_result_or_the_error_comes_back() -> None:
    async def seven() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    async def fail() -> None:
        raise ValueError("no")

    async with trio.open_nursery() as nursery:
        errands = Errands()
        await nursery.start(errands.serve)
        assert await errands.run(seven) == 7
        with pytest.raises(ValueError, match="no"):
            await errands.run(fail)
        nursery.cancel_scope.cancel()


async def test_who_leaves_does_not_stop_the_work(autojump_clock: trio.testing.MockClock) -> None:
    done = trio.Event()

    async def work() -> None:
        await trio.sleep(10)
        done.set()

    async with trio.open_nursery() as nursery:
        errands = Errands()
        await nursery.start(errands.serve)
        with trio.move_on_after(1):
            await errands.run(work)
        await done.wait()
        nursery.cancel_scope.cancel()


async def test_the_end_of_the_compute_ends_work_and_waiting(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as outer:
        errands = Errands()

        async def ask() -> None:
            with pytest.raises(Ended):
                await errands.run(trio.sleep_forever)

        async with trio.open_nursery() as life:
            await life.start(errands.serve)
            outer.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            life.cancel_scope.cancel()
    with pytest.raises(Ended):
        await errands.run(trio.sleep_forever)
    with pytest.raises(Ended):
        errands.begin(trio.sleep_forever)
