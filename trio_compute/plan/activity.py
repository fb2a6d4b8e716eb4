"""When a compute was last used, judged from one look at its Postgres, and how long Postgres was down (06 §2)."""

from __future__ import annotations

import datetime as dt

from msgspec import Struct, structs

from trio_compute.model.catalog_rules import SUPERUSER

WALPROPOSER = "walproposer"


class Exclusions(Struct, frozen=True):
    """Name whose sessions are no activity (R-07): ours always, others as the operator says."""

    users: tuple[str, ...] = (SUPERUSER,)
    applications: tuple[str, ...] = ()
    sender_applications: tuple[str, ...] = (WALPROPOSER,)

    @classmethod
    def of(cls, users: tuple[str, ...], applications: tuple[str, ...]) -> Exclusions:
        """Return the defaults with an operator's users and applications added."""
        return cls((SUPERUSER, *users), applications, (WALPROPOSER, *applications))


class Statistics(Struct, frozen=True):
    """Hold what all sessions of all databases but Postgres' own add up to; only ever compared."""

    active_time: float
    sessions: int


class Observation(Struct, frozen=True, kw_only=True):
    """Hold what one look at Postgres found; `now` and `idle_since` are its own clock's, in UTC.

    `statistics` is None unless they were asked for and could be read (R-01).
    """

    now: dt.datetime
    busy_sessions: int = 0
    idle_since: dt.datetime | None = None
    wal_senders: int = 0
    subscriptions: int = 0
    autovacuum_workers: int = 0
    statistics: Statistics | None = None

    @property
    def active_sessions(self) -> int:
        """Return how many sessions work now, replication included; one that is connected and idle does not."""
        return self.busy_sessions + self.wal_senders + self.subscriptions


def last_activity(
    seen: Observation, before: dt.datetime | None, statistics_before: Statistics | None
) -> dt.datetime | None:
    """Return when clients were last active, by the first rule of 06 §2.2 that tells; `before` if none does."""
    if seen.statistics is not None and statistics_before is not None and seen.statistics != statistics_before:
        return seen.now
    # A clock that was set back leaves sessions that became idle in the future.
    idle_since = None if seen.idle_since is None else min(seen.idle_since, seen.now)
    candidate = seen.now if seen.busy_sessions else idle_since
    if candidate is not None and (before is None or candidate > before):
        return candidate
    if seen.wal_senders or seen.subscriptions or seen.autovacuum_workers:
        return seen.now
    return before


class Uptime(Struct, frozen=True, kw_only=True):
    """Hold since when Postgres does not answer, and for how long it did not in all, on a monotonic clock (R-04).

    Seconds; `up_at` is when it answered last, `looked_at` when the last round ended. Both begin with monitoring.
    """

    up_at: float
    looked_at: float
    down_seconds: float = 0.0
    is_down: bool = False

    @classmethod
    def since(cls, now: float) -> Uptime:
        """Return the reference for monitoring that begins now."""
        return cls(up_at=now, looked_at=now)

    @property
    def current_ms(self) -> float:
        """Return for how long Postgres has not answered, 0 if it does."""
        return (self.looked_at - self.up_at) * 1000 if self.is_down else 0.0

    @property
    def total_ms(self) -> int:
        """Return for how long Postgres did not answer in all."""
        return int(self.down_seconds * 1000)


def answered(uptime: Uptime, now: float) -> Uptime:
    """Return the uptime after a round in which Postgres answered."""
    return structs.replace(uptime, up_at=now, looked_at=max(now, uptime.looked_at), is_down=False)


def silent(uptime: Uptime, now: float) -> Uptime:
    """Return the uptime after a round in which it did not: all the time since the previous round counts."""
    now = max(now, uptime.looked_at)
    down_seconds = uptime.down_seconds + now - uptime.looked_at
    return structs.replace(uptime, looked_at=now, down_seconds=down_seconds, is_down=True)
