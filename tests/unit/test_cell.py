"""A value that tasks can wait on: level-triggered, nothing missed, nothing left behind."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trio_compute.lifecycle.cell import Cell


async def wait_into(cell: Cell[int], wanted: int, seen: list[int]) -> None:
    seen.append(await cell.wait_for(lambda value: value >= wanted))


async def test_a_predicate_that_is_already_true_returns_the_present_value() -> None:
    with trio.fail_after(1):
        assert await Cell(5).wait_for(lambda value: value == 5) == 5


async def test_waiting_is_a_checkpoint_even_when_the_predicate_is_true() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await Cell(5).wait_for(lambda _: True)
    assert scope.cancelled_caught


async def test_the_present_value_is_returned_even_if_it_changes_while_the_waiter_yields() -> None:
    """02 D-11: a quick change of status must not hide the one that was waited for."""
    for _ in range(20):  # Trio chooses the order of the two tasks by chance
        cell, asked = Cell(5), trio.Event()

        async def change(cell: Cell[int], asked: trio.Event) -> None:
            await asked.wait()
            cell.set(6)

        def predicate(value: int, asked: trio.Event = asked) -> bool:
            asked.set()
            return value == 5

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, cell, asked)
            await trio.testing.wait_all_tasks_blocked()
            assert await cell.wait_for(predicate) == 5


async def test_a_value_that_is_held_only_for_an_instant_is_seen() -> None:
    cell, seen = Cell(0), list[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_into, cell, 1, seen)
        await trio.testing.wait_all_tasks_blocked()
        cell.set(1)
        cell.set(0)
    assert seen == [1]
    assert cell.value == 0


async def test_the_first_matching_value_wakes_each_waiter_once() -> None:
    cell, seen = Cell(0), list[int]()
    async with trio.open_nursery() as nursery:
        for wanted in (2, 1, 3):
            nursery.start_soon(wait_into, cell, wanted, seen)
        await trio.testing.wait_all_tasks_blocked()
        for value in (1, 2, 3, 4):
            cell.set(value)
    assert sorted(seen) == [1, 2, 3]


async def test_values_that_do_not_match_wake_nobody() -> None:
    cell, seen = Cell(0), list[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_into, cell, 5, seen)
        for value in range(5):
            cell.set(value)
            await trio.testing.wait_all_tasks_blocked()
        assert seen == []
        cell.set(7)
    assert seen == [7]


async def test_a_cancelled_waiter_is_forgotten() -> None:
    asked: list[int] = []
    cell = Cell(0)

    def predicate(value: int) -> bool:
        asked.append(value)
        return False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cell.wait_for, predicate)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    asked.clear()
    cell.set(1)
    assert asked == []


async def test_a_waiter_that_is_cancelled_after_it_was_woken_still_gets_its_value() -> None:
    cell, seen = Cell(0), list[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_into, cell, 1, seen)
        await trio.testing.wait_all_tasks_blocked()
        cell.set(1)
        nursery.cancel_scope.cancel()
    assert seen == [1]


async def test_a_task_may_wait_again_and_again() -> None:
    cell, seen = Cell(0), list[int]()

    async def wait_thrice() -> None:
        for wanted in (1, 2, 3):
            await wait_into(cell, wanted, seen)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_thrice)
        for value in (1, 2, 3):
            await trio.testing.wait_all_tasks_blocked()
            cell.set(value)
    assert seen == [1, 2, 3]


async def test_an_error_in_a_predicate_of_a_waiter_reaches_that_waiter() -> None:
    with pytest.raises(ZeroDivisionError):
        await Cell(0).wait_for(lambda value: 1 // value > 0)
