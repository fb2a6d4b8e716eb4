"""Children of a nursery with a name and a policy (contract 02 §12.1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from trio_compute.errors import cause_chain
from trio_compute.lifecycle.compute import Compute
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.redaction import redact

T = TypeVar("T")

log = get_logger("supervise")


async def critical(compute: Compute, name: str, function: Callable[..., Awaitable[object]], *args: Any) -> None:
    """Run a task that the compute cannot live without; if it dies of an error, the compute fails and ends."""
    try:
        await function(*args)
    except Exception as error:  # noqa: BLE001  (the one place where a defect becomes an orderly end)
        text = redact(f"{name} failed: {cause_chain(error)}")
        log.error("critical task failed", task=name, error=text, where=_where(error))
        compute.crash(text)


async def best_effort(name: str, function: Callable[..., Awaitable[object]], *args: Any) -> None:
    """Run a task whose failure is only logged."""
    try:
        await function(*args)
    except Exception as error:  # noqa: BLE001  (nothing depends on this task, so any error of it is only worth a line)
        log.warning("task failed", task=name, error=redact(cause_chain(error)))


async def run_unless(interrupted: Callable[[], Awaitable[object]], function: Callable[[], Awaitable[T]]) -> T | None:
    """Return what the function returns, or None if `interrupted` returned first and cut it short."""
    results: list[T] = []
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def interrupt() -> None:
            await interrupted()
            nursery.cancel_scope.cancel()

        nursery.start_soon(interrupt)
        try:
            results.append(await function())
        except Exception as error:  # noqa: BLE001  (raised again below, outside the nursery that would wrap it)
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return results[0] if results else None


async def run_together(*functions: Callable[[], Awaitable[object]]) -> None:
    """Run functions beside each other; the first error ends the others and is raised, not wrapped in a group."""
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def run(function: Callable[[], Awaitable[object]]) -> None:
            try:
                await function()
            except Exception as error:  # noqa: BLE001  (raised again below)
                failures.append(error)
                nursery.cancel_scope.cancel()

        for function in functions:
            nursery.start_soon(run, function)
    if failures:
        raise failures[0]


def _where(error: BaseException) -> str:
    """Return file and line of the innermost frame: enough to find a defect, too little to leak data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
