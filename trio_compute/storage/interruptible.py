"""Blocking work in a worker thread that a cancellation, or too long a silence, brings to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from trio_compute.errors import ComputeError, StorageError

IDLE_CHECK_SECONDS = 1.0

T = TypeVar("T")


class Inflow:
    """Count what a transfer has received so far; written by its thread, read by whoever watches it."""

    def __init__(self) -> None:
        self.received_bytes = 0


async def run_interruptible(
    work: Callable[[], T], interrupt: Callable[[], None], *, inflow: Inflow, idle_seconds: float
) -> T:
    """Run `work` in a thread and return its result; raise StorageError when nothing arrives for `idle_seconds`.

    `interrupt` must make the work end soon; it is called when the task is cancelled, when the inflow stands still, and
    once the work has ended.
    """
    results: list[T] = []
    failure: ComputeError | None = None
    stalled = False

    async def interrupt_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            interrupt()

    async def interrupt_when_idle() -> None:
        nonlocal stalled
        seen, since = 0, trio.current_time()
        while trio.current_time() - since < idle_seconds:
            await trio.sleep(min(IDLE_CHECK_SECONDS, idle_seconds))
            if inflow.received_bytes != seen:
                seen, since = inflow.received_bytes, trio.current_time()
        stalled = True
        interrupt()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupt_when_cancelled)
        nursery.start_soon(interrupt_when_idle)
        try:
            results.append(await trio.to_thread.run_sync(work))
        except ComputeError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is None:
        return results[0]
    raise StorageError(f"pageserver sent nothing for {idle_seconds:g} s") if stalled else failure
