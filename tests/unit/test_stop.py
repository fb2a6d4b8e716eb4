"""Stopping the postmaster in stages, on a clock that jumps (contract 02 §10.2, 04 F-14)."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import pytest
import trio
from trio.testing import MockClock

from trio_compute.deadlines import Deadlines
from trio_compute.lifecycle.cell import Cell
from trio_compute.lifecycle.ending import Exit, Urgency
from trio_compute.postgres.stop import Stage, stop_child, stop_stages

INT, QUIT, KILL = signal.SIGINT, signal.SIGQUIT, signal.SIGKILL
FOREVER = float("inf")


class ScriptedChild:
    """A process that ends so many seconds after a signal that it heeds, with a given code."""

    pid = 4711

    def __init__(self, heeds: Mapping[signal.Signals, tuple[float, int]]) -> None:
        self.heeds = heeds
        self.returncode: int | None = None
        self.received: list[tuple[float, signal.Signals]] = []
        self._end = FOREVER
        self._code = 0
        self._changed = trio.Event()
        self._began = trio.current_time()

    def send_signal(self, sig: signal.Signals) -> None:
        now = trio.current_time()
        self.received.append((now - self._began, sig))
        after, code = self.heeds.get(sig, (FOREVER, 0))
        if now + after < self._end:
            self._end, self._code = now + after, code
            self._changed.set()
            self._changed = trio.Event()

    async def wait(self) -> int:
        while self.returncode is None and trio.current_time() < self._end:
            with trio.move_on_at(self._end):
                await self._changed.wait()
        await trio.lowlevel.checkpoint()
        self.returncode = self._code if self.returncode is None else self.returncode
        return self.returncode


@pytest.mark.parametrize(
    ("urgency", "stages"),
    [
        (Urgency.CALM, (Stage(INT, 60), Stage(QUIT, 5, forced=True), Stage(KILL, FOREVER, forced=True))),
        (Urgency.START_FAILED, (Stage(QUIT, 5), Stage(KILL, FOREVER, forced=True))),
        (Urgency.PRESSED, (Stage(INT, 8), Stage(QUIT, 1, forced=True), Stage(KILL, FOREVER, forced=True))),
        (Urgency.FORCED, (Stage(QUIT, 1, forced=True), Stage(KILL, FOREVER, forced=True))),
    ],
)
def test_the_stages_of_each_urgency(urgency: Urgency, stages: tuple[Stage, ...]) -> None:
    assert stop_stages(urgency, Deadlines()) == stages


@pytest.mark.parametrize("urgency", Urgency)
def test_the_stages_follow_the_settings_and_always_end_with_a_kill(urgency: Urgency) -> None:
    limits = Deadlines(fast_stop=1, quit_stop=2, signal_stop=3, signal_kill=4)
    *stages, last = stop_stages(urgency, limits)
    assert last == Stage(KILL, FOREVER, forced=True)
    assert {stage.patience_seconds for stage in stages} <= {1, 2, 3, 4}


async def stop(
    child: ScriptedChild, urgency: Urgency, raises: Mapping[float, Urgency] | None = None
) -> tuple[Exit, float]:
    """Stop a child while the urgency rises at given seconds; return the exit and how long it took."""
    cell, began = Cell(urgency), trio.current_time()

    async def raise_at(seconds: float, degree: Urgency) -> None:
        await trio.sleep(seconds)
        cell.set(degree)

    async with trio.open_nursery() as nursery:
        for seconds, degree in (raises or {}).items():
            nursery.start_soon(raise_at, seconds, degree)
        result = await stop_child(child, cell, Deadlines())
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    return result, took


async def test_a_postgres_that_obeys_is_asked_once(autojump_clock: MockClock) -> None:
    child = ScriptedChild({INT: (2.5, 0)})
    assert await stop(child, Urgency.CALM) == (Exit(0, forced=False), 2.5)
    assert child.received == [(0, INT)]


async def test_its_own_exit_code_is_reported(autojump_clock: MockClock) -> None:
    assert await stop(ScriptedChild({INT: (0, 7)}), Urgency.CALM) == (Exit(7, forced=False), 0)


async def test_one_that_ignores_the_request_is_told_to_quit_after_a_minute(autojump_clock: MockClock) -> None:
    child = ScriptedChild({QUIT: (1, 2)})
    assert await stop(child, Urgency.CALM) == (Exit(2, forced=True), 61)
    assert child.received == [(0, INT), (60, QUIT)]


async def test_one_that_ignores_everything_is_killed(autojump_clock: MockClock) -> None:
    """F-14."""
    child = ScriptedChild({KILL: (0, -9)})
    assert await stop(child, Urgency.CALM) == (Exit(-9, forced=True), 65)
    assert child.received == [(0, INT), (60, QUIT), (65, KILL)]


async def test_one_that_obeys_late_but_in_time_is_not_forced(autojump_clock: MockClock) -> None:
    assert await stop(ScriptedChild({INT: (59.9, 0)}), Urgency.CALM) == (Exit(0, forced=False), 59.9)


async def test_after_a_failed_start_it_quits_at_once_and_that_is_no_force(autojump_clock: MockClock) -> None:
    child = ScriptedChild({QUIT: (1, 0)})
    assert await stop(child, Urgency.START_FAILED) == (Exit(0, forced=False), 1)
    assert child.received == [(0, QUIT)]


async def test_a_failed_start_that_does_not_quit_is_killed_after_5_s(autojump_clock: MockClock) -> None:
    """02 §6, D-14."""
    child = ScriptedChild({KILL: (0, -9)})
    assert await stop(child, Urgency.START_FAILED) == (Exit(-9, forced=True), 5)
    assert child.received == [(0, QUIT), (5, KILL)]


async def test_a_signal_waits_8_s_then_quits_then_kills_1_s_later(autojump_clock: MockClock) -> None:
    """02 §10.2, D-18."""
    child = ScriptedChild({KILL: (0, -9)})
    assert await stop(child, Urgency.PRESSED) == (Exit(-9, forced=True), 9)
    assert child.received == [(0, INT), (8, QUIT), (9, KILL)]


async def test_a_second_signal_leaves_one_second(autojump_clock: MockClock) -> None:
    child = ScriptedChild({KILL: (0, -9)})
    assert await stop(child, Urgency.FORCED) == (Exit(-9, forced=True), 1)
    assert child.received == [(0, QUIT), (1, KILL)]


async def test_an_urgency_that_rises_shortens_what_is_left(autojump_clock: MockClock) -> None:
    child = ScriptedChild({KILL: (0, -9)})
    assert await stop(child, Urgency.CALM, {20: Urgency.PRESSED}) == (Exit(-9, forced=True), 29)
    assert child.received == [(0, INT), (20, INT), (28, QUIT), (29, KILL)]


async def test_an_urgency_that_rises_twice_ends_in_force(autojump_clock: MockClock) -> None:
    child = ScriptedChild({KILL: (0, -9)})
    raises = {20: Urgency.PRESSED, 22: Urgency.FORCED}
    assert await stop(child, Urgency.CALM, raises) == (Exit(-9, forced=True), 23)
    assert child.received == [(0, INT), (20, INT), (22, QUIT), (23, KILL)]


async def test_force_once_used_is_not_forgotten_when_the_urgency_rises(autojump_clock: MockClock) -> None:
    child = ScriptedChild({QUIT: (3, 0)})
    result, took = await stop(child, Urgency.CALM, {61: Urgency.PRESSED})
    assert (result, took) == (Exit(0, forced=True), 63)


async def test_an_urgency_that_rises_makes_no_difference_to_one_that_obeys(autojump_clock: MockClock) -> None:
    child = ScriptedChild({INT: (3, 0)})
    assert await stop(child, Urgency.CALM, {1: Urgency.PRESSED}) == (Exit(0, forced=False), 3)


async def test_one_that_ended_already_is_sent_nothing(autojump_clock: MockClock) -> None:
    child = ScriptedChild({})
    child.returncode = 3
    assert await stop(child, Urgency.FORCED) == (Exit(3, forced=False), 0)
    assert child.received == []


async def test_one_whose_urgency_rose_before_the_stop_gets_the_stages_of_the_present_one(
    autojump_clock: MockClock,
) -> None:
    child = ScriptedChild({KILL: (0.25, -9)})
    result, took = await stop(child, Urgency.PRESSED, {0: Urgency.FORCED})
    assert result == Exit(-9, forced=True)
    assert took == 1.25
