"""PID 1 reaps what it inherits and never what somebody here waits for (design §9)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio

from trio_compute.host.process import run_command
from trio_compute.host.reaper import OwnChildren, own_children, reap_foreign_zombies, reap_orphans
from trio_compute.host.run_as import RunAs


@pytest.fixture
def zombies() -> Iterator[list[int]]:
    """Collect pids, and reap at the end what the test did not."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if is_child(pid):
            os.waitpid(pid, 0)


def start(command: str, zombies: list[int]) -> int:
    """Start a child that nobody here waits for."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", command], {})
    zombies.append(pid)
    return pid


def zombie(code: int, zombies: list[int]) -> int:
    """Return the pid of a child that has ended with this code and that nobody has reaped."""
    pid = start(f"exit {code}", zombies)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def is_child(pid: int) -> bool:
    """Tell whether the pid is still a child of ours, reaped by nobody."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_orphans_are_reaped(zombies: list[int]) -> None:
    pids = [zombie(code, zombies) for code in (0, 3, 7)]
    assert reap_foreign_zombies(OwnChildren()) is True
    assert not any(map(is_child, pids))


def test_without_children_there_is_nothing_to_do() -> None:
    assert reap_foreign_zombies(OwnChildren()) is True


def test_the_status_of_an_own_child_is_left_for_its_waiter(zombies: list[int]) -> None:
    own, pid = OwnChildren(), zombie(7, zombies)
    own.add(pid)
    assert reap_foreign_zombies(own) is False
    assert code_of(pid) == 7


def test_an_orphan_behind_an_own_zombie_is_reaped_later(zombies: list[int]) -> None:
    own, mine, orphan = OwnChildren(), zombie(7, zombies), zombie(3, zombies)
    own.add(mine)
    reap_foreign_zombies(own)
    assert code_of(mine) == 7
    own.discard(mine)
    assert reap_foreign_zombies(own) is True
    assert not is_child(orphan)


def test_nothing_is_reaped_while_a_child_is_being_started(zombies: list[int]) -> None:
    """Its pid is not known yet, so any zombie might be it."""
    own, pid = OwnChildren(), zombie(7, zombies)
    with own.spawning(), ExitStack() as other:
        other.enter_context(own.spawning())
        assert reap_foreign_zombies(own) is False
        other.close()
        assert reap_foreign_zombies(own) is False
        own.add(pid)
    assert own.settled
    assert code_of(pid) == 7


def test_a_start_that_fails_does_not_hold_the_reaper_off_for_ever() -> None:
    own = OwnChildren()
    with pytest.raises(OSError, match="no"), own.spawning():
        raise OSError("no")
    assert own.settled


def test_a_running_child_is_not_waited_for(zombies: list[int]) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    pid = os.posix_spawn(
        "/bin/cat", ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_CLOSE, writing)]
    )
    zombies.append(pid)
    assert reap_foreign_zombies(OwnChildren()) is True
    assert is_child(pid)
    os.close(writing)
    os.close(reading)


def test_children_can_be_claimed_and_given_up() -> None:
    own = OwnChildren()
    own.add(5)
    own.add(6)
    assert 5 in own
    assert len(own) == 2
    own.discard(5)
    own.discard(5)
    assert 5 not in own


async def test_the_task_reaps_orphans_and_lets_own_commands_keep_their_codes(zombies: list[int]) -> None:
    """Design §9: waitpid(-1) stole statuses, so that 7 was seen as 0."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_orphans)
        for code in (0, 7, 42):
            orphan = start("exit 1", zombies)
            output = await run_command(["/bin/sh", "-c", f"exit {code}"], environ={}, run_as=RunAs())
            assert output.returncode == code
            with trio.fail_after(3):
                while is_child(orphan):
                    await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    assert len(own_children) == 0
