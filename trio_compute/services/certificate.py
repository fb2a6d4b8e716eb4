"""Notice a renewed certificate (contract 02 §9, 04 §7, F-28)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from trio_compute.errors import HostError
from trio_compute.model.spec import TlsConfig
from trio_compute.postgres.certificate import read_key_pair, read_limited
from trio_compute.telemetry.logging import get_logger

POLL_SECONDS = 60.0

log = get_logger("certificate")


async def watch_certificate(
    in_use: Callable[[], TlsConfig | None],
    installed: Path,
    renew: Callable[[], Awaitable[object]],
    *,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Call `renew` when the certificate in use differs from the installed copy; runs until cancelled.

    The copy is what a file is compared with, so nothing happens after a start without a change, and what could not be
    installed is tried again at the next look. `in_use` returns None while Postgres serves no TLS. A certificate whose
    key does not belong to it is only logged: the other file may not be renewed yet.
    """
    problem: str | None = None
    while True:
        await trio.sleep(poll_seconds)
        tls = in_use()
        if tls is None:
            continue
        try:
            is_renewed = await trio.to_thread.run_sync(_is_renewed, tls, installed, abandon_on_cancel=True)
            if is_renewed:
                log.info("the certificate was renewed")
                await renew()
            problem = None
        except HostError as error:
            # Once, not every minute.
            if str(error) != problem:
                log.warning("cannot renew the certificate yet", error=error)
            problem = str(error)


def _is_renewed(tls: TlsConfig, installed: Path) -> bool:
    """Tell whether there is a new pair; blocking. Raises HostError if it cannot be used."""
    # Before anything was installed there is nothing to renew.
    if not installed.is_file() or read_limited(Path(tls.cert_path)) == read_limited(installed):
        return False
    read_key_pair(tls)
    return True
