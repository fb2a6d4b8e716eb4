"""The relay from operating system signals to the state (contract 02 §10.2)."""

from __future__ import annotations

import signal

import trio

from trio_compute.host import early_signals
from trio_compute.lifecycle.compute import Compute
from trio_compute.telemetry.logging import get_logger

log = get_logger("signals")


async def relay_signals(compute: Compute, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Turn stop signals into requests for ever; the second one forces the end."""
    with trio.open_signal_receiver(*early_signals.STOP_SIGNALS) as arrivals:
        task_status.started()
        if early_signals.pending:
            log.info("stop signal", signal=signal.Signals(early_signals.pending[0]).name, early=True)
            compute.request_stop()
        async for number in arrivals:
            log.info("stop signal", signal=signal.Signals(number).name)
            compute.request_stop()
