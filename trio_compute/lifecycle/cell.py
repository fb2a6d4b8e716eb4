"""A value that tasks can wait on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Cell(Generic[T]):
    """Hold a value; waiters see every value that was set, so a short-lived one cannot be missed."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._waiters: dict[trio.lowlevel.Task, tuple[Callable[[T], bool], list[T]]] = {}

    @property
    def value(self) -> T:
        """Return the present value."""
        return self._value

    def set(self, value: T) -> None:
        """Replace the value and wake each waiter whose predicate it satisfies."""
        self._value = value
        for task, (predicate, seen) in list(self._waiters.items()):
            if predicate(value):
                seen.append(value)
                del self._waiters[task]
                trio.lowlevel.reschedule(task)

    async def wait_for(self, predicate: Callable[[T], bool]) -> T:
        """Return the first value, the present one included, that satisfies the predicate."""
        present = self._value
        if predicate(present):
            await trio.lowlevel.checkpoint()
            return present
        task = trio.lowlevel.current_task()
        seen: list[T] = []
        self._waiters[task] = (predicate, seen)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiters.pop(task, None)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return seen[0]
