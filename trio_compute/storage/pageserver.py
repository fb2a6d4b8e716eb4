"""Fetch a basebackup: one connection, one worker thread, constant memory (contract 07 §4)."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from trio_compute.db.target import Target
from trio_compute.deadlines import Deadlines
from trio_compute.errors import SpecError, StorageError
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import INVALID_LSN, Lsn
from trio_compute.model.parsed import ParsedSpec, shard_zero_url
from trio_compute.model.spec import PageserverProtocol
from trio_compute.storage.interruptible import Inflow, run_interruptible
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.spans import Recorder

if TYPE_CHECKING:
    import psycopg
    from psycopg.pq.abc import PGconn

Chunk = bytes | bytearray | memoryview

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
    """Unpack one basebackup into PGDATA; raise SpecError, StorageError or HostError if it is not right."""
    if parsed.pageservers.prefer_protocol is PageserverProtocol.GRPC:
        from trio_compute.storage.grpc_pageserver import fetch_over_grpc as fetch
    else:
        fetch = fetch_over_libpq
    return await fetch(parsed, pgdata, lsn, run_as=run_as, spans=spans, deadlines=deadlines)


async def fetch_over_libpq(
    parsed: ParsedSpec, pgdata: Path, lsn: Lsn, *, run_as: RunAs, spans: Recorder, deadlines: Deadlines
) -> Received:
    """Do what `fetch_basebackup` does, over libpq (contract 07 §4)."""
    from trio_compute.db.connection import ConnectFailed, open_connection

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
        raise SpecError(f"pageserver connection string: {error}") from None
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
        self._inflow = Inflow()
        # A duplicate: shutting it down ends the thread's wait whatever has become of the original descriptor.
        self._handle = socket.socket(fileno=os.dup(pgconn.socket))

    async def run(self, *, idle_seconds: float) -> Received:
        with self._handle:
            return await run_interruptible(self._pump, self._interrupt, inflow=self._inflow, idle_seconds=idle_seconds)

    def _interrupt(self) -> None:
        try:
            self._handle.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("pageserver socket is already down", error=error.strerror)

    def _pump(self) -> Received:
        import psycopg

        try:
            with psycopg.Connection(self._pgconn) as connection, closing(self._chunks(connection)) as chunks:
                connection.set_autocommit(True)
                return receive_basebackup(chunks, self._inflow, self._pgdata, self._run_as)
        except psycopg.Error as error:
            raise StorageError(f"pageserver: {brief(error)}") from None

    def _chunks(self, connection: psycopg.Connection) -> Generator[Chunk, None, None]:
        """Yield the copy data; leaving the copy checks that the server was content to the very end (S-07)."""
        with connection.cursor() as cursor, cursor.copy(self._command) as copy:
            try:
                yield from copy
            except GeneratorExit:
                # Whoever stops reading has failed, and psycopg would still wait for the rest, which may never come.
                self._pgconn.finish()
                raise


def receive_basebackup(chunks: Iterable[Chunk], inflow: Inflow, pgdata: Path, run_as: RunAs) -> Received:
    """Unpack the chunks of a basebackup to their end and check what came; blocking."""
    from trio_compute.postgres.unpack import Unpacker, check_complete

    with Unpacker(pgdata, owner=run_as.owner) as unpacker:
        for chunk in chunks:
            inflow.received_bytes += len(chunk)
            unpacker.feed(memoryview(chunk))
        summary = unpacker.finish()
    check_complete(pgdata)
    return Received(compressed_bytes=inflow.received_bytes, files=summary.files)
