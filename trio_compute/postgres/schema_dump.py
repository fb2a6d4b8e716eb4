"""One pg_dump of a database's definitions, read while it is made (contract 06 §6, R-11, 11 T-13)."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from trio_compute.deadlines import Deadlines
from trio_compute.errors import HostError, PostgresError, TimedOut, cause_chain
from trio_compute.host.process import kill_politely, reap, spawn
from trio_compute.host.run_as import RunAs
from trio_compute.postgres.dump_places import DumpPlaces
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger

if TYPE_CHECKING:
    from trio_compute.db.target import Target

GRACE_SECONDS = 2.0
MAX_STDERR_BYTES = 16 * 1024
UTF8 = "UTF8"
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")
# What libpq and a server whose messages are in English say; pg_dump passes on no SQLSTATE.
_CONNECT_TIMEOUT = b"timeout expired"
_LOCK_TIMEOUTS = (b"canceling statement due to statement timeout", b"canceling statement due to lock timeout")

log = get_logger("schema_dump")


def dump_arguments(program: str, target: Target, deadlines: Deadlines) -> list[str]:
    """Return the command line, which everybody can read: nothing secret is in it."""
    return [
        *(program, "--host", target.host, "--port", str(target.port), "--username", target.user),
        f"--lock-wait-timeout={round(deadlines.dump_lock * 1000)}ms",
        "--schema-only",
    ]


def dump_environ(
    environ: Mapping[str, str],
    target: Target,
    database: str,
    *,
    name: str,
    options: str,
    encoding: str,
    deadlines: Deadlines,
) -> dict[str, str]:
    """Return the environment, which tells pg_dump all the rest; the name of the database is taken as it is.

    Of ours it gets what a program needs to be found and to load; `options` are those of its session.
    """
    known = target.conninfo()
    ours = {
        "PGDATABASE": database,
        "PGPASSWORD": known["password"],
        # So that we know a timeout from another failure, and so that a session ends with its pg_dump.
        "PGOPTIONS": f"{options} -c lc_messages=C -c client_connection_check_interval=1000".lstrip(),
        "PGAPPNAME": name,
        # Not what the database has: the answer says that it is UTF-8.
        "PGCLIENTENCODING": encoding,
        "PGCONNECT_TIMEOUT": str(math.ceil(deadlines.dump_connect)),
        "PGSSLMODE": known["sslmode"],
        "PGGSSENCMODE": known["gssencmode"],
        "PGPASSFILE": known["passfile"],
        "LC_ALL": "C",
    }
    kept = {name: environ[name] for name in KEPT_VARIABLES if name in environ}
    return {**kept, **{name: value for name, value in ours.items() if value}}


class SchemaDump:
    """Hold one dump: `run` owns the child, whoever iterates reads what it writes, `aclose` ends it."""

    def __init__(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        run_as: RunAs,
        places: DumpPlaces,
        deadlines: Deadlines,
        *,
        name: str,
    ) -> None:
        self._argv, self._environ, self._run_as = argv, environ, run_as
        self._places, self._deadlines, self._name = places, deadlines, name
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._send, self._receive = trio.open_memory_channel[bytes](0)
        self._first: bytes | None = None
        self._stderr = bytearray()
        self._error: PostgresError | None = PostgresError("pg_dump was stopped")
        self._unusable: HostError | None = None
        self._has_begun = False

    async def run(self) -> None:
        """Run pg_dump to its end, to its limit, or until `aclose`; it waits for a place first."""
        self._has_begun = True
        total = self._deadlines.dump_total
        try:
            with trio.move_on_after(total) as limit, self._scope, self._send:
                await self._run_in_place()
            if limit.cancelled_caught:
                self._error = TimedOut(f"the dump, with the wait for its turn, took more than {total:g} s")
        except HostError as error:
            self._unusable = error
        except Exception as error:  # noqa: BLE001  (nobody else would hear of it; the reader finds the dump unfinished)
            log.error("pg_dump", error=cause_chain(error))
        finally:
            self._over.set()

    async def begin(self) -> bool:
        """Wait for the first of the text; return False if pg_dump wrote none.

        Raises PostgresError if it cannot be executed.
        """
        try:
            self._first = await self._receive.receive()
        except trio.EndOfChannel:
            await self._over.wait()
            if self._unusable is not None:
                raise PostgresError("failed to execute pg_dump") from self._unusable
            return False
        return True

    @property
    def is_utf8(self) -> bool:
        """Tell whether the text is UTF-8, as far as that depends on us."""
        return self._environ.get("PGCLIENTENCODING", UTF8) == UTF8

    @property
    def failure(self) -> PostgresError | None:
        """Return why pg_dump failed, None if it did not."""
        return self._error

    def __aiter__(self) -> SchemaDump:
        """Return the iterator over the text, itself."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next of the text; raise PostgresError at its end if pg_dump failed."""
        if self._first is not None:
            chunk, self._first = self._first, None
            return chunk
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            await self._over.wait()
            if self._error is not None:
                raise self._error from None
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """End pg_dump if it still runs and wait until it is gone."""
        self._scope.cancel()
        self._receive.close()
        if self._has_begun:
            with trio.CancelScope(shield=True):
                await self._over.wait()

    async def _run_in_place(self) -> None:
        await self._places.enter(self._name)
        try:
            await self._run_child()
        finally:
            self._places.end(self._name)

    async def _run_child(self) -> None:
        process = await spawn(self._argv, environ=self._environ, run_as=self._run_as, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain_stderr, process.stderr)
                async for chunk in process.stdout:
                    # It has read the catalog; from here on it waits for its reader.
                    self._places.leave(self._name)
                    await self._send.send(bytes(chunk))
            self._judge(await reap(process))
        finally:
            if process.returncode is None:
                await kill_politely(process, grace_seconds=GRACE_SECONDS)
            with trio.CancelScope(shield=True):
                await process.stdout.aclose()
                await process.stderr.aclose()

    async def _drain_stderr(self, stream: trio.abc.ReceiveStream) -> None:
        async for chunk in stream:
            self._stderr += chunk[: MAX_STDERR_BYTES - len(self._stderr)]

    def _judge(self, code: int) -> None:
        said = brief(self._stderr.decode(errors="replace"))
        if said:
            log.warning("pg_dump", said=said, code=code)
        self._error = None if code == 0 else self._failure(f"pg_dump failed with code {code}: {said}".rstrip(": "))

    def _failure(self, text: str) -> PostgresError:
        limits = self._deadlines
        if any(words in self._stderr for words in _LOCK_TIMEOUTS):
            return TimedOut(f"somebody holds a lock that the dump needs, for more than {limits.dump_lock:g} s")
        if _CONNECT_TIMEOUT in self._stderr:
            return TimedOut(f"Postgres does not accept a connection within {limits.dump_connect:g} s")
        return PostgresError(text)
