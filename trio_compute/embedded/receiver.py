"""The embedded safekeepers' ear: a receiver named walproposer that takes a primary's WAL as it is written.

Neon's Postgres pushes its WAL to the safekeepers; vanilla Postgres only knows standbys that pull. So this one connects
to the primary, stores what it sends, and acknowledges only what has reached the disk. With
`synchronous_standby_names=walproposer` a commit returns when that has happened.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from trio_compute.embedded.impostors import Guard
from trio_compute.embedded.timelines import Timeline
from trio_compute.embedded.wire import PROTOCOL_3, message
from trio_compute.errors import ComputeError, StorageError
from trio_compute.model.ids import Lsn

APPLICATION_NAME = "walproposer"
RETRY_SECONDS = 0.015
LONGEST_RETRY_SECONDS = 0.1
RETRY_GROWTH = 1.25
STANDBY_RETRY_SECONDS = 0.03
REFUSED_RETRY_SECONDS = 1.0
RECEIVE_BYTES = 256 * 1024
POSTGRES_EPOCH_SECONDS = 946_684_800
HEADER = struct.Struct("!cI")
WAL_DATA = struct.Struct("!cqqq")
KEEPALIVE = struct.Struct("!cqq?")
STATUS = struct.Struct("!cqqqq?")
SLOT = "wal_proposer_slot"
"""As Neon's own: the primary keeps what was not received yet, whatever its checkpoints would recycle."""

QUIET = "57"  # starting up or going down
EXISTS = "42710"
IN_USE = "55006"  # the slot, by our last connection or by somebody else
CROWDED = "53300"

Message = tuple[bytes, bytes]


class ReplicationError(StorageError):
    """Report an ErrorResponse of the primary."""

    def __init__(self, text: str, sqlstate: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


class Client:
    """Speak the replication protocol with one primary, over a stream that is connected."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self.parameters: dict[str, str] = {}
        self.pid: int | None = None

    async def messages(self) -> list[Message]:
        """Return the messages that have arrived, waiting for one; raise EOFError at the end."""
        while True:
            if found := self._whole_messages():
                return found
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                raise EOFError
            self._buffer += data

    def _whole_messages(self) -> list[Message]:
        found, at = [], 0
        while len(self._buffer) - at >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer, at)
            if len(self._buffer) - at < length + 1:
                break
            found.append((kind, bytes(self._buffer[at + HEADER.size : at + length + 1])))
            at += length + 1
        del self._buffer[:at]
        return found

    async def log_in(self, user: str) -> None:
        """Open a session of the replication kind, which trust must suffice for."""
        words = ("user", user, "replication", "true", "application_name", APPLICATION_NAME, "")
        body = struct.pack("!I", PROTOCOL_3) + b"".join(word.encode() + b"\0" for word in words)
        await self._stream.send_all(struct.pack("!I", len(body) + 4) + body)
        await self._until_ready()

    async def query(self, command: str) -> list[list[bytes | None]]:
        """Run a command that answers with rows."""
        await self._stream.send_all(message(b"Q", command.encode() + b"\0"))
        return await self._until_ready()

    async def _until_ready(self) -> list[list[bytes | None]]:
        rows: list[list[bytes | None]] = []
        failure: ReplicationError | None = None
        while True:
            try:
                arrived = await self.messages()
            except EOFError:
                # A fatal error is followed by nothing.
                raise failure or EOFError from None
            for kind, body in arrived:
                if kind == b"E":
                    failure = _error(body)
                elif kind == b"D":
                    rows.append(_row(body))
                elif kind == b"Z":
                    if failure is not None:
                        raise failure
                    return rows
                else:
                    self._note(kind, body)

    def _note(self, kind: bytes, body: bytes) -> None:
        if kind == b"R" and body != bytes(4):
            raise StorageError("the primary asks its safekeeper for a password")
        if kind == b"S":
            name, value, _ = body.decode(errors="replace").split("\0")
            self.parameters[name] = value
        elif kind == b"K":
            (self.pid,) = struct.unpack_from("!i", body)

    async def start_replication(self, lsn: Lsn, line: int) -> None:
        """Ask for WAL, which arrives as copy data."""
        try:
            await self.query(f"CREATE_REPLICATION_SLOT {SLOT} PHYSICAL RESERVE_WAL")
        except ReplicationError as error:
            if error.sqlstate != EXISTS:
                raise
        command = f"START_REPLICATION SLOT {SLOT} PHYSICAL {lsn} TIMELINE {line}"
        await self._stream.send_all(message(b"Q", command.encode() + b"\0"))

    async def acknowledge(self, lsn: Lsn) -> None:
        """Say up to where WAL is safe."""
        microseconds = int((time.time() - POSTGRES_EPOCH_SECONDS) * 1_000_000)
        await self._stream.send_all(message(b"d", STATUS.pack(b"r", lsn, lsn, lsn, microseconds, False)))


class Receiver:
    """Keep receiving from whichever of some ports is the primary's."""

    def __init__(self, timeline: Timeline, user: str, ports: tuple[int, ...], say: Callable[[str], object]) -> None:
        self._timeline = timeline
        self._user = user
        self._ports = ports
        self._say = say
        self._guard = Guard(user, APPLICATION_NAME, SLOT, say)
        self._last_trouble = ""
        self._watches: trio.Nursery | None = None
        self.connected = trio.Event()

    async def run(self) -> None:
        """Connect, receive, and connect again, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._watches = nursery
            for port in self._ports:
                nursery.start_soon(self._follow, port)

    async def _follow(self, port: int) -> None:
        pause = RETRY_SECONDS
        while True:
            try:
                stream = await connect(port)
            except OSError:  # no primary there, or not any more
                await trio.sleep(pause)
                pause = min(pause * RETRY_GROWTH, LONGEST_RETRY_SECONDS)
                continue
            pause = RETRY_SECONDS
            await trio.sleep(await self._talk(stream, port))

    async def _talk(self, stream: trio.SocketStream, port: int) -> float:
        """Receive from a connection until it ends, however it does; return how long to wait before the next."""
        try:
            return await self._session(stream, port)
        except ReplicationError as error:
            return await self._overcome(error, port)
        except ComputeError as error:
            return self._complain(error)
        except (OSError, EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            return RETRY_SECONDS

    async def _overcome(self, error: ReplicationError, port: int) -> float:
        """Do what can be done about a refusal; return how long to wait before the next attempt."""
        if error.sqlstate.startswith(QUIET):
            return RETRY_SECONDS
        if error.sqlstate not in {IN_USE, CROWDED}:
            return self._complain(error)
        try:
            await self._guard.make_room(port, crowded=error.sqlstate == CROWDED)
        except ComputeError as failure:
            return self._complain(failure)
        return RETRY_SECONDS

    def _complain(self, error: ComputeError) -> float:
        if str(error) != self._last_trouble:
            self._last_trouble = str(error)
            self._say(f"the safekeepers cannot receive from the primary: {error}")
        return REFUSED_RETRY_SECONDS

    async def _session(self, stream: trio.SocketStream, port: int) -> float:
        async with stream:
            client = Client(stream)
            await client.log_in(self._user)
            if client.parameters.get("in_hot_standby") == "on":
                return STANDBY_RETRY_SECONDS
            if client.pid is not None:
                self._guard.ours.append(client.pid)
            await self._hold_place(client, port)
        return RETRY_SECONDS

    async def _hold_place(self, client: Client, port: int) -> None:
        """Receive, and see to it that nobody else of our name does."""
        async with self._timeline.wal_lock:
            scope = self._timeline.session = trio.CancelScope()
            watch = trio.CancelScope()
            assert self._watches is not None
            self._watches.start_soon(self._guard.watch, port, watch)
            try:
                with scope:
                    await self._receive(client)
            finally:
                watch.cancel()
                self._timeline.session = None
                self._timeline.wal.close()

    async def _receive(self, client: Client) -> None:
        (_, line_text, *_), *_ = await client.query("IDENTIFY_SYSTEM")
        line = int(line_text or b"0")
        position = await self._begin(client, line)
        await client.start_replication(position, line)
        while True:
            asked = wrote = False
            for kind, body in await client.messages():
                if kind == b"E":
                    raise _error(body)
                if kind == b"d" and body[:1] == b"w":
                    _, at, _, _ = WAL_DATA.unpack_from(body)
                    data = body[WAL_DATA.size :]
                    self._timeline.wal.write(at, data, line)
                    position, wrote = Lsn(at + len(data)), True
                elif kind == b"d" and body[:1] == b"k":
                    asked = asked or KEEPALIVE.unpack(body)[3]
                elif kind == b"W":
                    self.connected.set()
            if wrote:
                await trio.to_thread.run_sync(self._timeline.wal.flush)
                self._timeline.received = position
            if wrote or asked:
                await client.acknowledge(position)

    async def _begin(self, client: Client, line: int) -> Lsn:
        start, known_line = await trio.to_thread.run_sync(self._timeline.begin_stream)
        if line < known_line:
            raise StorageError("this primary is of the time before another one was promoted")
        if line > known_line:
            ((_, history),) = await client.query(f"TIMELINE_HISTORY {line}")
            start = await trio.to_thread.run_sync(self._timeline.fork, line, history or b"")
        return start


async def connect(port: int) -> trio.SocketStream:
    """Connect to a port of loopback; raise OSError if nobody listens there.

    A closed port that the kernel may give to clients can be given to this very connection, which then has itself as
    its peer and holds the port that Postgres needs. It is reset, so that not even TIME_WAIT stays of it.
    """
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        if stream.socket.getsockname() == stream.socket.getpeername():
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise ConnectionRefusedError(f"port {port} answered itself")
    except OSError:  # of our own, or there is no peer any more
        await trio.aclose_forcefully(stream)
        raise
    return stream


@asynccontextmanager
async def open_receiver(
    timeline: Timeline, user: str, *ports: int, say: Callable[[str], object] = lambda _text: None
) -> AsyncIterator[Receiver]:
    """Receive from the primary that will be at one of the ports, for as long as the block runs."""
    receiver = Receiver(timeline, user, ports, say)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run)
        yield receiver
        nursery.cancel_scope.cancel()


def _error(body: bytes) -> ReplicationError:
    fields = {field[:1]: field[1:].decode(errors="replace") for field in body.split(b"\0") if field}
    return ReplicationError(fields.get(b"M", "unknown error"), fields.get(b"C", "XX000"))


def _row(body: bytes) -> list[bytes | None]:
    (count,) = struct.unpack_from("!H", body)
    values: list[bytes | None] = []
    at = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(None if length < 0 else body[at : at + length])
        at += max(length, 0)
    return values
