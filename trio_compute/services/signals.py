"""The relay from operating system signals to the state (contract 02 §10.2)."""

from __future__ import annotations

import signal

import trio

from trio_compute.lifecycle.compute import Compute
from trio_compute.telemetry.logging import get_logger

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)

log = get_logger("signals")


async def relay_signals(compute: Compute, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Turn stop signals into requests for ever; the second one forces the end."""
    with trio.open_signal_receiver(*STOP_SIGNALS) as arrivals:
        task_status.started()
        async for number in arrivals:
            log.info("stop signal", signal=signal.Signals(number).name)
            compute.request_stop()
