"""Fetch a basebackup over libpq: one connection, one worker thread, constant memory (contract 07 §4)."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from msgspec import Struct

from trio_compute.db.target import Target
from trio_compute.errors import ComputeError, SpecError, StorageError
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import INVALID_LSN, Lsn
from trio_compute.model.parsed import ParsedSpec, shard_zero_url
from trio_compute.model.spec import PageserverProtocol
from trio_compute.settings import Deadlines
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.spans import Recorder

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

IDLE_CHECK_SECONDS = 1.0

log = get_logger("pageserver")


class Received(Struct, frozen=True):
    """Say how much a basebackup brought."""

    compressed_bytes: int
    files: int


def basebackup_command(parsed: ParsedSpec, lsn: Lsn) -> str:
    """Return the command for the pageserver; LSN 0/0 asks for the newest state (contract 07 §4.2)."""
    words = ["basebackup", parsed.tenant_id, parsed.timeline_id]
    if lsn != INVALID_LSN:
        words.append(str(lsn))
    words.append("--gzip")
    if not parsed.is_primary:
        words.append("--replica")
    return " ".join(words)


async def fetch_basebackup(
    parsed: ParsedSpec, pgdata: Path, lsn: Lsn, *, run_as: RunAs, spans: Recorder, deadlines: Deadlines
) -> Received:
    """Unpack one basebackup into PGDATA; raise StorageError or HostError when anything about it is not right."""
    from trio_compute.db.connection import ConnectFailed, open_connection

    if parsed.pageservers.prefer_protocol is PageserverProtocol.GRPC:
        raise StorageError("basebackup over gRPC is not supported yet; set prefer_protocol to libpq")
    target = _target(parsed)
    connecting = spans.now()
    try:
        async with open_connection(target, connect_timeout_seconds=deadlines.pageserver_connect) as connection:
            spans.add("basebackup.connect", start_seconds=connecting)
            pump = _Pump(connection.pgconn, basebackup_command(parsed, lsn), pgdata, run_as)
            with spans.measure("basebackup.unpack"):
                return await pump.run(idle_seconds=deadlines.pageserver_idle)
    except ConnectFailed as error:
        raise StorageError(f"cannot connect to pageserver: {brief(error)}") from None


def _target(parsed: ParsedSpec) -> Target:
    try:
        target = Target.parse(shard_zero_url(parsed.pageservers))
    except SpecError as error:
        raise StorageError(f"pageserver connection string: {error}") from None
    changes = {"application_name": "compute_ctl", "options": f"-c neon.compute_mode={parsed.mode}"}
    if parsed.spec.storage_auth_token is not None:
        changes["password"] = parsed.spec.storage_auth_token
    return target.replace(**changes)


class _Pump:
    """Move copy data from a connection into an unpacker, in a worker thread that can be interrupted."""

    def __init__(self, pgconn: PGconn, command: str, pgdata: Path, run_as: RunAs) -> None:
        self._pgconn = pgconn
        self._command = command
        self._pgdata = pgdata
        self._run_as = run_as
        self._received_bytes = 0
        self._stalled = False
        # A duplicate: shutting it down ends the thread's wait whatever has become of the original descriptor.
        self._handle = socket.socket(fileno=os.dup(pgconn.socket))

    async def run(self, *, idle_seconds: float) -> Received:
        failure: ComputeError | None = None
        received = Received(compressed_bytes=0, files=0)
        with self._handle:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._interrupt_when_cancelled)
                nursery.start_soon(self._interrupt_when_idle, idle_seconds)
                try:
                    received = await trio.to_thread.run_sync(self._pump)
                except ComputeError as error:
                    failure = error
                nursery.cancel_scope.cancel()
        if self._stalled:
            raise StorageError(f"pageserver sent nothing for {idle_seconds:.0f} s")
        if failure is not None:
            raise failure
        return received

    def _interrupt(self) -> None:
        try:
            self._handle.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("pageserver socket is already down", error=error.strerror)

    async def _interrupt_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._interrupt()

    async def _interrupt_when_idle(self, idle_seconds: float) -> None:
        seen, since = 0, trio.current_time()
        while trio.current_time() - since < idle_seconds:
            await trio.sleep(min(IDLE_CHECK_SECONDS, idle_seconds))
            if self._received_bytes != seen:
                seen, since = self._received_bytes, trio.current_time()
        self._stalled = True
        self._interrupt()

    def _pump(self) -> Received:
        import psycopg

        from trio_compute.postgres.unpack import Unpacker, check_complete

        try:
            with (
                psycopg.Connection(self._pgconn) as connection,
                Unpacker(self._pgdata, owner=self._run_as.owner) as unpacker,
            ):
                connection.set_autocommit(True)
                with connection.cursor() as cursor, cursor.copy(self._command) as copy:
                    for data in copy:
                        self._received_bytes += len(data)
                        unpacker.feed(bytes(data))
                summary = unpacker.finish()
        except psycopg.Error as error:
            raise StorageError(f"pageserver: {brief(error)}") from None
        check_complete(self._pgdata)
        return Received(compressed_bytes=self._received_bytes, files=summary.files)
