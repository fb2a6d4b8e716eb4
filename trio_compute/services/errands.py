"""Work that somebody asked for and that must go on though he leaves: children of the compute's life (03 §2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import trio

from trio_compute.errors import ComputeError
from trio_compute.lifecycle.cell import Cell

T = TypeVar("T")


class Ended(ComputeError):
    """Report that the compute ends, so that no work is begun or finished any more."""

    def __init__(self) -> None:
        super().__init__("compute is terminating")


class _Errand:
    def __init__(self, function: Callable[[], Awaitable[Any]]) -> None:
        self._function = function
        self.outcome = Cell[tuple[Any, Exception | None] | None](None)

    async def run(self) -> None:
        outcome: tuple[Any, Exception | None] = (None, Ended())
        try:
            outcome = (await self._function(), None)
        except Exception as error:  # noqa: BLE001  (raised again where the result is waited for)
            outcome = (None, error)
        finally:
            self.outcome.set(outcome)


class Errands:
    """Run functions beside each other for as long as the compute lives."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run what is asked for until cancelled; then all of it is cancelled too."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def begin(self, function: Callable[[], Awaitable[object]]) -> None:
        """Begin some work and wait for nothing; its errors are its own affair. Raise Ended if there is no time left."""
        self._start(function)

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Return what the function returns or raise what it raises; a caller that is cancelled leaves it running.

        Raises Ended if the compute ends first.
        """
        outcome = await self._start(function).outcome.wait_for(lambda outcome: outcome is not None)
        assert outcome is not None
        value, failure = outcome
        if failure is not None:
            raise failure
        return cast("T", value)

    def _start(self, function: Callable[[], Awaitable[object]]) -> _Errand:
        if self._nursery is None:
            raise Ended
        errand = _Errand(function)
        self._nursery.start_soon(errand.run)
        return errand
