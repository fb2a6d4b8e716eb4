"""Why a compute ends and what that means: sync or not, how long to linger, which exit code (02 §6, §10, 01 §3)."""

from __future__ import annotations

import enum

from msgspec import Struct

from trio_compute.deadlines import Deadlines


class Ending(enum.Enum):
    """Say why a compute ends: a value, not a code path (design §1.2)."""

    TERMINATE_FAST = "terminate fast"
    TERMINATE_IMMEDIATE = "terminate immediate"
    SIGNAL = "signal"
    POSTGRES_EXITED = "postgres exited"
    START_FAILED = "start failed"
    CRASHED = "crashed"
    EMPTY_CONFIG = "refreshed configuration is empty"


class Urgency(enum.IntEnum):
    """Say how much patience the end still has; it only ever rises."""

    CALM = 0
    START_FAILED = 1
    PRESSED = 2
    FORCED = 3


class Exit(Struct, frozen=True):
    """Say how the postmaster ended: its code, negative for a signal, and whether we had to force it."""

    returncode: int
    forced: bool = False


_FAILURES = frozenset({Ending.START_FAILED, Ending.CRASHED, Ending.EMPTY_CONFIG})
_ASKED = frozenset({Ending.TERMINATE_FAST, Ending.TERMINATE_IMMEDIATE, Ending.SIGNAL, Ending.EMPTY_CONFIG})


def asked_for(ending: Ending | None) -> bool:
    """Tell whether somebody wanted this end, so that the neighbours of Postgres must stop too (02 §10.1)."""
    return ending in _ASKED


def needs_final_sync(ending: Ending | None, urgency: Urgency, *, postgres_ran: bool, is_primary: bool) -> bool:
    """Tell whether the safekeepers must be synced after Postgres is gone: a primary that ran, unless we are pressed."""
    return postgres_ran and is_primary and urgency < Urgency.PRESSED and ending is not Ending.EMPTY_CONFIG


def linger_seconds(ending: Ending | None, deadlines: Deadlines, *, had_spec: bool) -> float:
    """Return how long to keep answering after the end, so that the control plane can read the verdict."""
    match ending:
        case Ending.START_FAILED | Ending.CRASHED:
            return deadlines.linger
        case Ending.TERMINATE_FAST:
            return deadlines.linger if had_spec else deadlines.brief_linger
        case Ending.SIGNAL | Ending.EMPTY_CONFIG:
            return 0.0
        case _:
            return deadlines.brief_linger


def exit_code(ending: Ending | None, postgres: Exit | None, sync_error: str | None) -> int:
    """Return the exit code of the process: Postgres' own after an end that was asked for over HTTP or came by itself.

    After a signal 0 if Postgres stopped in order, 1 if it had to be forced; 1 after anything that failed.
    """
    if ending in _FAILURES or sync_error is not None:
        return 1
    if postgres is None:
        return 0
    if ending is Ending.SIGNAL:
        return 1 if postgres.forced else 0
    return postgres.returncode if postgres.returncode >= 0 else 1
