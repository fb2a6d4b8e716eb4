"""Look at a compute from outside without slowing it: a bare socket client and readings of /proc."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CONNECT_PAUSE_SECONDS = 0.001
ANSWER_TIMEOUT_SECONDS = 120.0
MEGABYTE = 1e6


class Answer(NamedTuple):
    """Hold an HTTP answer."""

    status: int
    body: bytes


class FirstAnswer(NamedTuple):
    """Hold the monotonic moments at which connect() first succeeded and the first 200 was complete."""

    connected: float
    answered: float


def fetch(port: int, method: str, path: str, *, token: str | None = None, body: bytes = b"") -> Answer:
    """Send one request on a connection of its own and return the answer; blocking, raises OSError."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_SECONDS) as sock:
        return _exchange(sock, method, path, token, body)


def wait_for_first_200(port: int, token: str, *, timeout_seconds: float = 30.0) -> FirstAnswer:
    """Knock every millisecond until somebody listens, then ask `/status` until it is 200; blocking.

    A request that is sent before the server accepts waits in the backlog, so usually only one is sent.
    """
    deadline = time.monotonic() + timeout_seconds
    connected = 0.0
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=timeout_seconds) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connected = connected or time.monotonic()
                answer = _exchange(sock, "GET", "/status", token, b"")
                if answer.status == 200:
                    return FirstAnswer(connected, time.monotonic())
        except ConnectionError:
            pass
        time.sleep(CONNECT_PAUSE_SECONDS)
    raise TimeoutError(f"no 200 from port {port} within {timeout_seconds:.0f} s")


def _exchange(sock: socket.socket, method: str, path: str, token: str | None, body: bytes) -> Answer:
    head = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "connection: close"]
    if token is not None:
        head.append(f"authorization: Bearer {token}")
    if body or method == "POST":
        head += ["content-type: application/json", f"content-length: {len(body)}"]
    sock.sendall("\r\n".join([*head, "", ""]).encode() + body)
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(sock)
    raw_head, _, received = data.partition(b"\r\n\r\n")
    status_line, *fields = raw_head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    length = _content_length(headers)
    while len(received) < length:
        received += _receive(sock)
    return Answer(int(status_line.split()[1]), received)


def _receive(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise ConnectionResetError("the answer was cut")
    return data


def _content_length(headers: Mapping[str, str]) -> int:
    if "content-length" not in headers:
        raise ValueError("an answer without content-length is not understood here")
    return int(headers["content-length"])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process with all its threads has used, in nanosecond steps."""
    # The kernel's CPU-time clock of another process, as clock_getcpuclockid(3) would return it: the same figure as
    # utime + stime of /proc/PID/stat, which only counts in steps of 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


def memory_megabytes(pid: int) -> dict[str, float]:
    """Return resident and proportional memory (`rss`, `pss`) and the highest resident size (`peak`), in 10^6 bytes."""
    found = _kilobytes(Path(f"/proc/{pid}/status"), {"VmRSS": "rss", "VmHWM": "peak"})
    try:
        found |= _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), {"Pss": "pss"})
    except OSError:
        return found
    return found


def _kilobytes(path: Path, names: Mapping[str, str]) -> dict[str, float]:
    fields = (line.partition(":") for line in path.read_text(encoding="ascii", errors="replace").splitlines())
    return {names[key]: int(value.split()[0]) * 1024 / MEGABYTE for key, _, value in fields if key in names}


def filesystem(path: Path) -> str:
    """Return the type of the filesystem that holds a path."""
    resolved, best, kind = path.resolve(), -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        mount = Path(left.split()[4].encode().decode("unicode_escape"))
        if resolved.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), right.split()[0]
    return kind
