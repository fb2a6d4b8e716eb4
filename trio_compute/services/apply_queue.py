"""Specs waiting to be applied, each with a result of its own (contract 02 §7, D-11, D-12)."""

from __future__ import annotations

from collections import deque

import trio
from msgspec import Struct

from trio_compute.lifecycle.cell import Cell
from trio_compute.model.parsed import ParsedSpec


class Succeeded(Struct, frozen=True):
    """Say that the spec is in force."""


class Rejected(Struct, frozen=True):
    """Say why the spec is not in force."""

    error: str


class Aborted(Struct, frozen=True):
    """Say that the compute ended before the spec was applied."""


Outcome = Succeeded | Rejected | Aborted


class Job:
    """Hold one wanted spec and what became of it."""

    def __init__(self, spec: ParsedSpec) -> None:
        self.spec = spec
        self._outcome = Cell[Outcome | None](None)

    def settle(self, outcome: Outcome) -> None:
        """Set the outcome once; later ones are ignored."""
        if self._outcome.value is None:
            self._outcome.set(outcome)

    @property
    def settled(self) -> bool:
        """Tell whether the outcome is known."""
        return self._outcome.value is not None

    async def outcome(self) -> Outcome:
        """Wait for the outcome."""
        outcome = await self._outcome.wait_for(lambda outcome: outcome is not None)
        assert outcome is not None
        return outcome


class ApplyQueue:
    """Hand jobs to the one task that applies them; after `close` every job is aborted."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._present: Job | None = None
        self._closed = False
        self._arrival = trio.Event()

    def submit(self, spec: ParsedSpec) -> Job:
        """Queue a spec and return its job."""
        job = Job(spec)
        if self._closed:
            job.settle(Aborted())
        else:
            self._jobs.append(job)
            self._arrival.set()
        return job

    async def next(self) -> Job:
        """Wait for the next job and take it."""
        while not self._jobs:
            self._arrival = trio.Event()
            await self._arrival.wait()
        self._present = self._jobs.popleft()
        return self._present

    def close(self) -> None:
        """Abort the present job, unless it has its outcome, and all that wait."""
        self._closed = True
        for job in (*([self._present] if self._present else []), *self._jobs):
            job.settle(Aborted())
        self._jobs.clear()
