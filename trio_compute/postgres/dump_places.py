"""How many dumps work at once; one that waits for somebody else, a lock or its reader, does not count (T-13)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import trio

from trio_compute.errors import PostgresError, cause_chain
from trio_compute.telemetry.logging import get_logger

# A dump that works takes a processor, one that waits a process.
DUMPS_AT_WORK = 4
DUMPS_IN_ALL = 32
LOOK_SECONDS = 0.25

log = get_logger("schema_dump")

Look = Callable[[Collection[str]], Awaitable[set[str]]]


class DumpPlaces:
    """Hand out places to dumps by their names, in the order in which they come.

    While somebody waits for a place, `look` is asked which of those that have one wait for a lock.
    """

    def __init__(self, look: Look, *, at_work: int = DUMPS_AT_WORK, in_all: int = DUMPS_IN_ALL) -> None:
        self._look, self._at_work = look, at_work
        self._holders: set[str] = set()
        self._in_all = trio.Semaphore(in_all)
        self._door = trio.Lock()
        self._left = trio.Event()

    @property
    def queue_length(self) -> int:
        """Return how many dumps wait for a place."""
        waiting = self._door.statistics().tasks_waiting + int(self._door.locked())
        return waiting + self._in_all.statistics().tasks_waiting

    async def enter(self, name: str) -> None:
        """Wait for a place; whoever got one must say `leave` and `end`."""
        await self._in_all.acquire()
        try:
            async with self._door:
                while len(self._holders) >= self._at_work:
                    await self._wait_for_room()
                self._holders.add(name)
        except BaseException:
            self._in_all.release()
            raise

    def leave(self, name: str) -> None:
        """Give the place to another, though the dump goes on: it only waits, or is read."""
        if name in self._holders:
            self._holders.discard(name)
            self._left.set()

    def end(self, name: str) -> None:
        """Say that the dump is over."""
        self.leave(name)
        self._in_all.release()

    async def _wait_for_room(self) -> None:
        self._left = trio.Event()
        with trio.move_on_after(LOOK_SECONDS):
            await self._left.wait()
            return
        try:
            waiting = await self._look(tuple(self._holders))
        except PostgresError as error:  # then nobody knows, and the limits of the dumps decide
            log.info("whether dumps wait for locks is not known", error=cause_chain(error))
            return
        for name in waiting:
            self.leave(name)
