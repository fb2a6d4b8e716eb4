"""Stop signals that arrive before Trio runs or after it has ended: remembered instead of killing the process midway.

As PID 1 the kernel would drop them, elsewhere it would end us with the wrong exit code.
"""

from __future__ import annotations

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)

pending: list[int] = []


def remember_stop_signals() -> None:
    """Install handlers that only take note; the relay takes over once it runs and looks at what was noted."""
    for sig in STOP_SIGNALS:
        signal.signal(sig, _note)


def _note(number: int, _frame: FrameType | None) -> None:
    pending.append(number)


def ignore_stop_signals() -> None:
    """Let no stop signal end the process any more, once its exit code is decided (contract 11 Q-13).

    The interpreter would give them their default action back on its way out.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
