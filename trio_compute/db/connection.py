"""The only way to speak SQL here: psycopg's protocol generators, driven by Trio.

psycopg knows *what* to say to Postgres; this module decides *how to wait* and what a cancellation means:

- a query that is cut short is cancelled on the server too, and its connection comes back at rest, or closed;
- COMMIT and ROLLBACK are not cut short: a cancellation grants them `settle_seconds`, then closes the connection;
- a cancelled pipeline (`executemany` is one) ends with its connection closed;
- a server that gave no cancellation key, as Neon's pageserver may, is simply hung up on.
psycopg is pinned to 3.3.9 because this relies on its internals.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import select
import socket
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg
import trio
from psycopg import AsyncTransaction, generators, pq
from psycopg.errors import CancellationTimeout, _WaitTimeout
from psycopg.rows import Row, TupleRow
from psycopg.waiting import Ready, Wait

from trio_compute.db.target import Target
from trio_compute.errors import PostgresError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
    from typing import Self

    from psycopg import AsyncPipeline
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn

CONNECT_TIMEOUT_SECONDS = 10.0
CANCEL_RETRY_SECONDS = 0.25  # a cancel request that overtakes its query has no effect, so it is repeated

T = TypeVar("T")
_CUT_SHORT = (trio.Cancelled, KeyboardInterrupt, SystemExit)
_log = logging.getLogger(__name__)


class ConnectFailed(PostgresError):
    """Report that no session could be opened; the text is libpq's and never contains the password."""


class ConnectTimedOut(ConnectFailed):
    """Report that the server did not open a session in time."""


class _Run(Generic[T]):
    """Drive one protocol generator; `finish` may be awaited again after a cancellation cut it short."""

    def __init__(self, gen: Generator[Any, Any, T], pgconn: PGconn) -> None:
        self._gen = gen
        self._pgconn = pgconn
        self._started = False

    async def finish(self) -> T:
        ready: int | None = Ready.NONE if self._started else None
        self._started = True
        try:
            while True:
                wanted = self._gen.send(ready)
                # Connecting generators name their socket, the others wait for the connection's.
                fileno, wanted = wanted if isinstance(wanted, tuple) else (self._pgconn.socket, wanted)
                ready = await _wait_ready(fileno, wanted)
        except StopIteration as done:
            result: T = done.value
            return result
        except (OSError, trio.ClosedResourceError, trio.BusyResourceError) as error:
            raise psycopg.OperationalError("the connection was closed or used by another task") from error


async def _wait_ready(fileno: int, wanted: int) -> int:
    if wanted == Wait.R:
        await trio.lowlevel.wait_readable(fileno)
        return Ready.R
    # Trio waits for one direction; a nested epoll turns "either" into "readable". Errors make both ready for libpq.
    with select.epoll() as either:
        either.register(fileno, select.EPOLLOUT | (select.EPOLLIN if wanted & Wait.R else 0))
        await trio.lowlevel.wait_readable(either.fileno())
        found = sum(events for _, events in either.poll(0))
    return (Ready.W if found & ~select.EPOLLIN else 0) | (Ready.R if found & ~select.EPOLLOUT else 0)


async def _insist(step: Callable[[], Awaitable[T]], grace_seconds: float) -> T:
    """Await a step that can be resumed; a cancellation becomes effective only after the grace."""
    try:
        return await step()
    except trio.Cancelled:
        with trio.CancelScope(shield=True, relative_deadline=grace_seconds):
            return await step()
        raise


def _drain(pgconn: PGconn) -> PQGen[None]:
    """Drop what the server still sends until it is ready for another command."""
    if pgconn.pipeline_status:
        pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    while pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
        result = yield from generators.fetch(pgconn)
        status = result.status if result else None
        if status == pq.ExecStatus.COPY_BOTH:
            raise psycopg.NotSupportedError("replication cannot be drained")
        if status == pq.ExecStatus.COPY_IN:
            while pgconn.put_copy_end(b"cancelled") == 0:
                yield Wait.W
            yield from generators.send(pgconn)
        while status == pq.ExecStatus.COPY_OUT and (size := pgconn.get_copy_data(1)[0]) >= 0:
            if size == 0:
                while not (yield Wait.R):
                    pass
                pgconn.consume_input()


@contextmanager
def _environment_hidden() -> Iterator[None]:
    """Hide PG* variables; libpq obeys PGSERVICE, PGTZ and others whatever its parameters say. Never await inside."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(hidden)


async def _addresses(host: str) -> list[str]:
    """Return the addresses of a host, found without blocking; none for a unix socket."""
    if host.startswith(("/", "@")):
        return []
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return [host]
    try:
        found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise psycopg.OperationalError(f'could not resolve host "{host}": {error}') from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _conninfo(parameters: dict[str, str]) -> bytes:
    """Return libpq's connection string; psycopg's own function wants text, and names of databases need not be that."""
    quoted = (value.replace("\\", "\\\\").replace("'", "\\'") for value in parameters.values())
    pairs = (f"{name}='{value}'" for name, value in zip(parameters, quoted, strict=True))
    return " ".join(pairs).encode(errors="surrogateescape")


async def _establish(target: Target) -> PGconn:
    """Open a libpq connection; finish it on any failure, a cancellation included."""
    addresses = await _addresses(target.host)
    hosts = {"host": ",".join([target.host] * len(addresses)), "hostaddr": ",".join(addresses)} if addresses else {}
    with _environment_hidden():
        pgconn = pq.PGconn.connect_start(_conninfo(target.conninfo() | hosts))
    try:
        status = pq.PollingStatus.WRITING
        while pgconn.status != pq.ConnStatus.BAD and status != pq.PollingStatus.OK:
            wait = trio.lowlevel.wait_readable if status == pq.PollingStatus.READING else trio.lowlevel.wait_writable
            await wait(pgconn.socket)
            with _environment_hidden():
                status = pq.PollingStatus(pgconn.connect_poll())
        if pgconn.status == pq.ConnStatus.BAD:
            raise psycopg.OperationalError(pgconn.get_error_message().strip())
        pgconn.nonblocking = 1
    except BaseException:
        pgconn.finish()
        raise
    return pgconn


class TrioConnection(psycopg.AsyncConnection[Row]):
    """A psycopg connection for Trio; tasks that share one queue for its lock."""

    lock: trio.Lock  # type: ignore[assignment]
    cancel_seconds = 5.0  # how long a cancelled query may take to come to rest
    settle_seconds = 5.0  # how long COMMIT and ROLLBACK may go on after a cancellation

    def __init__(self, pgconn: PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self.lock = trio.Lock()

    @classmethod
    async def connect(  # type: ignore[override]
        cls, target: Target, *, autocommit: bool = True, connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    ) -> Self:
        """Open a session that the caller must close; raise ConnectFailed if there is none in time."""
        try:
            with trio.move_on_after(connect_timeout_seconds):
                connection = cls(await _establish(target))
                connection._autocommit = autocommit
                return connection
        except psycopg.Error as error:
            raise ConnectFailed(str(error).strip()) from error
        raise ConnectTimedOut(f"no session at {target.host}:{target.port} within {connect_timeout_seconds:g} seconds")

    async def wait(self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None) -> T:  # noqa: ARG002
        """Run a protocol generator; when cut short, bring the connection to rest or close it. `interval` is unused."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            with trio.move_on_after(math.inf if timeout is None else timeout):
                return await _Run(gen, self.pgconn).finish()
            raise _WaitTimeout("wait timeout expired")
        except _CUT_SHORT:
            await self._come_to_rest()
            raise
        finally:
            with suppress(Exception):  # some generators still want to talk to the server
                gen.close()

    async def _come_to_rest(self) -> None:
        """Cancel what runs on the server and drop what it still sends; hang up on pipelines and if that fails."""
        pipelined = bool(self.pgconn.pipeline_status)
        drain = _Run(_drain(self.pgconn), self.pgconn)
        with suppress(psycopg.Error), trio.CancelScope(shield=True, relative_deadline=self.cancel_seconds):
            while self._active() and self.pgconn.backend_pid:  # without a pid, the server takes no cancel request
                with suppress(psycopg.Error):
                    await self.cancel_safe()
                with trio.move_on_after(CANCEL_RETRY_SECONDS):
                    await drain.finish()
        if self._active() or pipelined:
            _log.warning("postgres_hung_up pid=%s pipelined=%s", self.pgconn.backend_pid, pipelined)
            self._hang_up()

    def _active(self) -> bool:
        return self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask the server to cancel the current query; raise CancellationTimeout if it cannot be asked in time."""
        if not self._should_cancel():
            return
        request = self.pgconn.cancel_conn()
        try:
            request.start()
            with trio.fail_after(timeout):
                await _Run(generators.cancel(request), self.pgconn).finish()
        except trio.TooSlowError:
            raise CancellationTimeout("the server did not take the cancel request in time") from None
        finally:
            request.finish()

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        """Ask for a cancellation even within a cancelled scope; psycopg calls this to leave COPY and stream()."""
        with suppress(psycopg.Error), trio.CancelScope(shield=True):
            await self.cancel_safe(timeout=timeout)

    async def close(self) -> None:
        """Close the connection, first cancelling on the server what still runs; never cut short."""
        self._closed = True
        await self._come_to_rest()
        self._hang_up()

    def _hang_up(self) -> None:
        with suppress(psycopg.Error):
            trio.lowlevel.notify_closing(self.pgconn.socket)
        self.pgconn.finish()

    async def commit(self) -> None:
        """Commit; a cancellation waits for the outcome, for `settle_seconds` at most."""
        await self._settle(self._commit_gen())

    async def rollback(self) -> None:
        """Roll back; a cancellation waits for the outcome, for `settle_seconds` at most."""
        await self._settle(self._rollback_gen())

    async def _settle(self, gen: PQGen[T]) -> T:
        """Run a generator that decides a transaction; if it does not end in time, close the connection."""
        try:
            await _insist(self.lock.acquire, self.settle_seconds)
            try:
                return await _insist(_Run(gen, self.pgconn).finish, self.settle_seconds)
            finally:
                self.lock.release()
        except _CUT_SHORT:
            await self.close()
            raise

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[AsyncTransaction]:
        """Open a transaction, or a savepoint in one; it is settled even if the scope around it is cancelled."""
        piped = self.pipeline if self._pipeline else nullcontext
        async with piped(), _Transaction(self, savepoint_name, force_rollback) as transaction, piped():
            yield transaction

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[AsyncPipeline]:
        """Switch to pipeline mode; leaving it by a cancellation closes the connection."""
        try:
            async with super().pipeline() as pipeline:
                yield pipeline
        except BaseException as error:
            if not isinstance(error, Exception):
                await self.close()
                self._pipeline = None
            raise


class _Transaction(AsyncTransaction):
    """A transaction block whose end does not depend on the cancel scope around it."""

    _conn: TrioConnection[Any]

    async def __aenter__(self) -> Self:
        self._check_enter()
        try:
            async with self._conn.lock:
                await self._conn.wait(self._enter_gen())
        except BaseException as error:
            if self.status != self.Status.NOT_STARTED:  # else BEGIN was not even sent
                await self.__aexit__(type(error), error, None)
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> bool:  # noqa: PYI036
        if self.pgconn.status == pq.ConnStatus.OK:
            return await self._conn._settle(self._exit_gen(*exc_info))
        self.status = self.Status.FAILED
        return False


@asynccontextmanager
async def open_connection(
    target: Target, *, connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS, autocommit: bool = True
) -> AsyncIterator[TrioConnection[TupleRow]]:
    """Open a session and close it at the end; raise ConnectFailed, but let SQL errors in the block be psycopg's."""
    connection: TrioConnection[TupleRow] = await TrioConnection.connect(
        target, autocommit=autocommit, connect_timeout_seconds=connect_timeout_seconds
    )
    try:
        yield connection
    finally:
        await connection.close()
