"""What happens to a compute, told to whoever looks on (`GET /events`)."""

from __future__ import annotations

import datetime as dt
from collections import deque
from typing import Any

from msgspec import Struct

from trio_compute.lifecycle.cell import Cell

CAPACITY = 512


class Notice(Struct, frozen=True):
    """Hold one thing that happened; numbers rise by one."""

    number: int
    at: dt.datetime
    kind: str
    data: dict[str, Any]


class Feed:
    """Keep the newest notices and hand them to any number of followers, none of whom can hold up the others."""

    def __init__(self) -> None:
        self._notices: deque[Notice] = deque(maxlen=CAPACITY)
        self._newest = Cell[int](0)
        self._closed = False

    @property
    def newest(self) -> int:
        """Return the number of the newest notice; 0 if there is none."""
        return self._newest.value

    def publish(self, kind: str, data: dict[str, Any]) -> None:
        """Tell all followers; only what may be shown to an operator belongs into `data`."""
        if not self._closed:
            number = self.newest + 1
            self._notices.append(Notice(number, dt.datetime.now(dt.UTC), kind, data))
            self._newest.set(number)

    def close(self) -> None:
        """Let every follower end once it has got what there is."""
        self._closed = True
        self._newest.set(self.newest)

    @property
    def closed(self) -> bool:
        """Tell whether nothing more will happen."""
        return self._closed

    def behind(self, number: int) -> list[Notice]:
        """Return the notices behind a number, as far as they are still known."""
        return [notice for notice in self._notices if notice.number > number]

    async def more_than(self, number: int) -> None:
        """Wait until there is a notice behind a number, or there never will be one."""
        await self._newest.wait_for(lambda newest: newest > number or self._closed)
