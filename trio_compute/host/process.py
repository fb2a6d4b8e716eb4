"""Children of this process: each one is spawned here, known to the reaper, stopped and reaped by who spawned it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import trio
from msgspec import Struct

from trio_compute.errors import HostError
from trio_compute.host.reaper import own_children
from trio_compute.host.run_as import RunAs

MAX_OUTPUT_BYTES = 1024 * 1024


class Child(Protocol):
    """Be what stopping and waiting need of a process; tests put a scripted one in its place."""

    @property
    def pid(self) -> int:
        """Return the process id."""
        ...

    @property
    def returncode(self) -> int | None:
        """Return the exit code, negative when killed by a signal, None while it runs."""
        ...

    def send_signal(self, sig: signal.Signals) -> None:
        """Send a signal; do nothing if it has ended."""
        ...

    async def wait(self) -> int:
        """Wait for the end and return the code."""
        ...


class Output(Struct, frozen=True):
    """Hold what a finished command said."""

    returncode: int
    stdout: bytes
    stderr: bytes


async def spawn(
    argv: Sequence[str],
    *,
    environ: Mapping[str, str],
    run_as: RunAs,
    stdout: int | None = None,
    stderr: int | None = subprocess.PIPE,
) -> trio.Process:
    """Start a child in a process group of its own; raise HostError when it cannot be executed."""
    try:
        with own_children.spawning():
            process = await trio.lowlevel.open_process(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=dict(environ),
                cwd="/",
                process_group=0,
                **run_as.process_options(),
            )
            own_children.add(process.pid)
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise HostError(f"cannot execute {argv[0]}: {reason}") from error
    return process


async def reap(process: trio.Process) -> int:
    """Wait for a child and forget it."""
    code = await process.wait()
    own_children.discard(process.pid)
    return code


async def kill_politely(process: trio.Process, *, grace_seconds: float) -> int:
    """Stop a helper child: SIGTERM, SIGKILL after the grace time, reaped in any case (02 D-49, 07 S-12)."""
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(grace_seconds):
            await reap(process)
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGKILL)
        await reap(process)
    return process.returncode or 0


def _signal_group(pid: int, sig: signal.Signals) -> None:
    try:
        os.killpg(pid, sig)
    except ProcessLookupError:
        return


async def run_command(
    argv: Sequence[str],
    *,
    environ: Mapping[str, str],
    run_as: RunAs,
    grace_seconds: float = 2.0,
    follow_stderr: Callable[[trio.abc.ReceiveStream], Awaitable[None]] | None = None,
) -> Output:
    """Run a command to its end and return its output, bounded; a cancelled one is stopped and reaped first.

    With `follow_stderr` that function reads the error stream instead, and `stderr` of the result is empty.
    """
    process = await spawn(argv, environ=environ, run_as=run_as, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = bytearray(), bytearray()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_bounded, process.stdout, stdout)
            if follow_stderr is None:
                nursery.start_soon(_read_bounded, process.stderr, stderr)
            else:
                nursery.start_soon(follow_stderr, process.stderr)
            code = await reap(process)
    finally:
        if process.returncode is None:
            await kill_politely(process, grace_seconds=grace_seconds)
        with trio.CancelScope(shield=True):
            await process.stdout.aclose()
            await process.stderr.aclose()
    return Output(code, bytes(stdout), bytes(stderr))


async def _read_bounded(stream: trio.abc.ReceiveStream, collected: bytearray) -> None:
    async for chunk in stream:
        collected += chunk[: MAX_OUTPUT_BYTES - len(collected)]
