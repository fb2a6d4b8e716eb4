"""Ending a compute only if nobody works on it, with no gap between the look and the end."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import trio

from trio_compute.errors import ComputeError, PostgresError, cause_chain
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import TERMINATION_PENDING, Status
from trio_compute.lifecycle.transitions import IllegalTransition
from trio_compute.services.life import Life

if TYPE_CHECKING:
    from trio_compute.db.activity import Watch
    from trio_compute.lifecycle.compute import Compute
    from trio_compute.postgres.postmaster import Postmaster


class IdlenessUnknown(ComputeError):
    """Report that nobody can say whether the compute is idle."""


async def end_if_idle(life: Life, *, immediate: bool) -> int:
    """Begin the end if no session works, and return 0; else return how many do, and change nothing.

    While we look, the postmaster stands still: who connects meanwhile is served afterwards, or finds the server gone
    before he could do anything. Raises IllegalTransition, IdlenessUnknown.
    """
    compute, postmaster = life.compute, life.postmaster
    event = ev.TerminateImmediate if immediate else ev.TerminateFast
    if not compute.allows(event):
        raise IllegalTransition(compute.state.status, event())
    if postmaster is None or not compute.postgres_running:
        if compute.state.status is not Status.EMPTY:
            raise IdlenessUnknown("it cannot be known whether the compute is idle: Postgres does not run")
        compute.request_termination(immediate=immediate)
        return 0
    limit = compute.settings.deadlines.idle_look
    active: int | None = None
    try:
        # Leaving the session may take long as well, when the answer is known already.
        with trio.move_on_after(limit):
            async with life.host.open_watch() as watch:
                active = await _end_unless_active(compute, postmaster, watch, immediate=immediate)
    except PostgresError as error:
        raise IdlenessUnknown(f"it cannot be known whether the compute is idle: {cause_chain(error)}") from error
    if active is None:
        raise IdlenessUnknown(f"it cannot be known whether the compute is idle: no answer within {limit:g} s")
    return active


async def _end_unless_active(compute: Compute, postmaster: Postmaster, watch: Watch, *, immediate: bool) -> int:
    with postmaster.held():
        active = (await watch.look(statistics=False)).active_sessions
        # Another request may have begun the end while we looked; then we join it.
        if active == 0 and compute.state.status not in TERMINATION_PENDING:
            compute.request_termination(immediate=immediate)
            # Before it goes on: the stop must be the next thing that it sees.
            postmaster.child.send_signal(signal.SIGINT)
        return active
