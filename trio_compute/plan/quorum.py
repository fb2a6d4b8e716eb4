"""Whether answers of safekeepers prove that they are in sync (contract 07 §6)."""

from __future__ import annotations

from msgspec import Struct

from trio_compute.model.ids import Lsn


class TimelineStatus(Struct, frozen=True):
    """Hold one safekeeper's positions."""

    flush_lsn: Lsn
    commit_lsn: Lsn


class Ballot:
    """Collect answers until a majority has answered, or can no longer answer."""

    def __init__(self, members: int) -> None:
        self._quorum = members // 2 + 1
        self._answers: list[TimelineStatus | None] = []
        self._failures = 0

    def answer(self, status: TimelineStatus | None) -> None:
        """Count a response; None says that the safekeeper does not know the timeline."""
        if not self.decided:
            self._answers.append(status)

    def failure(self) -> None:
        """Count a timeout, a refused connection or an SQL error."""
        if not self.decided:
            self._failures += 1

    @property
    def decided(self) -> bool:
        """Tell whether further answers no longer matter."""
        return len(self._answers) >= self._quorum or self._failures >= self._quorum

    def synced_at(self) -> Lsn | None:
        """Return the LSN that all answers agree on, or None when they do not prove sync."""
        if len(self._answers) < self._quorum:
            return None
        positions = {
            position
            for status in self._answers
            for position in ((None,) if status is None else (status.flush_lsn, status.commit_lsn))
        }
        return positions.pop() if len(positions) == 1 else None
