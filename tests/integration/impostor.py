"""A tenant's receiver that calls itself what it likes and says that it has everything, at once and for ever (T-19)."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

PROTOCOL_3 = 196608
FAR_AWAY = 0x7FFFFFFF_00000000
LIE_SECONDS = 0.005


class Ended(Exception):
    """Report that the server refused or ended a connection, with its words."""


class Impostor:
    """Speak the replication protocol as somebody who is no superuser; trust must suffice. The stack hangs up."""

    def __init__(self, stack: ExitStack, port: int, user: str, application_name: str = "", database: str = "") -> None:
        self._socket = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        self._buffer = b""
        words = ["user", user, *(["application_name", application_name] if application_name else [])]
        words += ["replication", "database", "database", database] if database else ["replication", "true"]
        body = struct.pack("!I", PROTOCOL_3) + b"".join(word.encode() + b"\0" for word in [*words, ""])
        self._socket.sendall(struct.pack("!I", len(body) + 4) + body)
        self._until(b"Z")

    def query(self, command: str, until: bytes = b"Z") -> list[list[bytes]]:
        """Run a command and return its rows."""
        body = command.encode() + b"\0"
        self._socket.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
        return self._until(until)

    def receive_physical(self, slot: str = "") -> None:
        """Begin to receive WAL from where it ends now."""
        ((_, line, lsn, _),) = self.query("IDENTIFY_SYSTEM")
        which = f"SLOT {slot} " if slot else ""
        self.query(f"START_REPLICATION {which}PHYSICAL {lsn.decode()} TIMELINE {line.decode()}", until=b"W")

    def receive_logical(self, slot: str) -> None:
        """Begin to decode from a slot of our own."""
        self.query(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL test_decoding")
        self.query(f"START_REPLICATION SLOT {slot} LOGICAL 0/0", until=b"W")

    def lie(self) -> None:
        """Say that everything has arrived, been flushed and applied, however much there will be."""
        body = struct.pack("!cqqqqB", b"r", FAR_AWAY, FAR_AWAY, FAR_AWAY, 0, 0)
        self._socket.sendall(b"d" + struct.pack("!I", len(body) + 4) + body)

    def lie_until(self, stopped: threading.Event) -> None:
        """Lie again and again; raise Ended or OSError if the server ends this before `stopped` does."""
        while not stopped.is_set():
            self.lie()
            if select.select([self._socket], [], [], LIE_SECONDS)[0]:
                self._message()

    def _until(self, wanted: bytes) -> list[list[bytes]]:
        rows: list[list[bytes]] = []
        while True:
            kind, body = self._message()
            if kind == b"D":
                rows.append(_row(body))
            elif kind == wanted:
                return rows

    def _message(self) -> tuple[bytes, bytes]:
        kind, length = struct.unpack("!cI", self._exactly(5))
        body = self._exactly(length - 4)
        if kind == b"E":
            raise Ended(body.replace(b"\0", b" ").decode(errors="replace"))
        return kind, body

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self._socket.recv(65536)
            if not data:
                raise Ended("hung up")
            self._buffer += data
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


def _row(body: bytes) -> list[bytes]:
    values, at = [], 2
    for _ in range(struct.unpack_from("!H", body)[0]):
        (length,) = struct.unpack_from("!i", body, at)
        values.append(body[at + 4 : at + 4 + max(length, 0)])
        at += 4 + max(length, 0)
    return values


Attack = Callable[[int, ExitStack], Impostor]


class Lies:
    """Hold what became of impostors that lie in threads of their own."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.ended = threading.Event()
        self.words: list[str] = []

    def tell(self, attack: Attack, port: int) -> None:
        try:
            with ExitStack() as stack:
                attack(port, stack).lie_until(self.stopped)
        except (Ended, OSError) as ended:  # one may also be ended while it only begins
            self.words.append(str(ended))
            self.ended.set()


@contextmanager
def lying(port: int, *attacks: Attack) -> Iterator[Lies]:
    """Let impostors lie for as long as the block runs."""
    lies = Lies()
    threads = [threading.Thread(target=lies.tell, args=(attack, port)) for attack in attacks]
    for thread in threads:
        thread.start()
    try:
        yield lies
    finally:
        lies.stopped.set()
        for thread in threads:
            thread.join(timeout=20)
