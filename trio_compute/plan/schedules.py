"""When to try again, as pure sequences of seconds (contract 02 §4.1, 07 §4.8 and §7, 06 R-18)."""

from __future__ import annotations

BASEBACKUP_RETRIES = 10
SYNC_SAFEKEEPERS_ATTEMPTS = 6
CONTROL_PLANE_ATTEMPTS = 3
CONTROL_PLANE_PAUSE_SECONDS = 0.1
EXTENSION_PAUSES_SECONDS = (0.2, 1.0)


def basebackup_delays(retries: int = BASEBACKUP_RETRIES) -> tuple[float, ...]:
    """Return the pause before each retry: 0.5 s growing by half, whole milliseconds; no float holds 1.5 to the 2000."""
    return tuple(int(500 * 1.5 ** min(number, 50)) / 1000 for number in range(retries))


def sync_safekeepers_delays() -> tuple[float, ...]:
    """Return the pause after each failed attempt but the last: 0, then 1.1 to the power of its number, at most 3 s."""
    return tuple(0.0 if n == 0 else round(min(1.1**n, 3.0), 4) for n in range(SYNC_SAFEKEEPERS_ATTEMPTS - 1))
