"""A replica that can be promoted, played on whatever clock runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_compute.model.ids import Lsn
from trio_compute.plan.conf_syntax import effective_settings


class FakeReplica:
    """Hold what Postgres would: whether it is in recovery, what is replayed, what ALTER SYSTEM wrote."""

    def __init__(self) -> None:
        self.in_recovery = True
        self.replayed: Lsn | None = Lsn.parse("0/5000028")
        self.promotes = True
        self.read_only = False
        self.overrides: dict[str, str] = {}
        self.conf = ""
        self.calls: list[str] = []
        self.checked_at: list[float] = []
        self.failures: dict[str, list[Exception | None]] = {}
        self.fail_next: Exception | None = None
        self.slow: dict[str, float] = {}
        self.reached: dict[str, trio.Event] = {}

    async def wait_reached(self, name: str) -> None:
        await self.reached.setdefault(name, trio.Event()).wait()

    async def step(self, name: str) -> None:
        self.calls.append(name)
        self.reached.setdefault(name, trio.Event()).set()
        await trio.sleep(self.slow.get(name, 0.0))
        if self.fail_next is not None:
            failure, self.fail_next = self.fail_next, None
            raise failure
        script = self.failures.get(name)
        if script and (scripted := script.pop(0)) is not None:
            raise scripted

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FakePromotionSession]:
        await self.step("connect")
        yield FakePromotionSession(self)


class FakePromotionSession:
    def __init__(self, replica: FakeReplica) -> None:
        self._replica = replica

    async def replayed(self) -> Lsn | None:
        self._replica.checked_at.append(trio.current_time())
        await self._replica.step("replayed")
        return (self._replica.replayed or Lsn(0)) if self._replica.in_recovery else None

    async def override(self, name: str, value: str) -> None:
        await self._replica.step(f"set {name}")
        self._replica.overrides[name] = value

    async def reload(self, name: str, value: str) -> None:
        await self._replica.step("reload")
        assert self._replica.overrides[name] == value

    async def promote(self) -> bool:
        await self._replica.step("promote")
        if self._replica.promotes:
            self._replica.in_recovery = False
        return self._replica.promotes

    async def is_read_only(self) -> bool:
        await self._replica.step("is_read_only")
        return self._replica.read_only

    async def reset(self, *, replaced_only: bool) -> frozenset[str]:
        await self._replica.step("reset")
        has = effective_settings(self._replica.conf)
        kept = {name for name in self._replica.overrides if replaced_only and name not in has}
        self._replica.overrides = {name: self._replica.overrides[name] for name in kept}
        return frozenset(kept)
