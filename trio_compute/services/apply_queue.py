"""Changes waiting for their turn: specs, each with a result of its own, and the wish to fetch one (02 §7, §8)."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio
from msgspec import Struct

from trio_compute.lifecycle.cell import Cell
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.promotion import PromoteState
from trio_compute.plan.catalog.failures import Failure
from trio_compute.telemetry.spans import present_place

MAX_REMEMBERED_KEYS = 64


class Succeeded(Struct, frozen=True):
    """Say that the spec is in force."""


class Rejected(Struct, frozen=True):
    """Say why the spec is not in force."""

    error: str
    failures: tuple[Failure, ...] = ()


class Aborted(Struct, frozen=True):
    """Say that the compute ended before the spec was applied."""


Outcome = Succeeded | Rejected | Aborted

T = TypeVar("T")


class Pending(Generic[T]):
    """Hold one wanted change and what became of it."""

    def __init__(self, spec: ParsedSpec) -> None:
        self.spec = spec
        # Whose trace goes on when its turn has come.
        self.place = present_place()
        self._outcome = Cell[T | Aborted | None](None)

    def settle(self, outcome: T | Aborted) -> None:
        """Set the outcome once; later ones are ignored."""
        if self._outcome.value is None:
            self._outcome.set(outcome)

    @property
    def settled(self) -> bool:
        """Tell whether the outcome is known."""
        return self._outcome.value is not None

    async def outcome(self) -> T | Aborted:
        """Wait for the outcome."""
        outcome = await self._outcome.wait_for(lambda outcome: outcome is not None)
        assert outcome is not None
        return outcome


class Job(Pending[Succeeded | Rejected]):
    """Hold one wanted spec and what became of it."""


class PromotionJob(Pending[PromoteState]):
    """Hold the wish that this replica become the primary that a spec describes, once it has replayed up to an LSN."""

    def __init__(self, spec: ParsedSpec, wal_flush_lsn: Lsn) -> None:
        super().__init__(spec)
        self.wal_flush_lsn = wal_flush_lsn


class ApplyQueue:
    """Hand changes to the one task that applies them; after `close` every job is aborted."""

    def __init__(self) -> None:
        self._jobs: deque[Job | PromotionJob] = deque()
        self._present: Job | PromotionJob | None = None
        self._by_key: dict[str, Job] = {}
        self._refresh_wanted = False
        self._refresh_not_before = float("-inf")
        self._closed = False
        self._arrival = trio.Event()

    def submit(self, spec: ParsedSpec, *, key: str | None = None) -> Job:
        """Queue a spec and return its job; `key` lets a repetition of the request find it again."""
        job = Job(spec)
        self._add(job)
        if key is not None:
            self._by_key[key] = job
            while len(self._by_key) > MAX_REMEMBERED_KEYS:
                del self._by_key[next(iter(self._by_key))]
        return job

    def submit_promotion(self, spec: ParsedSpec, wal_flush_lsn: Lsn) -> PromotionJob:
        """Queue a promotion and return its job."""
        job = PromotionJob(spec, wal_flush_lsn)
        self._add(job)
        return job

    def _add(self, job: Job | PromotionJob) -> None:
        if self._closed:
            job.settle(Aborted())
        else:
            self._jobs.append(job)
            self._arrival.set()

    def known(self, key: str) -> Job | None:
        """Return the job of an earlier request with this key."""
        return self._by_key.get(key)

    def unsettled(self, spec: ParsedSpec) -> Job | None:
        """Return a job for exactly this spec that has no outcome yet."""
        waiting = (*([self._present] if self._present else []), *self._jobs)
        jobs = (job for job in waiting if isinstance(job, Job))
        return next((job for job in jobs if not job.settled and job.spec == spec), None)

    def want_refresh(self) -> None:
        """Ask for the configuration to be fetched again; asking twice is asking once (D-04)."""
        self._refresh_wanted = True
        self._arrival.set()

    def hold_refresh(self, seconds: float) -> None:
        """Let no refresh be due for a while; specs are not held."""
        self._refresh_not_before = trio.current_time() + seconds

    async def next(self) -> Job | PromotionJob | None:
        """Wait for the next change and take it: a job, or None for a refresh."""
        while not self._jobs:
            if self._refresh_wanted and trio.current_time() >= self._refresh_not_before:
                self._refresh_wanted = False
                return None
            self._arrival = trio.Event()
            with trio.move_on_at(self._refresh_not_before if self._refresh_wanted else float("inf")):
                await self._arrival.wait()
        self._present = self._jobs.popleft()
        return self._present

    def close(self) -> None:
        """Abort the present job, unless it has its outcome, and all that wait."""
        self._closed = True
        for job in (*([self._present] if self._present else []), *self._jobs):
            job.settle(Aborted())
        self._jobs.clear()
