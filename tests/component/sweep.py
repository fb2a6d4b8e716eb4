"""The cancellation sweep: run a scenario again and again, disturbing it at its n-th step, for every n (design §7)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing


class StepCounter(trio.abc.Instrument):
    """Count the steps of all tasks and do something once a number of them is reached."""

    def __init__(self, at: int | None, disturb: Callable[[], None]) -> None:
        self.steps = 0
        self.disturbed = False
        self._at = at
        self._disturb = disturb

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self._at:
            self.disturbed = True
            # Not from within the instrument: the scheduler must be between two steps, as for any real event.
            trio.lowlevel.current_trio_token().run_sync_soon(self._disturb)


def steps_of(scenario: Callable[[], Awaitable[None]]) -> int:
    """Return how many steps an undisturbed scenario takes."""
    return play_disturbed(scenario, None, lambda: None).steps


def play_disturbed(scenario: Callable[[], Awaitable[None]], at: int | None, disturb: Callable[[], None]) -> StepCounter:
    """Run a scenario on a clock of its own that jumps over every wait, and disturb it at a step."""
    counter = StepCounter(at, disturb)
    trio.run(
        scenario,
        clock=trio.testing.MockClock(autojump_threshold=0),
        instruments=[counter],
        strict_exception_groups=True,
    )
    return counter
