"""What can happen to a compute; each event carries what the state must remember of it."""

from __future__ import annotations

import datetime as dt

from msgspec import Struct

from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec


class Event(Struct, frozen=True, kw_only=True):
    """Be the parent of all events."""


class SpecKnown(Event, frozen=True):
    """Say that a spec came with the process: start-up begins without ever being empty (T2, D-03)."""

    spec: ParsedSpec
    at: dt.datetime


class ApplyQueued(Event, frozen=True):
    """Say that a spec arrived or a certificate changed, and waits for its turn (T3, T7, T8)."""


class StartBegan(Event, frozen=True):
    """Say that start-up took the spec that an empty compute was given (T4); the clock starts anew."""

    spec: ParsedSpec
    at: dt.datetime


class Started(Event, frozen=True):
    """Say that start-up succeeded (T5)."""


class StartFailed(Event, frozen=True):
    """Say that start-up failed (T6)."""

    error: str


class ApplyBegan(Event, frozen=True):
    """Say that the queued change is being applied (T9)."""


class Applied(Event, frozen=True):
    """Say that the change is in force (T10), but for fields that wait for a restart; `spec` becomes the current one."""

    spec: ParsedSpec
    restart_required: tuple[str, ...] = ()


class ApplyFailed(Event, frozen=True):
    """Say that the change could not be applied; the old spec stays current (T11, D-20)."""

    error: str


class Promoted(Event, frozen=True):
    """Say that Postgres is a primary now, as `spec` describes it; changes no status (08 §6.2 step 11, P-06)."""

    spec: ParsedSpec
    restart_required: tuple[str, ...] = ()


class RefreshRequested(Event, frozen=True):
    """Say that somebody asked to fetch the configuration again (T16-T18, T23)."""


class RefreshBegan(Event, frozen=True):
    """Say that the configuration is being fetched (T19)."""


class RefreshUnchanged(Event, frozen=True):
    """Say that the fetched configuration is the current one (T20a)."""


class Refreshed(Event, frozen=True):
    """Say that the fetched configuration is in force (T20b), but for fields that wait for a restart."""

    spec: ParsedSpec
    restart_required: tuple[str, ...] = ()


class RefreshFailed(Event, frozen=True):
    """Say that fetching or applying failed and will be tried again (T21)."""

    error: str


class TerminateFast(Event, frozen=True):
    """Say that termination with the 30 s linger was asked for (T12, T13)."""


class TerminateImmediate(Event, frozen=True):
    """Say that termination without the linger was asked for (T12, T13)."""


class Signalled(Event, frozen=True):
    """Say that a signal asks the process to stop (T24)."""


class Crashed(Event, frozen=True):
    """Say that a task the compute cannot live without died of a defect (contract 02 §12.1)."""

    error: str


class Terminated(Event, frozen=True):
    """Say that Postgres is gone and the final sync is over (T14); `error` tells that the sync failed (D-16)."""

    flush_lsn: Lsn | None = None
    error: str | None = None


class Active(Event, frozen=True):
    """Say when a client was last seen; changes no status."""

    at: dt.datetime
