"""The local file cache and its endpoint storage, played on whatever clock runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_compute.errors import PostgresError
from trio_compute.model.lfc import PrewarmInfo
from trio_compute.storage.endpoint_storage import StateLocation


class FakeEndpointStorage:
    """Keep frames by URL; each step takes the seconds that `slow` says, and fails as `failures` says."""

    def __init__(self) -> None:
        self.frames: dict[str, bytes] = {}
        self.slow: dict[str, float] = {}
        self.failures: dict[str, Exception] = {}
        self.fail_next: Exception | None = None
        self.asked: list[StateLocation] = []
        self.stored_at: list[float] = []
        self.reached: dict[str, trio.Event] = {}

    async def _step(self, name: str) -> None:
        self.reached.setdefault(name, trio.Event()).set()
        await trio.sleep(self.slow.get(name, 0.001))
        if self.fail_next is not None:
            failure, self.fail_next = self.fail_next, None
            raise failure
        if name in self.failures:
            raise self.failures[name]

    async def wait_reached(self, name: str) -> None:
        await self.reached.setdefault(name, trio.Event()).wait()

    @asynccontextmanager
    async def open_state(self, location: StateLocation) -> AsyncIterator[FakeDownload | None]:
        self.asked.append(location)
        await self._step("headers")
        frame = self.frames.get(location.url)
        yield None if frame is None else FakeDownload(self, frame)

    async def put_state(self, location: StateLocation, frame: bytes) -> None:
        self.asked.append(location)
        await self._step("upload")
        self.frames[location.url] = frame
        self.stored_at.append(trio.current_time())

    async def unpack(self, frame: bytes) -> bytes:
        await self._step("unpack")
        return frame.removeprefix(b"packed ")

    async def pack(self, state: bytes) -> bytes:
        await self._step("pack")
        return b"packed " + state


class FakeDownload:
    def __init__(self, storage: FakeEndpointStorage, frame: bytes) -> None:
        self._storage = storage
        self._frame = frame

    async def body(self) -> bytes:
        await self._storage._step("body")
        return self._frame


class FakeCache:
    """Play the extension: a load takes `load_seconds` unless it is cancelled, and tells how far it is meanwhile."""

    def __init__(self) -> None:
        self.pages = 100
        self.skipped = 20
        self.load_seconds = 0.5
        self.cancel_seconds = 0.1
        self.tells_nothing = False
        self.saved: bytes | None = b"the state"
        self.loaded: list[bytes] = []
        self.failures: dict[str, Exception] = {}
        self.fail_next: Exception | None = None
        self.slow: dict[str, float] = {}
        self.purposes: list[str] = []
        self.cancels = 0
        self.sessions = 0
        self.loading = trio.Event()
        self.cancelled = trio.Event()
        self.gone = trio.Event()
        self._began: float | None = None
        self.info = PrewarmInfo()

    async def _step(self, name: str) -> None:
        await trio.sleep(self.slow.get(name, 0.001))
        if self.fail_next is not None:
            failure, self.fail_next = self.fail_next, None
            raise failure
        if name in self.failures:
            raise self.failures[name]

    @asynccontextmanager
    async def open(self, purpose: str) -> AsyncIterator[FakeCacheSession]:
        self.purposes.append(purpose)
        await self._step("connect" if purpose == "apply_config" else "connect_watch")
        self.sessions += 1
        try:
            yield FakeCacheSession(self)
        finally:
            self.sessions -= 1

    def present_info(self) -> PrewarmInfo:
        if self._began is None:
            return self.info
        done = min(self.pages - 1, int(self.pages * (trio.current_time() - self._began) / self.load_seconds))
        return PrewarmInfo(self.pages, done, 0, 0)


class FakeCacheSession:
    def __init__(self, cache: FakeCache) -> None:
        self._cache = cache

    async def load(self, state: bytes) -> bool:
        cache = self._cache
        cache._began = trio.current_time()
        cache.cancelled = trio.Event()
        cache.loading.set()
        try:
            with trio.move_on_after(cache.load_seconds) as whole:
                async with trio.open_nursery() as nursery:
                    ends = []

                    async def end_of(event: trio.Event, name: str) -> None:
                        await event.wait()
                        ends.append(name)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(end_of, cache.cancelled, "cancelled")
                    nursery.start_soon(end_of, cache.gone, "gone")
            if "gone" in ends:
                raise PostgresError("server closed the connection unexpectedly")
            if "cancelled" in ends:
                await trio.sleep(cache.cancel_seconds)
                return False
            assert whole.cancelled_caught
        finally:
            cache._began = None
        if "load" in cache.failures:
            raise cache.failures["load"]
        cache.loaded.append(state)
        if not cache.tells_nothing:
            cache.info = PrewarmInfo(cache.pages, cache.pages - cache.skipped, cache.skipped, 1)
        return True

    async def cancel(self) -> None:
        self._cache.cancels += 1
        await self._cache._step("cancel")
        self._cache.cancelled.set()

    async def info(self) -> PrewarmInfo:
        await self._cache._step("info")
        return self._cache.present_info()

    async def state(self) -> bytes | None:
        await self._cache._step("state")
        return self._cache.saved
