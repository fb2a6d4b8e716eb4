"""Stop the postmaster in stages, each with its own patience (contract 02 §10, 04 F-14)."""

from __future__ import annotations

import signal

import trio
from msgspec import Struct

from trio_compute.deadlines import Deadlines
from trio_compute.host.process import Child
from trio_compute.lifecycle.cell import Cell
from trio_compute.lifecycle.ending import Exit, Urgency
from trio_compute.telemetry.logging import get_logger

log = get_logger("postmaster")


class Stage(Struct, frozen=True):
    """Hold one signal and how many seconds to wait for its effect."""

    signal: signal.Signals
    patience_seconds: float
    forced: bool = False


def stop_stages(urgency: Urgency, deadlines: Deadlines) -> tuple[Stage, ...]:
    """Return what to send and how long to wait, for a degree of urgency; the last stage is always SIGKILL."""
    kill = Stage(signal.SIGKILL, float("inf"), forced=True)
    match urgency:
        case Urgency.CALM:
            ask = Stage(signal.SIGINT, deadlines.fast_stop)
            return (ask, Stage(signal.SIGQUIT, deadlines.quit_stop, forced=True), kill)
        case Urgency.START_FAILED:
            return (Stage(signal.SIGQUIT, deadlines.quit_stop), kill)
        case Urgency.PRESSED:
            ask = Stage(signal.SIGINT, deadlines.signal_stop)
            return (ask, Stage(signal.SIGQUIT, deadlines.signal_kill, forced=True), kill)
        case Urgency.FORCED:
            return (Stage(signal.SIGQUIT, deadlines.signal_kill, forced=True), kill)


async def stop_child(child: Child, urgency: Cell[Urgency], deadlines: Deadlines) -> Exit:
    """Stop and reap a postmaster; when the urgency rises meanwhile, go on with the stages of the new degree."""
    forced = False
    while child.returncode is None:
        degree = urgency.value
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_raised, urgency, degree, nursery.cancel_scope)
            for stage in stop_stages(degree, deadlines):
                forced = forced or stage.forced
                log.info("stopping Postgres", signal=stage.signal.name, patience_seconds=stage.patience_seconds)
                child.send_signal(stage.signal)
                with trio.move_on_after(stage.patience_seconds):
                    await child.wait()
                    break
            nursery.cancel_scope.cancel()
    return Exit(child.returncode, forced)


async def _cancel_when_raised(urgency: Cell[Urgency], degree: Urgency, scope: trio.CancelScope) -> None:
    await urgency.wait_for(lambda now: now is not degree)
    scope.cancel()
